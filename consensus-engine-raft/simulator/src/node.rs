//! One node of the simulation: the protocol, and around it what a driver does, in simulated time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use consensus_core::{
    Entry, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, StateMachine,
};
use consensus_raft_protocol::{Call, Config, InterruptedInstall, Raft, Restored, Returned, Time};

use crate::{
    disk::SimDisk,
    host::Hosting,
    machine::{MachineDisk, SimMachine},
    operator::Hold,
    recorder::Recorder,
    stall::Stall,
};

/// A node, up or down.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) disk: SimDisk,
    pub(crate) machine_disk: MachineDisk,
    /// `None` while it is down.
    pub(crate) up: Option<Up>,
    /// Counts starts, so that what was scheduled for an earlier life is dropped.
    pub(crate) life: u64,
    /// Its clock shows `skew + now * rate / 1000`.
    pub(crate) rate: u64,
    pub(crate) skew_us: u64,
    /// It does nothing before this.
    pub(crate) paused_until: u64,
    pub(crate) slow_disk: bool,
    /// What it bootstraps from if its log is empty.
    pub(crate) file: Option<Membership>,
    /// It is started with `--join`: it does not bootstrap.
    pub(crate) joins: bool,
    /// Its disk was replaced by an empty one.
    pub(crate) wiped: bool,
    /// Its disk is an old copy.
    pub(crate) put_back: bool,
    /// Why it ended for good, until an operator does something about it.
    pub(crate) ended: Option<String>,
    /// Why it does not start yet.
    pub(crate) waits: Option<Hold>,
    /// Its writes, and its applies, do not return before this.
    pub(crate) disk_stalls_until: u64,
    /// See `disk_stalls_until`.
    pub(crate) apply_stalls_until: u64,
    /// It cannot take snapshots, and has no room for them, before this.
    pub(crate) no_snapshot_until: u64,
    /// See `no_snapshot_until`.
    pub(crate) no_room_until: u64,
}

/// What a node is while it is up.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) raft: Raft,
    /// The entries that the protocol's log has, with payloads.
    pub(crate) log: VecDeque<Entry>,
    pub(crate) writing: VecDeque<LogBatch>,
    pub(crate) machine: SimMachine,
    pub(crate) applied: LogIndex,
    pub(crate) target: LogIndex,
    /// What is being applied, up to here.
    pub(crate) applying: Option<LogIndex>,
    /// Reads by token: whose, and whether the lease was to be enough.
    pub(crate) reads: BTreeMap<u64, (Asked, bool)>,
    /// Reads that wait for their index to be applied.
    pub(crate) ready: Vec<(LogIndex, Asked)>,
    /// Who waits for which entry.
    pub(crate) waiters: BTreeMap<u64, (LogId, Asked)>,
    /// Those of earlier terms, and until when.
    pub(crate) orphans: Vec<(LogId, Asked, u64)>,
    pub(crate) arrival: Option<Arrival>,
    /// Snapshots being sent, by number; one to each peer.
    pub(crate) transfers: BTreeMap<NodeId, u64>,
    pub(crate) no_room: bool,
    /// Its calls that take long.
    pub(crate) stall: Stall,
    /// The deadline for which it will be woken.
    pub(crate) wake: Option<Time>,
    /// A turn is under way: more events come before it ends.
    pub(crate) turn_open: bool,
    /// When an append of the leader that it follows last came, on its own clock.
    pub(crate) heard: Option<Time>,
}

/// A client's request, and which attempt at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) client: u64,
    pub(crate) operation: u64,
    pub(crate) attempt: u64,
    pub(crate) key: u8,
    /// What had been acknowledged when a read began.
    pub(crate) acknowledged: LogIndex,
}

/// A snapshot that came.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) from: NodeId,
    pub(crate) transfer: u64,
    pub(crate) last: LogId,
    pub(crate) bytes: Bytes,
}

/// What a start came to.
pub(crate) enum Started {
    Up,
    /// With a damaged log that it cut.
    Repairing,
    /// In the middle of an installation.
    Interrupted,
    /// It refuses: this is for people to settle.
    Refused(String),
}

impl Node {
    pub(crate) fn new(id: NodeId, disk: SimDisk) -> Self {
        Self {
            id,
            disk,
            machine_disk: MachineDisk::default(),
            up: None,
            life: 0,
            rate: 1000,
            skew_us: 0,
            paused_until: 0,
            slow_disk: false,
            file: None,
            joins: false,
            wiped: false,
            put_back: false,
            ended: None,
            waits: None,
            disk_stalls_until: 0,
            apply_stalls_until: 0,
            no_snapshot_until: 0,
            no_room_until: 0,
        }
    }

    /// What its clock shows.
    pub(crate) fn local(&self, now_us: u64) -> Time {
        Time::from_micros(self.skew_us + now_us * self.rate / 1000)
    }

    /// How long to wait until its clock shows `at`, in microseconds.
    pub(crate) fn until(&self, now_us: u64, at: Time) -> u64 {
        let wait = at.saturating_sub(self.local(now_us)).as_micros() as u64;
        wait * 1000 / self.rate + 1
    }

    /// As an engine does it: loads the log, repairs it, finishes what a crash interrupted, writes the first
    /// configuration.
    pub(crate) fn start(
        &mut self,
        config: Config,
        bootstrap: Option<&Membership>,
        guest: Option<&Hosting>,
        now_us: u64,
    ) -> Started {
        let mut started = Started::Up;
        let mut log = self.disk.load().expect("only entries are damaged here");
        if let Some(damage) = &log.damage {
            let Some(cut) = Raft::repair(&log, self.id) else {
                return Started::Refused(format!("{}: {}", damage.position, damage.why));
            };
            self.disk.write(cut).expect("a write at start");
            log = self.disk.load().expect("what was cut is sound");
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
            log = self.disk.load().expect("it was just written");
            started = Started::Interrupted;
        }
        if let (Some(membership), true) = (bootstrap, log.is_new()) {
            let entry = Entry { id: LogId::new(0, 1), payload: Payload::Membership(membership.clone()) };
            self.disk
                .write(LogBatch { entries: vec![entry], ..LogBatch::default() })
                .expect("a write at start");
            log = self.disk.load().expect("it was just written");
        }
        let (purged, last) = (log.purged.last.index, log.last().index);
        let is_cut = log.hard_state.lost_through.is_some();
        assert!(
            applied.index >= purged && (applied.index <= last || is_cut),
            "node {}: the state machine reflects {applied}, the log holds ({purged}, {last}]",
            self.id
        );
        let entries = self.disk.read(purged, last, u64::MAX).expect("what was loaded can be read");
        let raft = Raft::new(config, Restored { log, applied: applied.index }, self.local(now_us));
        self.life += 1;
        self.up = Some(Up {
            raft: raft.expect("the plan's settings are sound"),
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

    /// The entries `(after, last]`, as many as are there.
    pub(crate) fn entries(&self, after: LogIndex, last: LogIndex) -> Vec<Entry> {
        assert!(after >= last || after.0 + 1 >= self.base(), "entries after {after} are gone");
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

    pub(crate) fn forget_through(&mut self, index: LogIndex) {
        while self.log.front().is_some_and(|entry| entry.id.index <= index) {
            self.log.pop_front();
        }
    }

    /// Calls the protocol, and has it recorded if somebody does.
    pub(crate) fn call(&mut self, recorder: &mut Option<Recorder>, call: Call) -> Returned {
        match recorder {
            Some(recorder) => recorder.call(&mut self.raft, call),
            None => self.raft.call(call),
        }
    }
}
