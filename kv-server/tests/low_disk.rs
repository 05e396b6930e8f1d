//! Nodes of which some have little room on their disks: small file systems in memory.

use std::time::{Duration, Instant};

use crate::common::{Cluster, Server, disk::Disk};
use kv_store_client::{
    ClientConfig, KvClient,
    idl::{Consistency, RangeRequest},
};
use rand::{RngCore, SeedableRng, rngs::SmallRng};

/// Three nodes that run, each with a disk of its own.
struct SmallDisks {
    // Dropped in this order.
    disks: Vec<Disk>,
    cluster: Cluster,
}

impl SmallDisks {
    /// `None` where disks cannot be mounted.
    async fn start() -> Option<Self> {
        let disks = (0..3).map(|_| Disk::small(DISK_MIB)).collect::<Option<Vec<_>>>()?;
        let mut cluster =
            Cluster::prepare_with(3, &format!("[limits]\ndisk_reserve = \"{RESERVE_MIB}MiB\"\n"));
        disks.iter().enumerate().for_each(|(id, disk)| disk.place(&cluster, id));
        cluster.servers.iter_mut().for_each(Server::start);
        cluster.leader().await;
        Some(Self { disks, cluster })
    }

    fn fill(&self, ids: &[usize]) {
        ids.iter().for_each(|id| self.disks[*id].leave_mib(RESERVE_MIB / 2));
    }

    /// Waits until these servers refuse writes for want of room: the first one that finds none ends as unknown.
    async fn refuse_writes(&self, ports: &[u16]) {
        let hasty = hasty(ports);
        let refused = async |_: &Cluster| {
            let error = hasty.put("k", "refused").await.err()?.to_string();
            says_no_room(&error).then_some(())
        };
        self.cluster.eventually("a write is refused with the reason", refused).await;
    }

    /// Checks for a while that `leader` stays leader of the same term, refuses writes with the reason, and serves reads of
    /// this consistency.
    async fn stay_with(&self, leader: usize, consistency: Consistency) {
        let direct = hasty(&[self.cluster.servers[leader].port]);
        let read = RangeRequest { consistency: Some(consistency), ..RangeRequest::of("k", None) };
        let term = self.cluster.status(leader).await.unwrap().header.term;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            let error = direct.put("k", "refused").await.unwrap_err().to_string();
            assert!(says_no_room(&error), "{error}");
            direct.range(read.clone()).await.expect("reads are served");
            let status = self.cluster.status(leader).await.unwrap();
            assert_eq!((&status.role[..], status.header.term), ("leader", term), "there was no election");
        }
    }
}

fn hasty(ports: &[u16]) -> KvClient {
    let endpoints = ports.iter().map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect();
    KvClient::new(ClientConfig { timeout: Duration::from_secs(2), ..ClientConfig::new(endpoints) }).unwrap()
}

fn says_no_room(text: &str) -> bool {
    text.contains("MiB free, of which")
}

async fn is_low_on_disk(cluster: &Cluster, id: usize) -> bool {
    let problems = cluster.status(id).await.and_then(|status| status.problems).unwrap_or_default();
    problems.iter().any(|problem| problem.contains("low on disk"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_low_on_disk_transfers_leadership_when_others_get_room_later() {
    let Some(small) = SmallDisks::start().await else { return };
    let cluster = &small.cluster;
    cluster.client().put("k", "before").await.unwrap();
    cluster.same_hash().await;
    let leader = cluster.leader().await;
    small.fill(&[0, 1, 2]);
    small.refuse_writes(&small.cluster.ports()).await;
    // It has asked the others by then, and none of them had room.
    small.stay_with(leader, Consistency::LINEARIZABLE).await;
    for other in (0..3).filter(|id| *id != leader) {
        small.disks[other].make_room();
    }
    cluster.client().put("k", "after").await.unwrap();
    assert_ne!(cluster.leader().await, leader);
    assert!(is_low_on_disk(cluster, leader).await, "it still has no room, and says so");
    small.disks[leader].make_room();
    cluster.same_hash().await;
    assert!(!is_low_on_disk(cluster, leader).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_and_follower_low_on_disk_have_a_leader_that_serves_reads() {
    let Some(mut small) = SmallDisks::start().await else { return };
    small.cluster.client().put("k", "before").await.unwrap();
    small.cluster.same_hash().await;
    let leader = small.cluster.leader().await;
    let follower = (leader + 1) % 3;
    small.fill(&[leader, follower]);
    small.refuse_writes(&small.cluster.ports()).await;
    small.stay_with(leader, Consistency::LINEARIZABLE).await;
    // The next leader needs the vote of a node without room. The put that ended as unknown is in its log, and in that of no other
    // node; before it is committed the leader cannot know what is, and so serves no linearizable reads.
    small.cluster.servers[leader].kill();
    let next = small.cluster.leader().await;
    small.refuse_writes(&[small.cluster.servers[next].port]).await;
    small.stay_with(next, Consistency::STALE).await;
    small.cluster.servers[leader].start();
    small.disks[leader].make_room();
    small.disks[follower].make_room();
    small.cluster.client().put("k", "after").await.unwrap();
    small.cluster.same_hash().await;
}

/// A node that was away finds its log purged at the others; what its disk has beyond the reserve is less than the snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_without_room_is_refused_before_the_reserve_is_used_and_taken_with_room() {
    let Some(disk) = Disk::small(2 * DISK_MIB) else { return };
    let settings = format!(
        "[limits]\ndisk_reserve = \"{RESERVE_MIB}MiB\"\n[log]\ncompact_after_entries = 10\ncompact_keep_entries = 1\n"
    );
    let mut cluster = Cluster::prepare_with(3, &settings);
    disk.place(&cluster, 0);
    // Dropped before the cluster.
    let disk = disk;
    cluster.servers.iter_mut().for_each(Server::start);
    cluster.client().put("k", "before").await.unwrap();
    cluster.same_hash().await;
    let last = cluster.status(0).await.unwrap().last_log_index;
    cluster.servers[0].terminate();
    // Not compressible.
    let mut random = SmallRng::seed_from_u64(1);
    for key in 0..48 {
        let mut value = vec![0; 1 << 20];
        random.fill_bytes(&mut value);
        cluster.client().put(format!("large/{key}"), value).await.unwrap();
    }
    let is_gone = async |cluster: &Cluster| {
        let leader = cluster.status(cluster.leader().await).await?;
        (leader.first_log_index > last + 10).then_some(())
    };
    cluster.eventually("the log that the node lacks is gone", is_gone).await;

    disk.leave_mib(RESERVE_MIB + 16);
    cluster.servers[0].start();
    let refused = async |cluster: &Cluster| {
        let problems = cluster.status(0).await?.problems?;
        problems.into_iter().find(|problem| problem.contains("does not take it"))
    };
    let why = cluster.eventually("the node says why it takes no snapshot", refused).await;
    assert!(why.contains("it needs the leader's snapshot"), "{why}");
    println!("{why}");
    // Sent again and again, and refused each time.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        assert!(disk.free_mib() >= RESERVE_MIB, "{} MiB are free", disk.free_mib());
        assert!(cluster.servers[0].is_running());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.client().put("k", "meanwhile").await.unwrap();
    let leader = cluster.leader().await;
    let members = cluster.status(leader).await.unwrap().members;
    let told = members.into_iter().find(|member| member.node_id == 0).unwrap().problem;
    assert!(told.as_ref().is_some_and(|told| told.contains("snapshot")), "the leader tells, too: {told:?}");

    disk.make_room();
    cluster.same_hash().await;
    let well = async |cluster: &Cluster| {
        let problems = cluster.status(0).await?.problems.unwrap_or_default();
        problems.is_empty().then_some(())
    };
    cluster.eventually("nothing is left of it", well).await;
}

const DISK_MIB: u64 = 192;
const RESERVE_MIB: u64 = 64;
