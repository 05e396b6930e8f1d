//! What makes a request wrong, whatever the state of the store. Checked before an operation is proposed and again when it
//! is applied: a log may hold what another version let in.

use crate::{
    Delete, KEY_BYTES_MAX, KeyRange, KvOperation, KvRejection, LEASE_TTL_MAX, OPERATIONS_MAX, Put, Range,
    Session, TXN_DEPTH_MAX, Txn, VALUE_BYTES_MAX, Versionstamp,
};

type Check = Result<(), KvRejection>;

pub(crate) fn command(session: Option<&Session>, operation: &KvOperation) -> Check {
    if let Some(session) = session {
        if session.client_id == 0 || session.sequence == 0 {
            return Err(KvRejection::invalid(
                "a session has a client id from open_session and counts from 1",
            ));
        }
        if matches!(operation, KvOperation::OpenSession { .. }) {
            return Err(KvRejection::invalid("open_session cannot itself be in a session"));
        }
    }
    self::operation(operation)
}

fn operation(operation: &KvOperation) -> Check {
    match operation {
        KvOperation::Put(operation) => put(operation),
        KvOperation::Delete(Delete { key, range_end, .. })
        | KvOperation::Range(Range { key, range_end, .. }) => keys(key, range_end.as_deref()),
        KvOperation::Txn(operation) => txn(operation, 0),
        KvOperation::GrantLease { id: 0, .. } => Err(KvRejection::invalid("lease 0 stands for none")),
        KvOperation::GrantLease { ttl, .. } if *ttl == 0 || *ttl > LEASE_TTL_MAX => {
            Err(KvRejection::invalid(format!("a lease of {ttl} s; 1 to {LEASE_TTL_MAX} are allowed")))
        }
        KvOperation::Compact { revision: 0 } => {
            Err(KvRejection::invalid("revision 0 cannot be compacted to"))
        }
        KvOperation::OpenSession { sessions_max: 0 } => {
            Err(KvRejection::invalid("sessions_max must be at least 1"))
        }
        KvOperation::Compact { .. }
        | KvOperation::OpenSession { .. }
        | KvOperation::GrantLease { .. }
        | KvOperation::RevokeLease { .. }
        | KvOperation::ExpireLeases { .. }
        | KvOperation::CheckpointLeases { .. }
        | KvOperation::ReserveMemberIds { .. }
        | KvOperation::RaiseAlarm(_)
        | KvOperation::DisarmAlarm(_) => Ok(()),
    }
}

fn put(put: &Put) -> Check {
    let stamp = if put.versionstamp == Versionstamp::KeySuffix { 10 } else { 0 };
    key(&put.key, stamp)?;
    if put.value.len() > VALUE_BYTES_MAX {
        let bytes = put.value.len();
        return Err(KvRejection::invalid(format!(
            "a value of {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed"
        )));
    }
    let names_lease = put.keep.lease && put.lease_id != 0;
    if names_lease || put.keep.value && !put.value.is_empty() || put.keep.is_any() && stamp > 0 {
        return Err(KvRejection::invalid("what is kept cannot be given, too"));
    }
    Ok(())
}

fn txn(txn: &Txn, depth: usize) -> Check {
    if depth > TXN_DEPTH_MAX {
        return Err(KvRejection::invalid(format!("transactions are nested more than {TXN_DEPTH_MAX} deep")));
    }
    if depth > 0 && txn.read_revision != 0 {
        return Err(KvRejection::invalid("only the outermost transaction can have a read_revision"));
    }
    let operations = txn.success.len() + txn.failure.len();
    let total = operations + txn.compare.len() + txn.read_ranges.len();
    if total > OPERATIONS_MAX {
        return Err(KvRejection::invalid(format!(
            "a transaction of {total} parts; at most {OPERATIONS_MAX} are allowed"
        )));
    }
    let compared = txn.compare.iter().map(|compare| &compare.keys);
    compared
        .chain(&txn.read_ranges)
        .try_for_each(|KeyRange { key, range_end }| keys(key, range_end.as_deref()))?;
    if txn.read_revision == 0 && !txn.read_ranges.is_empty() {
        return Err(KvRejection::invalid("read_ranges need the read_revision at which they were read"));
    }
    for part in txn.success.iter().chain(&txn.failure) {
        match part {
            KvOperation::Put(_) | KvOperation::Delete(_) | KvOperation::Range(_) => operation(part)?,
            KvOperation::Txn(nested) => self::txn(nested, depth + 1)?,
            _ => {
                let why = "a transaction holds puts, deletes, ranges and transactions only";
                return Err(KvRejection::invalid(why));
            }
        }
    }
    Ok(())
}

fn keys(start: &[u8], end: Option<&[u8]>) -> Check {
    key(start, 0)?;
    end.map_or(Ok(()), |end| match end {
        [] => {
            Err(KvRejection::invalid("range_end is empty; leave it out for one key, \\0 stands for the end"))
        }
        _ => key(end, 0),
    })
}

fn key(key: &[u8], stamp: usize) -> Check {
    if key.is_empty() && stamp == 0 {
        return Err(KvRejection::invalid("the key is empty; \\0 is before every other key"));
    }
    let bytes = key.len() + stamp;
    if bytes > KEY_BYTES_MAX {
        return Err(KvRejection::invalid(format!(
            "a key of {bytes} bytes; at most {KEY_BYTES_MAX} are allowed"
        )));
    }
    Ok(())
}
