//! One node of the simulation: the protocol, and the work of a driver in simulated time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use consensus_core::{
    Entry, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, StateMachine,
};
use consensus_raft_protocol::{Call, Config, InterruptedInstall, Raft, Restored, Returned, Time};

use crate::{
    disk::SimDisk,
    host::GuestHosting,
    machine::{MachineDisk, SimMachine},
    operator::Hold,
    recorder::Recorder,
    stall::Stall,
};

/// A node, running or not.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) disk: SimDisk,
    pub(crate) machine_disk: MachineDisk,
    /// State of the running node; `None` while it is down.
    pub(crate) up: Option<Up>,
    /// Number of starts; events for earlier incarnations are dropped.
    pub(crate) incarnation: u64,
    /// Rate of the node's clock, which shows `skew + now * rate / 1000`.
    pub(crate) rate: u64,
    pub(crate) skew_us: u64,
    /// Until when the process is paused.
    pub(crate) paused_until: u64,
    pub(crate) slow_disk: bool,
    /// First configuration, which is used if the log is empty.
    pub(crate) file: Option<Membership>,
    /// Whether the node is started with `--join` and does not bootstrap.
    pub(crate) joins: bool,
    /// Whether the node's disk was replaced by an empty one.
    pub(crate) wiped: bool,
    /// Whether the node's disk is an old copy.
    pub(crate) restored_copy: bool,
    /// Why the node stopped; an operator must act before it starts again.
    pub(crate) ended: Option<String>,
    /// Why the node does not start yet.
    pub(crate) waits: Option<Hold>,
    /// Until when writes of the node do not return.
    pub(crate) disk_stalls_until: u64,
    /// Until when applies of the node do not return.
    pub(crate) apply_stalls_until: u64,
    /// Until when the node cannot take snapshots.
    pub(crate) no_snapshot_until: u64,
    /// Until when the node has no room for arriving snapshots.
    pub(crate) no_room_until: u64,
}

/// State of a running node.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) raft: Raft,
    /// Entries of the protocol's log, with payloads.
    pub(crate) log: VecDeque<Entry>,
    pub(crate) writing: VecDeque<LogBatch>,
    pub(crate) machine: SimMachine,
    pub(crate) applied: LogIndex,
    pub(crate) target: LogIndex,
    /// Last index of the apply in progress.
    pub(crate) applying: Option<LogIndex>,
    /// Reads by token: the request, and whether it is a lease read.
    pub(crate) reads: BTreeMap<u64, (ClientRequest, bool)>,
    /// Reads that wait for their index to be applied.
    pub(crate) ready: Vec<(LogIndex, ClientRequest)>,
    /// Requests that wait for an entry, by index.
    pub(crate) waiters: BTreeMap<u64, (LogId, ClientRequest)>,
    /// Requests whose entries are of earlier terms, with the time at which they stop waiting.
    pub(crate) orphans: Vec<(LogId, ClientRequest, u64)>,
    pub(crate) arrival: Option<Arrival>,
    /// Number of the snapshot transfer in progress to each peer.
    pub(crate) transfers: BTreeMap<NodeId, u64>,
    pub(crate) no_room: bool,
    /// Calls that take long.
    pub(crate) stall: Stall,
    /// Deadline for which a wake-up is scheduled.
    pub(crate) wake: Option<Time>,
    /// Whether a turn is in progress, which can have more events.
    pub(crate) turn_open: bool,
    /// Time of the last append of its leader, on the node's clock.
    pub(crate) heard: Option<Time>,
}

/// An attempt at a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientRequest {
    pub(crate) client: u64,
    pub(crate) operation: u64,
    pub(crate) attempt: u64,
    pub(crate) key: u8,
    /// Highest acknowledged index when a read started.
    pub(crate) acknowledged: LogIndex,
}

/// A snapshot that has arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) from: NodeId,
    pub(crate) transfer: u64,
    pub(crate) last: LogId,
    pub(crate) bytes: Bytes,
}

/// Result of a start.
pub(crate) enum Started {
    Up,
    /// Started with a damaged log, which was truncated.
    Repairing,
    /// Started after an interrupted installation.
    Interrupted,
    /// Refused to start: an operator must act.
    Refused(String),
}

impl Node {
    pub(crate) fn new(id: NodeId, disk: SimDisk) -> Self {
        Self {
            id,
            disk,
            machine_disk: MachineDisk::default(),
            up: None,
            incarnation: 0,
            rate: 1000,
            skew_us: 0,
            paused_until: 0,
            slow_disk: false,
            file: None,
            joins: false,
            wiped: false,
            restored_copy: false,
            ended: None,
            waits: None,
            disk_stalls_until: 0,
            apply_stalls_until: 0,
            no_snapshot_until: 0,
            no_room_until: 0,
        }
    }

    /// Time of the node's clock.
    pub(crate) fn local(&self, now_us: u64) -> Time {
        Time::from_micros(self.skew_us + now_us * self.rate / 1000)
    }

    /// Microseconds until the node's clock shows `at`.
    pub(crate) fn until(&self, now_us: u64, at: Time) -> u64 {
        let wait = at.saturating_sub(self.local(now_us)).as_micros() as u64;
        wait * 1000 / self.rate + 1
    }

    /// Starts like an engine: loads the log, repairs it, completes an interrupted installation, and writes the first
    /// configuration.
    pub(crate) fn start(
        &mut self,
        config: Config,
        bootstrap: Option<&Membership>,
        guest: Option<&GuestHosting>,
        now_us: u64,
    ) -> Started {
        let mut started = Started::Up;
        let mut log = self.disk.load().expect("the simulation damages only entries");
        if let Some(damage) = &log.damage {
            let Some(cut) = Raft::repair(&log, self.id) else {
                return Started::Refused(format!("{}: {}", damage.position, damage.why));
            };
            self.disk.write(cut).expect("a write at start");
            log = self.disk.load().expect("the truncated log is intact");
            started = Started::Repairing;
        }
        let mut machine = SimMachine::open(&self.machine_disk);
        if let Some(guest) = guest {
            machine = machine.with_guest(guest.open(self.id));
        }
        let applied = machine.applied();
        if let Some(todo) = Raft::interrupted_install(&log.hard_state, applied.index) {
            let hard_state = consensus_core::HardState { installing: None, ..log.hard_state.clone() };
            let mut batch = LogBatch { hard_state: Some(hard_state), ..LogBatch::default() };
            if let InterruptedInstall::Finish(meta) = todo {
                (batch.truncate_after, batch.purge) = (Some(meta.last.index), Some(meta));
            }
            self.disk.write(batch).expect("a write at start");
            log = self.disk.load().expect("the log was just written");
            started = Started::Interrupted;
        }
        if let (Some(membership), true) = (bootstrap, log.is_new()) {
            let entry = Entry { id: LogId::new(0, 1), payload: Payload::Membership(membership.clone()) };
            self.disk
                .write(LogBatch { entries: vec![entry], ..LogBatch::default() })
                .expect("a write at start");
            log = self.disk.load().expect("the log was just written");
        }
        let (purged, last) = (log.purged.last.index, log.last().index);
        let is_cut = log.hard_state.lost_through.is_some();
        assert!(
            applied.index >= purged && (applied.index <= last || is_cut),
            "node {}: the state machine has applied {applied}, the log holds ({purged}, {last}]",
            self.id
        );
        let entries = self.disk.read(purged, last, u64::MAX).expect("loaded entries can be read");
        let raft = Raft::new(config, Restored { log, applied: applied.index }, self.local(now_us));
        self.incarnation += 1;
        self.up = Some(Up {
            raft: raft.expect("the plan's settings are valid"),
            log: entries.into(),
            writing: VecDeque::new(),
            machine,
            applied: applied.index,
            target: LogIndex::ZERO,
            applying: None,
            reads: BTreeMap::new(),
            ready: Vec::new(),
            waiters: BTreeMap::new(),
            orphans: Vec::new(),
            arrival: None,
            transfers: BTreeMap::new(),
            no_room: false,
            stall: Stall::default(),
            wake: None,
            turn_open: false,
            heard: None,
        });
        started
    }

    pub(crate) fn raft(&self) -> Option<&Raft> {
        self.up.as_ref().map(|up| &up.raft)
    }
}

impl Up {
    fn base(&self) -> u64 {
        self.log.front().map_or(u64::MAX, |entry| entry.id.index.0)
    }

    /// Entries in `(after, last]` that exist.
    pub(crate) fn entries(&self, after: LogIndex, last: LogIndex) -> Vec<Entry> {
        assert!(after >= last || after.0 + 1 >= self.base(), "entries after {after} are purged");
        let skip = (after.0 + 1).saturating_sub(self.base()) as usize;
        self.log.iter().skip(skip).take(last.since(after) as usize).cloned().collect()
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.log.push_back(entry);
    }

    pub(crate) fn truncate_after(&mut self, index: LogIndex) {
        while self.log.back().is_some_and(|entry| entry.id.index > index) {
            self.log.pop_back();
        }
    }

    pub(crate) fn purge_through(&mut self, index: LogIndex) {
        while self.log.front().is_some_and(|entry| entry.id.index <= index) {
            self.log.pop_front();
        }
    }

    /// Calls the protocol, and records the call if there is a recorder.
    pub(crate) fn call(&mut self, recorder: &mut Option<Recorder>, call: Call) -> Returned {
        match recorder {
            Some(recorder) => recorder.call(&mut self.raft, call),
            None => self.raft.call(call),
        }
    }
}
