//! Callers, and the permissions that each call needs. Those on keys are checked where the keys are read or written.

use std::time::Duration;

use hyper::{
    HeaderMap, Response,
    header::{AUTHORIZATION, HeaderValue},
    http::Extensions,
};
use kv_state_machine::Caller;
use tonic::{Code, Status, body::Body};

use super::{Etcd, error, peer_certificate::PeerCertificate};
use crate::{auth, call_log};

/// Permission that a call needs while authentication is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing.
    Nothing,
    /// A user, if the call reads or writes anything: the operations of the call are checked one by one.
    ByOperation,
    /// A user.
    User,
    /// The role `root`.
    Root,
}

/// Returns the permission that a call needs.
fn need(service: &str, method: &str) -> Need {
    match (service, method) {
        ("etcdserverpb.Auth", "Authenticate") => Need::Nothing,
        // Open to all, but not with an invalid token.
        ("etcdserverpb.Auth", "AuthStatus") => Need::ByOperation,
        // Users may look at themselves and at their own roles, which these calls check.
        ("etcdserverpb.Auth", "UserGet" | "RoleGet") => Need::ByOperation,
        ("etcdserverpb.Auth", _) => Need::Root,
        ("etcdserverpb.KV", "Compact") => Need::Root,
        ("etcdserverpb.KV" | "etcdserverpb.Watch" | "etcdserverpb.Lease", _) => Need::ByOperation,
        ("v3lockpb.Lock" | "v3electionpb.Election", _) => Need::ByOperation,
        ("etcdserverpb.Cluster", "MemberList") => Need::User,
        ("etcdserverpb.Maintenance", "Status" | "Alarm") => Need::User,
        // Members, copies of the whole store, and whatever may come.
        ("etcdserverpb.Cluster" | "etcdserverpb.Maintenance", _) => Need::Root,
        // Health and reflection.
        _ => Need::Nothing,
    }
}

impl Etcd {
    /// The context of a call, with its caller.
    ///
    /// # Errors
    /// The caller may not make this call.
    pub(super) async fn admit(
        mut self,
        service: &str,
        method: &str,
        headers: &HeaderMap,
        certificate_name: Option<String>,
    ) -> Result<Self, Status> {
        if !self.database().is_auth_enabled() {
            self.caller = self.caller_before(headers, certificate_name).await;
            call_log::note_caller(&self.caller);
            return Ok(self);
        }
        let need = need(service, method);
        if need == Need::Nothing {
            return Ok(self);
        }
        match self.caller_of(headers, certificate_name).await {
            Ok(caller) => self.caller = caller,
            // As in etcd, each watch is refused, and not the stream.
            Err(status) if service == "etcdserverpb.Watch" && status.code() == Code::Unauthenticated => {
                self.has_invalid_token = true;
            }
            Err(status) => return Err(status),
        }
        call_log::note_caller(&self.caller);
        let checked = match need {
            Need::Nothing | Need::ByOperation => Ok(()),
            Need::User => self.database().check_user(&self.caller),
            Need::Root => self.database().check_root(&self.caller),
        };
        checked.map_err(error::of_auth)?;
        Ok(self)
    }

    /// Checks the role `root` of the caller again, in a state that is not older than the data that the call is about to
    /// send: authentication may have been enabled, or the role revoked, while the call waited.
    pub(super) fn check_root_again(&self) -> Result<(), Status> {
        self.database().check_root(&self.caller).map_err(error::of_auth)
    }

    /// Returns the caller of a call that has a token or a certificate, although authentication is not enabled as far as this node knows:
    /// the node may not have applied yet that it is, and the call may be executed in a state where it is.
    async fn caller_before(&self, headers: &HeaderMap, certificate_name: Option<String>) -> Caller {
        if let Some(token) = token_of(headers) {
            let current = tokio::time::timeout(CURRENT_MAX, self.database().current_auth()).await;
            let caller =
                current.ok().and_then(Result::ok).and_then(|current| auth::caller_of(&current, token));
            if let Some(caller) = caller {
                return caller;
            }
        }
        let revision = || self.database().auth().revision();
        certificate_name.map_or(Caller::Anonymous, |name| Caller::user(name, revision()))
    }

    /// Returns the caller of a call: the user of its token, else the user that its certificate names.
    async fn caller_of(
        &self,
        headers: &HeaderMap,
        certificate_name: Option<String>,
    ) -> Result<Caller, Status> {
        let Some(token) = token_of(headers) else {
            let auth = self.database().auth();
            return Ok(match certificate_name {
                Some(name) => Caller::user(name, auth.revision()),
                None => Caller::Anonymous,
            });
        };
        if let Some(caller) = auth::caller_of(&self.database().auth(), token) {
            return Ok(caller);
        }
        // Another node may have issued it by a state that this node has not applied yet.
        let current = tokio::time::timeout(CHECK_MAX, self.database().current_auth()).await;
        // A client that is told that its token is invalid removes it, so that must be certain.
        let current = current.map_err(|_| error::timed_out())?.map_err(error::of_read)?;
        auth::caller_of(&current, token).ok_or_else(error::invalid_auth_token)
    }
}

/// The token of a call. Over gRPC it is metadata; the gateway passes the header on.
fn token_of(headers: &HeaderMap) -> Option<&[u8]> {
    let token = headers.get(TOKEN).or_else(|| headers.get(AUTHORIZATION))?.as_bytes();
    Some(token.strip_prefix(b"Bearer ").unwrap_or(token))
}

/// The name in the client's certificate, if the connection has one.
pub(super) fn certificate_name(extensions: &Extensions) -> Option<String> {
    extensions.get::<PeerCertificate>()?.common_name.clone()
}

/// Changes the code of a refusal by the services of locks and elections, which have another one than the others.
pub(super) fn in_words_of_locks(service: &str, mut response: Response<Body>) -> Response<Body> {
    if service != "v3lockpb.Lock" && service != "v3electionpb.Election" {
        return response;
    }
    let refusals = [
        error::permission_denied(),
        error::user_empty(),
        error::auth_old_revision(),
        error::invalid_auth_token(),
    ];
    let status = Status::from_header_map(response.headers());
    if status.is_some_and(|found| refusals.iter().any(|refusal| refusal.message() == found.message())) {
        response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from(Code::Unknown as i32));
    }
    response
}

/// Whether a call says who makes it.
pub(super) fn is_named(headers: &HeaderMap, certificate_name: Option<&String>) -> bool {
    certificate_name.is_some() || headers.contains_key(TOKEN) || headers.contains_key(AUTHORIZATION)
}

/// Maximum time in which a node without a leader tries to find out whether authentication is enabled.
const CURRENT_MAX: Duration = Duration::from_secs(1);
/// Maximum time in which a node finds out whether a token is valid by a state that it has not applied yet.
const CHECK_MAX: Duration = Duration::from_secs(5);
/// Name of the metadata with a token.
pub(super) const TOKEN: &str = "token";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::serve::descriptors;

    #[test]
    fn every_call_of_the_api_needs_something_but_the_login() {
        let mut free = Vec::new();
        for service in descriptors().services() {
            for method in service.methods() {
                if need(service.full_name(), method.name()) == Need::Nothing {
                    free.push(method.name().to_owned());
                }
            }
        }
        assert_eq!(free, ["Authenticate"]);
    }

    #[test]
    fn calls_of_operators_need_root() {
        for (service, method) in [
            ("etcdserverpb.Maintenance", "Snapshot"),
            ("etcdserverpb.Maintenance", "HashKV"),
            ("etcdserverpb.Maintenance", "Hash"),
            ("etcdserverpb.Maintenance", "Defragment"),
            ("etcdserverpb.Maintenance", "MoveLeader"),
            ("etcdserverpb.Cluster", "MemberAdd"),
            ("etcdserverpb.KV", "Compact"),
            ("etcdserverpb.Auth", "UserList"),
            ("etcdserverpb.Auth", "AuthDisable"),
        ] {
            assert_eq!(need(service, method), Need::Root, "{method}");
        }
    }
}
