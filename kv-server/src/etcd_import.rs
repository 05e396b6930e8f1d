//! Reads snapshots of etcd 3.4 to 3.7 (`etcdctl snapshot save`) into a new store: keys with all their revisions, leases, users and
//! roles. Not imported: members, alarms, and tokens of users.

mod bolt;

use std::{
    fs::File,
    io::{Read, Seek},
};

use bytes::Bytes;
use consensus_core::{LogId, StateMachineError};
use kv_etcd_api::{
    authpb::{Role, User, permission::Type},
    mvccpb::KeyValue,
};
use kv_state_machine::{
    AuthOperation, ImportedVersion, KeyRange, KvStateMachine, Password, Permission, PermissionKind, ROOT,
    Restore,
};
use prost::Message;
use sha2::{Digest, Sha256};

use self::bolt::{Bolt, BoltError, ReadAt};
use crate::auth;

/// Why a snapshot is not imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error(transparent)]
    Bolt(#[from] BoltError),
    #[error("it is damaged: {0}")]
    Content(String),
    #[error(
        "it has no checksum at its end: save a snapshot with `etcdctl snapshot save`; a file of etcd's data directory is no snapshot"
    )]
    NoChecksum,
    #[error("its checksum is wrong: it was changed or damaged after it was saved")]
    WrongChecksum,
    #[error(transparent)]
    Store(#[from] StateMachineError),
}

/// A lease in the bucket `lease`.
#[derive(Clone, PartialEq, Message)]
struct Lease {
    #[prost(int64, tag = "1")]
    id: i64,
    /// Seconds.
    #[prost(int64, tag = "2")]
    ttl: i64,
}

/// Imports a snapshot into a new store. Returns the entry after which the log of the node must start. Blocks on the disk.
pub(crate) fn import(
    machine: &mut KvStateMachine,
    mut snapshot: File,
    restore: Restore,
) -> Result<LogId, ImportError> {
    let bytes = check_checksum(&mut snapshot)?;
    let bolt = Bolt::open(snapshot, bytes)?;
    let mut import = machine.import()?;
    let mut newest = 1;
    leases(&bolt, |id, ttl| import.lease(id, ttl))?;
    versions(&bolt, |version| {
        newest = version.revision;
        Ok(import.version(&version)?)
    })?;
    users(&bolt, |change| Ok(import.auth(&change)?))?;
    let compacted = compacted(&bolt)?;
    Ok(import.finish(newest, compacted, restore)?)
}

/// Checks the SHA-256 at the end of a snapshot. Returns the bytes before it.
fn check_checksum(file: &mut File) -> Result<u64, ImportError> {
    let length = file.metadata().map_err(BoltError::from)?.len();
    // The database is a number of pages; the checksum follows.
    let bytes = length.checked_sub(DIGEST_BYTES).filter(|bytes| bytes % 512 == 0);
    let bytes = bytes.ok_or(ImportError::NoChecksum)?;
    let (mut digest, mut part, mut left) = (Sha256::new(), vec![0; READ_BYTES], bytes);
    while left > 0 {
        let length = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut part[..length]).map_err(BoltError::from)?;
        digest.update(&part[..length]);
        left -= length as u64;
    }
    let mut saved = [0; DIGEST_BYTES as usize];
    file.read_exact(&mut saved).map_err(BoltError::from)?;
    file.rewind().map_err(BoltError::from)?;
    if digest.finalize()[..] == saved { Ok(bytes) } else { Err(ImportError::WrongChecksum) }
}

/// Calls `f` with the id and the time to live, in seconds, of each lease.
fn leases<F: ReadAt>(bolt: &Bolt<F>, mut f: impl FnMut(i64, u64)) -> Result<(), ImportError> {
    bolt.visit("lease", |_, value| {
        let Lease { id, ttl } = decode("lease", value)?;
        f(id, u64::try_from(ttl).unwrap_or(1).max(1));
        Ok(())
    })
}

/// Calls `f` with all versions of keys, in the order of revisions.
fn versions<F: ReadAt>(
    bolt: &Bolt<F>,
    mut f: impl FnMut(ImportedVersion) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    bolt.visit("key", |place, value| {
        let (revision, is_deletion) = revision_of(&place)?;
        let KeyValue { key, create_revision, version, value, lease, .. } = decode("key", value)?;
        if is_deletion {
            return f(ImportedVersion {
                key,
                revision,
                create_revision: 0,
                version: 0,
                lease_id: 0,
                value: Bytes::new(),
            });
        }
        let number = |number: i64| {
            let wrong = || content(format!("a key at revision {revision} has negative numbers"));
            u64::try_from(number).map_err(|_| wrong())
        };
        let (create_revision, version) = (number(create_revision)?, number(version)?);
        f(ImportedVersion { key, revision, create_revision, version, lease_id: lease, value })
    })
}

/// Splits a place in the bucket `key`: revision(8) `_` number(8), and `t` for a deletion.
fn revision_of(place: &[u8]) -> Result<(u64, bool), ImportError> {
    let wrong = || content(format!("a key has the place {}", place.escape_ascii()));
    let (revision, rest) = place.split_first_chunk().ok_or_else(wrong)?;
    let is_deletion = match rest {
        [b'_', number @ ..] if number.len() == 8 => false,
        [b'_', number @ .., b't'] if number.len() == 8 => true,
        _ => return Err(wrong()),
    };
    Ok((u64::from_be_bytes(*revision), is_deletion))
}

/// Oldest revision that can be read. A compaction that etcd had not finished counts.
fn compacted<F: ReadAt>(bolt: &Bolt<F>) -> Result<u64, ImportError> {
    let mut compacted = 0;
    bolt.visit("meta", |key, value| {
        if [&b"scheduledCompactRev"[..], b"finishedCompactRev"].contains(&&key[..]) {
            compacted = compacted.max(revision_of(&value)?.0);
        }
        Ok::<_, ImportError>(())
    })?;
    Ok(compacted)
}

/// Calls `f` with the changes that add users and roles, and enable authentication if it is enabled.
fn users<F: ReadAt>(
    bolt: &Bolt<F>,
    mut f: impl FnMut(AuthOperation) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    bolt.visit("authRoles", |_, value| {
        let Role { name, key_permission } = decode("role", value)?;
        let role = text("role", &name)?;
        if role == ROOT {
            return Ok(()); // It exists always, and may do everything.
        }
        f(AuthOperation::AddRole { role: role.clone() })?;
        for permission in key_permission {
            let kind = match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => PermissionKind::Read,
                Ok(Type::Write) => PermissionKind::Write,
                Ok(Type::Readwrite) => PermissionKind::ReadWrite,
                Err(_) => return Err(content(format!("role {role} has an unknown kind of permission"))),
            };
            let range_end = Some(permission.range_end).filter(|end| !end.is_empty());
            let permission = Permission { kind, keys: KeyRange { key: permission.key, range_end } };
            f(AuthOperation::GrantPermission { role: role.clone(), permission })?;
        }
        Ok(())
    })?;
    bolt.visit("authUsers", |_, value| {
        let User { name, password, roles, .. } = decode("user", value)?;
        let user = text("user", &name)?;
        let hash = text("password hash", &password)?;
        if !hash.is_empty() && !auth::is_bcrypt(&hash) {
            let why = "the hash of the password is not one of bcrypt with a cost of at most 14: give the user another password in etcd";
            return Err(content(format!("user {user}: {why}")));
        }
        let password = if hash.is_empty() { Password::None } else { Password::Hash(hash) };
        f(AuthOperation::AddUser { user: user.clone(), password })?;
        for role in roles {
            f(AuthOperation::GrantRole { user: user.clone(), role })?;
        }
        Ok::<_, ImportError>(())
    })?;
    let mut is_enabled = false;
    bolt.visit("auth", |key, value| {
        is_enabled |= &key[..] == b"authEnabled" && value[..] == [1];
        Ok::<_, ImportError>(())
    })?;
    if is_enabled {
        let secret = auth::new_secret().map_err(|error| content(error.to_string()))?;
        f(AuthOperation::Enable { secret })?;
    }
    Ok(())
}

/// Reads all of a snapshot without its checksum, for the crate `fuzz`. Returns the number of leases, versions and changes of users.
pub(crate) fn read(bytes: &[u8]) -> Result<usize, ImportError> {
    let (bolt, count) = (Bolt::open(bytes, bytes.len() as u64)?, std::cell::Cell::new(0));
    let one_more = || count.set(count.get() + 1);
    leases(&bolt, |_, _| one_more())?;
    versions(&bolt, |_| {
        one_more();
        Ok(())
    })?;
    users(&bolt, |_| {
        one_more();
        Ok(())
    })?;
    compacted(&bolt)?;
    Ok(count.get())
}

fn decode<T: Message + Default>(what: &str, bytes: Bytes) -> Result<T, ImportError> {
    T::decode(bytes).map_err(|error| content(format!("a {what} cannot be decoded: {error}")))
}

fn text(what: &str, bytes: &[u8]) -> Result<String, ImportError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| content(format!("a {what} is no text: {}", bytes.escape_ascii())))
}

fn content(why: String) -> ImportError {
    ImportError::Content(why)
}

const DIGEST_BYTES: u64 = 32;
const READ_BYTES: usize = 1 << 20;
