//! A node: the protocol, its disk and its state machine.

use std::sync::Arc;

use consensus_core::{HardState, LogId, LogIndex, LogState, Membership, NodeId, SnapshotMeta, StorageId};
use consensus_raft_protocol::{Config, InterruptedInstall, Persist, Raft, Restored, Time};

use super::{
    scenario::Clocks,
    state::{BASE, ELECTION_TIMEOUT, HEARTBEAT, World},
};

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(super) id: NodeId,
    pub(super) raft: Raft,
    pub(super) disk: Disk,
    pub(super) writing: Option<(Persist, Vec<Entry>)>,
    /// Last applied index; `flushed` is the part that survives a crash.
    pub(super) applied: LogIndex,
    pub(super) flushed: LogIndex,
    pub(super) installing_from: Option<NodeId>,
    /// Reads: token, and acknowledged index at their start.
    pub(super) reads: Vec<(u64, LogIndex)>,
    /// Number of starts, so that requests of different incarnations differ; not counted in scenarios without reads.
    pub(super) incarnations: u8,
    /// Fingerprints under each set of names.
    pub(super) fingerprints: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) hard: HardState,
    pub(super) purged: SnapshotMeta,
    pub(super) entries: Vec<Entry>,
}

pub(super) type Entry = (LogId, Option<Arc<Membership>>);

impl World {
    pub(super) fn start(
        &self,
        id: NodeId,
        mut disk: Disk,
        flushed: LogIndex,
        incarnations: u8,
        now: Time,
    ) -> Node {
        match Raft::interrupted_install(&disk.hard, flushed) {
            Some(InterruptedInstall::Finish(meta)) => {
                disk.entries.clear();
                disk.purged = meta;
                disk.hard.installing = None;
            }
            Some(InterruptedInstall::Discard) => disk.hard.installing = None,
            None => {}
        }
        let mut config = Config::new(id);
        (config.election_timeout, config.heartbeat_interval) = (ELECTION_TIMEOUT, HEARTBEAT);
        (config.append_entries_max, config.inflight_messages_max) = (self.scenario.append_entries_max, 2);
        if let Clocks::Common(_) = self.scenario.clocks {
            config.lease_drift_percent = 10;
        }
        config.seed = u64::from(incarnations);
        let memberships = disk
            .entries
            .iter()
            .filter_map(|(id, membership)| Some((id.index, (**membership.as_ref()?).clone())));
        let log = LogState {
            storage: StorageId::default(),
            hard_state: disk.hard.clone(),
            purged: disk.purged.clone(),
            entries: disk.entries.iter().map(|(id, _)| (*id, 1)).collect(),
            memberships: memberships.collect(),
            ..LogState::default()
        };
        let raft = Raft::new(config, Restored { log, applied: flushed }, now).expect("valid settings");
        let mut node = Node {
            id,
            raft,
            disk,
            writing: None,
            applied: flushed,
            flushed,
            installing_from: None,
            reads: Vec::new(),
            incarnations,
            fingerprints: Vec::new(),
        };
        if self.scenario.clocks == Clocks::Own {
            node.raft.normalize(BASE, u64::from(incarnations));
        }
        node.print(&self.names);
        node
    }
}

impl Node {
    pub(super) fn holds(&self, id: LogId) -> bool {
        let disk = &self.disk;
        let installed = disk.hard.installing.as_ref().filter(|meta| meta.last.index <= self.flushed);
        id.index <= disk.purged.last.index
            || installed.is_some_and(|meta| id.index <= meta.last.index)
            || disk.entries.iter().any(|(held, _)| *held == id)
    }

    /// Makes the write in flight durable.
    pub(super) fn write(&mut self) -> Result<(), String> {
        let Some((persist, entries)) = self.writing.take() else { return Ok(()) };
        let disk = &mut self.disk;
        if let Some(meta) = persist.purge {
            disk.entries.retain(|(id, _)| id.index > meta.last.index);
            disk.purged = meta;
        }
        if let Some(after) = persist.truncate_after {
            disk.entries.retain(|(id, _)| id.index <= after);
        }
        disk.entries.extend(entries);
        if let Some(hard) = persist.hard_state {
            let another = disk.hard.voted_for.is_some() && hard.voted_for != disk.hard.voted_for;
            if hard.term < disk.hard.term || (hard.term == disk.hard.term && another) {
                return Err(format!(
                    "I1: the hard state of {} changes from {:?} to {hard:?}",
                    self.id, disk.hard
                ));
            }
            disk.hard = hard;
        }
        Ok(())
    }
}
