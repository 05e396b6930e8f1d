//! Users and roles.

use kv_state_machine::{
    AuthOperation, AuthSecret, AuthState, KeyRange, Password, PasswordHash, Permission, PermissionKind,
};
use kv_store_client::{
    admin::{self, AuthAction, AuthChange, KeyPermission, RefusedReason},
    protocol::Fault,
};

use super::{refused, signed};

/// A change as the store executes it. `secret` is a new key for tokens, `hash` the hash of the password of the change.
///
/// # Errors
/// A field that the change needs is not set.
pub(crate) fn auth_change(
    change: AuthChange,
    secret: AuthSecret,
    hash: Option<String>,
) -> Result<AuthOperation, Fault> {
    let missing = |what: &str| refused(format!("the change needs the field {what}"), RefusedReason::REJECTED);
    let AuthChange { action, user, role, permission, .. } = change;
    let user = || user.ok_or_else(|| missing("user"));
    let role = || role.ok_or_else(|| missing("role"));
    let permission = || permission.ok_or_else(|| missing("permission"));
    Ok(match action {
        AuthAction::ENABLE => AuthOperation::Enable { secret },
        AuthAction::DISABLE => AuthOperation::Disable,
        AuthAction::ADD_USER => {
            let password = hash.map_or(Password::None, Password::Hash);
            AuthOperation::AddUser { user: user()?, password }
        }
        AuthAction::DELETE_USER => AuthOperation::DeleteUser { user: user()? },
        AuthAction::CHANGE_PASSWORD => {
            let hash = hash.ok_or_else(|| missing("password"))?;
            AuthOperation::ChangePassword { user: user()?, hash: PasswordHash(hash) }
        }
        AuthAction::GRANT_ROLE => AuthOperation::GrantRole { user: user()?, role: role()? },
        AuthAction::REVOKE_ROLE => AuthOperation::RevokeRole { user: user()?, role: role()? },
        AuthAction::ADD_ROLE => AuthOperation::AddRole { role: role()? },
        AuthAction::DELETE_ROLE => AuthOperation::DeleteRole { role: role()? },
        AuthAction::GRANT_PERMISSION => {
            let KeyPermission { kind, key, range_end } = permission()?;
            let kind = match kind {
                admin::PermissionKind::READ => PermissionKind::Read,
                admin::PermissionKind::WRITE => PermissionKind::Write,
                admin::PermissionKind::READ_WRITE => PermissionKind::ReadWrite,
                other => {
                    let why = format!("the kind of permission {} is not 1, 2 or 3", other.0);
                    return Err(refused(why, RefusedReason::REJECTED));
                }
            };
            let permission = Permission { kind, keys: keys(key, range_end) };
            AuthOperation::GrantPermission { role: role()?, permission }
        }
        AuthAction::REVOKE_PERMISSION => {
            let KeyPermission { key, range_end, .. } = permission()?;
            AuthOperation::RevokePermission { role: role()?, keys: keys(key, range_end) }
        }
        other => {
            let why = format!("there is no change of users and roles with number {}", other.0);
            return Err(refused(why, RefusedReason::REJECTED));
        }
    })
}

fn keys(key: Vec<u8>, range_end: Option<Vec<u8>>) -> KeyRange {
    KeyRange { key: key.into(), range_end: range_end.map(Into::into) }
}

pub(crate) fn auth_status(auth: &AuthState) -> admin::AuthStatus {
    let user = |name: &str| admin::UserStatus {
        name: name.to_owned(),
        roles: auth.user(name).into_iter().flat_map(|user| user.roles().map(str::to_owned)).collect(),
        has_password: auth.user(name).is_some_and(|user| *user.password() != Password::None),
    };
    let role = |name: &str| admin::RoleStatus {
        name: name.to_owned(),
        permissions: auth.permissions(name).into_iter().flatten().map(permission).collect(),
    };
    admin::AuthStatus {
        enabled: auth.is_enabled(),
        revision: signed(auth.revision()),
        users: auth.users().map(user).collect(),
        roles: auth.roles().map(role).collect(),
    }
}

fn permission(permission: Permission) -> KeyPermission {
    let kind = match permission.kind {
        PermissionKind::Read => admin::PermissionKind::READ,
        PermissionKind::Write => admin::PermissionKind::WRITE,
        PermissionKind::ReadWrite => admin::PermissionKind::READ_WRITE,
    };
    let KeyRange { key, range_end } = permission.keys;
    KeyPermission { kind, key: key.into(), range_end: range_end.map(Into::into) }
}
