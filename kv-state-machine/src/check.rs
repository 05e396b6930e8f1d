//! Checks of a request that do not depend on the state of the store. They run before an operation is proposed and again
//! when it is applied, because the log may contain commands that another version accepted.

use crate::{
    AuthOperation, Delete, KEY_BYTES_MAX, KeyRange, KvOperation, KvRejection, LEASE_TTL_MAX, OPERATIONS_MAX,
    Permission, Put, Range, SECRET_BYTES_MIN, Session, TXN_DEPTH_MAX, Txn, VALUE_BYTES_MAX, Versionstamp,
};

type Check = Result<(), KvRejection>;

pub(crate) fn command(session: Option<&Session>, operation: &KvOperation) -> Check {
    if let Some(session) = session {
        if session.client_id == 0 || session.sequence == 0 {
            return Err(KvRejection::invalid(
                "client id and sequence of a session must not be 0: a session has a client id from \
                 open_session and counts from 1",
            ));
        }
        if matches!(operation, KvOperation::OpenSession { .. }) {
            return Err(KvRejection::invalid("open_session cannot be executed in a session"));
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
        KvOperation::GrantLease { id: 0, .. } => {
            Err(KvRejection::invalid("lease id 0 means no lease; use another id"))
        }
        KvOperation::GrantLease { ttl, .. } if *ttl == 0 || *ttl > LEASE_TTL_MAX => {
            Err(KvRejection::invalid(format!(
                "the time to live of the lease is {ttl} s; it must be 1 to {LEASE_TTL_MAX} s"
            )))
        }
        KvOperation::Compact { revision: 0 } => {
            Err(KvRejection::invalid("the revision to compact to must be at least 1"))
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
        | KvOperation::CheckState
        | KvOperation::RaiseAlarm(_)
        | KvOperation::DisarmAlarm(_) => Ok(()),
        KvOperation::Auth(operation) => auth(operation),
    }
}

fn auth(operation: &AuthOperation) -> Check {
    match operation {
        AuthOperation::Enable { secret } if secret.0.len() < SECRET_BYTES_MIN => Err(KvRejection::invalid(
            format!("the key for tokens has {} bytes; the minimum is {SECRET_BYTES_MIN}", secret.0.len()),
        )),
        AuthOperation::AddUser { user: name, .. } | AuthOperation::AddRole { role: name }
            if name.len() > AUTH_NAME_BYTES_MAX =>
        {
            let bytes = name.len();
            Err(KvRejection::invalid(format!(
                "the name of the user or role has {bytes} bytes; the maximum is {AUTH_NAME_BYTES_MAX}"
            )))
        }
        AuthOperation::GrantPermission { permission: Permission { keys, .. }, .. } => {
            let end = keys.range_end.as_deref().unwrap_or_default();
            let bytes = keys.key.len().max(end.len());
            if bytes <= KEY_BYTES_MAX {
                return Ok(());
            }
            Err(KvRejection::invalid(format!(
                "a key of the permission has {bytes} bytes; the maximum is {KEY_BYTES_MAX}"
            )))
        }
        _ => Ok(()),
    }
}

/// Maximum bytes of the name of a user or role.
const AUTH_NAME_BYTES_MAX: usize = 1 << 10;

fn put(put: &Put) -> Check {
    let stamp = if put.versionstamp == Versionstamp::KeySuffix { 10 } else { 0 };
    key(&put.key, stamp)?;
    if put.value.len() > VALUE_BYTES_MAX {
        let bytes = put.value.len();
        return Err(KvRejection::invalid(format!(
            "the value has {bytes} bytes; the maximum is {VALUE_BYTES_MAX}"
        )));
    }
    let names_lease = put.keep.lease && put.lease_id != 0;
    if names_lease || put.keep.value && !put.value.is_empty() || put.keep.is_any() && stamp > 0 {
        return Err(KvRejection::invalid(
            "a put that keeps the value or lease of a key cannot also set it, nor use a versionstamp",
        ));
    }
    Ok(())
}

fn txn(txn: &Txn, depth: usize) -> Check {
    if depth > TXN_DEPTH_MAX {
        return Err(KvRejection::invalid(format!(
            "transactions are nested more than {TXN_DEPTH_MAX} levels deep"
        )));
    }
    if depth > 0 && txn.read_revision != 0 {
        return Err(KvRejection::invalid("only the outermost transaction can have a read_revision"));
    }
    let operations = txn.success.len() + txn.failure.len();
    let total = operations + txn.compare.len() + txn.read_ranges.len();
    if total > OPERATIONS_MAX {
        return Err(KvRejection::invalid(format!(
            "the transaction has {total} compares, operations and read ranges; the maximum is {OPERATIONS_MAX}"
        )));
    }
    let compared = txn.compare.iter().map(|compare| &compare.keys);
    compared
        .chain(&txn.read_ranges)
        .try_for_each(|KeyRange { key, range_end }| keys(key, range_end.as_deref()))?;
    if txn.read_revision == 0 && !txn.read_ranges.is_empty() {
        return Err(KvRejection::invalid("read_ranges require the read_revision at which they were read"));
    }
    for part in txn.success.iter().chain(&txn.failure) {
        match part {
            KvOperation::Put(_) | KvOperation::Delete(_) | KvOperation::Range(_) => operation(part)?,
            KvOperation::Txn(nested) => self::txn(nested, depth + 1)?,
            _ => {
                let why = "a transaction can contain only puts, deletes, ranges and transactions";
                return Err(KvRejection::invalid(why));
            }
        }
    }
    Ok(())
}

fn keys(start: &[u8], end: Option<&[u8]>) -> Check {
    key(start, 0)?;
    end.map_or(Ok(()), |end| match end {
        [] => Err(KvRejection::invalid(
            "range_end is empty; omit it to name one key, or use \\0 for all keys from the start key",
        )),
        _ => key(end, 0),
    })
}

fn key(key: &[u8], stamp: usize) -> Check {
    if key.is_empty() && stamp == 0 {
        return Err(KvRejection::invalid("the key is empty; the first key of the store is \\0"));
    }
    let bytes = key.len() + stamp;
    if bytes > KEY_BYTES_MAX {
        return Err(KvRejection::invalid(format!(
            "the key has {bytes} bytes; the maximum is {KEY_BYTES_MAX}"
        )));
    }
    Ok(())
}
