//! Alarms, the quota, automatic compaction, and snapshots.

use std::time::{Duration, Instant};

use kv_etcd_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
    LeaseGrantRequest, RangeRequest, SnapshotRequest, StatusRequest, alarm_request::AlarmAction,
    kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use kv_store_client::{ClientError, protocol::Fault};
use sha2::{Digest, Sha256};
use tonic::{Code, transport::Channel};

use super::clients::{Alone, PATIENCE, channel, get, put, refusal};
use crate::common::Cluster;

type Maintenance = MaintenanceClient<Channel>;

async fn alarm(
    client: &mut Maintenance,
    action: AlarmAction,
    member_id: u64,
    kind: AlarmType,
) -> Vec<AlarmMember> {
    let request = AlarmRequest { action: action.into(), member_id, alarm: kind.into() };
    client.alarm(request).await.unwrap().into_inner().alarms
}

async fn alarms(client: &mut Maintenance) -> Vec<AlarmMember> {
    alarm(client, AlarmAction::Get, 0, AlarmType::None).await
}

fn no_space() -> (Code, String) {
    (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_beyond_its_quota_takes_no_puts_until_space_is_freed_and_the_alarm_disarmed() {
    let alone = Alone::start_with(&["--quota-size", "4MiB"]).await;
    let mut kv = alone.kv().await;
    let mut maintenance = MaintenanceClient::new(channel(alone.server.port).await);
    let value = "x".repeat(64 << 10);
    let mut puts = 0;
    let refused = loop {
        match kv.put(put(&format!("k{puts}"), &value)).await {
            Ok(_) => puts += 1,
            Err(status) => break status,
        }
        assert!(puts < 100, "the quota does not count");
    };
    assert_eq!((refused.code(), refused.message().to_owned()), no_space());
    let status = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    let member_id = status.header.unwrap().member_id;
    assert_eq!(status.db_size_quota, 4 << 20);
    assert_eq!(status.errors, [format!("memberID:{member_id} alarm:NOSPACE")]);
    let raised = [AlarmMember { member_id, alarm: AlarmType::Nospace.into() }];
    assert_eq!(alarms(&mut maintenance).await, raised);
    let grant = LeaseGrantRequest { ttl: 100, id: 1 };
    assert_eq!(refusal(alone.lease().await.lease_grant(grant).await), no_space());
    let of_thrift = alone.server.client().put("t", "v").await.unwrap_err();
    let ClientError::Rejected(Fault::Invalid(invalid)) = &of_thrift else { panic!("{of_thrift:?}") };
    assert!(
        invalid.message.contains("NOSPACE") && invalid.message.contains("nothing was done"),
        "{invalid:?}"
    );
    assert_eq!(kv.range(get("k0")).await.unwrap().into_inner().count, 1);
    let all = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: false };
    let revision = kv.delete_range(all).await.unwrap().into_inner().header.unwrap().revision;
    kv.compact(CompactionRequest { revision, physical: true }).await.unwrap();
    // Compacted history is removed beside other work.
    let begun = Instant::now();
    loop {
        maintenance.defragment(DefragmentRequest {}).await.unwrap();
        let status = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
        if status.db_size < 2 << 20 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status:?}");
    }
    assert_eq!(refusal(kv.put(put("k", "v")).await), no_space());
    assert_eq!(alarm(&mut maintenance, AlarmAction::Deactivate, member_id, AlarmType::Nospace).await, raised);
    assert!(alarm(&mut maintenance, AlarmAction::Deactivate, member_id, AlarmType::Nospace).await.is_empty());
    kv.put(put("k", "v")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarm_holds_on_every_node_and_after_the_leader() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (port, other_port) = (cluster.servers[one].port, cluster.servers[other].port);
    let mut maintenance = MaintenanceClient::new(channel(port).await);
    let status = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    let member_id = status.header.unwrap().member_id;
    let raised = [AlarmMember { member_id, alarm: AlarmType::Corrupt.into() }];
    assert_eq!(alarm(&mut maintenance, AlarmAction::Activate, member_id, AlarmType::Corrupt).await, raised);
    let mut kv = KvClient::new(channel(other_port).await);
    let corrupt = (Code::DataLoss, "etcdserver: corrupt cluster".to_owned());
    assert_eq!(refusal(kv.put(put("a", "1")).await), corrupt);
    let mut of_other = MaintenanceClient::new(channel(other_port).await);
    assert_eq!(alarms(&mut of_other).await, raised);
    let problems = cluster.status(leader).await.unwrap().problems.unwrap_or_default().join("; ");
    assert!(problems.contains(&format!("alarm CORRUPT of node {one}")), "{problems}");
    cluster.servers[leader].kill();
    cluster
        .eventually("another node leads", async |_: &Cluster| {
            let outcome = kv.put(put("a", "1")).await;
            outcome.is_err_and(|status| (status.code(), status.message().to_owned()) == corrupt).then_some(())
        })
        .await;
    // Member 0 is none of them.
    let of_none = [AlarmMember { member_id: 0, alarm: AlarmType::Corrupt.into() }];
    assert_eq!(alarm(&mut of_other, AlarmAction::Activate, 0, AlarmType::Corrupt).await, of_none);
    assert_eq!(alarms(&mut of_other).await, [&of_none[..], &raised].concat());
    assert_eq!(alarm(&mut of_other, AlarmAction::Deactivate, 0, AlarmType::Corrupt).await, of_none);
    assert_eq!(alarm(&mut of_other, AlarmAction::Deactivate, member_id, AlarmType::Corrupt).await, raised);
    kv.put(put("a", "1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_compacts_what_is_older_than_the_retention() {
    let cluster = Cluster::start(3, "", "[limits]\nauto_compaction_retention = \"1s\"\n");
    let leader = cluster.leader().await;
    let mut kv = KvClient::new(channel(cluster.servers[(leader + 1) % 3].port).await);
    let mut put_one = async || kv.put(put("k", "v")).await.unwrap().into_inner().header.unwrap().revision;
    let first = put_one().await;
    let written = Instant::now();
    let mut kv = KvClient::new(channel(cluster.servers[(leader + 2) % 3].port).await);
    let old = RangeRequest { revision: first, ..get("k") };
    // Newer versions stay: history is compacted to the newest revision of a second ago.
    put_one().await;
    while let Ok(found) = kv.range(old.clone()).await {
        assert_eq!(found.into_inner().kvs[0].mod_revision, first);
        assert!(written.elapsed() < PATIENCE, "it is not compacted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(written.elapsed() >= Duration::from_secs(1), "after {:?}", written.elapsed());
    let compacted = (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".to_owned());
    assert_eq!(refusal(kv.range(old).await), compacted);
    assert_eq!(kv.range(get("k")).await.unwrap().into_inner().count, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_ends_with_the_checksum_of_all_that_was_sent() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    for n in 0..40 {
        kv.put(put(&format!("k{n}"), &"x".repeat(64 << 10))).await.unwrap();
    }
    let mut maintenance = MaintenanceClient::new(channel(alone.server.port).await);
    let mut stream = maintenance.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let (mut whole, mut left) = (Vec::new(), None);
    while let Some(message) = stream.message().await.unwrap() {
        // The checksum is not among the bytes that remain.
        let expected = left.map(|left: u64| left.saturating_sub(message.blob.len() as u64));
        assert_eq!(message.remaining_bytes, expected.unwrap_or(message.remaining_bytes));
        assert_eq!(message.version, "3.7.0");
        left = Some(message.remaining_bytes);
        whole.extend_from_slice(&message.blob);
    }
    assert_eq!((whole.len() % 512, left), (32, Some(0)), "what etcd's clients take for whole");
    let (content, digest) = whole.split_at(whole.len() - 32);
    assert!(content.len() > 40 << 10 && content.starts_with(b"KVSNAP"));
    assert_eq!(Sha256::digest(content)[..], *digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_their_snapshots_delay_nobody() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let value: String =
        (0..1 << 20).map(|n: u32| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8)).collect();
    for n in 0..24 {
        kv.put(put(&format!("k{n}"), &value)).await.unwrap();
    }
    let memory = alone.server.memory();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut maintenance = MaintenanceClient::new(channel(alone.server.port).await);
        let mut stream = maintenance.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        streams.push(stream);
    }
    let begun = Instant::now();
    for n in 0..50 {
        kv.put(put("k", &n.to_string())).await.unwrap();
        kv.range(get("k0")).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let more = alone.server.memory().saturating_sub(memory);
    assert!(more < 24 << 20, "{more} bytes more");
}
