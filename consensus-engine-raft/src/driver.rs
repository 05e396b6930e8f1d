//! The task that owns the protocol: feeds it events, carries out what it says.

mod compaction;
mod forward;
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
pub(crate) use forward::reread as reread_forwarded;
use members::Asked;
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
    /// The time of the turn in hand, on the clock that began with `started`. Read after the turn's inputs were taken: it is
    /// later than their arrival, so that what is judged by it (a lease) is judged between a call and its answer.
    now: Duration,
    /// The same on the system's clock, for measuring.
    turn_began: std::time::Instant,
    stages: measure::Stages,
    transport: Arc<dyn NetworkTransport>,
    storage: Arc<dyn LogStorage>,
    inbox: Inbox,
    /// From workers on this task, still to be taken in this turn.
    reports: Vec<Input>,
    status: watch::Sender<Arc<EngineStatus>>,
    writer: Worker<LogBatch>,
    applier: Worker<Job>,
    /// Of what is done beside those two.
    aside: Option<Latency>,
    cache: EntryCache,
    /// The entries of the message in hand.
    incoming: Vec<Entry>,
    gathered: Gathered,
    waiters: Waiters,
    /// What bounds the proposals in flight.
    proposals: Arc<Admission>,
    /// Tells this start of the node from others.
    life: u64,
    forwarding: Forwarding,
    reads: Reads,
    asked: Asked,
    /// Since when this node is leaving, and who waits for it.
    leaving: Option<(Duration, Option<oneshot::Sender<()>>)>,
    /// The configuration whose endpoints the transport has.
    addressed: Arc<Membership>,
    /// The cluster of which the transport was told.
    cluster: ClusterId,
    /// Members that were removed, and until when the transport keeps their endpoints.
    retired: BTreeMap<NodeId, Duration>,
    freshness: Freshness,
    /// While entries have no room on the disk.
    no_room: Option<NoRoom>,
    full_members: FullMembers,
    /// Why the snapshot that arrived last was not taken, and what was committed then.
    snapshot_blocked: Option<(String, LogIndex)>,
    calls: Calls,
    apply: Apply,
    compaction: Compaction,
    /// Appends that wait for entries from disk, in order, per peer; the first of each is being loaded.
    loading: BTreeMap<NodeId, VecDeque<Append>>,
    /// Snapshots being sent.
    transfers: BTreeMap<NodeId, Sending>,
    transfers_begun: u64,
    snapshot_outages: SnapshotOutages,
    /// Entries for a follower could not be read from the log the last time.
    is_loading_failing: bool,
    arrivals: VecDeque<Arrival>,
    /// On the runtime that this task is on, known when it runs.
    others_can_run: bool,
    stop: Option<Stop>,
    /// The engine's, for what outlives a turn.
    span: tracing::Span,
}

/// What the apply thread has done, does and is to do.
struct Apply {
    done: LogIndex,
    handed: LogIndex,
    target: LogIndex,
    /// Those who wait for what was handed over last.
    waiters: AppliedWaiters,
    /// Entries that are handed over at once, at most.
    batch_max: u64,
}

/// Commands that came one after another: they are proposed in one call.
#[derive(Default)]
struct Gathered {
    commands: Vec<(Bytes, Waiter)>,
    /// Of their entries.
    sizes_bytes: Vec<u64>,
}

/// A snapshot being sent.
struct Sending {
    task: JoinHandle<()>,
    last: LogIndex,
    /// Bytes that have arrived.
    progress: Arc<AtomicU64>,
}

/// Why the task ends.
enum Stop {
    Asked(Option<oneshot::Sender<()>>),
    Fatal(String),
}

impl Driver {
    #[allow(clippy::too_many_arguments, reason = "the parts of an engine, put together in one place")]
    pub(crate) fn new(
        config: RaftConfig,
        raft: Recorded,
        applied: LogIndex,
        transport: Arc<dyn NetworkTransport>,
        storage: Arc<dyn LogStorage>,
        inbox: Inbox,
        proposals: Arc<Admission>,
        writer: Worker<LogBatch>,
        applier: Worker<Job>,
    ) -> (Self, watch::Receiver<Arc<EngineStatus>>) {
        let apply_entries_max = config.apply_entries_max;
        let (status, watching) = watch::channel(Arc::new(initial_status(&raft, applied)));
        let driver = Self {
            cache: EntryCache::new(raft.last_log().index),
            life: config.protocol.seed,
            forwarding: Forwarding::new(raft.term()),
            proposals,
            aside: config.simulated_latency.as_ref().map(|simulated| Latency::new(simulated, 3)),
            config,
            started: Instant::now(),
            now: Duration::ZERO,
            turn_began: std::time::Instant::now(),
            stages: measure::Stages::new(),
            transport,
            storage,
            inbox,
            reports: Vec::new(),
            status,
            writer,
            applier,
            incoming: Vec::new(),
            gathered: Gathered::default(),
            waiters: Waiters::default(),
            reads: Reads::default(),
            asked: Asked::default(),
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
            transfers: BTreeMap::new(),
            transfers_begun: 0,
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

    /// Runs until the end. A panic - of a broken invariant, or of the transport - is an end like any other error.
    pub(crate) async fn supervised(self, inputs: mpsc::UnboundedReceiver<Input>) {
        let status = self.status.clone();
        let run = tokio::spawn(self.run(inputs).in_current_span());
        let Err(Ok(panic)) = run.await.map_err(tokio::task::JoinError::try_into_panic) else { return };
        let why = describe(&*panic);
        tracing::error!(why, "the engine stops");
        status.send_modify(|status| Arc::make_mut(status).health = Health::Fatal(why));
    }

    async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        let mut turn = Vec::with_capacity(TURN_INPUTS_MAX);
        self.span = tracing::Span::current();
        self.others_can_run = worker::others_can_run();
        let watching = tokio::spawn(watch_peers(self.transport.reachability(), self.inbox.clone()));
        self.step(Event::Tick); // The only voter of a cluster leads at once.
        self.end_turn();
        let mut alarm = std::pin::pin!(tokio::time::sleep(NO_DEADLINE));
        while self.stop.is_none() {
            let deadline = self.started + self.next_deadline().unwrap_or(self.now + NO_DEADLINE);
            // Set anew only if it would ring too late, or has rung: deadlines move on with every message, and a timer is not
            // cheap. What rings too early finds nothing to do.
            if deadline < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(deadline);
            }
            // In this order, so that a run under a paused clock can be repeated. No deadline is missed for it: it is looked
            // at in every turn.
            tokio::select! {
                biased;
                _ = inputs.recv_many(&mut turn, TURN_INPUTS_MAX) => {}
                () = &mut alarm => {}
            }
            if self.proposals.count() > 1 && turn.iter().any(|input| matches!(input, Input::Propose(..))) {
                gather(&mut inputs, &mut turn).await;
            }
            let began = Instant::now();
            (self.now, self.turn_began) = (began - self.started, began.into_std());
            let span = tracing::debug_span!("turn", inputs = turn.len()).entered();
            for input in turn.drain(..) {
                self.take(input);
            }
            self.propose_gathered();
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
            self.forwarding.expire(now);
            self.end_turn();
            self.conclude(now);
            self.forget_retired();
            drop(span);
        }
        watching.abort();
        inputs.close();
        self.farewell(inputs).await;
    }

    fn next_deadline(&self) -> Option<Duration> {
        let leaving = self.leaving.as_ref().map(|(until, _)| *until);
        let transfers = self.asked.ended.iter().map(|(until, _)| *until).min();
        [
            self.raft.next_deadline(),
            self.waiters.next_deadline(),
            self.forwarding.next_deadline(),
            leaving,
            transfers,
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
            self.propose_gathered();
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
                self.gathered.sizes_bytes.push(Payload::command_bytes(&command));
                self.gathered.commands.push((command, waiter));
            }
            Input::Read(consistency, reply, permit) => self.read(consistency, reply, permit),
            Input::ChangeMembership(changes, reply) => {
                let token = self.asked.token();
                self.asked.changes.insert(token, reply);
                self.step(Event::ChangeMembership { token, changes });
            }
            Input::Transfer(to, reply) => {
                let token = self.asked.token();
                self.asked.transfers.insert(token, reply);
                self.step(Event::Transfer { token, to });
            }
            Input::Persisted(Ok(())) => {
                if self.write_returned() {
                    self.room_is_back();
                }
                self.step(Event::Persisted);
            }
            Input::NoRoom(why) => self.on_no_room(why),
            Input::Persisted(Err(error)) => self.fail(error.to_string()),
            Input::Applied(Ok(index)) => self.on_applied(index),
            Input::FlushAside(work, why) => self.flush_in_background(work, why),
            Input::Flushed(Ok(durable), FlushedFor::Compaction) => self.on_flushed(durable),
            Input::Flushed(Ok(_), FlushedFor::Snapshot(to)) => self.give(Job::TakeSnapshot(to)),
            Input::Installed(Ok(())) => self.on_installed(),
            Input::SnapshotTaken(to, Ok((last, picture))) => self.send_snapshot(to, last, picture),
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
                self.transfers.remove(&to);
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
            Input::Shutdown(reply) => self.leave(reply),
        }
    }

    fn propose_gathered(&mut self) {
        if self.gathered.commands.is_empty() {
            return;
        }
        let Gathered { mut commands, mut sizes_bytes } = std::mem::take(&mut self.gathered);
        let leader = self.forward_to();
        if let Some((reason, error)) = self.proposal_refusal() {
            for (_, waiter) in commands.drain(..) {
                measure::refused(reason);
                waiter.answer(Err(error.clone()));
            }
        } else if let Some(leader) = leader {
            commands.drain(..).for_each(|(command, waiter)| self.forward(leader, command, waiter));
        } else if let Some(first) = self.raft.propose(self.now, &sizes_bytes) {
            for (index, (command, mut waiter)) in (first.index.0..).zip(commands.drain(..)) {
                let id = LogId { index: LogIndex(index), ..first };
                waiter.course.appended(self.turn_began, &self.stages);
                self.cache.push(Entry::command(id, command));
                self.waiters.push(id, waiter);
            }
        } else {
            let (reason, error) = match self.raft.transferring_to() {
                Some(to) => ("handing_over", ProposeError::TransferringLeadership { to }),
                None => ("not_leader", ProposeError::NotLeader { leader: self.raft.leader() }),
            };
            for (_, waiter) in commands.drain(..) {
                measure::refused(reason);
                waiter.answer(Err(error.clone()));
            }
        }
        sizes_bytes.clear();
        self.gathered = Gathered { commands, sizes_bytes }; // For their room.
    }

    /// Steps the protocol and does what it says, in order; what that brings about is stepped too.
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
            for (_, sending) in std::mem::take(&mut self.transfers) {
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
                tracing::info!(%id, members = %membership, "membership");
                let payload = Payload::Membership(Membership::clone(&membership));
                self.cache.push(Entry { id, payload });
            }
            Output::Changed(token, _) => {
                if let Some(reply) = self.asked.changes.remove(&token) {
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
                if let Some((reply, permit)) = self.reads.asked.remove(&token) {
                    self.reads.ready.push((index, reply, permit));
                }
            }
            Output::ReadRefused(token) => {
                if let Some((reply, _)) = self.reads.asked.remove(&token) {
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

    fn end_turn(&mut self) {
        loop {
            let outputs = self.raft.finish_turn(self.now);
            self.carry_out(outputs.into());
            self.address_members();
            self.tell_cluster();
            self.start_write();
            if self.no_room.is_some() && !self.raft.lacks_room() && !self.calls.is_writing() {
                self.room_is_back(); // The entries were replaced, by a snapshot or by fewer.
            }
            self.raft.flush();
            self.start_apply();
            if self.reports.is_empty() {
                break;
            }
            for report in std::mem::take(&mut self.reports) {
                self.take(report);
            }
        }
        self.answer_reads();
        self.refuse_stuck_reads();
        // What is written can be read again, by those who apply and send; a slow state machine fills no memory.
        self.cache.evict(self.config.cache_bytes_max, self.raft.durable());
        self.publish_status();
    }

    fn start_write(&mut self) {
        let Some(persist) = self.raft.take_persist() else { return };
        let (after, last) = persist.append;
        let entries = self.cache.get(after, last).expect("what is not yet durable is in the cache");
        let (hard_state, purge, truncate_after) = (persist.hard_state, persist.purge, persist.truncate_after);
        let batch = LogBatch { hard_state, purge, truncate_after, entries };
        self.write_begins(!batch.entries.is_empty());
        let may_be_here = self.may_be_here(batch.entries.len());
        if !self.writer.give(batch, may_be_here, &mut self.reports) {
            self.fail("the log writer ended".to_owned());
        }
    }

    /// One batch at a time; the next one gathers meanwhile.
    fn start_apply(&mut self) {
        let Apply { done, handed, target, batch_max, .. } = self.apply;
        // What gathered before a snapshot arrived is in the snapshot; handed over behind its restore it would be applied
        // to the state after it (known bug S3).
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
        self.apply_begins();
        self.give(Job::Apply { after: handed, last, entries, waiters });
    }

    /// Does what may block, beside everything else where there are threads.
    fn do_aside(&mut self, work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
        if self.config.threads {
            return Some(tokio::task::spawn_blocking(work));
        }
        let Some(latency) = &mut self.aside else {
            work();
            return None;
        };
        let takes = latency.draw();
        Some(tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            work();
        }))
    }

    /// Whether this task may wait for what is done with so many entries: it keeps no other node waiting, and no other task.
    fn may_be_here(&self, entries: usize) -> bool {
        self.others_can_run && entries <= HERE_ENTRIES_MAX && self.raft.membership().members().len() == 1
    }

    fn give(&mut self, job: Job) {
        let may_be_here =
            matches!(&job, Job::Apply { entries: Some(entries), .. } if self.may_be_here(entries.len()));
        // It is over only after it reported an error, which is on its way to this task.
        let _ = self.applier.give(job, may_be_here, &mut self.reports);
    }

    fn fail(&mut self, why: String) {
        tracing::error!(why, "the engine stops");
        self.stop = Some(Stop::Fatal(why));
    }

    fn publish_status(&self) {
        self.status.send_if_modified(|status| {
            let lead = |status: &EngineStatus| (status.role, status.term, status.leader);
            let before = lead(status);
            // In place, unless a watcher holds it: it changes with every turn under load.
            let changed = self.update_status(Arc::make_mut(status));
            // To wake those who wait costs more than all else here, and often nobody is there but the engine's handle. Who
            // comes while the value is locked will read the new one.
            let is_watched = self.status.receiver_count() > 1;
            if lead(status) != before {
                measure::lead_changed(before, status);
                tracing::info!(role = %status.role, term = %status.term, leader = ?status.leader.map(|n| n.0), "role");
            }
            changed && is_watched
        });
    }

    /// Brings `status` up to date; whether it was not.
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
            if let (Some(bytes), Some(sending)) = (&mut peer.snapshot_bytes, self.transfers.get(&id)) {
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

    /// Nothing more is done; everybody who waits is told.
    async fn farewell(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        for (_, sending) in std::mem::take(&mut self.transfers) {
            sending.task.abort();
        }
        let (health, reply) = match &mut self.stop {
            Some(Stop::Fatal(why)) => (Health::Fatal(why.clone()), None),
            Some(Stop::Asked(reply)) => (Health::ShutDown, reply.take()),
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
        // Dropping a read's sender tells its caller to look at the status.
        self.reads = Reads::default();
        self.asked = Asked::default();
        while let Ok(input) = inputs.try_recv() {
            self.refuse(input);
        }
        for flush in self.compaction.aside.drain(..) {
            let _ = flush.await; // It holds the machine's files.
        }
        self.writer.settle().await;
        self.applier.settle().await;
        let threads: Vec<_> = [self.writer.end(), self.applier.end()].into_iter().flatten().collect();
        let join = move || threads.into_iter().all(|thread| thread.join().is_ok());
        if !worker::call(self.config.threads, join).await.unwrap_or(true) {
            tracing::error!("a thread of the engine panicked");
        }
        // Those whose commands an apply left unanswered that ended in an error.
        for (_, waiter) in take_all(&self.apply.waiters) {
            waiter.answer(Err(ProposeError::Unknown { why: "the engine stopped meanwhile" }));
        }
        for reply in reply {
            let _ = reply.send(());
        }
    }

    /// After the stop.
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

/// Tells of connections that stood and broke.
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

/// Lets whoever is ready to propose, read or answer do so first: what comes together costs one message and one write. It
/// waits for nobody.
async fn gather(inputs: &mut mpsc::UnboundedReceiver<Input>, turn: &mut Vec<Input>) {
    tokio::task::yield_now().await;
    while turn.len() < TURN_INPUTS_MAX
        && let Ok(input) = inputs.try_recv()
    {
        turn.push(input);
    }
}

/// Whether `old` was another.
fn update<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    if changed {
        *old = new;
    }
    changed
}

/// What a node without others writes and applies at once, instead of on the threads for that.
const HERE_ENTRIES_MAX: usize = 16;
/// As good as never.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// Inputs taken in one turn; bounds the time between two looks at the clock.
const TURN_INPUTS_MAX: usize = 4096;
/// An apply that takes longer is followed by one of half as many entries: a machine that is slow is not one that stalls.
const APPLY_TIME_MAX: Duration = Duration::from_millis(500);
