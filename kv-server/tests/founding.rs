//! First starts of clusters, and starts that only look like one.

use std::time::{Duration, Instant};

use crate::common::{Cluster, Server, copy_dir};

/// Waits until a put succeeds; how long that took.
async fn serves(cluster: &Cluster, key: &str) -> Duration {
    let since = Instant::now();
    cluster.client().put(key, "v").await.unwrap();
    since.elapsed()
}

/// Starts a server that must end by itself; what it wrote to its log.
fn refuses_to_start(server: &mut Server) -> String {
    let before = server.log().len();
    server.start();
    assert_eq!(server.ended(), Some(3), "{}", server.log());
    server.log()[before..].to_owned()
}

fn assert_says(said: &str, words: &[&str]) {
    for words in words {
        assert!(said.contains(words), "not said: {words:?}\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_empty_nodes_begin_when_the_last_has_started() {
    for order in [[0, 1, 2], [2, 0, 1]] {
        let mut cluster = Cluster::prepare(3);
        for id in order {
            cluster.servers[id].start();
            if id != order[2] {
                cluster.servers[id].says("waiting for node");
                assert!(cluster.status(id).await.is_none(), "a node that waits serves nobody");
            }
        }
        println!("served {:?} after the last start", serves(&cluster, "k").await);
        cluster.same_hash().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_waits_names_the_flag_and_ends_when_it_is_told_to() {
    let mut cluster = Cluster::prepare(2);
    cluster.servers[0].start();
    cluster.servers[0].says("waiting for node 1 at 127.0.0.1:");
    cluster.servers[0].says("--founding-peers-missing");
    assert_eq!(cluster.servers[0].terminate().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_begin_when_the_third_may_be_missing_and_it_comes_later() {
    let mut cluster = Cluster::prepare(3);
    for id in [0, 1] {
        cluster.servers[id].set_argument("--founding-peers-missing", "2");
        cluster.servers[id].start();
    }
    serves(&cluster, "k").await;
    cluster.servers[2].start();
    cluster.same_hash().await;
    cluster.servers[2].says("the cluster exists and counts on this node");
    // It is a voter like the others.
    cluster.servers[0].kill();
    serves(&cluster, "l").await;
}

/// One node becomes three by editing the file.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_added_by_editing_the_file_do_not_start_and_the_data_stays() {
    let mut alone = Cluster::start(1, "", "");
    serves(&alone, "k").await;
    alone.servers[0].terminate();
    let mut three = Cluster::prepare(3);
    copy_dir(&alone.data(0), &three.data(0));
    // While node 0 is not there, the others wait.
    three.servers[1].start();
    three.servers[2].start();
    three.servers[1].says("waiting for node 0");
    three.servers[0].start();
    for id in [1, 2] {
        assert_eq!(three.servers[id].ended(), Some(3));
        let (history, add) = ("belongs to a cluster with a history", format!("kvctl member add {id}"));
        assert_says(&three.servers[id].log(), &["node 0", history, "--join", &add]);
    }
    three.servers[0].says("the file lists 0, 1, 2");
    let client = three.servers[0].client();
    assert_eq!(client.get("k").await.unwrap().unwrap().value, b"v");
    client.put("l", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn voter_whose_disk_was_emptied_does_not_start() {
    let mut cluster = Cluster::start(3, "", "");
    serves(&cluster, "k").await;
    cluster.same_hash().await;
    cluster.servers[1].kill();
    cluster.wipe(1);
    let said = refuses_to_start(&mut cluster.servers[1]);
    assert_says(&said, &["disk was emptied", "kvctl member remove 1", "kvctl member add 1", "--join"]);
    serves(&cluster, "l").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_emptied_nodes_do_not_begin_a_second_cluster() {
    let mut cluster = Cluster::start(3, "", "");
    serves(&cluster, "k").await;
    cluster.same_hash().await;
    let before = cluster.status(0).await.unwrap();
    for id in [1, 2] {
        cluster.servers[id].kill();
        cluster.wipe(id);
    }
    for id in [1, 2] {
        let said = refuses_to_start(&mut cluster.servers[id]);
        assert_says(&said, &["node 0", &format!("kvctl member remove {id}")]);
    }
    // Nor while the third is away.
    cluster.servers[0].kill();
    cluster.servers[1].start();
    cluster.servers[2].start();
    cluster.servers[1].says("waiting for node 0");
    cluster.servers[0].start();
    assert_eq!((cluster.servers[1].ended(), cluster.servers[2].ended()), (Some(3), Some(3)));
    let left = cluster.eventually("node 0 answers", async |cluster| cluster.status(0).await).await;
    assert!(left.last_log_index >= before.last_log_index, "its data is intact");
}

/// On another machine, with the same file: here, with other endpoints of its own.
#[tokio::test(flavor = "multi_thread")]
async fn second_node_with_one_id_does_not_start() {
    let cluster = Cluster::start(3, "", "");
    serves(&cluster, "k").await;
    cluster.same_hash().await;
    let config = std::fs::read_to_string(cluster.dir.path().join("cluster.toml")).unwrap();
    let mut twin = Cluster::prepare(3);
    let own = |cluster: &Cluster| format!("\"127.0.0.1:{}\"", cluster.servers[1].port);
    let config = config.replace(&own(&cluster), &own(&twin));
    std::fs::write(twin.dir.path().join("cluster.toml"), config).unwrap();
    let said = refuses_to_start(&mut twin.servers[1]);
    assert_says(&said, &["knows this node with the storage", "two nodes were started with one id"]);
    serves(&cluster, "l").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_with_a_copy_of_another_nodes_directory_does_not_start() {
    let mut cluster = Cluster::start(3, "", "");
    serves(&cluster, "k").await;
    cluster.same_hash().await;
    cluster.servers.iter_mut().for_each(Server::kill);
    cluster.wipe(1);
    copy_dir(&cluster.data(0), &cluster.data(1));
    let said = refuses_to_start(&mut cluster.servers[1]);
    assert_says(&said, &["belongs to node 0, not to node 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_other_ids_for_the_same_endpoints_do_not_start() {
    let mut cluster = Cluster::prepare(3);
    let ports: Vec<String> = cluster.ports().iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    let config = cluster.dir.path().join("cluster.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let swapped = text.replace(&ports[0], "X").replace(&ports[1], &ports[0]).replace('X', &ports[1]);
    let other = cluster.dir.path().join("other.toml");
    std::fs::write(&other, swapped).unwrap();
    // Node 2 has the first two the other way round.
    cluster.servers[2].set_argument("--config", &other.display().to_string());
    cluster.servers[0].start();
    cluster.servers[0].says("waiting for node");
    let said = refuses_to_start(&mut cluster.servers[2]);
    let reusable = format!(
        "no entry was written to its log, so its data directory, {}, can be used",
        cluster.data(2).display()
    );
    assert_says(&said, &["node 0 listens there", "give all nodes the same list", &reusable]);
    cluster.servers[1].start();
    cluster.servers[2].set_argument("--config", &config.display().to_string());
    cluster.servers[2].start();
    serves(&cluster, "k").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_other_lists_do_not_begin() {
    let mut cluster = Cluster::prepare(3);
    let text = std::fs::read_to_string(cluster.dir.path().join("cluster.toml")).unwrap();
    let third = format!(", \"127.0.0.1:{}\"", cluster.servers[2].port);
    let two = cluster.dir.path().join("two.toml");
    std::fs::write(&two, text.replace(&third, "")).unwrap();
    cluster.servers[0].set_argument("--config", &two.display().to_string());
    cluster.servers[1].start();
    cluster.servers[1].says("waiting for node");
    cluster.servers[0].start();
    // Of the two the one ends that hears of the other one first.
    let refused = async |cluster: &Cluster| {
        let mut logs = cluster.servers[..2].iter().map(Server::log);
        logs.find(|log| log.contains("does not start"))
    };
    let said = cluster.eventually("one of the two ends", refused).await;
    assert_says(&said, &["other voters than this node's: 0, 1", "give all nodes the same list"]);
    assert!(cluster.servers[..2].iter().all(|server| !server.log().contains("this is the first start")));
}
