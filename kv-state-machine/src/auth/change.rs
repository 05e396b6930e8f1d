//! Changes of users and roles.

use sha2::{Digest, Sha256};

use super::{
    AuthOperation, AuthRejection, AuthSecret, AuthState, Password, Permission, ROOT,
    state::{Record, Role, StoredUser},
};
use crate::{
    KeyRange,
    limits::{PERMISSIONS_MAX, ROLES_MAX, ROLES_OF_USER_MAX, USERS_MAX},
};

type Changed = Result<(), AuthRejection>;

impl AuthState {
    /// Executes a change: completely, or without any effect.
    ///
    /// # Errors
    /// The change is not possible in this state.
    pub fn execute(&mut self, operation: &AuthOperation) -> Changed {
        match operation {
            AuthOperation::Enable { secret } => {
                if self.head.is_enabled {
                    return Ok(());
                }
                let root = self.users.get(ROOT).ok_or(AuthRejection::NoRootUser)?;
                if !root.is_root() {
                    return Err(AuthRejection::NoRootRole);
                }
                self.head.is_enabled = true;
                self.head.since = self.head.revision;
                self.head.secret = secret.clone();
                self.note(Record::Head);
                Ok(())
            }
            AuthOperation::Disable => {
                if self.head.is_enabled {
                    self.head.is_enabled = false;
                    self.count();
                }
                Ok(())
            }
            AuthOperation::AddUser { user, password } => self.add_user(user, password),
            AuthOperation::DeleteUser { user } => {
                if self.head.is_enabled && user == ROOT {
                    return Err(AuthRejection::InvalidChange);
                }
                self.stored_user(user)?;
                self.set_user(user, None);
                self.count();
                Ok(())
            }
            AuthOperation::ChangePassword { user, hash } => {
                let mut stored = self.stored_user(user)?;
                if stored.password != Password::None {
                    stored.password = Password::Hash(hash.0.clone());
                }
                stored.since = self.count();
                self.set_user(user, Some(stored));
                Ok(())
            }
            AuthOperation::GrantRole { user, role } => self.grant_role(user, role),
            AuthOperation::RevokeRole { user, role } => self.revoke_role(user, role),
            AuthOperation::AddRole { role } => self.add_role(role),
            AuthOperation::DeleteRole { role } => self.delete_role(role),
            AuthOperation::GrantPermission { role, permission } => self.grant_permission(role, permission),
            AuthOperation::RevokePermission { role, keys } => self.revoke_permission(role, keys),
        }
    }

    /// Changes the state of a store that is restored from a backup, so that tokens of the old cluster are not valid in the new
    /// one. All nodes that restore the same backup for the same cluster get the same state.
    pub(crate) fn separate(&mut self, cluster: u64, bump_revision: u64) {
        if self.head.secret.0.is_empty() {
            return;
        }
        let mut derived = Sha256::new_with_prefix(b"kv secret of a restored store");
        derived.update(&self.head.secret.0);
        derived.update(cluster.to_be_bytes());
        derived.update(bump_revision.to_be_bytes());
        self.head.secret = AuthSecret(derived.finalize().to_vec().into());
        self.head.revision = self.head.revision.saturating_add(bump_revision);
        self.count();
    }

    /// Counts a change. Returns its revision of auth.
    fn count(&mut self) -> u64 {
        self.head.revision += 1;
        self.note(Record::Head);
        self.head.revision
    }

    fn stored_user(&self, name: &str) -> Result<StoredUser, AuthRejection> {
        let user = self.users.get(name).ok_or(AuthRejection::UserNotFound)?;
        Ok(user.stored.clone())
    }

    fn stored_role(&self, name: &str) -> Result<Role, AuthRejection> {
        let role = self.roles.get(name).ok_or(AuthRejection::RoleNotFound)?;
        Ok((**role).clone())
    }

    fn add_user(&mut self, user: &str, password: &Password) -> Changed {
        if user.is_empty() {
            return Err(AuthRejection::EmptyUser);
        }
        if self.users.contains_key(user) {
            return Err(AuthRejection::UserExists);
        }
        if self.users.len() >= USERS_MAX {
            return Err(AuthRejection::TooManyUsers);
        }
        let since = self.count();
        let stored =
            StoredUser { roles: std::collections::BTreeSet::new(), password: password.clone(), since };
        self.set_user(user, Some(stored));
        Ok(())
    }

    /// As in etcd, the role `root` can be granted before it was added.
    fn grant_role(&mut self, user: &str, role: &str) -> Changed {
        let mut stored = self.stored_user(user)?;
        if role != ROOT {
            self.stored_role(role)?;
        }
        if stored.roles.insert(role.to_owned()) {
            if stored.roles.len() > ROLES_OF_USER_MAX {
                return Err(AuthRejection::TooManyRolesOfUser);
            }
            self.set_user(user, Some(stored));
            self.count();
        }
        Ok(())
    }

    fn revoke_role(&mut self, user: &str, role: &str) -> Changed {
        if self.head.is_enabled && user == ROOT && role == ROOT {
            return Err(AuthRejection::InvalidChange);
        }
        let mut stored = self.stored_user(user)?;
        if !stored.roles.remove(role) {
            return Err(AuthRejection::RoleNotGranted);
        }
        self.set_user(user, Some(stored));
        self.count();
        Ok(())
    }

    fn add_role(&mut self, role: &str) -> Changed {
        if role.is_empty() {
            return Err(AuthRejection::EmptyRole);
        }
        if self.roles.contains_key(role) {
            return Err(AuthRejection::RoleExists);
        }
        if self.roles.len() >= ROLES_MAX {
            return Err(AuthRejection::TooManyRoles);
        }
        self.set_role(role, Some(Role::new()));
        self.count();
        Ok(())
    }

    fn delete_role(&mut self, role: &str) -> Changed {
        if self.head.is_enabled && role == ROOT {
            return Err(AuthRejection::InvalidChange);
        }
        self.stored_role(role)?;
        self.set_role(role, None);
        let affected = self.users.iter().filter(|(_, user)| user.stored.roles.contains(role));
        for user in affected.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let mut stored = self.stored_user(&user)?;
            stored.roles.remove(role);
            self.set_user(&user, Some(stored));
        }
        self.count();
        Ok(())
    }

    fn grant_permission(&mut self, role: &str, permission: &Permission) -> Changed {
        let KeyRange { key, range_end } = &permission.keys;
        let is_empty = range_end.as_ref().is_some_and(|end| end[..] != [0] && end <= key);
        if key.is_empty() || is_empty {
            return Err(AuthRejection::InvalidChange);
        }
        let mut stored = self.stored_role(role)?;
        stored.insert((key.clone(), range_end.clone()), permission.kind);
        if stored.len() > PERMISSIONS_MAX {
            return Err(AuthRejection::TooManyPermissions);
        }
        self.set_role(role, Some(stored));
        self.count();
        Ok(())
    }

    fn revoke_permission(&mut self, role: &str, keys: &KeyRange) -> Changed {
        let mut stored = self.stored_role(role)?;
        if stored.remove(&(keys.key.clone(), keys.range_end.clone())).is_none() {
            return Err(AuthRejection::PermissionNotGranted);
        }
        self.set_role(role, Some(stored));
        self.count();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
