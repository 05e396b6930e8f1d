//! The engine's task: it owns the protocol, steps it with events and carries out its outputs.

mod compaction;
mod forward;
mod inline;
mod members;
mod messages;
mod reads;
mod retry;
mod room;
mod snapshots;
mod stall;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use compaction::Compaction;
use consensus_core::{
    ClusterId, EngineStatus, Entry, Health, LogBatch, LogId, LogIndex, LogStorage, Membership,
    NetworkTransport, NodeId, Payload, PeerStatus, ProposeError, Reachability, ReadError, Role,
    StateMachineError,
};
use consensus_raft_protocol::{Append, Event, Output, Raft};
use forward::Forwarding;
pub(crate) use forward::reencode as reencode_forwarded;
use inline::InlineWatch;
use members::PendingRequests;
use messages::message_of;
use reads::{Freshness, Reads};
use retry::SnapshotOutages;
use room::{FullMembers, NoRoom};
use stall::Calls;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::Instrument;

use crate::{
    RaftConfig,
    admission::Admission,
    apply_thread::{AppliedWaiters, Job, describe, take_all},
    cache::EntryCache,
    flight::Recorded,
    inbox::{Arrival, FlushedFor, Inbox, Input},
    latency::Latency,
    measure,
    snapshot_send::SendFailure,
    waiters::{Waiter, Waiters},
    worker::{self, Worker},
};

pub(crate) struct Driver {
    config: RaftConfig,
    raft: Recorded,
    started: Instant,
    /// Time of the current turn since `started`. It is read after the inputs of the turn were taken, so it is later than
    /// their arrival: decisions that depend on it, such as about a lease, are made between a call and its response.
    now: Duration,
    /// The same time on the system's clock, for metrics.
    turn_began: std::time::Instant,
    stages: measure::Stages,
    round_trips: measure::RoundTrips,
    transport: Arc<dyn NetworkTransport>,
    storage: Arc<dyn LogStorage>,
    inbox: Inbox,
    inputs: mpsc::UnboundedReceiver<Input>,
    /// Inputs of the current turn.
    turn: Vec<Input>,
    /// Inputs from workers that run on this task, to be processed in this turn.
    reports: Vec<Input>,
    status: watch::Sender<Arc<EngineStatus>>,
    writer: Worker<LogBatch>,
    applier: Worker<Job>,
    /// Work in the background: at most one flush for compaction, and one flush and one read of the log for each peer.
    background: Vec<JoinHandle<()>>,
    /// Simulated latency of background work.
    background_latency: Option<Latency>,
    cache: EntryCache,
    /// Entries of the message that is being processed.
    incoming: Vec<Entry>,
    proposal_batch: ProposalBatch,
    waiters: Waiters,
    /// Limits the proposals in flight.
    proposals: Arc<Admission>,
    /// Identifies this incarnation of the node.
    incarnation: u64,
    forwarding: Forwarding,
    reads: Reads,
    requests: PendingRequests,
    /// Set during a shutdown: when this leader stops waiting for a successor, and the caller to notify.
    leaving: Option<(Duration, Option<oneshot::Sender<()>>)>,
    /// Configuration whose endpoints were passed to the transport.
    addressed: Arc<Membership>,
    /// Cluster identity that was passed to the transport.
    cluster: ClusterId,
    /// Removed members, and when the transport is to remove their endpoints.
    retired: BTreeMap<NodeId, Duration>,
    freshness: Freshness,
    /// Set while entries have no room on the disk.
    no_room: Option<NoRoom>,
    full_members: FullMembers,
    /// Why the latest snapshot that arrived was refused, and the commit index at that time.
    snapshot_blocked: Option<(String, LogIndex)>,
    calls: Calls,
    apply: Apply,
    compaction: Compaction,
    /// Appends that wait for entries from disk, by peer and in order. The first one of each peer is being loaded.
    loading: BTreeMap<NodeId, VecDeque<Append>>,
    /// Snapshots that are being sent.
    snapshot_transfers: BTreeMap<NodeId, SnapshotTransfer>,
    snapshot_transfers_started: u64,
    snapshot_outages: SnapshotOutages,
    /// Whether the last attempt to read entries for a follower failed.
    is_loading_failing: bool,
    arrivals: VecDeque<Arrival>,
    /// Whether the runtime can run other tasks while this task blocks; known once the task runs.
    others_can_run: bool,
    /// Watches the work that this task does inline.
    inline: Arc<InlineWatch>,
    stop: Option<Stop>,
    /// Span of the engine, for work that outlives a turn.
    span: tracing::Span,
}

/// Progress of applying entries.
struct Apply {
    done: LogIndex,
    handed: LogIndex,
    target: LogIndex,
    /// Clients of the entries that were passed to the state machine last.
    waiters: AppliedWaiters,
    /// Maximum number of entries in one call of the state machine.
    batch_max: u64,
}

/// Consecutive commands that are proposed in one call.
#[derive(Default)]
struct ProposalBatch {
    commands: Vec<(Bytes, Waiter)>,
    /// Sizes of their entries.
    sizes_bytes: Vec<u64>,
}

/// A snapshot that is being sent.
struct SnapshotTransfer {
    task: JoinHandle<()>,
    last: LogIndex,
    /// Bytes that the follower has acknowledged.
    progress: Arc<AtomicU64>,
}

/// Reason for ending the task.
enum Stop {
    Requested(Option<oneshot::Sender<()>>),
    Fatal(String),
}

impl Driver {
    #[allow(clippy::too_many_arguments, reason = "the parts of an engine are assembled in one place")]
    pub(crate) fn new(
        config: RaftConfig,
        raft: Recorded,
        applied: LogIndex,
        transport: Arc<dyn NetworkTransport>,
        storage: Arc<dyn LogStorage>,
        (inbox, inputs): (Inbox, mpsc::UnboundedReceiver<Input>),
        proposals: Arc<Admission>,
        writer: Worker<LogBatch>,
        applier: Worker<Job>,
    ) -> (Self, watch::Receiver<Arc<EngineStatus>>) {
        let apply_entries_max = config.apply_entries_max;
        let (status, watching) = watch::channel(Arc::new(initial_status(&raft, applied)));
        let driver = Self {
            cache: EntryCache::new(raft.last_log().index),
            incarnation: config.protocol.seed,
            forwarding: Forwarding::new(raft.term()),
            proposals,
            background: Vec::new(),
            background_latency: config.simulated_latency.as_ref().map(Latency::of_background),
            config,
            started: Instant::now(),
            now: Duration::ZERO,
            turn_began: std::time::Instant::now(),
            stages: measure::Stages::new(),
            round_trips: measure::RoundTrips::default(),
            transport,
            storage,
            inline: Arc::new(InlineWatch::new(inbox.clone())),
            inbox,
            inputs,
            turn: Vec::with_capacity(TURN_INPUTS_MAX),
            reports: Vec::new(),
            status,
            writer,
            applier,
            incoming: Vec::new(),
            proposal_batch: ProposalBatch::default(),
            waiters: Waiters::default(),
            reads: Reads::default(),
            requests: PendingRequests::default(),
            leaving: None,
            addressed: Arc::default(),
            cluster: ClusterId::NONE,
            retired: BTreeMap::new(),
            freshness: Freshness::default(),
            no_room: None,
            full_members: FullMembers::default(),
            snapshot_blocked: None,
            calls: Calls::default(),
            apply: Apply {
                done: applied,
                handed: applied,
                target: raft.commit(),
                waiters: AppliedWaiters::default(),
                batch_max: apply_entries_max,
            },
            compaction: Compaction::new(raft.purged().index),
            loading: BTreeMap::new(),
            snapshot_transfers: BTreeMap::new(),
            snapshot_transfers_started: 0,
            snapshot_outages: SnapshotOutages::new(),
            is_loading_failing: false,
            arrivals: VecDeque::new(),
            others_can_run: false,
            stop: None,
            span: tracing::Span::none(),
            raft,
        };
        (driver, watching)
    }

    /// Runs until the engine stops. A panic, of a broken invariant or of the transport, stops it like any other error.
    pub(crate) async fn supervised(mut self) {
        self.span = tracing::Span::current();
        self.others_can_run = worker::others_can_run();
        let (status, inline) = (self.status.clone(), self.inline.clone());
        let watching = tokio::spawn(watch_peers(self.transport.reachability(), self.inbox.clone()));
        let mut run = tokio::spawn(Box::new(self).run().in_current_span());
        let ended = loop {
            tokio::select! {
                ended = &mut run => break ended,
                // The former task ends with the call that it waits for.
                driver = inline.takeover() => run = tokio::spawn(driver.go_on().in_current_span()),
            }
        };
        watching.abort();
        inline.clear();
        let Err(Ok(panic)) = ended.map_err(tokio::task::JoinError::try_into_panic) else { return };
        let why = describe(&*panic);
        tracing::error!(why, "the engine stops");
        status.send_modify(|status| Arc::make_mut(status).health = Health::Fatal(why));
    }

    async fn run(mut self: Box<Self>) {
        self.step(Event::Tick); // The only voter of a cluster becomes leader at once.
        self.run_turns().await;
    }

    /// Continues on another task than the one that began the turn.
    async fn go_on(mut self: Box<Self>) {
        self.read_clock();
        self.run_turns().await;
    }

    /// Ends the current turn, and makes turns until the engine stops. Returns early if another task goes on.
    async fn run_turns(self: Box<Self>) {
        let Some(mut driver) = self.end_turn() else { return };
        let mut timer = std::pin::pin!(tokio::time::sleep(NO_DEADLINE));
        while driver.stop.is_none() {
            let deadline = driver.started + driver.next_deadline().unwrap_or(driver.now + NO_DEADLINE);
            // The timer is reset only if it would fire too late or has fired: every message changes the deadline, and
            // resetting a timer is expensive. A timer that fires too early has no effect.
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            let Self { inputs, turn, .. } = &mut *driver;
            // `biased` makes a run under a paused clock repeatable. No deadline is missed because of it: every turn checks
            // the deadlines.
            tokio::select! {
                biased;
                _ = inputs.recv_many(turn, TURN_INPUTS_MAX) => {}
                () = &mut timer => {}
            }
            if driver.proposals.count() > 1
                && driver.turn.iter().any(|input| matches!(input, Input::Propose(..)))
            {
                driver.gather().await;
            }
            let Some(next) = driver.make_turn() else { return };
            driver = next;
        }
        driver.inputs.close();
        driver.shut_down().await;
    }

    fn read_clock(&mut self) {
        let now = Instant::now();
        (self.now, self.turn_began) = (now - self.started, now.into_std());
    }

    /// Processes the inputs of a turn. Returns `None` if another task goes on with it.
    fn make_turn(mut self: Box<Self>) -> Option<Box<Self>> {
        self.read_clock();
        let mut turn = std::mem::take(&mut self.turn);
        let _span = tracing::debug_span!("turn", inputs = turn.len()).entered();
        for input in turn.drain(..) {
            self.take(input);
        }
        self.turn = turn; // Reuses the allocation.
        self.propose_batch();
        if self.raft.next_deadline().is_some_and(|at| at <= self.now) {
            self.step(Event::Tick);
        }
        self.applier.retry(&mut self.reports);
        self.watch_calls();
        self.retry_entries();
        self.retry_work();
        self.yield_leadership();
        let now = self.now;
        self.waiters.expire(now);
        self.reads.expire(now);
        self.forwarding.expire(now);
        let mut driver = self.end_turn()?;
        let now = driver.now;
        driver.finish_transfers(now);
        driver.remove_retired_endpoints();
        Some(driver)
    }

    /// Lets tasks that are ready to propose, read or respond run first, because inputs of one turn share one message and one
    /// write. Does not wait for any task.
    async fn gather(&mut self) {
        tokio::task::yield_now().await;
        while self.turn.len() < TURN_INPUTS_MAX
            && let Ok(input) = self.inputs.try_recv()
        {
            self.turn.push(input);
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let leaving = self.leaving.as_ref().map(|(until, _)| *until);
        let ended_transfers = self.requests.ended_transfers.iter().map(|(until, _)| *until).min();
        [
            self.raft.next_deadline(),
            self.waiters.next_deadline(),
            self.reads.next_deadline(),
            self.forwarding.next_deadline(),
            leaving,
            ended_transfers,
            self.retired.values().min().copied(),
            self.applier.due().map(|at| at - self.started),
            self.next_stall_deadline(),
            self.next_room_deadline(),
            self.next_retry(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn take(&mut self, input: Input) {
        if !matches!(input, Input::Propose(..)) {
            self.propose_batch();
        }
        if self.stop.is_some() {
            return self.refuse(input);
        }
        match input {
            Input::Message(from, message, permit) => {
                drop(permit);
                self.on_message(from, message);
            }
            Input::Disconnected(node) => self.step(Event::Disconnected(node)),
            Input::Propose(command, waiter) => {
                self.proposal_batch.sizes_bytes.push(Payload::command_bytes(&command));
                self.proposal_batch.commands.push((command, waiter));
            }
            Input::Read(consistency, reply, permit) => self.read(consistency, reply, permit),
            Input::ChangeMembership(changes, reply) => {
                let token = self.requests.token();
                self.requests.changes.insert(token, reply);
                self.step(Event::ChangeMembership { token, changes });
            }
            Input::Transfer(to, reply) => {
                let token = self.requests.token();
                self.requests.leadership_transfers.insert(token, reply);
                self.step(Event::Transfer { token, to });
            }
            Input::Persisted(Ok(())) => {
                if self.write_returned() {
                    self.room_returned();
                }
                self.step(Event::Persisted);
            }
            Input::NoRoom(why) => self.on_no_room(why),
            Input::Persisted(Err(error)) => self.fail(error.to_string()),
            Input::Applied(Ok(index)) => self.on_applied(index),
            Input::FlushInBackground(work, why) => self.flush_in_background(work, why),
            Input::Flushed(Ok(durable), FlushedFor::Compaction) => self.on_flushed(durable),
            Input::Flushed(Ok(_), FlushedFor::Snapshot(to)) => self.give(Job::TakeSnapshot(to)),
            Input::Installed(Ok(())) => self.on_installed(),
            Input::SnapshotTaken(to, Ok((last, snapshot))) => self.send_snapshot(to, last, snapshot),
            Input::Applied(Err(error))
            | Input::Flushed(Err(error @ StateMachineError::Broken(_)), _)
            | Input::Installed(Err(error @ StateMachineError::Broken(_)))
            | Input::SnapshotTaken(_, Err(error @ StateMachineError::Broken(_))) => {
                self.fail(error.to_string());
            }
            Input::Flushed(Err(error), FlushedFor::Compaction) => self.on_not_flushed(&error),
            Input::Flushed(Err(error), FlushedFor::Snapshot(to)) | Input::SnapshotTaken(to, Err(error)) => {
                let why = format!("it could not be taken: {error}");
                self.on_snapshot_failed(to, SendFailure::Local(why));
            }
            Input::Installed(Err(error)) => self.on_not_installed(&error.to_string()),
            Input::SnapshotBlocked(why) => self.snapshot_blocked = Some((why, self.raft.commit())),
            Input::SnapshotSent(to, result) => {
                self.snapshot_transfers.remove(&to);
                match result {
                    Ok(last) => {
                        self.on_snapshot_sent(to);
                        self.step(Event::SnapshotSent(to, Some(last)));
                    }
                    Err(failure) => self.on_snapshot_failed(to, failure),
                }
            }
            Input::SnapshotArrived(arrival) => {
                let event = Event::SnapshotArrived {
                    from: arrival.from,
                    term: arrival.term,
                    meta: arrival.meta.clone(),
                };
                self.arrivals.push_back(arrival);
                self.step(event);
            }
            Input::Loaded(to, append, entries) => self.on_loaded(to, append, entries),
            Input::Compact(reply) => self.on_compact(reply),
            Input::Shutdown(reply) => self.start_shutdown(reply),
        }
    }

    fn propose_batch(&mut self) {
        if self.proposal_batch.commands.is_empty() {
            return;
        }
        let ProposalBatch { mut commands, mut sizes_bytes } = std::mem::take(&mut self.proposal_batch);
        let leader = self.forward_to();
        if let Some((reason, error)) = self.proposal_refusal() {
            for (_, waiter) in commands.drain(..) {
                measure::refused(reason);
                waiter.answer(Err(error.clone()));
            }
        } else if let Some(leader) = leader {
            commands.drain(..).for_each(|(command, waiter)| self.forward(leader, command, waiter));
        } else if let Some(first) = self.raft.propose(self.now, &sizes_bytes) {
            let until = self.now + self.config.wait_limit();
            for (index, (command, mut waiter)) in (first.index.0..).zip(commands.drain(..)) {
                let id = LogId { index: LogIndex(index), ..first };
                waiter.timing.appended(self.turn_began, &self.stages);
                self.cache.push(Entry::command(id, command));
                self.waiters.push(id, until, waiter);
            }
        } else {
            let (reason, error) = match self.raft.transferring_to() {
                Some(to) => ("transferring_leadership", ProposeError::TransferringLeadership { to }),
                None => ("not_leader", ProposeError::NotLeader { leader: self.raft.leader() }),
            };
            for (_, waiter) in commands.drain(..) {
                measure::refused(reason);
                waiter.answer(Err(error.clone()));
            }
        }
        sizes_bytes.clear();
        self.proposal_batch = ProposalBatch { commands, sizes_bytes }; // Reuses the allocations.
    }

    /// Steps the protocol and carries out its outputs in order, including those of events that the outputs cause.
    fn step(&mut self, event: Event) {
        let now = self.now;
        let was = (self.raft.role() == Role::Leader, self.raft.term());
        let outputs = self.raft.step(now, event);
        self.carry_out(outputs.into());
        if self.raft.role() == Role::Leader {
            self.forwarding.begin_term(self.raft.term());
        }
        if was.0 && (self.raft.role() != Role::Leader || self.raft.term() != was.1) {
            self.waiters.orphan(now + 2 * self.config.protocol.election_timeout);
            for (_, sending) in std::mem::take(&mut self.snapshot_transfers) {
                sending.task.abort();
            }
            self.loading.clear();
            self.snapshot_outages.clear();
            self.full_members = FullMembers::default();
        }
    }

    fn carry_out(&mut self, mut outputs: VecDeque<Output>) {
        while let Some(output) = outputs.pop_front() {
            let failed = match output {
                Output::Send(to, reply) => self.send(to, message_of(reply)),
                Output::SendAppend(to, append) => self.send_append(to, append),
                Output::SendSnapshot(to) => {
                    self.give(Job::Flush(FlushedFor::Snapshot(to)));
                    None
                }
                other => {
                    self.carry_out_locally(other);
                    None
                }
            };
            if let Some(to) = failed {
                outputs.extend(self.raft.step(self.now, Event::SendFailed(to)));
            }
        }
        self.raft.recycle(outputs.into());
    }

    fn carry_out_locally(&mut self, output: Output) {
        match output {
            Output::AppendedBlank(id) => self.cache.push(Entry { id, payload: Payload::Blank }),
            Output::AppendedMembership(id, membership) => {
                // Each leader's first entry is a configuration, usually that of the leader before.
                if !self.status.borrow().membership.has_members_of(&membership) {
                    tracing::info!(%id, members = %membership, "membership");
                }
                let payload = Payload::Membership(Membership::clone(&membership));
                self.cache.push(Entry { id, payload });
            }
            Output::Changed(token, _) => {
                if let Some(reply) = self.requests.changes.remove(&token) {
                    let _ = reply.send(Ok(self.raft.membership().clone()));
                }
            }
            Output::ChangeRefused(token, refusal) => self.refuse_change(token, refusal),
            Output::TransferEnded(token, result) => self.end_transfer(token, result),
            Output::Replaced(after) => {
                self.cache.truncate_after(after);
                let new =
                    std::mem::take(&mut self.incoming).into_iter().filter(|entry| entry.id.index > after);
                new.for_each(|entry| self.cache.push(entry));
            }
            Output::ReadReady(token, index) => {
                if let Some((_, Some(reply), permit)) = self.reads.pending.remove(&token) {
                    self.reads.ready.push((index, reply, permit));
                }
            }
            Output::ReadRefused(token) => {
                if let Some((_, Some(reply), _)) = self.reads.pending.remove(&token) {
                    let _ = reply.send(Err(ReadError::NotLeader { leader: self.raft.leader() }));
                }
            }
            Output::Apply(through) => self.apply.target = through,
            Output::Install(meta) => self.install(&meta),
            Output::SnapshotSettled(outcome) => self.settle_arrival(outcome),
            Output::Contradicted(contradiction) => self.fail(contradiction.to_string()),
            Output::TwoLeaders(leaders) => self.fail(leaders.to_string()),
            Output::Send(..) | Output::SendAppend(..) | Output::SendSnapshot(..) => {
                unreachable!("carried out above")
            }
        }
    }

    /// Ends the turn. Returns `None` if another task goes on with it.
    fn end_turn(self: Box<Self>) -> Option<Box<Self>> {
        let mut driver = self;
        loop {
            driver = driver.run_inline_jobs()?;
            if !driver.settle() {
                break;
            }
        }
        driver.answer_reads();
        driver.refuse_stuck_reads();
        // Durable entries can be read from the log again, so a slow state machine does not fill the memory.
        driver.cache.evict(driver.config.cache_bytes_max, driver.raft.durable());
        driver.publish_status();
        Some(driver)
    }

    /// Takes the results of inline work, and gives the workers what the protocol has for them. Returns whether there are further
    /// results or inline jobs.
    fn settle(&mut self) -> bool {
        for report in std::mem::take(&mut self.reports) {
            self.take(report);
        }
        let outputs = self.raft.finish_turn(self.now);
        self.carry_out(outputs.into());
        self.update_endpoints();
        self.announce_cluster();
        self.start_write();
        if self.no_room.is_some() && !self.raft.lacks_room() && !self.calls.is_writing() {
            self.room_returned(); // The entries that had no room were replaced, by a snapshot or by fewer entries.
        }
        self.raft.flush();
        self.start_apply();
        !self.reports.is_empty() || self.writer.has_inline_job() || self.applier.has_inline_job()
    }

    fn start_write(&mut self) {
        let Some(persist) = self.raft.take_persist() else { return };
        let (after, last) = persist.append;
        let entries = self.cache.get(after, last).expect("what is not yet durable is in the cache");
        let (hard_state, purge, truncate_after) = (persist.hard_state, persist.purge, persist.truncate_after);
        let batch = LogBatch { hard_state, purge, truncate_after, entries };
        self.write_starts(!batch.entries.is_empty());
        let may_run_inline = self.may_run_inline(batch.entries.len());
        if !self.writer.give(batch, may_run_inline, &mut self.reports) {
            self.fail("the log writer ended".to_owned());
        }
    }

    /// Passes at most one batch to the state machine; the next one collects meanwhile.
    fn start_apply(&mut self) {
        let Apply { done, handed, target, batch_max, .. } = self.apply;
        // Entries that were committed before a snapshot arrived are part of the snapshot. If they were passed to the state
        // machine after its restore, they would be applied twice (known bug S3).
        let installing = self.raft.hard_state().installing.is_some();
        if done < handed || target <= handed || installing {
            return;
        }
        let last = LogIndex(target.0.min(handed.0 + batch_max));
        let raft = &self.raft;
        let waiters = self.waiters.take(last, raft.leader(), |i| raft.id_at(i).map(|id| id.term));
        let entries = self.cache.get(handed, last);
        let waiters = Arc::new(Mutex::new(waiters.into()));
        (self.apply.handed, self.apply.waiters) = (last, waiters.clone());
        self.apply_starts();
        self.give(Job::Apply { after: handed, last, entries, waiters });
    }

    /// Runs work that may block, on another thread if the engine uses threads.
    fn run_in_background(&mut self, work: impl FnOnce() + Send + 'static) {
        self.background.retain(|work| !work.is_finished());
        if self.config.threads {
            return self.background.push(tokio::task::spawn_blocking(work));
        }
        let Some(latency) = &mut self.background_latency else { return work() };
        let takes = latency.draw();
        self.background.push(tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            work();
        }));
    }

    /// Whether this task may do the work for that many entries itself, because it delays no other member and no other task.
    fn may_run_inline(&self, entries: usize) -> bool {
        self.others_can_run && entries <= INLINE_ENTRIES_MAX && self.raft.membership().members().len() == 1
    }

    fn give(&mut self, job: Job) {
        let may_run_inline =
            matches!(&job, Job::Apply { entries: Some(entries), .. } if self.may_run_inline(entries.len()));
        // The worker stops only after it reported an error, which this task will receive.
        let _ = self.applier.give(job, may_run_inline, &mut self.reports);
    }

    fn fail(&mut self, why: String) {
        tracing::error!(why, "the engine stops");
        self.stop = Some(Stop::Fatal(why));
    }

    fn publish_status(&self) {
        self.status.send_if_modified(|status| {
            let lead = |status: &EngineStatus| (status.role, status.term, status.leader);
            let before = lead(status);
            // Updated in place unless a watcher holds it, because under load every turn changes it.
            let changed = self.update_status(Arc::make_mut(status));
            // Waking watchers is expensive, and often only the engine's handle exists. A watcher that subscribes while the
            // value is locked will read the new value.
            let is_watched = self.status.receiver_count() > 1;
            if lead(status) != before {
                measure::role_changed(before, status);
                tracing::info!(role = %status.role, term = %status.term, leader = ?status.leader.map(|n| n.0), "role");
            }
            changed && is_watched
        });
    }

    /// Updates `status`. Returns whether it changed.
    fn update_status(&self, status: &mut EngineStatus) -> bool {
        let raft = &self.raft;
        let mut changed = update(&mut status.role, raft.role());
        changed |= update(&mut status.term, raft.term());
        changed |= update(&mut status.leader, raft.leader());
        changed |= update(&mut status.last_log, raft.last_log());
        changed |= update(&mut status.first_index, raft.purged().index.next());
        changed |= update(&mut status.commit, raft.commit());
        changed |= update(&mut status.applied, self.apply.done);
        if !Arc::ptr_eq(&status.membership, raft.membership()) {
            changed |= update(&mut status.membership, raft.membership().clone());
        }
        changed |= self.update_outages(status);
        changed | self.update_peers(&mut status.peers)
    }

    fn update_outages(&self, status: &mut EngineStatus) -> bool {
        let mut changed = update(&mut status.storage_stalled_since, self.calls.storage_stalled_since());
        changed |= update(&mut status.apply_stalled_since, self.calls.apply_stalled_since());
        let no_room = self.no_room.as_ref().map(|no_room| &no_room.why);
        if status.no_room.as_ref() != no_room {
            changed |= update(&mut status.no_room, no_room.cloned());
        }
        let blocked = self.snapshot_blocked.as_ref().map(|(why, _)| why);
        if status.snapshot_blocked.as_ref() != blocked {
            changed |= update(&mut status.snapshot_blocked, blocked.cloned());
        }
        let outages = self.snapshot_outages.iter().map(|(to, outage)| (to, &outage.why));
        if !outages.clone().eq(&status.snapshot_errors) {
            status.snapshot_errors = outages.map(|(to, why)| (*to, why.clone())).collect();
            changed = true;
        }
        changed
    }

    fn update_peers(&self, peers: &mut BTreeMap<NodeId, PeerStatus>) -> bool {
        let sent = |(id, mut peer): (NodeId, PeerStatus)| {
            if let (Some(bytes), Some(sending)) = (&mut peer.snapshot_bytes, self.snapshot_transfers.get(&id))
            {
                *bytes = sending.progress.load(Ordering::Relaxed);
            }
            (id, peer)
        };
        let new = || self.raft.peer_statuses().map(sent);
        if !new().map(|(id, _)| id).eq(peers.keys().copied()) {
            *peers = new().collect();
            return true;
        }
        peers.values_mut().zip(new()).fold(false, |changed, (old, (_, new))| update(old, new) | changed)
    }

    /// Ends the engine: stops its work and responds to all waiting callers.
    async fn shut_down(mut self: Box<Self>) {
        for (_, sending) in std::mem::take(&mut self.snapshot_transfers) {
            sending.task.abort();
        }
        let (health, reply) = match &mut self.stop {
            Some(Stop::Fatal(why)) => (Health::Fatal(why.clone()), None),
            Some(Stop::Requested(reply)) => (Health::ShutDown, reply.take()),
            None => (Health::ShutDown, None),
        };
        let reply = reply.into_iter().chain(self.leaving.take().and_then(|(_, reply)| reply));
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            self.update_status(status);
            status.health = health.clone();
        });
        self.waiters.fail_all(&match health {
            Health::Fatal(why) => ProposeError::Fatal { why },
            _ => ProposeError::Unknown { why: "the node was shut down before it was committed" },
        });
        // Dropping the sender of a read makes its caller read the status.
        self.reads = Reads::default();
        self.requests = PendingRequests::default();
        while let Ok(input) = self.inputs.try_recv() {
            self.refuse(input);
        }
        for work in self.background.drain(..) {
            let _ = work.await; // It holds the files of the log or of the state machine open.
        }
        self.writer.settle().await;
        self.applier.settle().await;
        let threads: Vec<_> = [self.writer.end(), self.applier.end()].into_iter().flatten().collect();
        let join = move || threads.into_iter().all(|thread| thread.join().is_ok());
        if !worker::call(self.config.threads, join).await.unwrap_or(true) {
            tracing::error!("a thread of the engine panicked");
        }
        // An apply that failed may have left commands without a response.
        for (_, waiter) in take_all(&self.apply.waiters) {
            waiter.answer(Err(ProposeError::Unknown {
                why: "the engine stopped before the outcome was known",
            }));
        }
        for reply in reply {
            let _ = reply.send(());
        }
    }

    /// Refuses an input after the engine has stopped.
    fn refuse(&mut self, input: Input) {
        match input {
            Input::Propose(_, waiter) => waiter.answer(Err(match &self.stop {
                Some(Stop::Fatal(why)) => ProposeError::Fatal { why: why.clone() },
                _ => ProposeError::ShutDown,
            })),
            Input::Shutdown(Some(reply)) => {
                let _ = reply.send(());
            }
            _ => {}
        }
    }
}

pub(crate) fn initial_status(raft: &Raft, applied: LogIndex) -> EngineStatus {
    EngineStatus {
        node_id: raft.id(),
        storage: raft.storage(),
        health: Health::Running,
        no_room: None,
        storage_stalled_since: None,
        apply_stalled_since: None,
        snapshot_blocked: None,
        snapshot_errors: BTreeMap::new(),
        role: raft.role(),
        term: raft.term(),
        leader: raft.leader(),
        last_log: raft.last_log(),
        first_index: raft.purged().index.next(),
        commit: raft.commit(),
        applied,
        membership: raft.membership().clone(),
        peers: raft.peers(),
    }
}

/// Reports connections that were established and broke.
async fn watch_peers(mut peers: watch::Receiver<BTreeMap<NodeId, Reachability>>, inbox: Inbox) {
    let mut before = peers.borrow_and_update().clone();
    while peers.changed().await.is_ok() {
        let now = peers.borrow_and_update().clone();
        let reachable = before.into_iter().filter(|(_, state)| *state == Reachability::Reachable);
        for (node, _) in reachable.filter(|(node, _)| now.get(node) == Some(&Reachability::Unreachable)) {
            let _ = inbox.send(Input::Disconnected(node)); // The engine is ending.
        }
        before = now;
    }
}

/// Sets `old` to `new`. Returns whether they differed.
fn update<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    if changed {
        *old = new;
    }
    changed
}

/// Maximum number of entries that the only member of a cluster writes and applies inline instead of on a thread.
const INLINE_ENTRIES_MAX: usize = 16;
/// Longer than any real deadline.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum number of inputs in one turn; limits the time between two checks of the clock.
const TURN_INPUTS_MAX: usize = 4096;
/// After an apply call that took longer, the next one has half as many entries, so that a slow state machine does not count
/// as stalled.
const APPLY_TIME_MAX: Duration = Duration::from_millis(500);
