//! Seeds of the key-value server's.

use bytes::Bytes;
use consensus_core::codec;
use kv_server::fuzzing as server;
use kv_state_machine::{
    Deleted, Found, KeyValue, KvAnswer, KvCommand, KvRejection, KvResult, PutDone, TxnDone,
    fuzzing::send_snapshot,
};
use kv_store_client::{
    admin::{Alarm, AlarmKind, MemberChange, MemberKind, NodeIdentity, Refused, RefusedReason},
    idl,
    protocol::{Call, Fault, Reply, encode_reply},
};

use super::Seeds;

fn all_calls() -> Vec<Call> {
    let session = || idl::Session::new(7, 300);
    let put = idl::PutRequest {
        lease_id: Some(0),
        return_previous: Some(true),
        session: Some(session()),
        versionstamp: Some(idl::Versionstamp::KEY_SUFFIX),
        ..idl::PutRequest::of("key", "value")
    };
    let delete = idl::DeleteRequest::new(b"a".to_vec(), b"b".to_vec(), true, session(), 300);
    let range = idl::RangeRequest {
        limit: Some(10),
        revision: Some(5),
        descending: Some(true),
        count_only: Some(true),
        consistency: Some(idl::Consistency::STALE),
        sort_by: Some(idl::SortBy::CREATE_REVISION),
        max_create_revision: Some(4),
        ..idl::RangeRequest::of("a", Some(vec![0]))
    };
    let watch = idl::WatchRequest {
        start_revision: Some(5),
        start_event: Some(1),
        wait_ms: Some(300),
        ..idl::WatchRequest::of("a", Some(vec![0]))
    };
    let compare = |target, number: Option<i64>, value: Option<Vec<u8>>| {
        idl::Compare::new(b"k".to_vec(), target, idl::CompareResult::LESS, number, value, None)
    };
    let bare = |put: &idl::PutRequest| idl::PutRequest { session: None, ..put.clone() };
    let operations = vec![
        idl::Operation::Put(bare(&put)),
        idl::Operation::DeleteRange(idl::DeleteRequest { session: None, ..delete.clone() }),
        idl::Operation::Range(range.clone()),
    ];
    let compares = vec![
        compare(idl::CompareTarget::VERSION, Some(3), None),
        compare(idl::CompareTarget::VALUE, None, Some(b"v".to_vec())),
    ];
    let read_ranges = vec![idl::KeyRange::new(b"a".to_vec(), b"b".to_vec())];
    let txn = idl::TxnRequest::new(compares, operations.clone(), operations, session(), 9, read_ranges);
    let endpoint = || "db.example:9090".to_owned();
    let change = MemberChange::new(3, MemberKind::JOINING, endpoint(), endpoint(), 7, false);
    vec![
        Call::Put(put),
        Call::DeleteRange(delete),
        Call::Range(range),
        Call::Txn(txn),
        Call::Compact(5),
        Call::OpenSession,
        Call::LeaseGrant(idl::LeaseGrantRequest::new(10, 7, session())),
        Call::LeaseRevoke(idl::LeaseRevokeRequest::new(7, session())),
        Call::LeaseKeepAlive(idl::LeaseKeepAliveRequest::new(7)),
        Call::LeaseTimeToLive(idl::LeaseTimeToLiveRequest::new(7, true)),
        Call::LeaseList(idl::LeaseListRequest::new(7, 300)),
        Call::Watch(watch),
        Call::Status,
        Call::Hash,
        Call::ChangeMembers(vec![change, MemberChange::new(4, None, None, None, None, None)]),
        Call::TransferLeader(-1),
        Call::Alarms,
        Call::DisarmAlarm(Alarm::new(AlarmKind::NO_SPACE, 3)),
        Call::NoForwarding(identity()),
        Call::SetLogLevel("info,kv_server=debug".to_owned()),
    ]
}

fn identity() -> NodeIdentity {
    NodeIdentity::new(2, "00000000000000ff".to_owned())
}

/// Frames of clients, without their lengths.
pub fn kv_calls() -> Seeds {
    let frames = all_calls().into_iter().map(|call| call.encode(3).expect("a seed can be written"));
    frames.map(|frame| frame[4..].to_vec()).collect()
}

fn answers() -> Vec<Result<KvAnswer, KvRejection>> {
    let kv = || KeyValue {
        key: "k".into(),
        value: "value".into(),
        create_revision: 2,
        mod_revision: 300,
        version: 4,
        lease_id: 0,
    };
    let put = || KvResult::Put(PutDone { previous: Some(kv()), stamped: Some("stamped".into()) });
    let delete = || {
        KvResult::Delete(Deleted { deleted: 2, previous: Some(vec![kv(), kv()]), next_key: Some("l".into()) })
    };
    let range = || KvResult::Range(Found { kvs: vec![kv()], more: true, count: 70_000 });
    let txn = TxnDone { succeeded: true, responses: vec![put(), delete(), range()] };
    let results =
        [put(), delete(), range(), KvResult::Txn(txn), KvResult::Compact, KvResult::OpenSession(u64::MAX)];
    let answers =
        results.map(|result| Ok(KvAnswer { revision: 300, applied_index: 70_000, term: 2, result }));
    let rejections = [
        KvRejection::Invalid("wrong".to_owned()),
        KvRejection::Compacted { compacted: 300 },
        KvRejection::Conflict { key: "k".into(), mod_revision: 5 },
    ];
    answers.into_iter().chain(rejections.map(Err)).collect()
}

/// Frames of servers, without their lengths.
pub fn kv_replies() -> Seeds {
    let names = ["put", "delete_range", "range", "txn", "compact", "open_session", "put", "range", "txn"];
    let answers = names.into_iter().zip(answers().into_iter().map(server::reply));
    let header = || idl::ResponseHeader::new(7, 1, 2, 9);
    let endpoint = || "h:1".to_owned();
    let member = idl::MemberStatus::new(
        1,
        endpoint(),
        endpoint(),
        "voter".to_owned(),
        true,
        None,
        8,
        1,
        None,
        None,
        None,
    );
    let status = idl::StatusResponse::new(
        header(),
        "0.1".to_owned(),
        "leader".to_owned(),
        1,
        9,
        9,
        1,
        vec![member],
        "c".to_owned(),
        vec!["low on disk".to_owned()],
        identity().cluster_id,
    );
    let faults = [
        Fault::NotLeader(idl::NotLeader::new(2, endpoint())),
        Fault::Unavailable(idl::Unavailable::new("later".to_owned(), true, 100)),
        Fault::NoSession(idl::NoSession::new(5)),
        Fault::SequenceOver(idl::SequenceOver::new(5, 1, 2)),
        Fault::NoData(idl::NoData::new("a witness".to_owned())),
        Fault::Refused(Refused::new("no".to_owned(), true, RefusedReason::UNKNOWN, 1, endpoint())),
    ];
    let others = ["put", "txn", "put", "delete_range", "hash", "change_members"]
        .into_iter()
        .zip(faults.map(Err))
        .chain(lease_and_watch_replies())
        .chain([
            ("status", Ok(Reply::Status(status))),
            ("hash", Ok(Reply::Hash(idl::HashResponse::new(header(), -1, None)))),
            ("change_members", Ok(Reply::ChangeMembers)),
            ("transfer_leader", Ok(Reply::TransferLeader(2))),
            ("alarms", Ok(Reply::Alarms(vec![Alarm::new(AlarmKind::CORRUPT, 3)]))),
            ("disarm_alarm", Ok(Reply::DisarmAlarm(true))),
            ("no_forwarding", Ok(Reply::NoForwarding(identity()))),
            ("nothing", Ok(Reply::NoForwarding(identity()))),
            ("put", Ok(Reply::OpenSession(1))),
        ]);
    let frames = answers.chain(others).map(|(name, outcome)| encode_reply(name, -8, outcome));
    frames.map(|frame| frame.expect("a seed can be written")[4..].to_vec()).collect()
}

fn lease_and_watch_replies() -> Vec<(&'static str, Result<Reply, Fault>)> {
    let header = || idl::ResponseHeader::new(7, 1, 2, 9);
    let kv = |key: &str| idl::KeyValue::new(key.as_bytes().to_vec(), b"value".to_vec(), 2, 300, 4, 7);
    let events = vec![
        idl::WatchEvent::new(false, kv("a"), kv("a")),
        idl::WatchEvent::new(true, kv("b"), None::<idl::KeyValue>),
    ];
    let keys = vec![b"a".to_vec(), b"b".to_vec()];
    vec![
        ("lease_grant", Ok(Reply::LeaseGrant(idl::LeaseGrantResponse::new(header(), 7, 10)))),
        ("lease_revoke", Ok(Reply::LeaseRevoke(idl::LeaseRevokeResponse::new(header())))),
        ("lease_keep_alive", Ok(Reply::LeaseKeepAlive(idl::LeaseKeepAliveResponse::new(header(), 10)))),
        (
            "lease_time_to_live",
            Ok(Reply::LeaseTimeToLive(idl::LeaseTimeToLiveResponse::new(header(), 10, 300, keys, false))),
        ),
        ("lease_list", Ok(Reply::LeaseList(idl::LeaseListResponse::new(header(), vec![7, 8], true)))),
        ("watch", Ok(Reply::Watch(idl::WatchResponse::new(header(), events, 300, 2)))),
        ("put", Err(Fault::NoLease(idl::NoLease::new(7)))),
        ("lease_grant", Err(Fault::LeaseExists(idl::LeaseExists::new(7)))),
        ("watch", Err(Fault::Compacted(idl::Compacted::new(300)))),
    ]
}

/// Commands as they stand in the log, and answers to them.
pub fn kv_commands() -> Seeds {
    let commands = all_calls().into_iter().filter_map(|call| server::command(call).ok().flatten());
    let mut seeds: Seeds = commands.map(|command: KvCommand| codec::encode(1, &command)).collect();
    seeds.extend(answers().iter().map(|answer| codec::encode(1, answer)));
    seeds
}

/// What lies in RocksDB, with its kind in front.
pub fn kv_store() -> Seeds {
    let session = codec::encode(1, &(5u64, 300u64, b"answer".to_vec()));
    let meta = codec::encode(1, &(2u64, 300u64, 70_000u64, 4u64, 5u64));
    let live = [&[1, 1][..], &[0, 0, 0, 0, 0, 0, 0, 2], &[0, 0, 0, 0, 0, 0, 0, 3], &[255; 8], b"value"];
    let place = [&b"da\0\xffb\0\x01"[..], &[255, 255, 255, 255, 255, 255, 255, 253]].concat();
    let version = |record: &[u8]| [&[place.len() as u8], &place[..], record].concat();
    vec![[vec![0], session].concat(), [vec![1], meta].concat(), version(&live.concat()), version(&[1, 0])]
}

/// Streams of snapshots, and files for some.
pub fn kv_snapshots() -> Seeds {
    let stream = |files: &[(&str, &[u8])]| {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("a file can be written");
        }
        let mut stream = Vec::new();
        send_snapshot(dir.path(), &mut stream).expect("a seed can be written");
        stream
    };
    vec![
        stream(&[]),
        stream(&[("CURRENT", b"MANIFEST-000001\n"), ("000008.sst", &[7; 300]), ("OPTIONS-000005", b"")]),
        [&[3][..], b"a.b", &[2], b"xy", &[1], b"c", &[0]].concat(),
        [&[4][..], b"../a", &[1], b"x"].concat(),
        [&[1][..], b"a", &[1], b"x", &[1], b"a", &[1], b"y"].concat(),
    ]
}

/// Files, some with flags.
pub fn configurations() -> Seeds {
    let cluster = include_str!("../../../cluster_config.toml");
    let nodes = "[[nodes]]\nid = 7\nclient_endpoint = \"[::1]:9000\"\nconsensus_endpoint = \"[::1]:9500\"\n";
    let all = "[deployment]\nmode = \"replicated\"\ninstance_id = 1\nreplica_endpoints = [\"a:1\", \"b:2\"]\n\
               data_dir = \"d\"\nlisten_host = \"0.0.0.0\"\ncluster_name = \"c\"\nrouting = \"redirect\"\n\
               sessions_max = 5\njoin = true\nwitnesses = [1]\ndisk_reserve_mib = 1\n\
               [cluster]\nhealth_check_interval_ms = 1\nnode_timeout_ms = 2\nelection_timeout_ms = 4\n\
               heartbeat_interval_ms = 2\nlease_drift_percent = 50\n\
               [log]\ncompact_after_entries = 1\ncompact_after_mib = 2\ncompact_keep_entries = 3\n\
               compact_keep_mib = 4\ncompact_hold_mib = 5\nflight_recorder_mib = 6\n\
               snapshot_mib_per_second = 7\n";
    let words = "[deployment]\nnode_id = 1\nlisten_host = \"[::]\"\n\
                 [cluster]\nhealth_check_interval = \"1ms\"\nnode_timeout = \"1m 30s\"\nelection_timeout = \"4ms\"\n\
                 heartbeat_interval = \"2ms\"\n\
                 [log]\ncompact_after_size = \"2MiB\"\ncompact_keep_size = \"0\"\ncompact_hold_size = \"1.5GiB\"\n\
                 flight_recorder_size = \"6MB\"\nsnapshot_rate = \"7MiB/s\"\nstorage = \"wal\"\n\
                 [limits]\nsessions_max = 5\ndisk_reserve = \"64KiB\"\n";
    let flags = "--port=7000\n--node-id=7\n--mode=standalone\n--data-dir=x\n---\n";
    let endpoints = "--replica-endpoints=a:1,[::1]:2\n--node-id=1\n--witnesses=0\n--join=true\n---\n";
    ["", cluster, nodes, all, flags, endpoints, words].map(|text| Bytes::from(text).to_vec()).to_vec()
}

/// Requests of etcd's clients over gRPC.
pub fn etcd_requests() -> Seeds {
    use kv_etcd_api::etcdserverpb as pb;
    use pb::{compare::TargetUnion, request_op::Request};
    use prost::Message;
    let put = pb::PutRequest { key: "k".into(), value: "value".into(), lease: 7, ..Default::default() };
    let range = pb::RangeRequest { key: "a".into(), range_end: "z".into(), limit: 3, ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "d".into(), range_end: "\0".into(), prev_kv: true };
    let op = |request| pb::RequestOp { request: Some(request) };
    let inner =
        pb::TxnRequest { success: vec![op(Request::RequestRange(range.clone()))], ..Default::default() };
    let compare = pb::Compare {
        key: "k".into(),
        target: 2,
        target_union: Some(TargetUnion::ModRevision(3)),
        ..Default::default()
    };
    let txn = pb::TxnRequest {
        compare: vec![compare],
        success: vec![op(Request::RequestPut(put.clone())), op(Request::RequestTxn(inner))],
        failure: vec![op(Request::RequestDeleteRange(delete.clone()))],
    };
    let seed = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    vec![
        seed(0, range.encode_to_vec()),
        seed(1, put.encode_to_vec()),
        seed(2, delete.encode_to_vec()),
        seed(3, txn.encode_to_vec()),
    ]
}

/// Requests over etcd's JSON gateway: a path, a line break, and the body.
pub fn etcd_json() -> Seeds {
    let seeds = [
        "/v3/kv/range\n{\"key\":\"YQ==\",\"range_end\":\"eg==\",\"limit\":\"3\",\"sort_order\":\"DESCEND\"}",
        "/v3/kv/put\n{\"key\":\"aw==\",\"value\":\"dmFsdWU=\",\"lease\":7,\"prev_kv\":true}",
        "/v3/kv/txn\n{\"compare\":[{\"key\":\"aw==\",\"target\":\"MOD\",\"mod_revision\":\"3\"}],\
         \"success\":[{\"request_put\":{\"key\":\"aw==\"}},{\"request_txn\":{}}]}",
        "/v3/lease/grant\n{\"TTL\":60}",
        "/v3/watch\n{\"create_request\":{\"key\":\"aw==\",\"filters\":[\"NOPUT\"]}}\n{\"progress_request\":{}}",
        "/v3/cluster/member/add\n{\"peerURLs\":[\"http://127.0.0.1:2380\"],\"isLearner\":true}",
    ];
    seeds.into_iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

/// Snapshots of etcd without their checksum: a file of bbolt with a bucket in a page of its own, and buckets within the root's page.
pub fn etcd_snapshots() -> Seeds {
    use prost::Message as _;
    const PAGE: usize = 512;
    let meta = |transaction: u64| {
        let fields = [0xED0C_DAED_u64 | 2 << 32, PAGE as u64, 3, 0, 2, 5, transaction];
        let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        let fnv = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        let sum = bytes.iter().fold(0xCBF2_9CE4_8422_2325, fnv);
        bytes.extend_from_slice(&sum.to_le_bytes());
        [bolt_page_head(transaction % 2, 4, 0), bytes].concat()
    };
    let version = kv_etcd_api::mvccpb::KeyValue {
        key: "k".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        value: "v".into(),
        ..Default::default()
    };
    let place =
        |revision: u64, end: &str| [&revision.to_be_bytes()[..], b"_", &[0; 8], end.as_bytes()].concat();
    let deleted = kv_etcd_api::mvccpb::KeyValue { key: "k".into(), ..Default::default() };
    let keys = bolt_leaf(
        4,
        &[(0, place(2, ""), version.encode_to_vec()), (0, place(3, "t"), deleted.encode_to_vec())],
    );
    let user = kv_etcd_api::authpb::User {
        name: "root".into(),
        roles: vec!["root".to_owned()],
        ..Default::default()
    };
    let inline = |pairs: &[(u32, Vec<u8>, Vec<u8>)]| [vec![0; 16], bolt_leaf(0, pairs)].concat();
    let of_keys = [4_u64.to_le_bytes(), [0; 8]].concat();
    let buckets = [
        (1, b"authUsers".to_vec(), inline(&[(0, b"root".to_vec(), user.encode_to_vec())])),
        (1, b"key".to_vec(), of_keys),
        (1, b"lease".to_vec(), inline(&[(0, vec![0, 0, 0, 0, 0, 0, 0, 7], vec![8, 7, 16, 60])])),
        (1, b"meta".to_vec(), inline(&[(0, b"finishedCompactRev".to_vec(), place(2, ""))])),
    ];
    // The root is page 3; page 2, the list of free pages, is not read.
    let pages = [meta(0), meta(1), vec![], bolt_leaf(3, &buckets), keys];
    let file = pages.into_iter().flat_map(|mut page| {
        page.resize(PAGE, 0);
        page
    });
    vec![file.collect()]
}

fn bolt_page_head(id: u64, flags: u16, count: u16) -> Vec<u8> {
    [&id.to_le_bytes()[..], &flags.to_le_bytes(), &count.to_le_bytes(), &[0; 4]].concat()
}

/// A leaf: flags, key and value of each pair.
fn bolt_leaf(id: u64, pairs: &[(u32, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let (mut elements, mut content) = (Vec::new(), Vec::new());
    for (index, (flags, key, value)) in pairs.iter().enumerate() {
        let offset = (pairs.len() - index) * 16 + content.len();
        for field in [*flags, offset as u32, key.len() as u32, value.len() as u32] {
            elements.extend_from_slice(&field.to_le_bytes());
        }
        content.extend_from_slice(&[&key[..], value].concat());
    }
    [bolt_page_head(id, 2, pairs.len() as u16), elements, content].concat()
}
