//! Traits of methods, by their names in lines: `put` over Thrift, `etcdserverpb.KV/Put` over gRPC and JSON.

use std::{collections::HashMap, sync::OnceLock};

use kv_state_machine::KvOperation;
use prost_reflect::MethodDescriptor;

use crate::{between::NodeRequest, etcd::descriptors};

/// Traits of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits {
    /// Whether it changes nothing. Of a transaction its operations decide.
    pub(super) is_read: bool,
    /// Whether its duration depends on other clients, or on the size of a stream.
    pub(super) waits: bool,
    /// Whether it has one response.
    pub(super) is_unary: bool,
    /// Whether calls of it are not recorded: checks of health, and reflection, which touch no data.
    pub(super) is_left_out: bool,
}

impl Traits {
    pub(super) fn of(method: &str) -> Self {
        static KNOWN: OnceLock<HashMap<String, Traits>> = OnceLock::new();
        let known = KNOWN.get_or_init(|| {
            let of_api = descriptors().services().flat_map(|service| {
                let of = |method: MethodDescriptor| {
                    let name = format!("{}/{}", method.parent_service().full_name(), method.name());
                    let is_unary = !method.is_client_streaming() && !method.is_server_streaming();
                    let traits = Self::new(&name, is_unary);
                    (name, traits)
                };
                service.methods().map(of).collect::<Vec<_>>()
            });
            of_api.collect()
        });
        known.get(method).copied().unwrap_or_else(|| Self::new(method, true))
    }

    fn new(method: &str, is_unary: bool) -> Self {
        Self {
            is_read: READS.contains(&method),
            waits: !is_unary || WAITING.contains(&method),
            is_unary,
            is_left_out: method.starts_with("grpc.") || LEFT_OUT.contains(&method),
        }
    }
}

/// Name of the call that another node makes for its client.
pub(super) fn of_node_request(request: &NodeRequest) -> &'static str {
    match request {
        NodeRequest::Execute(operation) => of_operation(operation),
        // The name in its frame takes the place of this one.
        NodeRequest::Call(_) => "between_nodes",
        NodeRequest::KeepAlive { .. } => "lease_keep_alive",
        NodeRequest::TimeToLive { .. } => "lease_time_to_live",
        NodeRequest::Member(_) => "change_members",
        NodeRequest::ReportState(_) => "report_state",
    }
}

fn of_operation(operation: &KvOperation) -> &'static str {
    match operation {
        KvOperation::Put(_) => "put",
        KvOperation::Delete(_) => "delete_range",
        KvOperation::Range(_) => "range",
        KvOperation::Txn(_) => "txn",
        KvOperation::Compact { .. } => "compact",
        KvOperation::OpenSession { .. } => "open_session",
        KvOperation::GrantLease { .. } => "lease_grant",
        KvOperation::RevokeLease { .. } => "lease_revoke",
        KvOperation::RaiseAlarm(_) => "raise_alarm",
        KvOperation::DisarmAlarm(_) => "disarm_alarm",
        KvOperation::Auth(_) => "change_auth",
        _ => "between_nodes",
    }
}

/// Methods that change nothing. A download of the whole store counts as a change, so that it is always recorded.
const READS: &[&str] = &[
    "range",
    "watch",
    "hash",
    "lease_time_to_live",
    "lease_list",
    "alarms",
    "auth",
    "etcdserverpb.KV/Range",
    "etcdserverpb.KV/RangeStream",
    "etcdserverpb.Watch/Watch",
    "etcdserverpb.Lease/LeaseTimeToLive",
    "etcdserverpb.Lease/LeaseLeases",
    "etcdserverpb.Cluster/MemberList",
    "etcdserverpb.Maintenance/Status",
    "etcdserverpb.Maintenance/Hash",
    "etcdserverpb.Maintenance/HashKV",
    "etcdserverpb.Auth/AuthStatus",
    "etcdserverpb.Auth/UserGet",
    "etcdserverpb.Auth/UserList",
    "etcdserverpb.Auth/RoleGet",
    "etcdserverpb.Auth/RoleList",
    "v3electionpb.Election/Leader",
    "v3electionpb.Election/Observe",
];

/// Calls by which nodes and clients find out which node is healthy, and which one it is.
const LEFT_OUT: &[&str] = &["status", "no_forwarding"];

/// Methods with one response that wait for others by design.
const WAITING: &[&str] = &["watch", "v3lockpb.Lock/Lock", "v3electionpb.Election/Campaign", DOWNLOAD];

/// Name of a download over HTTP.
pub(crate) const DOWNLOAD: &str = "GET snapshot";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_reads_are_names_of_methods() {
        for name in READS.iter().filter_map(|name| name.split_once('/')) {
            let service = descriptors().get_service_by_name(name.0).unwrap();
            assert!(service.methods().any(|method| method.name() == name.1), "{name:?}");
        }
    }

    #[test]
    fn streams_are_known_by_the_descriptors() {
        for (method, is_unary) in [
            ("put", true),
            ("etcdserverpb.KV/Put", true),
            ("etcdserverpb.KV/RangeStream", false),
            ("etcdserverpb.Lease/LeaseKeepAlive", false),
            ("etcdserverpb.Nothing/Nothing", true),
        ] {
            assert_eq!(Traits::of(method).is_unary, is_unary, "{method}");
        }
    }
}
