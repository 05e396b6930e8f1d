//! Calls about alarms.

use consensus_core::NodeId;
use kv_state_machine::{Alarm, AlarmKind, KvAnswer, KvResult};
use kv_store_client::{admin, protocol::Reply};

use super::{Result, invalid, signed, unavailable};

/// The alarm that a caller names.
pub(crate) fn alarm(alarm: &admin::Alarm) -> Result<Alarm> {
    let kind = match alarm.kind {
        admin::AlarmKind::NO_SPACE => AlarmKind::NoSpace,
        admin::AlarmKind::CORRUPT => AlarmKind::Corrupt,
        admin::AlarmKind(other) => return Err(invalid(format!("there is no alarm of the kind {other}"))),
    };
    let node = |id: i64| u64::try_from(id).map(NodeId).map_err(|_| invalid(format!("there is no node {id}")));
    Ok(Alarm { kind, node: alarm.node_id.map(node).transpose()? })
}

pub(crate) fn alarms(alarms: Vec<Alarm>) -> Reply {
    let alarm = |Alarm { kind, node }: Alarm| {
        let kind = match kind {
            AlarmKind::NoSpace => admin::AlarmKind::NO_SPACE,
            AlarmKind::Corrupt => admin::AlarmKind::CORRUPT,
        };
        admin::Alarm::new(kind, node.map(|node| signed(node.0)))
    };
    Reply::Alarms(alarms.into_iter().map(alarm).collect())
}

/// The answer to a request that disarms an alarm.
pub(crate) fn disarmed(answer: &KvAnswer) -> Result<Reply> {
    match &answer.result {
        KvResult::Alarm(was_raised) => Ok(Reply::DisarmAlarm(*was_raised)),
        other => Err(unavailable(format!("an alarm was to be disarmed, and the answer is {other:?}"), true)),
    }
}
