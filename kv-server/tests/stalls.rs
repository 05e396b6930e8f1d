//! A disk that stops completing writes: a file system of its own, frozen by the kernel.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::common::{Cluster, Server, disk::Disk, kvctl::Kvctl};
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

/// A cluster of one has nobody to give leadership to: its clients are told that the outcome is unknown, and so is the operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_alone_with_a_stalled_disk_answers_unknown_says_so_and_goes_on_with_the_disk() {
    let Some(disk) = Disk::freezable() else { return };
    let limit = Duration::from_millis(700);
    let mut cluster = Cluster::prepare_with(1, "storage_stall_limit = \"700ms\"\n");
    disk.place(&cluster, 0);
    // Dropped before the cluster.
    let mut disk = disk;
    cluster.servers[0].start();
    cluster.client().put("k", "before").await.unwrap();
    let endpoint = cluster.servers[0].endpoint().parse().unwrap();
    let connection = Connection::open(&endpoint, Duration::from_secs(1)).await.unwrap();
    disk.freeze();
    let put = connection.call(Call::Put(PutRequest::of("k", "unknown")));
    let outcome = tokio::time::timeout(limit + MARGIN, put).await.expect("an answer in time").unwrap();
    assert!(matches!(&outcome, Err(Fault::Unavailable(why)) if why.maybe_applied), "{outcome:?}");
    let kvctl = Kvctl::new(cluster.servers[0].endpoint());
    let words = "has not completed a write of the log for";
    let status = || kvctl.run(&["status"], "").1;
    let said = async |_: &Cluster| status().contains(words).then_some(());
    cluster.eventually("the node says what it waits for", said).await;
    let checks = cluster.servers[0].http("/readyz");
    assert!(
        checks.contains("503") && checks.contains("[-]storage failed: its disk has not completed"),
        "{checks}"
    );
    disk.thaw();
    let well = async |_: &Cluster| Some(status()).filter(|said| !said.is_empty() && !said.contains(words));
    cluster.eventually("nothing is left of it", well).await;
    cluster.client().put("k", "after").await.unwrap();
    assert_eq!(cluster.client().get("k").await.unwrap().unwrap().value, b"after");
    cluster.servers[0].kill();
}

/// The log is on another disk than the store. A change of users is flushed while it is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_whose_store_hangs_while_it_applies_is_replaced_and_goes_on_with_the_disk() {
    let Some(disk) = Disk::freezable() else { return };
    let mut cluster = Cluster::prepare_with(3, "apply_stall_limit = \"700ms\"\n");
    // Dropped before the cluster.
    let mut disk = disk;
    cluster.servers.iter_mut().for_each(Server::start);
    cluster.leader().await;
    let client = cluster.client();
    cluster.servers[0].kill();
    let (state, elsewhere) = (cluster.data(0).join("state"), disk.path().join("state"));
    assert!(Command::new("mv").args([&state, &elsewhere]).status().unwrap().success());
    std::os::unix::fs::symlink(&elsewhere, &state).unwrap();
    cluster.servers[0].start();
    client.put("k", "before").await.unwrap();
    let leads = async |cluster: &Cluster| {
        let _ = client.transfer_leader(Some(0)).await;
        (cluster.leader().await == 0).then_some(())
    };
    cluster.eventually("node 0 leads", leads).await;
    disk.freeze();
    let endpoints: Vec<_> = cluster.servers.iter().map(Server::endpoint).collect();
    let all = Kvctl::new(endpoints.join(","));
    let add = tokio::task::spawn_blocking(move || all.run(&["role", "add", "reader"], ""));
    let replaced = async |cluster: &Cluster| (cluster.leader().await != 0).then_some(());
    cluster.eventually("another node leads", replaced).await;
    client.put("k", "meanwhile").await.expect("the new leader takes it");
    let kvctl = Kvctl::new(cluster.servers[0].endpoint());
    let words = "its state machine has been applying for";
    let status = || kvctl.run(&["status"], "").1;
    cluster.eventually("the node says so", async |_: &Cluster| status().contains(words).then_some(())).await;
    let checks = cluster.servers[0].http("/readyz");
    assert!(checks.contains("503") && checks.contains("[-]storage failed"), "{checks}");
    disk.thaw();
    let well = async |_: &Cluster| Some(status()).filter(|said| !said.is_empty() && !said.contains(words));
    cluster.eventually("nothing is left of it", well).await;
    add.await.unwrap();
    for server in &cluster.servers {
        let roles = async |_: &Cluster| {
            Kvctl::new(server.endpoint()).run(&["role", "list"], "").1.contains("reader").then_some(())
        };
        cluster.eventually("every node knows the role", roles).await;
    }
    tokio::time::timeout(Duration::from_secs(30), cluster.same_hash()).await.unwrap();
    cluster.servers.iter_mut().for_each(Server::kill);
}

/// A standalone server's store is all that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standalone_server_with_a_stalled_disk_says_so_and_goes_on_with_the_disk() {
    let Some(disk) = Disk::freezable() else { return };
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(disk.path(), dir.path().join("data")).unwrap();
    let mut server = Server::standalone(dir.path());
    // Dropped before the server.
    let mut disk = disk;
    server.client().put("k", "before").await.unwrap();
    disk.freeze();
    let client = server.client();
    let put = tokio::spawn(async move { client.put("k", "during").await });
    let kvctl = Kvctl::new(server.endpoint());
    let words = "its store has not completed a write for";
    eventually("the server says what it waits for", || kvctl.run(&["status"], "").1.contains(words)).await;
    let checks = server.http("/readyz");
    assert!(checks.contains("503") && checks.contains("[-]storage failed: its store has not"), "{checks}");
    let health = server.http("/health");
    assert!(health.contains("503") && health.contains("its store has not"), "{health}");
    assert!(server.http("/livez").contains("200 OK"), "a restart would not help");
    disk.thaw();
    put.await.unwrap().unwrap();
    let is_well =
        || server.http("/health").contains("200 OK") && !kvctl.run(&["status"], "").1.contains(words);
    eventually("nothing is left of it", is_well).await;
    assert_eq!(server.client().get("k").await.unwrap().unwrap().value, b"during");
    server.kill();
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// For an election, a client that asks again, and a busy machine.
const MARGIN: Duration = Duration::from_secs(4);
