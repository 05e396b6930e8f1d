//! Requests about users and roles, and requests as several users.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use kv_etcd_api::{
    authpb::{Permission, UserAddOptions},
    etcdserverpb::{
        AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
        AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest,
        AuthStatusRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
        AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest,
        AuthenticateRequest, auth_client::AuthClient,
    },
};
use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};
use tonic::{
    Request, Status, service::Interceptor, service::interceptor::InterceptedService, transport::Channel,
};

/// A request about users and roles.
#[derive(Clone, Debug)]
pub(crate) enum AuthStep {
    Enable,
    Disable,
    Status,
    /// Logs in, and makes the later requests as this user.
    LogIn(String, String),
    /// Makes the later requests with the last token of this user; an empty name: without a token.
    Become(String),
    AddUser(String, String),
    AddUserWithoutPassword(String),
    DeleteUser(String),
    ChangePassword(String, String),
    GetUser(String),
    Users,
    GrantRole(String, String),
    RevokeRole(String, String),
    AddRole(String),
    DeleteRole(String),
    GetRole(String),
    Roles,
    Grant(String, Option<Permission>),
    Revoke(String, Permission),
}

/// The token of the requests.
#[derive(Clone, Default)]
pub(crate) struct Token(Arc<Mutex<Option<String>>>);

impl Token {
    fn set(&self, token: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(token) = token.and_then(|token| token.parse().ok()) {
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }
}

/// A channel whose requests have the token.
pub(crate) type WithToken = InterceptedService<Channel, Token>;

/// A server's users.
pub(crate) struct Users {
    auth: AuthClient<WithToken>,
    token: Token,
    /// Last token of each user.
    tokens: HashMap<String, String>,
}

/// Awaits a request, and takes from the answer what two servers have in common.
macro_rules! answer {
    ($call:expr, |$answer:ident| $text:expr) => {{
        let $answer = $call.await?.into_inner();
        Ok(format!("revision {}, {}", $answer.header.map_or(0, |header| header.revision), $text))
    }};
    ($call:expr) => {
        answer!($call, |answer| "done")
    };
}

impl Users {
    pub(crate) fn new(channel: Channel, token: Token) -> Self {
        let auth = AuthClient::with_interceptor(channel, token.clone());
        Self { auth, token, tokens: HashMap::new() }
    }

    pub(crate) async fn ask(&mut self, step: &AuthStep) -> Result<String, Status> {
        let auth = &mut self.auth;
        match step.clone() {
            AuthStep::Enable => answer!(auth.auth_enable(AuthEnableRequest {})),
            AuthStep::Disable => answer!(auth.auth_disable(AuthDisableRequest {})),
            AuthStep::Status => answer!(auth.auth_status(AuthStatusRequest {}), |answer| {
                format!("enabled {}, revision of auth {}", answer.enabled, answer.auth_revision)
            }),
            AuthStep::LogIn(name, password) => {
                self.token.set(None);
                let request = AuthenticateRequest { name: name.clone(), password };
                let token = auth.authenticate(request).await?.into_inner().token;
                self.tokens.insert(name, token.clone());
                self.token.set(Some(token));
                Ok("logged in".to_owned())
            }
            AuthStep::Become(name) => {
                self.token.set(self.tokens.get(&name).cloned());
                Ok(name)
            }
            AuthStep::AddUser(name, password) => {
                answer!(auth.user_add(AuthUserAddRequest { name, password, ..Default::default() }))
            }
            AuthStep::AddUserWithoutPassword(name) => {
                let options = Some(UserAddOptions { no_password: true });
                answer!(auth.user_add(AuthUserAddRequest { name, options, ..Default::default() }))
            }
            AuthStep::DeleteUser(name) => answer!(auth.user_delete(AuthUserDeleteRequest { name })),
            AuthStep::ChangePassword(name, password) => {
                let request = AuthUserChangePasswordRequest { name, password, ..Default::default() };
                answer!(auth.user_change_password(request))
            }
            AuthStep::GetUser(name) => {
                answer!(auth.user_get(AuthUserGetRequest { name }), |answer| answer.roles.join(" "))
            }
            AuthStep::Users => {
                answer!(auth.user_list(AuthUserListRequest {}), |answer| answer.users.join(" "))
            }
            AuthStep::GrantRole(user, role) => {
                answer!(auth.user_grant_role(AuthUserGrantRoleRequest { user, role }))
            }
            AuthStep::RevokeRole(name, role) => {
                answer!(auth.user_revoke_role(AuthUserRevokeRoleRequest { name, role }))
            }
            AuthStep::AddRole(name) => answer!(auth.role_add(AuthRoleAddRequest { name })),
            AuthStep::DeleteRole(role) => answer!(auth.role_delete(AuthRoleDeleteRequest { role })),
            AuthStep::GetRole(role) => {
                answer!(auth.role_get(AuthRoleGetRequest { role }), |answer| format!("{:?}", answer.perm))
            }
            AuthStep::Roles => {
                answer!(auth.role_list(AuthRoleListRequest {}), |answer| answer.roles.join(" "))
            }
            AuthStep::Grant(name, perm) => {
                answer!(auth.role_grant_permission(AuthRoleGrantPermissionRequest { name, perm }))
            }
            AuthStep::Revoke(role, Permission { key, range_end, .. }) => {
                let request = AuthRoleRevokePermissionRequest { role, key, range_end };
                answer!(auth.role_revoke_permission(request))
            }
        }
    }
}

/// Requests after which authentication is enabled, last first.
pub(crate) fn setup(random: &mut SmallRng) -> Vec<AuthStep> {
    let name = str::to_owned;
    let mut steps = vec![
        AuthStep::AddUser(name("root"), name("r")),
        AuthStep::GrantRole(name("root"), name("root")),
        AuthStep::AddUser(name("u"), name("p")),
        AuthStep::AddUser(name("v"), name("p")),
        AuthStep::AddRole(name("a")),
        AuthStep::AddRole(name("b")),
        AuthStep::GrantRole(name("u"), name("a")),
        AuthStep::GrantRole(name("v"), name("b")),
    ];
    for role in ["a", "a", "b"] {
        steps.push(AuthStep::Grant(name(role), Some(permission(random))));
    }
    steps.extend([
        AuthStep::Enable,
        AuthStep::LogIn(name("u"), name("p")),
        AuthStep::LogIn(name("v"), name("p")),
        AuthStep::LogIn(name("root"), name("r")),
    ]);
    steps.reverse();
    steps
}

/// A request about users and roles, or the choice of another user.
pub(crate) fn step(random: &mut SmallRng) -> AuthStep {
    let pick = |random: &mut SmallRng, names: &[&str]| (*names.choose(random).unwrap_or(&"")).to_owned();
    let user = |random: &mut SmallRng| pick(random, &["root", "u", "u", "v", "v", "w", "none", ""]);
    let role = |random: &mut SmallRng| pick(random, &["root", "a", "a", "b", "b", "c", "none", ""]);
    let password = |random: &mut SmallRng| pick(random, &["p", "p", "p", "r", "q", ""]);
    match random.random_range(0..40) {
        0..10 => AuthStep::Become(pick(random, &["root", "root", "u", "u", "v", "v", "w", ""])),
        10..14 => AuthStep::LogIn(user(random), password(random)),
        14..18 => AuthStep::LogIn("root".to_owned(), "r".to_owned()),
        18 => AuthStep::AddUser(user(random), password(random)),
        19 => AuthStep::AddUserWithoutPassword(user(random)),
        20 => AuthStep::DeleteUser(user(random)),
        21 => AuthStep::ChangePassword(user(random), password(random)),
        22 => AuthStep::GetUser(user(random)),
        23 => AuthStep::Users,
        24..26 => AuthStep::GrantRole(user(random), role(random)),
        26 => AuthStep::RevokeRole(user(random), role(random)),
        27 => AuthStep::AddRole(role(random)),
        28 => AuthStep::DeleteRole(role(random)),
        29 => AuthStep::GetRole(role(random)),
        30 => AuthStep::Roles,
        31..34 => {
            let permission = random.random_bool(0.9).then(|| permission(random));
            AuthStep::Grant(role(random), permission)
        }
        34 => AuthStep::Revoke(role(random), permission(random)),
        35 => AuthStep::Enable,
        36 => AuthStep::Disable,
        _ => AuthStep::Status,
    }
}

/// On the keys that other requests use. Each key has one end: etcd may keep the same range twice if there are others with its key.
fn permission(random: &mut SmallRng) -> Permission {
    let ranges =
        [("", ""), ("\0", "\0"), ("a", "c"), ("b", "e"), ("c", ""), ("d", "a"), ("a\0", "b"), ("e", "\0")];
    let (key, end) = *ranges.choose(random).unwrap_or(&("a", ""));
    let perm_type = random.random_range(0..3);
    Permission { perm_type, key: key.to_owned().into(), range_end: end.to_owned().into() }
}
