//! Users, roles, and whether they count.

use std::io::BufRead;

use clap::{Subcommand, ValueEnum};
use kv_store_client::{
    KvClient,
    admin::{AuthAction, AuthChange, AuthStatus, KeyPermission, PermissionKind},
    prefix_end,
};
use serde_json::{Value, json};

use crate::{Failure, show::Show};

#[derive(Subcommand)]
pub(crate) enum Auth {
    /// Requires a login from then on. There must be a user root with the role root.
    Enable,
    /// Lets everybody do everything again. Users and roles stay as they are.
    Disable,
    /// Whether users have to log in.
    Status,
}

#[derive(Subcommand)]
pub(crate) enum User {
    /// Adds a user without roles.
    Add {
        /// Name of the user.
        name: String,
        #[command(flatten)]
        password: NewPassword,
        /// The user has no password, and authenticates itself by a certificate only.
        #[arg(long, conflicts_with = "password")]
        no_password: bool,
    },
    /// Deletes a user, which ends all its logins.
    Delete {
        /// Name of the user.
        name: String,
    },
    /// Sets another password, which ends all logins of the user.
    Passwd {
        /// Name of the user.
        name: String,
        #[command(flatten)]
        password: NewPassword,
    },
    /// Gives a user a role.
    Grant {
        /// Name of the user.
        name: String,
        /// Name of the role. The role root permits everything.
        role: String,
    },
    /// Takes a role from a user.
    Revoke {
        /// Name of the user.
        name: String,
        /// Name of the role.
        role: String,
    },
    /// Lists the users with their roles.
    List,
}

#[derive(clap::Args)]
pub(crate) struct NewPassword {
    /// The password. Other users of this machine can see arguments; without this one and the variable it is the first line of
    /// standard input.
    #[arg(long, env = "KVCTL_NEW_PASSWORD", hide_env_values = true)]
    password: Option<String>,
}

impl NewPassword {
    fn read(&self) -> Result<String, Failure> {
        if let Some(password) = &self.password {
            return Ok(password.clone());
        }
        let mut line = String::new();
        std::io::stdin()
            .lock()
            .read_line(&mut line)
            .map_err(|error| Failure::Usage(format!("no password can be read: {error}")))?;
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

#[derive(Subcommand)]
pub(crate) enum Role {
    /// Adds a role without permissions.
    Add {
        /// Name of the role.
        name: String,
    },
    /// Deletes a role, also of all users.
    Delete {
        /// Name of the role.
        name: String,
    },
    /// Permits a role to read or write a key or a range. Another kind on the same keys replaces the one before.
    Grant {
        /// Name of the role.
        name: String,
        /// What is permitted.
        #[arg(value_enum)]
        kind: Kind,
        #[command(flatten)]
        keys: Keys,
    },
    /// Takes the permission on exactly these keys from a role.
    Revoke {
        /// Name of the role.
        name: String,
        #[command(flatten)]
        keys: Keys,
    },
    /// Lists the roles with their permissions.
    List,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Reads and watches.
    Read,
    /// Puts and deletes.
    Write,
    /// Both.
    Readwrite,
}

#[derive(clap::Args)]
pub(crate) struct Keys {
    /// The key; "" with --prefix for all keys.
    key: String,
    /// All keys from `key` up to this one, exclusive.
    #[arg(long, conflicts_with = "prefix")]
    to: Option<String>,
    /// All keys that begin with `key`.
    #[arg(long)]
    prefix: bool,
}

impl Keys {
    fn permission(&self, kind: PermissionKind) -> KeyPermission {
        let key = self.key.clone().into_bytes();
        let range_end = if self.prefix {
            Some(prefix_end(key.as_slice()))
        } else {
            self.to.clone().map(String::into_bytes)
        };
        let key = if key.is_empty() && self.prefix { vec![0] } else { key };
        KeyPermission { kind, key, range_end }
    }
}

fn change(action: AuthAction) -> AuthChange {
    AuthChange { action, user: None, role: None, password: None, permission: None }
}

pub(crate) async fn auth(client: &KvClient, command: &Auth, show: Show) -> Result<u8, Failure> {
    match command {
        Auth::Enable => make(client, change(AuthAction::ENABLE), show).await,
        Auth::Disable => make(client, change(AuthAction::DISABLE), show).await,
        Auth::Status => {
            let AuthStatus { enabled, revision, .. } = client.auth().await?;
            let text = if enabled { "enabled" } else { "disabled" };
            show.either(
                &format!("{text}, revision {revision}"),
                || json!({ "enabled": enabled, "revision": revision }),
            )?;
            Ok(0)
        }
    }
}

pub(crate) async fn user(client: &KvClient, command: &User, show: Show) -> Result<u8, Failure> {
    let of = |action, name: &String| AuthChange { user: Some(name.clone()), ..change(action) };
    let with_role =
        |action, name: &String, role: &String| AuthChange { role: Some(role.clone()), ..of(action, name) };
    let change = match command {
        User::Add { name, no_password: true, .. } => of(AuthAction::ADD_USER, name),
        User::Add { name, password, .. } => {
            AuthChange { password: Some(password.read()?), ..of(AuthAction::ADD_USER, name) }
        }
        User::Delete { name } => of(AuthAction::DELETE_USER, name),
        User::Passwd { name, password } => {
            AuthChange { password: Some(password.read()?), ..of(AuthAction::CHANGE_PASSWORD, name) }
        }
        User::Grant { name, role } => with_role(AuthAction::GRANT_ROLE, name, role),
        User::Revoke { name, role } => with_role(AuthAction::REVOKE_ROLE, name, role),
        User::List => {
            let users = client.auth().await?.users;
            let rows: Vec<String> =
                users.iter().map(|user| format!("{}  {}", user.name, user.roles.join(", "))).collect();
            show.either(&rows.join("\n"), || {
                let value = |user: &kv_store_client::admin::UserStatus| {
                    json!({ "name": user.name, "roles": user.roles, "has_password": user.has_password })
                };
                json!(users.iter().map(value).collect::<Vec<Value>>())
            })?;
            return Ok(0);
        }
    };
    make(client, change, show).await
}

pub(crate) async fn role(client: &KvClient, command: &Role, show: Show) -> Result<u8, Failure> {
    let of = |action, name: &String| AuthChange { role: Some(name.clone()), ..change(action) };
    let change = match command {
        Role::Add { name } => of(AuthAction::ADD_ROLE, name),
        Role::Delete { name } => of(AuthAction::DELETE_ROLE, name),
        Role::Grant { name, kind, keys } => {
            let kind = match kind {
                Kind::Read => PermissionKind::READ,
                Kind::Write => PermissionKind::WRITE,
                Kind::Readwrite => PermissionKind::READ_WRITE,
            };
            AuthChange { permission: Some(keys.permission(kind)), ..of(AuthAction::GRANT_PERMISSION, name) }
        }
        Role::Revoke { name, keys } => {
            let permission = Some(keys.permission(PermissionKind::READ));
            AuthChange { permission, ..of(AuthAction::REVOKE_PERMISSION, name) }
        }
        Role::List => {
            let roles = client.auth().await?.roles;
            let rows = roles.iter().flat_map(|role| {
                let permissions = role.permissions.iter().map(|one| format!("{}  {}", role.name, row(one)));
                let none = role.permissions.is_empty().then(|| format!("{}  no permissions", role.name));
                permissions.chain(none).collect::<Vec<_>>()
            });
            let rows: Vec<String> = rows.collect();
            show.either(&rows.join("\n"), || {
                let value = |role: &kv_store_client::admin::RoleStatus| {
                    let permissions: Vec<String> = role.permissions.iter().map(row).collect();
                    json!({ "name": role.name, "permissions": permissions })
                };
                json!(roles.iter().map(value).collect::<Vec<Value>>())
            })?;
            return Ok(0);
        }
    };
    make(client, change, show).await
}

async fn make(client: &KvClient, change: AuthChange, show: Show) -> Result<u8, Failure> {
    client.change_auth(change).await?;
    show.either("changed", || json!({ "changed": true }))?;
    Ok(0)
}

fn row(permission: &KeyPermission) -> String {
    let kind = match permission.kind {
        PermissionKind::READ => "read",
        PermissionKind::WRITE => "write",
        _ => "readwrite",
    };
    let key = String::from_utf8_lossy(&permission.key);
    match permission.range_end.as_deref() {
        None => format!("{kind} {key}"),
        Some([0]) => format!("{kind} from {}", key.escape_debug()),
        Some(end) => format!("{kind} from {key} to {}", String::from_utf8_lossy(end)),
    }
}
