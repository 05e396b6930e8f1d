//! A disk that stops completing writes: a file system of its own, frozen by the kernel.

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, Server, disk::Disk, kvctl::Kvctl};
use kv_store_client::{
    Connection,
    idl::PutRequest,
    protocol::{Call, Fault},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_with_stalled_disk_is_replaced_within_the_default_limit_and_says_so_until_the_disk_goes_on() {
    // Two election timeouts are less than two seconds.
    stall_of_the_leaders_disk("", Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_with_stalled_disk_is_replaced_within_a_shorter_limit() {
    stall_of_the_leaders_disk("storage_stall_limit = \"700ms\"\n", Duration::from_millis(700)).await;
}

async fn stall_of_the_leaders_disk(setting: &str, limit: Duration) {
    let Some(disk) = Disk::freezable() else { return };
    let mut cluster = Cluster::prepare_with(3, setting);
    disk.place(&cluster, 0);
    // Dropped before the cluster.
    let mut disk = disk;
    cluster.servers.iter_mut().for_each(Server::start);
    cluster.leader().await;
    let client = cluster.client();
    client.put("k", "before").await.unwrap();
    let leads = async |cluster: &Cluster| {
        // Refused while the node catches up.
        let _ = client.transfer_leader(Some(0)).await;
        (cluster.leader().await == 0).then_some(())
    };
    cluster.eventually("node 0 leads", leads).await;

    let kvctl = Kvctl::new(cluster.servers[0].endpoint());
    let endpoint = cluster.servers[0].endpoint().parse().unwrap();
    let connection = Connection::open(&endpoint, Duration::from_secs(1)).await.unwrap();
    disk.freeze();
    let began = Instant::now();
    let put = connection.call(Call::Put(PutRequest::of("k", "unknown")));
    let outcome = tokio::time::timeout(limit + MARGIN, put).await.expect("an answer in time").unwrap();
    assert!(matches!(&outcome, Err(Fault::Unavailable(why)) if why.maybe_applied), "{outcome:?}");
    assert!(
        began.elapsed() > limit,
        "a disk that pauses is not taken for one that hangs: {:?}",
        began.elapsed()
    );
    println!("unknown after {:?}", began.elapsed());
    client.put("k", "meanwhile").await.expect("another leader takes it");
    println!("another leader acknowledged a put after {:?}", began.elapsed());
    assert!(began.elapsed() < limit + MARGIN, "{:?}", began.elapsed());
    assert_ne!(cluster.leader().await, 0);

    let status = || kvctl.run(&["status"], "").1;
    let words = "has not completed a write of the log for";
    let said = async |_: &Cluster| Some(status()).filter(|said| said.contains(words));
    let said = cluster.eventually("the node says what it waits for", said).await;
    assert!(said.contains("storage_stall_limit"), "{said}");
    // It says since when.
    let seconds = |said: &str| said.split(words).nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
    let longer = async |_: &Cluster| seconds(&status()).filter(|longer| *longer > seconds(&said).unwrap());
    let longer = cluster.eventually("the time grows", longer).await;
    assert!(longer <= began.elapsed().as_secs() + 1, "{longer} s of {:?}", began.elapsed());
    // The others know it from the node's own word.
    let told = async |cluster: &Cluster| {
        let status = cluster.status(cluster.leader().await).await?;
        let member = status.members.into_iter().find(|member| member.node_id == 0)?;
        member.problem.filter(|why| why.contains(words))
    };
    cluster.eventually("the others tell, too", told).await;

    disk.thaw();
    let well = async |_: &Cluster| Some(status()).filter(|said| !said.is_empty() && !said.contains(words));
    cluster.eventually("nothing is left of it", well).await;
    client.put("k", "after").await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), cluster.same_hash()).await.unwrap();
    // It can lead again.
    cluster.eventually("node 0 leads again", leads).await;
    client.put("k", "led by it").await.unwrap();
    cluster.servers.iter_mut().for_each(Server::kill);
}

/// For an election, a client that asks again, and a busy machine.
const MARGIN: Duration = Duration::from_secs(4);
