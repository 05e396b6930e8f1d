//! The users and roles of a store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use consensus_core::codec;
use rocksdb::{DB, IteratorMode, ReadOptions, WriteBatch};
use serde::{Deserialize, Serialize};

use super::{AuthSecret, Password, Permission, PermissionKind, ROOT, RangeSet};
use crate::{
    KeyRange, keys,
    view::{Failure, Source, disk},
};

/// Users, roles and permissions as of a log entry.
#[derive(Clone, Debug, Default)]
pub struct AuthState {
    pub(super) head: Head,
    pub(super) users: BTreeMap<String, Arc<AuthUser>>,
    pub(super) roles: BTreeMap<String, Arc<Role>>,
    /// Records that were not written to the disk yet.
    unwritten: BTreeSet<Record>,
}

/// State that does not belong to one user or role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) is_enabled: bool,
    pub(super) revision: u64,
    pub(super) secret: AuthSecret,
    /// Revision of auth at which authentication was enabled. Earlier admissions are outdated.
    pub(super) since: u64,
}

impl Default for Head {
    fn default() -> Self {
        Self { is_enabled: false, revision: 1, secret: AuthSecret::default(), since: 0 }
    }
}

/// A user.
#[derive(Clone, Debug)]
pub struct AuthUser {
    pub(super) stored: StoredUser,
    /// Keys that the user may read and write, by all of its roles.
    pub(super) read: RangeSet,
    pub(super) write: RangeSet,
}

impl AuthUser {
    /// Names of the user's roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.stored.roles.iter().map(String::as_str)
    }

    /// The user's password.
    #[must_use]
    pub fn password(&self) -> &Password {
        &self.stored.password
    }

    /// Revision of auth at which the user was added, or got its password. Earlier tokens are not the user's.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.stored.since
    }

    /// Whether the user has the role `root`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.stored.roles.contains(ROOT)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredUser {
    pub(super) roles: BTreeSet<String>,
    pub(super) password: Password,
    pub(super) since: u64,
}

/// Permissions of a role, by key and end of the range.
pub(super) type Role = BTreeMap<(bytes::Bytes, Option<bytes::Bytes>), PermissionKind>;

/// A record on the disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Record {
    Head,
    User(String),
    Role(String),
}

impl Record {
    fn place(&self) -> Vec<u8> {
        match self {
            Self::Head => keys::auth(HEAD, ""),
            Self::User(name) => keys::auth(USER, name),
            Self::Role(name) => keys::auth(ROLE, name),
        }
    }
}

impl AuthState {
    /// Whether permissions count.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.head.is_enabled
    }

    /// Revision of auth: 1 at first, one more with each change of users and roles.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// Key for tokens; empty if authentication was never enabled.
    #[must_use]
    pub fn secret(&self) -> &AuthSecret {
        &self.head.secret
    }

    /// The user with this name.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&AuthUser> {
        self.users.get(name).map(|user| &**user)
    }

    /// Names of all users, in order.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// Names of all roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// Permissions of a role, in the order of keys; `None` if there is no such role.
    #[must_use]
    pub fn permissions(&self, role: &str) -> Option<Vec<Permission>> {
        let permission = |((key, range_end), kind): (&(_, _), &_)| Permission {
            kind: *kind,
            keys: KeyRange { key: Clone::clone(key), range_end: Clone::clone(range_end) },
        };
        Some(self.roles.get(role)?.iter().map(permission).collect())
    }

    pub(crate) fn load(db: &DB) -> Result<Self, Failure> {
        let mut state = Self::default();
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_range(keys::AUTH.start.to_vec()..keys::AUTH.end.to_vec());
        let mut users = Vec::new();
        for item in db.iterator_opt(IteratorMode::Start, read) {
            let (place, bytes) = item.map_err(disk)?;
            let damaged = || Failure::Other(format!("the record of users and roles {place:02x?} is damaged"));
            let name = || String::from_utf8(place[2..].to_vec()).map_err(|_| damaged());
            match place.get(1) {
                Some(&HEAD) => state.head = codec::decode("head of auth", VERSION, &bytes)?,
                Some(&USER) => users.push((name()?, codec::decode("user", VERSION, &bytes)?)),
                Some(&ROLE) => {
                    let role = codec::decode("role", VERSION, &bytes)?;
                    state.roles.insert(name()?, Arc::new(role));
                }
                _ => return Err(damaged()),
            }
        }
        for (name, stored) in users {
            let user = state.with_access(stored);
            state.users.insert(name, Arc::new(user));
        }
        Ok(state)
    }

    /// Adds the changes since the last write to a write. Returns whether there were any.
    pub(crate) fn write(&mut self, write: &mut WriteBatch) -> bool {
        let unwritten = std::mem::take(&mut self.unwritten);
        for record in &unwritten {
            let bytes = match record {
                Record::Head => Some(codec::encode(VERSION, &self.head)),
                Record::User(name) => self.users.get(name).map(|user| codec::encode(VERSION, &user.stored)),
                Record::Role(name) => self.roles.get(name).map(|role| codec::encode(VERSION, &**role)),
            };
            match bytes {
                Some(bytes) => write.put(record.place(), bytes),
                None => write.delete(record.place()),
            }
        }
        !unwritten.is_empty()
    }

    pub(super) fn note(&mut self, record: Record) {
        self.unwritten.insert(record);
    }

    /// Sets or removes a user.
    pub(super) fn set_user(&mut self, name: &str, stored: Option<StoredUser>) {
        match stored {
            Some(stored) => {
                let user = self.with_access(stored);
                self.users.insert(name.to_owned(), Arc::new(user));
            }
            None => drop(self.users.remove(name)),
        }
        self.note(Record::User(name.to_owned()));
    }

    /// Sets or removes a role, and adapts the users that have it.
    pub(super) fn set_role(&mut self, name: &str, role: Option<Role>) {
        match role {
            Some(role) => drop(self.roles.insert(name.to_owned(), Arc::new(role))),
            None => drop(self.roles.remove(name)),
        }
        self.note(Record::Role(name.to_owned()));
        let affected = self.users.iter().filter(|(_, user)| user.stored.roles.contains(name));
        for (user, stored) in
            affected.map(|(name, user)| (name.clone(), user.stored.clone())).collect::<Vec<_>>()
        {
            let user_with_access = self.with_access(stored);
            self.users.insert(user, Arc::new(user_with_access));
        }
    }

    fn with_access(&self, stored: StoredUser) -> AuthUser {
        let permissions = stored.roles.iter().filter_map(|role| self.permissions(role)).flatten();
        let permissions: Vec<_> = permissions.collect();
        let allowed = |kind: PermissionKind| {
            let allows = |one: &&Permission| one.kind == kind || one.kind == PermissionKind::ReadWrite;
            RangeSet::new(permissions.iter().filter(allows).map(|permission| &permission.keys))
        };
        AuthUser { stored, read: allowed(PermissionKind::Read), write: allowed(PermissionKind::Write) }
    }
}

/// Adds the stored users and roles to a checksum.
pub(crate) fn hash(source: &dyn Source, add: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
    let mut read = ReadOptions::default();
    read.set_total_order_seek(true);
    read.set_iterate_lower_bound(keys::AUTH.start);
    read.set_iterate_upper_bound(keys::AUTH.end);
    for item in source.iterate(IteratorMode::Start, read) {
        let (place, bytes) = item.map_err(disk)?;
        add(&(place.len() as u64).to_be_bytes());
        add(&place);
        add(&bytes);
    }
    Ok(())
}

const HEAD: u8 = b'h';
const USER: u8 = b'u';
const ROLE: u8 = b'r';
const VERSION: u8 = 1;
