//! Errors with etcd's codes and texts, which clients match on.

use kv_state_machine::{AuthRejection, KvError, KvRejection};
use tonic::{Code, Status};

use crate::{
    auth::LoginError,
    between::{MemberFault, NodeFault},
};

macro_rules! errors {
    ($($name:ident: $code:ident, $text:literal;)*) => {
        $(pub(super) fn $name() -> Status {
            Status::new(Code::$code, $text)
        })*
    };
}

errors! {
    empty_key: InvalidArgument, "etcdserver: key is not provided";
    key_not_found: InvalidArgument, "etcdserver: key not found";
    value_provided: InvalidArgument, "etcdserver: value is provided";
    lease_provided: InvalidArgument, "etcdserver: lease is provided";
    too_many_operations: InvalidArgument, "etcdserver: too many operations in txn request";
    duplicate_key: InvalidArgument, "etcdserver: duplicate key given in txn request";
    invalid_sort_option: InvalidArgument, "etcdserver: invalid sort option";
    request_too_large: InvalidArgument, "etcdserver: request is too large";
    compacted: OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    future_revision: OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    lease_not_found: NotFound, "etcdserver: requested lease not found";
    lease_exists: FailedPrecondition, "etcdserver: lease already exists";
    lease_ttl_too_large: OutOfRange, "etcdserver: too large lease TTL";
    member_not_found: NotFound, "etcdserver: member not found";
    bad_member_urls: InvalidArgument, "etcdserver: given member URLs are invalid";
    peer_url_exists: FailedPrecondition, "etcdserver: Peer URLs already exists";
    unhealthy_cluster: Unavailable, "etcdserver: unhealthy cluster";
    learner_not_ready: FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    member_not_learner: FailedPrecondition, "etcdserver: can only promote a learner member";
    not_leader: FailedPrecondition, "etcdserver: not leader";
    bad_leader_transferee: FailedPrecondition, "etcdserver: bad leader transferee";
    witness: Unavailable, "etcdserver: this member is a witness, which has no data; use the client URL of another member";
    no_leader: Unavailable, "etcdserver: no leader";
    stopped: Unavailable, "etcdserver: server stopped";
    timed_out: Unavailable, "etcdserver: request timed out";
    deadline_exceeded: DeadlineExceeded, "context deadline exceeded";
    no_space: ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    corrupt: DataLoss, "etcdserver: corrupt cluster";
    too_many_requests: ResourceExhausted, "etcdserver: too many requests";
    auth_not_enabled: FailedPrecondition, "etcdserver: authentication is not enabled";
    permission_not_given: InvalidArgument, "etcdserver: permission not given";
    invalid_auth_token: Unauthenticated, "etcdserver: invalid auth token";
    permission_denied: PermissionDenied, "etcdserver: permission denied";
    user_empty: InvalidArgument, "etcdserver: user name is empty";
    auth_old_revision: InvalidArgument, "etcdserver: revision of auth store is old";
    not_a_hash: InvalidArgument, "etcdserver: hashedPassword is not a hash of bcrypt in base64";
    wrong_downgrade_version: InvalidArgument, "etcdserver: wrong downgrade target version format";
    invalid_downgrade_version: InvalidArgument, "etcdserver: invalid downgrade target version";
}

/// Error for a number of an enum that etcd does not know.
pub(super) fn unknown_number(what: &str, number: i32) -> Status {
    Status::invalid_argument(format!("etcdserver: {what} {number} is unknown"))
}

/// Error of a write, or of another call on the leader: it was not executed, or its outcome is unknown.
pub(super) fn of_node(fault: NodeFault) -> Status {
    match fault {
        NodeFault::Rejected(rejection) => of_rejection(rejection),
        NodeFault::NotLeader(_) => no_leader(),
        // Clients repeat calls that are UNAVAILABLE. A call that may have been executed must not be repeated.
        NodeFault::Unavailable { maybe_applied: true, why } => {
            tracing::debug!(%why, "the outcome of a write is unknown");
            deadline_exceeded()
        }
        NodeFault::Unavailable { why, .. } => unavailable(&why),
        NodeFault::Member(fault) => match fault {
            MemberFault::Standalone => {
                Status::failed_precondition("etcdserver: this server stands alone; it has no members")
            }
            MemberFault::NotFound => member_not_found(),
            MemberFault::NotLearner => member_not_learner(),
            MemberFault::NotInSync => learner_not_ready(),
            MemberFault::EndpointTaken => peer_url_exists(),
            MemberFault::Unhealthy => unhealthy_cluster(),
            MemberFault::Invalid(why) => Status::failed_precondition(format!("etcdserver: {why}")),
        },
    }
}

/// Error of a read whose response has no room.
pub(super) fn no_room() -> Status {
    Status::resource_exhausted(
        "etcdserver: responses that clients have not read take all memory for responses; read them, or request less at once",
    )
}

/// Reason for the end of a watch that takes no fragments.
pub(super) fn too_large_revision(bytes_max: usize) -> Status {
    let mib = bytes_max >> 20;
    Status::resource_exhausted(format!(
        "etcdserver: the events of one revision take more than {mib} MiB, a quarter of responses_size; create the watch with fragments"
    ))
}

/// Error of a read.
pub(super) fn of_read(error: KvError) -> Status {
    match error {
        KvError::Rejected(rejection) => of_rejection(rejection),
        KvError::NotLeader { .. } => no_leader(),
        KvError::Unavailable { why, .. } => unavailable(&why),
        other => Status::unavailable(format!("etcdserver: {other}")),
    }
}

fn unavailable(why: &str) -> Status {
    if why.starts_with("overloaded") {
        return too_many_requests();
    }
    if why.contains("there is no leader") {
        return no_leader();
    }
    Status::unavailable(format!("etcdserver: {why}"))
}

fn of_rejection(rejection: KvRejection) -> Status {
    match rejection {
        KvRejection::Compacted { .. } => compacted(),
        KvRejection::FutureRevision { .. } => future_revision(),
        KvRejection::NoKey { .. } => key_not_found(),
        KvRejection::NoLease { .. } => lease_not_found(),
        KvRejection::LeaseExists { .. } => lease_exists(),
        KvRejection::NoSpace => no_space(),
        KvRejection::Corrupt => corrupt(),
        KvRejection::AnswerTooLarge { .. } => Status::resource_exhausted(format!("etcdserver: {rejection}")),
        KvRejection::Auth(rejection) => of_auth(rejection),
        other => Status::invalid_argument(format!("etcdserver: {other}")),
    }
}

/// Error of a call whose caller may not make it, or of a change of users and roles.
pub(super) fn of_auth(rejection: AuthRejection) -> Status {
    let precondition = |text: &str| Status::failed_precondition(format!("etcdserver: {text}"));
    match rejection {
        AuthRejection::NoUser | AuthRejection::EmptyUser => user_empty(),
        AuthRejection::PermissionDenied => permission_denied(),
        AuthRejection::OutdatedAdmission => auth_old_revision(),
        AuthRejection::NoRootUser => precondition("root user does not exist"),
        AuthRejection::NoRootRole => precondition("root user does not have root role"),
        AuthRejection::UserExists => precondition("user name already exists"),
        AuthRejection::UserNotFound => precondition("user name not found"),
        AuthRejection::RoleExists => precondition("role name already exists"),
        AuthRejection::RoleNotFound => precondition("role name not found"),
        AuthRejection::EmptyRole => Status::invalid_argument("etcdserver: role name is empty"),
        AuthRejection::RoleNotGranted => precondition("role is not granted to the user"),
        AuthRejection::PermissionNotGranted => precondition("permission is not granted to the role"),
        AuthRejection::InvalidChange => Status::invalid_argument("etcdserver: invalid auth management"),
        AuthRejection::TooManyUsers
        | AuthRejection::TooManyRoles
        | AuthRejection::TooManyRolesOfUser
        | AuthRejection::TooManyPermissions => Status::resource_exhausted(format!("etcdserver: {rejection}")),
        other => Status::permission_denied(format!("etcdserver: {other}")),
    }
}

/// Error of a watch whose caller may not read its keys. As many clients make a new token only if they are told that theirs is
/// invalid, a watch of an outdated one ends so.
pub(super) fn of_watcher(rejection: AuthRejection) -> Status {
    match rejection {
        AuthRejection::OutdatedAdmission => invalid_auth_token(),
        other => of_auth(other),
    }
}

/// Error of a login.
pub(super) fn of_login(error: LoginError) -> Status {
    match error {
        LoginError::NotEnabled => auth_not_enabled(),
        LoginError::Failed => {
            Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password")
        }
        LoginError::NoPassword => {
            Status::unknown("auth: authentication failed, password was given for no password user")
        }
        LoginError::TooMany => too_many_requests(),
    }
}

/// Reason for which a watch is refused or ends, as clients read it.
pub(super) fn reason_of_watch(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maximums_of_users_and_roles_exhaust_a_resource() {
        let status = of_auth(AuthRejection::TooManyRolesOfUser);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("the user has 100 roles, the maximum"), "{status}");
    }
}
