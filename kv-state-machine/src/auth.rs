//! Users, roles and permissions. They are part of the replicated state and of its snapshots, so that every node refuses the
//! same commands from the same log entry on.
//!
//! Permissions count only while authentication is enabled. Each change of users and roles has a *revision of auth*, which is
//! independent of the revision of the store. A [`Caller`] names its user and the revision of auth by which the node admitted
//! it; a user that was deleted or given another password since then has no rights by the earlier admission.
//!
//! Permissions are checked where they cannot be outdated: a command when it is applied (and before it is proposed, so that
//! refused commands are not in the log), a read against the state from which it is served, or a newer one.

mod change;
mod check;
mod ranges;
mod state;
mod table;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    KeyRange,
    limits::{PERMISSIONS_MAX, ROLES_MAX, ROLES_OF_USER_MAX, USERS_MAX},
};

pub use self::state::{AuthState, AuthUser};
pub(crate) use self::{
    check::{AccessKind, Demand},
    ranges::{Place, RangeSet},
    state::hash,
    table::AuthTable,
};

/// The origin of an operation, which decides what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// The program itself: everything is permitted.
    Server,
    /// A client without a user. While authentication is enabled, nothing is permitted.
    Anonymous,
    /// A client that has authenticated itself.
    User(Arc<Admission>),
}

/// A user that a node has admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Name of the user.
    pub user: String,
    /// Revision of auth at which the user authenticated itself.
    pub revision: u64,
}

impl Caller {
    /// A user that authenticated itself at a revision of auth.
    #[must_use]
    pub fn user(user: impl Into<String>, revision: u64) -> Self {
        Self::User(Arc::new(Admission { user: user.into(), revision }))
    }

    /// Name of the user; `None` without one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::User(admission) => Some(&admission.user),
            Self::Server | Self::Anonymous => None,
        }
    }
}

/// Kind of access that a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermissionKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and writes.
    ReadWrite,
}

/// A permission of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// Kind of access.
    pub kind: PermissionKind,
    /// Keys on which it is allowed.
    pub keys: KeyRange,
}

/// How a user authenticates itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Password {
    /// By a certificate only; a password is always refused.
    None,
    /// By a password with this hash, in PHC or bcrypt format. The store does not interpret it.
    Hash(String),
}

/// A hash is no secret that may be in a log file.
impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Hash(_) => "Hash(..)",
        })
    }
}

/// Hash of a password, in PHC or bcrypt format.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PasswordHash(pub String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// Key with which nodes sign tokens. Random; at least [`SECRET_BYTES_MIN`] bytes.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthSecret(pub Bytes);

impl std::fmt::Debug for AuthSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthSecret(..)")
    }
}

/// Minimum bytes of an [`AuthSecret`].
pub const SECRET_BYTES_MIN: usize = 32;

/// A change of users, roles, or of whether they count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthOperation {
    /// Enables authentication. Requires a user `root` with the role `root`. No effect if it is enabled.
    Enable {
        /// New key for tokens. Earlier tokens are invalid then.
        secret: AuthSecret,
    },
    /// Disables authentication. No effect if it is disabled.
    Disable,
    /// Adds a user without roles.
    AddUser {
        /// Name; not empty.
        user: String,
        /// Password.
        password: Password,
    },
    /// Deletes a user. Its tokens are invalid from then on, even if a user with the name is added again.
    DeleteUser {
        /// Name.
        user: String,
    },
    /// Sets another password. Earlier tokens of the user are invalid then.
    ChangePassword {
        /// Name.
        user: String,
        /// Hash of the password. A user without a password stays without one.
        hash: PasswordHash,
    },
    /// Gives a user a role.
    GrantRole {
        /// Name of the user.
        user: String,
        /// Name of the role.
        role: String,
    },
    /// Takes a role from a user.
    RevokeRole {
        /// Name of the user.
        user: String,
        /// Name of the role.
        role: String,
    },
    /// Adds a role without permissions.
    AddRole {
        /// Name; not empty.
        role: String,
    },
    /// Deletes a role, also of all users.
    DeleteRole {
        /// Name.
        role: String,
    },
    /// Adds a permission to a role, or changes the kind of the permission on exactly these keys.
    GrantPermission {
        /// Name of the role.
        role: String,
        /// The permission.
        permission: Permission,
    },
    /// Removes the permission on exactly these keys.
    RevokePermission {
        /// Name of the role.
        role: String,
        /// Keys of the permission.
        keys: KeyRange,
    },
}

/// Reason that a request was refused because of users, roles or permissions. It had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum AuthRejection {
    /// The caller has no user.
    #[error("authentication is enabled, and the request has no user: log in first")]
    NoUser,
    /// The user does not exist, or is not permitted to do this.
    #[error("permission denied")]
    PermissionDenied,
    /// The caller was admitted before its user was deleted or got another password.
    #[error("the user was deleted or got another password since it logged in: log in again")]
    OutdatedAdmission,
    /// Authentication cannot be enabled without a user `root`.
    #[error("there is no user root: add it first")]
    NoRootUser,
    /// Authentication cannot be enabled while the user `root` has no role `root`.
    #[error("the user root does not have the role root: grant it first")]
    NoRootRole,
    /// A user has this name.
    #[error("there is a user with this name already")]
    UserExists,
    /// No user has this name.
    #[error("there is no user with this name")]
    UserNotFound,
    /// The name of a user is empty.
    #[error("the name of the user is empty")]
    EmptyUser,
    /// A role has this name.
    #[error("there is a role with this name already")]
    RoleExists,
    /// No role has this name.
    #[error("there is no role with this name")]
    RoleNotFound,
    /// The name of a role is empty.
    #[error("the name of the role is empty")]
    EmptyRole,
    /// The user does not have the role.
    #[error("the user does not have the role")]
    RoleNotGranted,
    /// The role has no permission on exactly these keys.
    #[error("the role has no permission on exactly this key or range")]
    PermissionNotGranted,
    /// The change would make the cluster inaccessible, or the range of a permission is empty.
    #[error(
        "the user root, the role root and its grant cannot be removed while authentication is enabled; a permission needs a \
         key, and a range that is not empty"
    )]
    InvalidChange,
    /// The store has as many users as it can.
    #[error("there are {USERS_MAX} users, the maximum: delete one that is not needed")]
    TooManyUsers,
    /// The store has as many roles as it can.
    #[error("there are {ROLES_MAX} roles, the maximum: delete one that is not needed")]
    TooManyRoles,
    /// The user has as many roles as it can.
    #[error("the user has {ROLES_OF_USER_MAX} roles, the maximum: put their permissions into one role")]
    TooManyRolesOfUser,
    /// The role has as many permissions as it can.
    #[error("the role has {PERMISSIONS_MAX} permissions, the maximum: grant ranges, or use another role")]
    TooManyPermissions,
}

/// Name of the user that must exist, and of the role that permits everything.
pub const ROOT: &str = "root";
