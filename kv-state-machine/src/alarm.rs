//! Alarms. They are part of the replicated state and of its snapshots: while an alarm is raised, every node refuses the
//! same commands.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use consensus_core::{NodeId, codec};
use rocksdb::{DB, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::{
    KvOperation, KvRejection, keys,
    view::{Failure, Source, disk},
};

/// An alarm that a node has raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alarm {
    /// Kind of the alarm.
    pub kind: AlarmKind,
    /// Node whose store the alarm concerns; `None` if it concerns no single node.
    pub node: Option<NodeId>,
}

/// Kind of an [`Alarm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AlarmKind {
    /// The node's store exceeds its [quota](crate::Limits::quota_bytes). Commands that add data are refused: puts,
    /// transactions that may put, and grants of leases.
    NoSpace,
    /// The state of the node differs from that of the other nodes. All commands on keys and leases are refused.
    Corrupt,
}

impl fmt::Display for AlarmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSpace => "NOSPACE",
            Self::Corrupt => "CORRUPT",
        })
    }
}

/// The alarms that are raised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Alarms(BTreeSet<Alarm>);

impl Alarms {
    pub(crate) fn load(db: &DB) -> Result<Self, Failure> {
        let bytes = db.get(keys::ALARMS).map_err(disk)?;
        bytes.map_or_else(|| Ok(Self::default()), |bytes| Ok(codec::decode("alarms", VERSION, &bytes)?))
    }

    /// Adds the alarms to a write.
    pub(crate) fn write(&self, write: &mut WriteBatch) {
        write.put(keys::ALARMS, codec::encode(VERSION, self));
    }

    /// Adds the stored alarms to a checksum, if an alarm was ever raised.
    pub(crate) fn hash(source: &dyn Source, add: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        source.alarms()?.iter().for_each(|bytes| add(bytes));
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Alarm> {
        self.0.iter()
    }

    pub(crate) fn raise(&mut self, alarm: Alarm) {
        self.0.insert(alarm);
    }

    /// Disarms an alarm. Returns whether it was raised.
    pub(crate) fn disarm(&mut self, alarm: Alarm) -> bool {
        self.0.remove(&alarm)
    }

    /// Reason to refuse a command while these alarms are raised.
    pub(crate) fn refusal(&self, operation: &KvOperation) -> Option<KvRejection> {
        let is_raised = |kind| self.0.iter().any(|alarm| alarm.kind == kind);
        if self.0.is_empty() {
            None
        } else if is_raised(AlarmKind::Corrupt) && operation.is_command_of_clients() {
            Some(KvRejection::Corrupt)
        } else {
            (is_raised(AlarmKind::NoSpace) && operation.adds_data()).then_some(KvRejection::NoSpace)
        }
    }
}

/// The alarms as of the last batch, for readers.
#[derive(Debug, Default)]
pub(crate) struct AlarmTable(Mutex<Arc<Alarms>>);

impl AlarmTable {
    pub(crate) fn new(alarms: Alarms) -> Self {
        Self(Mutex::new(Arc::new(alarms)))
    }

    pub(crate) fn get(&self) -> Arc<Alarms> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn publish(&self, alarms: Alarms) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(alarms);
    }
}

impl KvOperation {
    /// Whether the operation may add data to the store.
    pub(crate) fn adds_data(&self) -> bool {
        match self {
            Self::Put(_) | Self::GrantLease { .. } => true,
            Self::Txn(txn) => txn.success.iter().chain(&txn.failure).any(Self::adds_data),
            _ => false,
        }
    }

    /// Whether the operation is a client's command on keys or leases.
    fn is_command_of_clients(&self) -> bool {
        match self {
            Self::Put(_)
            | Self::Delete(_)
            | Self::Range(_)
            | Self::Txn(_)
            | Self::Compact { .. }
            | Self::GrantLease { .. }
            | Self::RevokeLease { .. } => true,
            Self::OpenSession { .. }
            | Self::ExpireLeases { .. }
            | Self::CheckpointLeases { .. }
            | Self::ReserveMemberIds { .. }
            | Self::CheckState
            | Self::RaiseAlarm(_)
            | Self::DisarmAlarm(_)
            | Self::Auth(_) => false,
        }
    }

    /// Approximate bytes that the operation adds to the store.
    pub(crate) fn added_bytes(&self) -> u64 {
        match self {
            Self::Put(put) => (put.key.len() + put.value.len()) as u64 + PUT_BYTES,
            Self::GrantLease { .. } => LEASE_BYTES,
            Self::Txn(txn) => {
                let sum = |branch: &[Self]| branch.iter().map(Self::added_bytes).sum::<u64>();
                sum(&txn.success).max(sum(&txn.failure))
            }
            _ => 0,
        }
    }
}

const VERSION: u8 = 1;
/// Approximate bytes that a version needs in addition to its key and value, on disk or in the memtable.
const PUT_BYTES: u64 = 256;
const LEASE_BYTES: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Delete, Put, Range, Txn};

    fn alarms(kinds: &[AlarmKind]) -> Alarms {
        let mut alarms = Alarms::default();
        kinds.iter().for_each(|kind| alarms.raise(Alarm { kind: *kind, node: Some(NodeId(1)) }));
        alarms
    }

    #[test]
    fn alarm_raised_refuses_added_data_or_all_client_commands() {
        let put = || KvOperation::Put(Put { key: "k".into(), ..Put::default() });
        let delete = || KvOperation::Delete(Delete { key: "k".into(), ..Delete::default() });
        let txn = |failure| KvOperation::Txn(Txn { failure, ..Txn::default() });
        let adding =
            [put(), txn(vec![put()]), txn(vec![txn(vec![put()])]), KvOperation::GrantLease { id: 1, ttl: 1 }];
        let other = [
            delete(),
            txn(vec![delete()]),
            KvOperation::Range(Range::default()),
            KvOperation::Compact { revision: 3 },
            KvOperation::RevokeLease { id: 1 },
        ];
        let leader_command = KvOperation::ExpireLeases { ids: vec![1], term: 1 };
        let (none, no_space, corrupt) =
            (alarms(&[]), alarms(&[AlarmKind::NoSpace]), alarms(&[AlarmKind::NoSpace, AlarmKind::Corrupt]));
        for operation in &adding {
            assert_eq!(none.refusal(operation), None);
            assert_eq!(no_space.refusal(operation), Some(KvRejection::NoSpace), "{operation:?}");
        }
        for operation in &other {
            assert_eq!(no_space.refusal(operation), None, "{operation:?}");
        }
        for operation in adding.iter().chain(&other) {
            assert_eq!(corrupt.refusal(operation), Some(KvRejection::Corrupt), "{operation:?}");
        }
        assert_eq!(corrupt.refusal(&leader_command), None);
    }
}
