//! Whether a caller may do what it requests.

use bytes::Bytes;

use super::{AuthRejection, AuthState, AuthUser, Caller, RangeSet};
use crate::{Delete, KeyRange, KvOperation, Put, Range, Txn, Versionstamp, view::Failure};

/// Permission that a request needs, apart from those on keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Any user.
    AnyUser,
    /// A user with the role `root`.
    Root,
}

/// Kind of an access to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    Write,
}

/// Rights of a caller.
#[derive(Clone, Copy, Debug)]
enum Rights<'a> {
    All,
    Of(&'a AuthUser),
}

type Check = Result<(), AuthRejection>;

/// Tells whether a set contains all keys that are attached to a lease.
pub(crate) type LeaseKeys<'a> = &'a dyn Fn(i64, &RangeSet) -> Result<bool, Failure>;

impl AuthState {
    /// Checks that a caller may do what needs no permission on keys.
    pub(crate) fn check(&self, caller: &Caller, demand: Demand) -> Check {
        match (self.rights(caller)?, demand) {
            (Rights::Of(user), Demand::Root) if !user.is_root() => Err(AuthRejection::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// Checks that a caller may read a range.
    pub(crate) fn check_read(&self, caller: &Caller, keys: &KeyRange) -> Check {
        self.rights(caller)?.check(AccessKind::Read, keys)
    }

    /// Checks that a caller may have an operation executed.
    pub(crate) fn check_operation(
        &self,
        caller: &Caller,
        operation: &KvOperation,
        lease_keys: LeaseKeys<'_>,
    ) -> Result<Check, Failure> {
        match self.rights(caller) {
            Ok(rights) => rights.check_operation(operation, lease_keys),
            Err(rejection) => Ok(Err(rejection)),
        }
    }

    /// Keys that a caller may access; `None` for all keys.
    pub(crate) fn accessible(
        &self,
        caller: &Caller,
        kind: AccessKind,
    ) -> Result<Option<&RangeSet>, AuthRejection> {
        Ok(match self.rights(caller)? {
            Rights::All => None,
            Rights::Of(user) if user.is_root() => None,
            Rights::Of(user) => Some(user.keys(kind)),
        })
    }

    fn rights(&self, caller: &Caller) -> Result<Rights<'_>, AuthRejection> {
        if !self.is_enabled() {
            return Ok(Rights::All);
        }
        match caller {
            Caller::Server => Ok(Rights::All),
            Caller::Anonymous => Err(AuthRejection::NoUser),
            Caller::User(admission) => {
                let user = self.user(&admission.user).ok_or(AuthRejection::PermissionDenied)?;
                if admission.revision < user.since().max(self.head.since) {
                    return Err(AuthRejection::OutdatedAdmission);
                }
                Ok(Rights::Of(user))
            }
        }
    }
}

impl AuthUser {
    fn keys(&self, kind: AccessKind) -> &RangeSet {
        match kind {
            AccessKind::Read => &self.read,
            AccessKind::Write => &self.write,
        }
    }
}

impl Rights<'_> {
    fn check(self, kind: AccessKind, keys: &KeyRange) -> Check {
        match self {
            Self::Of(user) if !user.is_root() && !user.keys(kind).contains(keys) => {
                Err(AuthRejection::PermissionDenied)
            }
            _ => Ok(()),
        }
    }

    fn check_operation(self, operation: &KvOperation, lease_keys: LeaseKeys<'_>) -> Result<Check, Failure> {
        let Self::Of(user) = self else { return Ok(Ok(())) };
        if user.is_root() {
            return Ok(Ok(()));
        }
        match operation {
            KvOperation::Put(put) => self.check_put(put, lease_keys),
            KvOperation::Delete(Delete { key, range_end, return_previous, limit }) => {
                let keys = KeyRange { key: key.clone(), range_end: range_end.clone() };
                // With a limit, the response has the first key that was not processed.
                let reads = || {
                    if *return_previous || *limit > 0 { self.check(AccessKind::Read, &keys) } else { Ok(()) }
                };
                Ok(self.check(AccessKind::Write, &keys).and_then(|()| reads()))
            }
            KvOperation::Range(Range { key, range_end, .. }) => {
                let keys = KeyRange { key: key.clone(), range_end: range_end.clone() };
                Ok(self.check(AccessKind::Read, &keys))
            }
            KvOperation::Txn(txn) => self.check_txn(txn, lease_keys),
            KvOperation::RevokeLease { id } => self.check_lease(*id, lease_keys),
            // As in etcd, any user disarms alarms.
            KvOperation::OpenSession { .. }
            | KvOperation::GrantLease { .. }
            | KvOperation::DisarmAlarm(_) => Ok(Ok(())),
            KvOperation::Compact { .. }
            | KvOperation::RaiseAlarm(_)
            | KvOperation::ExpireLeases { .. }
            | KvOperation::CheckpointLeases { .. }
            | KvOperation::ReserveMemberIds { .. }
            | KvOperation::CheckState
            | KvOperation::Auth(_) => Ok(Err(AuthRejection::PermissionDenied)),
        }
    }

    /// All operations of both branches are checked, whichever is executed: a refusal must not tell which compares hold.
    fn check_txn(self, txn: &Txn, lease_keys: LeaseKeys<'_>) -> Result<Check, Failure> {
        let compared = txn.compare.iter().map(|compare| &compare.keys);
        let checked =
            compared.chain(&txn.read_ranges).try_for_each(|keys| self.check(AccessKind::Read, keys));
        if checked.is_err() {
            return Ok(checked);
        }
        for operation in txn.success.iter().chain(&txn.failure) {
            let checked = self.check_operation(operation, lease_keys)?;
            if checked.is_err() {
                return Ok(checked);
            }
        }
        Ok(Ok(()))
    }

    /// A put with a lease may delete all other keys of the lease later, when the lease ends.
    fn check_put(self, put: &Put, lease_keys: LeaseKeys<'_>) -> Result<Check, Failure> {
        let key = KeyRange { key: put.key.clone(), range_end: None };
        let written = match put.versionstamp {
            Versionstamp::KeySuffix => keys_with_prefix(&put.key),
            Versionstamp::None | Versionstamp::ValueSuffix => key.clone(),
        };
        let read = if put.return_previous { self.check(AccessKind::Read, &written) } else { Ok(()) };
        match self.check(AccessKind::Write, &written).and(read) {
            Ok(()) if put.lease_id != 0 => self.check_lease(put.lease_id, lease_keys),
            checked => Ok(checked),
        }
    }

    fn check_lease(self, id: i64, lease_keys: LeaseKeys<'_>) -> Result<Check, Failure> {
        let Self::Of(user) = self else { return Ok(Ok(())) };
        let may_write = lease_keys(id, &user.write)?;
        Ok(if may_write { Ok(()) } else { Err(AuthRejection::PermissionDenied) })
    }
}

/// All keys that start with a prefix.
fn keys_with_prefix(prefix: &Bytes) -> KeyRange {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xFF) {
        end.pop();
    }
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    let key = if prefix.is_empty() { Bytes::from_static(&[0]) } else { prefix.clone() };
    KeyRange { key, range_end: Some(end.into()) }
}
