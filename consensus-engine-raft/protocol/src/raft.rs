//! The state of one node and the way events take through it.

use std::{collections::BTreeMap, sync::Arc};

use consensus_core::{
    HardState, LogId, LogIndex, LogState, Membership, NodeId, PeerStatus, Role as StatusRole, StorageId, Term,
};
use serde::{Deserialize, Serialize};

use crate::{
    Config, ConfigError, Event, Output, Refusal, SnapshotVerdict, Time,
    election::Ballots,
    log::Log,
    membership::Change,
    persist::{Held, Writes},
    progress::{Discount, Progress, State},
    reads::{Asking, Reads},
    transfer::Transfer,
};

/// One node's protocol state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) hard: HardState,
    /// This node's storage.
    pub(crate) storage: StorageId,
    pub(crate) log: Log,
    pub(crate) writes: Writes,
    /// Last index on this node's disk.
    pub(crate) durable: LogIndex,
    pub(crate) commit: LogIndex,
    /// Last index let out for application.
    pub(crate) applying: LogIndex,
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    /// The leader that this node followed last, with its term.
    pub(crate) followed: Option<(Term, NodeId)>,
    /// When a leader was last heard.
    pub(crate) leader_heard: Option<Time>,
    /// With leases a node that comes up may have promised a leader its patience: it gives no vote before this.
    pub(crate) patient_until: Time,
    /// Reads that this node, as a follower, asks the leader about.
    pub(crate) asking: Asking,
    pub(crate) election_deadline: Time,
    /// Latest heartbeat round that this node answered, with its term.
    pub(crate) answered_round: (Term, u64),
    /// A leader contradicted what is committed here (I17): nothing is done any more.
    pub(crate) contradicted: bool,
    /// The disk or the state machine does not answer.
    pub(crate) stalled: bool,
    pub(crate) outputs: Vec<Output>,
}

/// What the node does; each role owns what only it needs.
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
    /// Heartbeat round last begun.
    pub(crate) round: u64,
    pub(crate) reads: Reads,
    pub(crate) change: Option<Change>,
    pub(crate) transfer: Option<Transfer>,
    /// From when on the leader may think of a transfer by itself.
    pub(crate) next_transfer: Time,
    /// No lease reads in this term any more.
    pub(crate) lease_void: bool,
}

/// What a node starts from.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// What the storage loaded.
    pub log: LogState,
    /// Last index that the state machine reflects; it was committed.
    pub applied: LogIndex,
}

impl Raft {
    /// A node as it comes up: a follower that knows no leader.
    ///
    /// # Errors
    /// The settings are wrong.
    pub fn new(config: Config, restored: Restored, now: Time) -> Result<Self, ConfigError> {
        config.validate()?;
        let random = Random::from_seed(config.seed);
        let hard = restored.log.hard_state.clone();
        let storage = restored.log.storage;
        let patience = if config.lease_drift_percent > 0 { config.election_timeout } else { Time::ZERO };
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
            patient_until: now + patience,
            asking: Asking::default(),
            election_deadline: now,
            answered_round: (Term::ZERO, 0),
            contradicted: false,
            stalled: false,
            outputs: Vec::new(),
        };
        if is_new {
            raft.begin_joining();
        }
        raft.finish_joining();
        raft.note_cluster();
        // A crash may have come between the last entry that was missing and the note that none is.
        raft.forget_loss();
        // The one voter need not wait for anybody.
        if !raft.membership().is_only_voter(raft.config.id) {
            raft.reset_election_deadline();
        }
        Ok(raft)
    }

    /// Takes one event at `now`, and returns what is to be done.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Output> {
        self.now = self.now.max(now);
        self.handle(event);
        self.check_invariants();
        std::mem::take(&mut self.outputs)
    }

    /// Takes commands whose entries have these sizes ([`Entry::size_bytes`](consensus_core::Entry::size_bytes)), all or none.
    /// They are in the log from the returned place on, not yet committed; `None`: this node does not lead, or is
    /// [handing over](Self::transferring_to).
    pub fn propose(&mut self, now: Time, sizes_bytes: &[u64]) -> Option<LogId> {
        self.now = self.now.max(now);
        let first = self.append_proposals(sizes_bytes);
        self.check_invariants();
        first
    }

    /// Ends a turn: sends what the events of the turn made ready, at most one run of entries per peer and message limit.
    pub fn finish_turn(&mut self, now: Time) -> Vec<Output> {
        self.now = self.now.max(now);
        if !self.contradicted {
            self.begin_read_round();
            self.replicate();
        }
        self.check_invariants();
        std::mem::take(&mut self.outputs)
    }

    /// Takes back what [`step`](Self::step) or [`finish_turn`](Self::finish_turn) returned, to use its room again.
    pub fn recycle(&mut self, mut outputs: Vec<Output>) {
        outputs.clear();
        self.outputs = outputs;
    }

    /// When [`Event::Tick`] is next of use, if at all.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let own = match &self.role {
            Role::Leader(leader) => Some(leader.heartbeat_deadline),
            _ if self.may_campaign() => Some(self.election_deadline),
            _ => None,
        };
        own.into_iter().chain(self.asking.deadline()).min()
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
            Event::TryEntries => self.on_try_entries(),
            Event::Stalled(is_stalled) => self.on_stalled(is_stalled),
            Event::StepDown => self.on_step_down(),
        }
    }

    /// A snapshot wants an answer even so.
    fn ignore(&mut self, event: Event) {
        if matches!(event, Event::SnapshotArrived { .. }) {
            self.outputs.push(Output::SnapshotSettled(SnapshotVerdict::Refused));
        }
    }

    fn on_tick(&mut self) {
        self.expire_questions();
        match &self.role {
            Role::Leader(_) => self.tick_leader(),
            _ if self.now >= self.election_deadline && self.may_campaign() => self.campaign(),
            _ => {}
        }
    }

    /// Follows in `term`, at least the node's own. Only a newer term forgets the vote (I1).
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        if term > self.hard.term {
            self.hard.term = term;
            self.hard.voted_for = None;
            self.writes.hard_state();
        }
        if let Role::Leader(leader) = std::mem::replace(&mut self.role, Role::Follower) {
            self.outputs.extend(leader.reads.into_refusals(self.hard.term));
            if let Some(Change { token, .. }) = leader.change {
                self.outputs.push(Output::ChangeRefused(token, Refusal::LostLead));
            }
            self.end_transfer(leader.transfer);
            self.reset_election_deadline();
        }
        self.set_leader(leader);
    }

    /// Another leader, or none: what the last one was asked it need not answer any more.
    pub(crate) fn set_leader(&mut self, leader: Option<NodeId>) {
        if self.leader != leader {
            self.leader = leader;
            self.drop_questions();
        }
    }

    /// Lets out what may be applied (I8).
    pub(crate) fn apply_committed(&mut self) {
        self.note_cluster();
        let through = self.commit.min(self.durable);
        if self.hard.installing.is_none() && through > self.applying {
            self.applying = through;
            self.outputs.push(Output::Apply(through));
        }
    }

    /// The state machine jumped to `index`.
    pub(crate) fn applied_by_snapshot(&mut self, index: LogIndex) {
        self.commit = self.commit.max(index);
        self.applying = self.applying.max(index);
        self.durable = index;
        self.note_cluster();
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
        self.when_durable(Held::Output(output));
    }

    /// What must hold after every step, whoever erred; cheap enough for release builds.
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

    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard.term
    }

    /// Its term and vote, as last decided (perhaps not yet durable).
    #[must_use]
    pub fn hard_state(&self) -> &HardState {
        &self.hard
    }

    /// What it does.
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

    /// On a leader: to whom it is handing over.
    #[must_use]
    pub fn transferring_to(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(leader) => leader.transfer.as_ref().map(|transfer| transfer.to),
            _ => None,
        }
    }

    /// This node's storage.
    #[must_use]
    pub fn storage(&self) -> StorageId {
        self.storage
    }

    /// Who leads, as far as is known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// Last entry of the log.
    #[must_use]
    pub fn last_log(&self) -> LogId {
        self.log.last()
    }

    /// The entry at `index`, if the log holds it or ends its purged part with it.
    #[must_use]
    pub fn id_at(&self, index: LogIndex) -> Option<LogId> {
        self.log.id_at(index)
    }

    /// Last purged entry.
    #[must_use]
    pub fn purged(&self) -> LogId {
        self.log.purged()
    }

    /// [Size](consensus_core::Entry::size_bytes) of all entries that the log holds.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log.size_bytes()
    }

    /// Up to where the log can be forgotten so that entries of at most `bytes_max` together are left.
    #[must_use]
    pub fn log_tail(&self, bytes_max: u64) -> LogIndex {
        self.log.tail(bytes_max)
    }

    /// Last index known to be committed.
    #[must_use]
    pub fn commit(&self) -> LogIndex {
        self.commit
    }

    /// Last index on this node's disk.
    #[must_use]
    pub fn durable(&self) -> LogIndex {
        self.durable
    }

    /// The configuration in force.
    #[must_use]
    pub fn membership(&self) -> &Arc<Membership> {
        self.log.membership()
    }

    /// The configuration that was in force at `index`.
    #[must_use]
    pub fn membership_at(&self, index: LogIndex) -> Arc<Membership> {
        self.log.membership_at(index)
    }

    /// On a leader: what it knows of the others.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<NodeId, PeerStatus> {
        self.peer_statuses().collect()
    }

    /// [`peers`](Self::peers), in order, without making a map.
    pub fn peer_statuses(&self) -> impl Iterator<Item = (NodeId, PeerStatus)> {
        let status = |peer: &Progress| PeerStatus {
            matched: peer.matched,
            // The driver, which sends it, knows how far it is.
            snapshot_bytes: matches!(peer.state, State::Snapshot).then_some(0),
            active: peer.in_touch(&self.config, self.now),
            other_storage: peer.discount == Some(Discount::OtherStorage),
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

/// SplitMix64 (Steele et al. 2014): all that election timeouts need, and the same on every platform and version.
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

    /// At random from `0..span`.
    pub(crate) fn below(&mut self, span: Time) -> Time {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        Time::from_nanos(self.next() % nanos)
    }
}
