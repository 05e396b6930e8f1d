//! One run, and the search for the smallest failing run.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use consensus_core::{Member, MemberKind, NodeId};

use crate::{
    guest::AnyGuest,
    host::{GuestHosting, panic_text},
    plan::{Fault, Plan},
    recorder::Recorder,
    trace::{Trace, What},
    world::{MS, World},
};

/// Settings of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seed that determines the whole run.
    pub seed: u64,
    /// Whether to keep the trace.
    pub keeps_trace: bool,
    /// Whether to replay the calls of each node from its encoded state, and compare the results.
    pub replays: bool,
    /// Numbers of faults to leave out.
    pub skip: BTreeSet<u64>,
    /// Whether operators make mistakes.
    pub mistakes: bool,
    /// Simulated milliseconds after which the run is stopped; 0 for no limit.
    pub stop_after_ms: u64,
    /// A state machine to run on every node. A run with one differs from a run without: logs are shorter, and at the end every
    /// member is left behind and crashed once more.
    pub guest: Option<AnyGuest>,
}

/// Result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Message of the check that failed, if any.
    pub failure: Option<String>,
    /// Trace of the run.
    pub trace: Trace,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// Number of occurrences of each event.
    pub reached: BTreeMap<&'static str, u64>,
    /// Number of injected faults.
    pub faults_injected: u64,
    /// Number of client operations.
    pub operations: u64,
    /// Number of replayed calls.
    pub replayed: u64,
    /// Highest number of a fault.
    pub last_fault: u64,
    /// Last state of the cluster, one line per node.
    pub overview: String,
    /// Parameters of the run.
    pub plan: Plan,
}

/// Runs a seed.
#[must_use]
pub fn run(options: &Options) -> Outcome {
    let mut plan = Plan::new(options.seed);
    if options.guest.is_some() {
        plan = plan.with_short_logs();
    }
    if options.mistakes {
        plan = plan.with_mistakes(options.seed);
    }
    let mut world = World::new(options.seed, plan.clone());
    if plan.has(Fault::Meet) {
        world = world.with_other_cluster();
    }
    world.trace.keeps = options.keeps_trace;
    world.recorder = options.replays.then(Recorder::default);
    world.skip.clone_from(&options.skip);
    world.guest = options.guest.clone().map(GuestHosting::new);
    let result = catch_unwind(AssertUnwindSafe(|| world.live(options.stop_after_ms)));
    let failure = result.err().map(|panic| panic_text(&*panic));
    if let Some(text) = failure.clone() {
        let now = world.now;
        world.trace.note(now, None, || What::Failure { text });
    }
    if let Some(guest) = &world.guest {
        world.checks.reached.extend(guest.reached());
    }
    Outcome {
        failure,
        simulated_us: world.now,
        faults_injected: world.checks.faults_injected,
        operations: world.clients.iter().map(|client| client.history.len() as u64).sum(),
        replayed: world.recorder.as_ref().map_or(0, |recorder| recorder.replayed),
        last_fault: world.last_fault,
        overview: world.overview(),
        reached: std::mem::take(&mut world.checks.reached),
        trace: std::mem::take(&mut world.trace),
        plan,
    }
}

impl World {
    /// Runs with faults; then without faults and requests, so that the cluster must converge; then it must serve requests.
    fn live(&mut self, stop_after_ms: u64) {
        self.begin();
        let fault_period_ms = self.plan.fault_period_ms;
        if stop_after_ms > 0 {
            return self.run_for(stop_after_ms * MS);
        }
        self.run_for(fault_period_ms * MS);
        self.heal();
        // No new requests arrive that could help stuck ones along.
        self.quiet = true;
        self.run_for(4_000 * MS);
        if self.plan.has_mistakes() {
            self.check_contradictions();
            if !self.has_sound_quorum() {
                return self.checks.reach("no sound quorum was left");
            }
        }
        self.delivered = 0;
        self.run_for(4_000 * MS);
        self.check_converged();
        let heartbeats = 2 * 4_000 * 5 / self.plan.election_ms * (self.nodes.len() as u64 - 1);
        assert!(self.delivered < 4 * heartbeats + 100, "{} messages in an idle cluster", self.delivered);
        self.check_other_cluster();
        self.other = None;
        self.disrupt();
        self.run_stall_drill();
        self.quiet = false;
        let before = self.checks.answered;
        self.run_for(5_000 * MS);
        assert!(
            self.checks.answered > before,
            "liveness: no request was answered after all faults had ended\n{}",
            self.overview()
        );
        if self.guest.is_some() {
            self.run_snapshot_drill();
        }
        self.quiet = true;
        self.run_for(3_000 * MS);
        self.check_converged();
        let membership = self.newest_membership();
        let committed: Vec<_> = self.checks.committed.values().copied().collect();
        if self.checks.holds() {
            for id in committed {
                assert!(self.is_on_quorum(id, &membership), "committed {id} is lost at the end");
            }
            self.check_histories();
        }
        for up in self.nodes.iter_mut().filter_map(|node| node.up.as_mut()) {
            up.machine.compare_guest();
        }
    }

    fn heal(&mut self) {
        self.faults_enabled = false;
        self.blocked.clear();
        self.end_operations();
        for id in 0..self.nodes.len() as u64 {
            let node = self.node_mut(NodeId(id));
            (node.paused_until, node.slow_disk) = (0, false);
            (node.disk_stalls_until, node.apply_stalls_until) = (0, 0);
            (node.no_snapshot_until, node.no_room_until) = (0, 0);
            node.disk.fill(false);
            node.disk.fail(false);
            if node.up.is_none() {
                self.restart(NodeId(id));
            }
        }
    }

    /// Checks that an isolated node does not depose the leader when it returns (D §9.6, §4.2.3).
    fn disrupt(&mut self) {
        let membership = self.newest_membership();
        let Some(leader) = self.leader() else { return };
        let term = self.node(leader).raft().map(consensus_raft_protocol::Raft::term);
        let follower = membership.voters().find(|id| *id != leader && self.counts_in(*id, &membership));
        let Some(follower) = follower.filter(|_| !self.plan.priorities) else { return };
        if membership.quorum_value(|id| id != follower && self.counts_in(id, &membership)) != Some(true) {
            return;
        }
        self.cut_off(follower);
        self.run_for(3_000 * MS);
        self.blocked.clear();
        self.run_for(2_000 * MS);
        let now = self.leader().map(|id| (id, self.node(id).raft().map(consensus_raft_protocol::Raft::term)));
        assert!(
            now == Some((leader, term)),
            "I12: {follower} was isolated and deposed leader {leader} when it returned: {now:?}"
        );
        self.check_converged();
    }

    /// Checks that the cluster works without a node whose calls do not return, even if it is the leader.
    fn run_stall_drill(&mut self) {
        let (disk, apply) = (self.plan.has(Fault::StallDisk), self.plan.has(Fault::StallApply));
        let membership = self.newest_membership();
        let Some(leader) = self.leader().filter(|_| disk || apply) else { return };
        let others = |id| id != leader && self.counts_in(id, &membership);
        let can_lead = membership.members().keys().any(|id| others(*id) && membership.can_lead(*id));
        if !can_lead || membership.quorum_value(others) != Some(true) {
            return;
        }
        let node = self.node_mut(leader);
        let until = if disk { &mut node.disk_stalls_until } else { &mut node.apply_stalls_until };
        *until = u64::MAX;
        self.quiet = false;
        self.run_for(5_000 * MS);
        let before = self.checks.answered;
        self.run_for(3_000 * MS);
        self.checks.reach("cluster worked without a stalled node");
        assert!(
            self.checks.answered > before,
            "liveness: no request was answered while node {leader}, the former leader, is stalled\n{}",
            self.overview()
        );
        let node = self.node_mut(leader);
        (node.disk_stalls_until, node.apply_stalls_until) = (0, 0);
    }

    fn cut_off(&mut self, cut: NodeId) {
        let others = (0..self.nodes.len() as u64).filter(|id| *id != cut.0);
        self.blocked = others.flat_map(|id| [(id, cut.0), (cut.0, id)]).collect();
    }

    /// With a guest: each member in turn lags behind the purged log, is sent a snapshot, crashes, and restarts from its
    /// flushed state. Faults cause that only in some seeds, but most mistakes of state machines show there.
    fn run_snapshot_drill(&mut self) {
        let has_machine = |(_, member): &(&NodeId, &Member)| member.kind != MemberKind::Witness;
        for (id, _) in self.newest_membership().members().iter().filter(has_machine) {
            self.cut_off(*id);
            self.run_for(1_000 * MS);
            (0..self.nodes.len() as u64).for_each(|other| self.compact(NodeId(other), 0));
            self.blocked.clear();
            self.run_for(1_200 * MS);
            self.crash(*id, false);
            self.run_for(1_600 * MS);
        }
    }
}

/// Leaves out as many faults as possible while the run still fails: first halves, then single ones. Returns the
/// options and the outcome of the smallest run; `None` if the run does not fail.
#[must_use]
pub fn shrink(options: &Options) -> Option<(Options, Outcome)> {
    let first = run(options);
    first.failure.as_ref()?;
    let mut best = options.clone();
    let mut left: Vec<u64> = (1..=first.last_fault).filter(|number| !options.skip.contains(number)).collect();
    let mut piece = left.len().div_ceil(2);
    while piece > 0 && !left.is_empty() {
        let mut at = 0;
        while at < left.len() {
            let end = (at + piece).min(left.len());
            let mut candidate = best.clone();
            candidate.skip.extend(&left[at..end]);
            if run(&candidate).failure.is_some() {
                best = candidate;
                left.drain(at..end);
            } else {
                at = end;
            }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    let outcome = run(&Options { keeps_trace: true, ..best.clone() });
    Some((best, outcome))
}
