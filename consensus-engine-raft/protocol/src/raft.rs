//! State of one node, and the dispatch of events.

use std::{collections::BTreeMap, sync::Arc};

use consensus_core::{
    HardState, LogId, LogIndex, LogState, Membership, NodeId, PeerStatus, Role as StatusRole, StorageId, Term,
};
use serde::{Deserialize, Serialize};

use crate::{
    ArrivalOutcome, Config, ConfigError, Event, Output, Refusal, Time,
    election::Ballots,
    log::Log,
    membership::Change,
    persist::{Deferred, Writes},
    progress::{Exclusion, Progress, State},
    reads::{ForwardedReads, Reads},
    transfer::Transfer,
};

/// Protocol state of one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) hard: HardState,
    /// Identity of this node's storage.
    pub(crate) storage: StorageId,
    pub(crate) log: Log,
    pub(crate) writes: Writes,
    /// Last index that is durable on this node.
    pub(crate) durable: LogIndex,
    pub(crate) commit: LogIndex,
    /// Last index passed to the driver for application.
    pub(crate) applying: LogIndex,
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    /// Leader that this node followed last, and the leader's term.
    pub(crate) followed: Option<(Term, NodeId)>,
    /// When this node last heard a leader.
    pub(crate) leader_heard: Option<Time>,
    /// This node grants no vote before this time: with leases, its earlier incarnation may have acknowledged a leader whose
    /// lease still holds.
    pub(crate) no_votes_until: Time,
    /// Reads of this node, as a follower, that need a read index from the leader.
    pub(crate) forwarded: ForwardedReads,
    pub(crate) election_deadline: Time,
    /// Latest heartbeat round that this node acknowledged, and the round's term.
    pub(crate) acknowledged_round: (Term, u64),
    /// A leader contradicted committed entries of this node (I17); the node has stopped.
    pub(crate) contradicted: bool,
    /// A call of the disk or the state machine has exceeded its time limit.
    pub(crate) stalled: bool,
    pub(crate) outputs: Vec<Output>,
}

/// Role of the node, with the state that only this role needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Follower,
    PreCandidate(Ballots),
    Candidate(Ballots),
    Leader(Box<Leader>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Leader {
    pub(crate) peers: BTreeMap<NodeId, Progress>,
    pub(crate) heartbeat_deadline: Time,
    /// Latest heartbeat round.
    pub(crate) round: u64,
    pub(crate) reads: Reads,
    pub(crate) change: Option<Change>,
    pub(crate) transfer: Option<Transfer>,
    /// When the leader may next transfer leadership without a request.
    pub(crate) next_transfer: Time,
    /// Whether this leader may serve no lease reads any more in its term.
    pub(crate) lease_void: bool,
}

/// State from which a node starts.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// State that the storage loaded.
    pub log: LogState,
    /// Last index that the state machine has applied. It was committed.
    pub applied: LogIndex,
}

impl Raft {
    /// Creates a follower that knows no leader.
    ///
    /// # Errors
    /// The settings are invalid.
    pub fn new(config: Config, restored: Restored, now: Time) -> Result<Self, ConfigError> {
        config.validate()?;
        let random = Random::from_seed(config.seed);
        let hard = restored.log.hard_state.clone();
        let storage = restored.log.storage;
        let voting_pause = if config.lease_drift_percent > 0 { config.election_timeout } else { Time::ZERO };
        let is_new = restored.log.is_new();
        let log = Log::new(restored.log);
        let (purged, last) = (log.purged().index, log.last().index);
        let known = restored.applied.clamp(purged, last);
        let mut raft = Self {
            config,
            now,
            random,
            hard,
            storage,
            log,
            writes: Writes::new(last),
            durable: last,
            commit: known,
            applying: known,
            role: Role::Follower,
            leader: None,
            followed: None,
            leader_heard: None,
            no_votes_until: now + voting_pause,
            forwarded: ForwardedReads::default(),
            election_deadline: now,
            acknowledged_round: (Term::ZERO, 0),
            contradicted: false,
            stalled: false,
            outputs: Vec::new(),
        };
        if is_new {
            raft.start_joining();
        }
        raft.finish_joining();
        raft.record_cluster();
        // A crash may have come between the write of the last missing entry and the write that clears the loss.
        raft.clear_loss();
        // The only voter campaigns at once.
        if !raft.membership().is_only_voter(raft.config.id) {
            raft.reset_election_deadline();
        }
        Ok(raft)
    }

    /// Processes one event at `now`. Returns the actions for the driver.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Output> {
        self.now = self.now.max(now);
        self.handle(event);
        self.check_invariants();
        std::mem::take(&mut self.outputs)
    }

    /// Appends commands whose entries have these sizes ([`Entry::size_bytes`](consensus_core::Entry::size_bytes)), all or
    /// none. Returns the log id of the first one; they are not committed yet. Returns `None` if this node is not leader, or
    /// is [transferring leadership](Self::transferring_to).
    pub fn propose(&mut self, now: Time, sizes_bytes: &[u64]) -> Option<LogId> {
        self.now = self.now.max(now);
        let first = self.append_proposals(sizes_bytes);
        self.check_invariants();
        first
    }

    /// Ends a turn: sends the messages that the events of the turn made ready, within the message limits of each peer.
    pub fn finish_turn(&mut self, now: Time) -> Vec<Output> {
        self.now = self.now.max(now);
        if !self.contradicted {
            self.start_read_round();
            self.replicate();
        }
        self.check_invariants();
        std::mem::take(&mut self.outputs)
    }

    /// Takes back the vector that [`step`](Self::step) or [`finish_turn`](Self::finish_turn) returned, to reuse its memory.
    pub fn recycle(&mut self, mut outputs: Vec<Output>) {
        outputs.clear();
        self.outputs = outputs;
    }

    /// Returns the time at which [`Event::Tick`] is needed next, if any.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let own = match &self.role {
            Role::Leader(leader) => Some(leader.heartbeat_deadline),
            _ if self.may_campaign() => Some(self.election_deadline),
            _ => None,
        };
        own.into_iter().chain(self.forwarded.deadline()).min()
    }

    pub(crate) fn handle(&mut self, event: Event) {
        if self.contradicted || !event.is_plausible() {
            return self.ignore(event);
        }
        match event {
            Event::Tick => self.on_tick(),
            Event::VoteRequest(from, request) => self.on_vote_request(from, request),
            Event::VoteResponse(from, response) => self.on_vote_response(from, response),
            Event::Append { from, append, entries } => self.on_append(from, append, entries),
            Event::AppendResponse(from, response) => self.on_append_response(from, response),
            Event::SendFailed(to) => self.on_send_failed(to),
            Event::Read { token, lease } => self.on_read(token, lease),
            Event::ReadIndexRequest(from, request) => self.on_read_index_request(from, request),
            Event::ReadIndexResponse(from, response) => self.on_read_index_response(from, response),
            Event::ChangeMembership { token, changes } => self.on_change(token, changes),
            Event::Transfer { token, to } => self.on_transfer(token, to),
            Event::TimeoutNow(from, request) => self.on_timeout_now(from, request),
            Event::Persisted => self.on_persisted(),
            Event::Compact(through) => self.on_compact(through),
            Event::SnapshotArrived { from, term, meta } => self.on_snapshot_arrived(from, term, meta),
            Event::SnapshotInstalled => self.on_snapshot_installed(),
            Event::SnapshotNotInstalled => self.on_snapshot_not_installed(),
            Event::SnapshotSent(to, last) => self.on_snapshot_sent(to, last),
            Event::Disconnected(node) => self.on_disconnected(node),
            Event::NoRoom => self.on_no_room(),
            Event::RetryEntries => self.on_retry_entries(),
            Event::Stalled(is_stalled) => self.on_stalled(is_stalled),
            Event::StepDown => self.on_step_down(),
        }
    }

    /// Drops an event. The driver waits for the outcome of a snapshot even then.
    fn ignore(&mut self, event: Event) {
        if matches!(event, Event::SnapshotArrived { .. }) {
            self.outputs.push(Output::SnapshotSettled(ArrivalOutcome::Refused));
        }
    }

    fn on_tick(&mut self) {
        self.expire_read_requests();
        match &self.role {
            Role::Leader(_) => self.tick_leader(),
            _ if self.now >= self.election_deadline && self.may_campaign() => self.campaign(),
            _ => {}
        }
    }

    /// Becomes a follower in `term`, which is at least the node's own. Only a newer term clears the vote (I1).
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        if term > self.hard.term {
            self.hard.term = term;
            self.hard.voted_for = None;
            self.writes.hard_state();
        }
        if let Role::Leader(leader) = std::mem::replace(&mut self.role, Role::Follower) {
            self.outputs.extend(leader.reads.into_refusals(self.hard.term));
            if let Some(Change { token, .. }) = leader.change {
                self.outputs.push(Output::ChangeRefused(token, Refusal::LostLeadership));
            }
            self.end_transfer(leader.transfer);
            self.reset_election_deadline();
        }
        self.set_leader(leader);
    }

    /// Changes the known leader. Read index requests to the former leader are refused, because it need not respond any more.
    pub(crate) fn set_leader(&mut self, leader: Option<NodeId>) {
        if self.leader != leader {
            self.leader = leader;
            self.refuse_forwarded_reads();
        }
    }

    /// Passes committed and durable entries to the driver for application (I8).
    pub(crate) fn apply_committed(&mut self) {
        self.record_cluster();
        let through = self.commit.min(self.durable);
        if self.hard.installing.is_none() && through > self.applying {
            self.applying = through;
            self.outputs.push(Output::Apply(through));
        }
    }

    /// Records that the state machine restored a snapshot that ends at `index`.
    pub(crate) fn applied_by_snapshot(&mut self, index: LogIndex) {
        self.commit = self.commit.max(index);
        self.applying = self.applying.max(index);
        self.durable = index;
        self.record_cluster();
    }

    fn on_compact(&mut self, through: LogIndex) {
        let through = through.min(self.applying);
        if through <= self.log.purged().index || self.hard.installing.is_some() {
            return;
        }
        if let Some(meta) = self.log.purge(through) {
            self.writes.purge(meta);
        }
    }

    pub(crate) fn output_when_durable(&mut self, output: Output) {
        self.when_durable(Deferred::Output(output));
    }

    /// Checks the invariants after every step; cheap enough for release builds.
    fn check_invariants(&self) {
        let (purged, last) = (self.log.purged().index, self.log.last().index);
        assert!(
            purged <= self.commit && self.commit <= last,
            "I7: purged {purged} <= {} <= {last}",
            self.commit
        );
        assert!(self.durable <= last, "I7: durable {} <= last {last}", self.durable);
        assert!(self.applying <= self.commit.min(self.durable), "I8: applied {} unsafely", self.applying);
        if let Role::Leader(leader) = &self.role {
            for (id, peer) in &leader.peers {
                assert!(peer.matched < peer.next && peer.matched <= last, "node {id}: {peer:?}");
            }
        }
    }

    /// Id of this node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// Current term of this node.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard.term
    }

    /// Term and vote of this node, as last decided (perhaps not durable yet).
    #[must_use]
    pub fn hard_state(&self) -> &HardState {
        &self.hard
    }

    /// Role of this node.
    #[must_use]
    pub fn role(&self) -> StatusRole {
        match self.role {
            Role::Leader(_) => StatusRole::Leader,
            Role::Candidate(_) => StatusRole::Candidate,
            Role::PreCandidate(_) => StatusRole::PreCandidate,
            Role::Follower if self.membership().is_voter(self.config.id) => StatusRole::Follower,
            Role::Follower => StatusRole::Learner,
        }
    }

    /// On a leader: the node to which it is transferring leadership.
    #[must_use]
    pub fn transferring_to(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(leader) => leader.transfer.as_ref().map(|transfer| transfer.to),
            _ => None,
        }
    }

    /// Identity of this node's storage.
    #[must_use]
    pub fn storage(&self) -> StorageId {
        self.storage
    }

    /// Current leader, if known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// Last entry of the log.
    #[must_use]
    pub fn last_log(&self) -> LogId {
        self.log.last()
    }

    /// Log id of the entry at `index`, if the log holds it or it is the last purged entry.
    #[must_use]
    pub fn id_at(&self, index: LogIndex) -> Option<LogId> {
        self.log.id_at(index)
    }

    /// Last purged entry.
    #[must_use]
    pub fn purged(&self) -> LogId {
        self.log.purged()
    }

    /// Total [size](consensus_core::Entry::size_bytes) of the entries that the log holds.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log.size_bytes()
    }

    /// Index after which the entries have at most `bytes_max` bytes together: the log can be purged up to it.
    #[must_use]
    pub fn log_tail(&self, bytes_max: u64) -> LogIndex {
        self.log.tail(bytes_max)
    }

    /// Last index known to be committed.
    #[must_use]
    pub fn commit(&self) -> LogIndex {
        self.commit
    }

    /// Last index that is durable on this node.
    #[must_use]
    pub fn durable(&self) -> LogIndex {
        self.durable
    }

    /// The configuration in force.
    #[must_use]
    pub fn membership(&self) -> &Arc<Membership> {
        self.log.membership()
    }

    /// Configuration that was in force at `index`.
    #[must_use]
    pub fn membership_at(&self, index: LogIndex) -> Arc<Membership> {
        self.log.membership_at(index)
    }

    /// On a leader: replication status of the other members.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<NodeId, PeerStatus> {
        self.peer_statuses().collect()
    }

    /// Returns [`peers`](Self::peers) as an iterator in order of ids, without allocating a map.
    pub fn peer_statuses(&self) -> impl Iterator<Item = (NodeId, PeerStatus)> {
        let status = |peer: &Progress| PeerStatus {
            matched: peer.matched,
            // The driver sends the snapshot and fills in the progress.
            snapshot_bytes: matches!(peer.state, State::Snapshot).then_some(0),
            active: peer.in_touch(&self.config, self.now),
            other_storage: peer.exclusion == Some(Exclusion::OtherStorage),
            joining: peer.joining,
        };
        let leader = match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        };
        let peers = leader.into_iter().flat_map(|leader| &leader.peers);
        peers.map(move |(id, peer)| (*id, status(peer)))
    }
}

/// SplitMix64 (Steele et al. 2014): sufficient for election timeouts, and the same on every platform and in every version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Random duration in `0..span`.
    pub(crate) fn below(&mut self, span: Time) -> Time {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        Time::from_nanos(self.next() % nanos)
    }
}
