//! Nodes that are started with data of the past: an old copy, a disk of before they were removed, or of before a survivor became a
//! cluster of its own.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::common::{
    Cluster, client, copy_dir,
    kvctl::Kvctl,
    writers::{Writers, check},
};
use kv_store_client::{
    ClientConfig, KvClient,
    admin::{MemberChange, MemberKind},
};

/// Like an operator: retries while another change is in progress or there is no leader.
async fn change(client: &KvClient, change: MemberChange) {
    let start = Instant::now();
    while let Err(error) = client.change_members(vec![change.clone()]).await {
        assert!(start.elapsed() < Duration::from_secs(30), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn add(id: usize, port: u16) -> MemberChange {
    let (consensus, clients) = (format!("127.0.0.1:{}", port + 1000), format!("127.0.0.1:{port}"));
    MemberChange::new(id as i64, MemberKind::JOINING, consensus, clients, None, false)
}

fn remove(id: usize) -> MemberChange {
    MemberChange::new(id as i64, None, None, None, None, None)
}

async fn wait_for_voters(cluster: &Cluster, ask: usize, voters: &[i64]) {
    cluster
        .eventually(&format!("the voters are {voters:?}"), async |cluster| {
            let mut members = cluster.status(ask).await?.members;
            members.sort_by_key(|member| member.node_id);
            let are_voters = members.iter().all(|member| member.kind == "voter");
            let ids = members.iter().map(|member| member.node_id);
            (are_voters && ids.eq(voters.iter().copied())).then_some(())
        })
        .await;
}

/// Makes a node that does not run the only member of a cluster of its own; what it prints.
fn force_new_cluster(cluster: &Cluster, id: usize) -> String {
    let data = cluster.data(id).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.args(["--force-new-cluster", "--node-id", &id.to_string(), "--data-dir", &data]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A client that gives up soon.
fn hasty(port: u16) -> KvClient {
    let endpoint = format!("127.0.0.1:{port}").parse().unwrap();
    KvClient::new(ClientConfig { timeout: Duration::from_secs(2), ..ClientConfig::new(vec![endpoint]) })
        .unwrap()
}

fn put_back(copy: &Path, data: &Path) {
    std::fs::remove_dir_all(data).unwrap();
    copy_dir(copy, data);
}

/// Three nodes; node `copied`, which does not lead, has stopped, and a copy of its data was taken. It runs again, and one more
/// write was acknowledged by it and the leader alone. The third node does not run.
struct Copied {
    cluster: Cluster,
    leader: usize,
    copied: usize,
    third: usize,
    copy: std::path::PathBuf,
}

async fn write_with_a_node_whose_data_was_copied() -> Copied {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (copied, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.client().put("before", "v").await.unwrap();
    cluster.same_hash().await;
    cluster.servers[copied].terminate();
    let copy = cluster.dir.path().join("copy");
    copy_dir(&cluster.data(copied), &copy);
    cluster.servers[copied].start();
    cluster.servers[third].terminate();
    for n in 0..20 {
        cluster.client().put("after", n.to_string()).await.unwrap();
    }
    Copied { cluster, leader, copied, third, copy }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_with_an_old_copy_catches_up_and_never_serves_an_old_read() {
    let Copied { mut cluster, copied, third, copy, .. } = write_with_a_node_whose_data_was_copied().await;
    cluster.servers[copied].kill();
    put_back(&copy, &cluster.data(copied));
    cluster.servers[third].start();
    cluster.servers[copied].start();
    let client = client(&[cluster.servers[copied].port]);
    assert_eq!(client.get("after").await.unwrap().unwrap().value, b"19");
    cluster.same_hash().await;
}

/// The two that are left without what the first leader acknowledged go on; that leader has it, and must not take it back silently.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_acknowledged_what_an_old_copy_lost_ends_and_says_so() {
    let Copied { mut cluster, leader, copied, third, copy } = write_with_a_node_whose_data_was_copied().await;
    cluster.servers[copied].kill();
    // It leaves its state on disk, and with it how much was committed.
    cluster.servers[leader].terminate();
    put_back(&copy, &cluster.data(copied));
    cluster.servers[copied].start();
    cluster.servers[third].start();
    client(&[cluster.servers[third].port]).put("after", "other").await.unwrap();
    cluster.servers[leader].start();
    assert_eq!(cluster.servers[leader].ended(), Some(1));
    let log = cluster.servers[leader].log();
    for words in ["the log of this node contradicts that of leader", "which is committed here"] {
        assert!(log.contains(words), "not said: {words:?}\n{log}");
    }
    let client = client(&[cluster.servers[copied].port, cluster.servers[third].port]);
    assert_eq!(client.get("after").await.unwrap().unwrap().value, b"other");
}

/// A node alone was copied, and became one of three. The copy, restored while the other two are down, is a cluster of one again and
/// leads in the term in which the node led before: its entries have the ids of other entries, which the other two hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_that_led_alone_ends_when_it_meets_the_entries_that_have_its_ids() {
    let mut cluster = Cluster::start(1, "", "");
    client(&[cluster.servers[0].port]).put("before", "v").await.unwrap();
    cluster.servers[0].terminate();
    let copy = cluster.dir.path().join("copy");
    copy_dir(&cluster.data(0), &copy);
    cluster.servers[0].start();
    for n in 0..20 {
        client(&[cluster.servers[0].port]).put("key", n.to_string()).await.unwrap();
    }
    for id in [1, 2] {
        cluster.join();
        change(&cluster.client(), add(id, cluster.servers[id].port)).await;
    }
    wait_for_voters(&cluster, 1, &[0, 1, 2]).await;
    cluster.same_hash().await;
    (0..3).for_each(|id| cluster.servers[id].kill());
    put_back(&copy, &cluster.data(0));
    cluster.servers[0].start();
    for n in 0..5 {
        client(&[cluster.servers[0].port]).put("key", format!("other {n}")).await.unwrap();
    }
    // It is not restarted: after a restart it would lead in a later term, and the ids would differ.
    (1..3).for_each(|id| cluster.servers[id].start());
    let others = client(&[cluster.servers[1].port, cluster.servers[2].port]);
    others.put("after", "v").await.unwrap();
    assert_eq!(cluster.servers[0].ended(), Some(1));
    let log = cluster.servers[0].log();
    for words in ["the log of this node contradicts that of leader", "is another one with the same id"] {
        assert!(log.contains(words), "not said: {words:?}\n{log}");
    }
    assert_eq!(others.get("key").await.unwrap().unwrap().value, b"19");
}

/// The first node of a cluster was its only voter; its id counts as any other when it comes back with an empty disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn id_of_the_first_voter_used_again_loses_nothing_and_leads_only_with_all_data() {
    let mut cluster = Cluster::start(1, "", "");
    let writers = Writers::start(&client(&[cluster.servers[0].port]), 1);
    writers.acknowledged_again(Instant::now()).await;
    let mut acknowledged = writers.stop().await;
    for id in [1, 2] {
        cluster.join();
        change(&cluster.client(), add(id, cluster.servers[id].port)).await;
    }
    wait_for_voters(&cluster, 1, &[0, 1, 2]).await;
    change(&cluster.client(), remove(0)).await;
    wait_for_voters(&cluster, 1, &[1, 2]).await;
    cluster.servers[0].kill();
    cluster.wipe(0);
    let others = client(&[cluster.servers[1].port, cluster.servers[2].port]);
    others.put("writer-1/000000", "value").await.unwrap();
    acknowledged.insert("writer-1/000000".to_owned(), "value".to_owned());
    cluster.servers[0].argue("--join");
    cluster.servers[0].start();
    change(&others, add(0, cluster.servers[0].port)).await;
    let leader = cluster
        .eventually("one of the two leads", async |cluster| {
            let leader = cluster.status(1).await?.leader_id?;
            usize::try_from(leader).ok().filter(|leader| *leader != 0)
        })
        .await;
    cluster.servers[leader].kill();
    // While the leader is down, and node 0 restarts, no node becomes leader without the acknowledged writes.
    for is_second in [false, true] {
        if is_second {
            cluster.servers[0].kill();
            cluster.servers[0].start();
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(1500) {
            if cluster.status(0).await.is_some_and(|status| status.role == "leader") {
                check(&client(&[cluster.servers[0].port]), &acknowledged).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    cluster.servers[leader].start();
    wait_for_voters(&cluster, 1, &[0, 1, 2]).await;
    cluster.same_hash().await;
    for id in 0..3 {
        check(&client(&[cluster.servers[id].port]), &acknowledged).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_survivors_that_were_forced_are_two_clusters_and_a_former_member_is_refused() {
    let mut cluster = Cluster::start(3, "", "");
    cluster.client().put("k", "v").await.unwrap();
    cluster.same_hash().await;
    for server in &mut cluster.servers {
        server.terminate();
    }
    for id in [0, 1] {
        let said = force_new_cluster(&cluster, id);
        assert!(said.contains(&format!("node {id} is the only member now")), "{said}");
        cluster.servers[id].start();
    }
    for id in [0, 1] {
        let client = client(&[cluster.servers[id].port]);
        assert_eq!(client.get("k").await.unwrap().unwrap().value, b"v");
        client.put("own", id.to_string()).await.unwrap();
    }
    for id in [0, 1] {
        let client = client(&[cluster.servers[id].port]);
        assert_eq!(client.get("own").await.unwrap().unwrap().value, id.to_string().as_bytes());
        wait_for_voters(&cluster, id, &[id as i64]).await;
    }
    let endpoints = [0, 1].map(|id| cluster.servers[id].endpoint()).join(",");
    let (code, out, error) = tokio::task::block_in_place(|| Kvctl::new(endpoints).run(&["hash"], ""));
    assert!(code == 6 && error.contains("different clusters"), "{code} {out} {error}");

    // A former member with its old data finds nobody of its cluster, is told why, and serves nothing.
    let terms = [cluster.status(0).await.unwrap().header.term, cluster.status(1).await.unwrap().header.term];
    cluster.servers[2].start();
    cluster.servers[2].says("these are two clusters with different histories, and exchange no messages");
    let refused = hasty(cluster.servers[2].port).get("k").await.unwrap_err().to_string();
    assert!(refused.contains("no leader") || refused.contains("unavailable"), "{refused}");
    for id in [0, 1] {
        let status = cluster.status(id).await.unwrap();
        assert_eq!((status.role.as_str(), status.header.term), ("leader", terms[id]), "it is not disturbed");
        wait_for_voters(&cluster, id, &[id as i64]).await;
    }
}

/// Both clusters have one node, with the same id and entries of the same ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_of_another_cluster_beside_a_log_is_refused() {
    let mut clusters = [Cluster::start(1, "", ""), Cluster::start(1, "", "")];
    for cluster in &mut clusters {
        cluster.client().put("k", "v").await.unwrap();
        cluster.servers[0].terminate();
    }
    let [mut one, other] = clusters;
    put_back(&other.data(0).join("state"), &one.data(0).join("state"));
    one.servers[0].start();
    assert_eq!(one.servers[0].ended(), Some(3));
    let log = one.servers[0].log();
    assert!(
        log.contains("has applied entries of the cluster") && log.contains("is a log of the cluster"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_node_whose_id_another_machine_has_is_refused() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.client().put("k", "old").await.unwrap();
    cluster.same_hash().await;
    cluster.servers[gone].kill();
    let staying = client(&[cluster.servers[leader].port, cluster.servers[other].port]);
    change(&staying, remove(gone)).await;
    // Another machine: its own directory and ports.
    let old = cluster.dir.path().join("old");
    std::fs::rename(cluster.data(gone), &old).unwrap();
    cluster.servers[gone].set_argument("--data-dir", &old.display().to_string());
    let port = Cluster::port_to_join();
    cluster.join_at(gone, port, &[]);
    change(&staying, add(gone, port)).await;
    wait_for_voters(&cluster, leader, &[0, 1, 2]).await;
    staying.put("k", "new").await.unwrap();

    cluster.servers[gone].start();
    cluster.servers[gone].says("two nodes were started with one id");
    let read = hasty(cluster.servers[gone].port).get("k").await;
    assert!(!matches!(&read, Ok(Some(kv)) if kv.value == b"old"), "{read:?}");
    // The other machine stays the member.
    cluster.servers[other].kill();
    staying.put("k", "newest").await.unwrap();
    assert_eq!(client(&[port]).get("k").await.unwrap().unwrap().value, b"newest");
}

/// Node 1 and a copy of it run at once, as after the restart of a machine whose image was started elsewhere: here, at other
/// endpoints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_of_a_running_node_is_refused() {
    let mut cluster = Cluster::start(3, "", "");
    cluster.client().put("k", "old").await.unwrap();
    cluster.same_hash().await;
    cluster.servers[1].terminate();
    let mut twin = Cluster::prepare(3);
    copy_dir(&cluster.data(1), &twin.data(1));
    cluster.servers[1].start();
    cluster.client().put("k", "new").await.unwrap();
    cluster.same_hash().await;
    let config = std::fs::read_to_string(cluster.dir.path().join("cluster.toml")).unwrap();
    let own = |cluster: &Cluster| format!("\"127.0.0.1:{}\"", cluster.servers[1].port);
    std::fs::write(twin.dir.path().join("cluster.toml"), config.replace(&own(&cluster), &own(&twin)))
        .unwrap();
    twin.servers[1].start();
    twin.servers[1].says("another process with its id");
    let read = hasty(twin.servers[1].port).get("k").await;
    assert!(!matches!(&read, Ok(Some(kv)) if kv.value == b"old"), "{read:?}");
    cluster.client().put("k", "newest").await.unwrap();
    let node_1 = client(&[cluster.servers[1].port]);
    assert_eq!(node_1.get("k").await.unwrap().unwrap().value, b"newest");
}

/// A path at which the leader's store would create a copy of itself cannot be replaced, not even by root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_that_cannot_be_taken_stops_nobody_and_is_told_with_path_and_error() {
    let log = "[log]\ncompact_after_entries = 20\ncompact_keep_entries = 1\n";
    let mut cluster = Cluster::start(3, "", log);
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.client().put("k", "v").await.unwrap();
    cluster.same_hash().await;
    cluster.servers[behind].kill();
    let state = cluster.data(leader).join("state");
    for n in 0..10_000 {
        std::fs::write(state.join(format!("checkpoint-{n}")), "in the way").unwrap();
    }
    for n in 0..200 {
        cluster.client().put("k", n.to_string()).await.unwrap();
    }
    cluster.servers[behind].start();
    cluster
        .eventually("the leader says that it cannot take the snapshot, and why", async |cluster| {
            let members = cluster.status(leader).await?.members;
            let problem = members.into_iter().find(|member| member.node_id == behind as i64)?.problem?;
            let path = state.join("checkpoint-").display().to_string();
            problem.contains(&path).then_some(())
        })
        .await;
    cluster.client().put("k", "it goes on").await.unwrap();
    for n in 0..10_000 {
        std::fs::remove_file(state.join(format!("checkpoint-{n}"))).unwrap();
    }
    cluster.same_hash().await;
}
