//! `kvctl status`: what the leader knows of the others, in words; and reads of one node.

use std::time::{Duration, Instant};

use crate::common::{Cluster, kvctl::Kvctl};

/// Runs `kvctl status` for one server; returns its output.
fn status_of(cluster: &Cluster, id: usize) -> String {
    let kvctl = Kvctl::new(cluster.servers[id].endpoint());
    tokio::task::block_in_place(|| kvctl.run(&["status"], "").1)
}

/// Waits until the leader's status has a row of node `id` that passes; returns the row.
async fn row_of(
    cluster: &Cluster,
    leader: usize,
    id: usize,
    what: &str,
    passes: impl Fn(&str) -> bool,
) -> String {
    let start = format!("    node {id}  ");
    cluster
        .eventually(what, async |cluster| {
            let status = status_of(cluster, leader);
            status.lines().find(|row| row.starts_with(&start) && passes(row)).map(str::to_owned)
        })
        .await
}

/// The number before these words.
fn number_before(row: &str, words: &str) -> Option<u64> {
    row.split(words).next()?.rsplit([' ', '(']).next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_the_distance_of_a_follower_that_hangs() {
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.client().put("k", "v").await.unwrap();
    let all = |row: &str| row.contains("has all entries (up to ");
    let row = row_of(&cluster, leader, behind, "it has all entries", all).await;
    assert!(row.contains("  voter  "), "{row}");
    cluster.servers[behind].signal("-STOP");
    for n in 0..20 {
        cluster.client().put("k", n.to_string()).await.unwrap();
    }
    let lags = |row: &str| {
        let lag = number_before(row, " entries behind (has up to ");
        lag.is_some_and(|lag| lag >= 20) && row.contains("not seen: ")
    };
    let row = row_of(&cluster, leader, behind, "its distance and its problem are told", lags).await;
    println!("{row}");
    cluster.servers[behind].signal("-CONT");
    let well = |row: &str| all(row) && row.trim_end().ends_with(')');
    row_of(&cluster, leader, behind, "nothing is left of it", well).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_the_progress_of_a_snapshot() {
    let log = "[log]\ncompact_after_entries = 10\ncompact_keep_entries = 1\nsnapshot_rate = \"2MiB\"\n";
    let mut cluster = Cluster::start(3, "", log);
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.client().put("k", "v").await.unwrap();
    cluster.same_hash().await;
    let last = cluster.status(behind).await.unwrap().last_log_index;
    cluster.servers[behind].terminate();
    for key in 0..16 {
        let value: Vec<u8> =
            (0..1_u32 << 18).flat_map(|n| (n.wrapping_mul(2_654_435_761) ^ key).to_le_bytes()).collect();
        cluster.client().put(format!("large/{key}"), value).await.unwrap();
    }
    let client = cluster.client();
    let leader = cluster
        .eventually("the log that the node lacks is gone", async |cluster| {
            client.put("k", "one more entry").await.ok()?;
            let leader = cluster.leader().await;
            (cluster.status(leader).await?.first_log_index > last + 1).then_some(leader)
        })
        .await;
    cluster.servers[behind].start();
    let bytes = |row: &str| {
        row.contains("receives a snapshot (").then(|| number_before(row, " bytes so far)")).flatten()
    };
    let receives = |row: &str| bytes(row).is_some();
    let first = row_of(&cluster, leader, behind, "it receives a snapshot", receives).await;
    let further = |row: &str| bytes(row) > bytes(&first);
    let row = row_of(&cluster, leader, behind, "there is progress", further).await;
    println!("{first}\n{row}");
    cluster.same_hash().await;
    let all = |row: &str| row.contains("has all entries (up to ");
    row_of(&cluster, leader, behind, "it has all entries", all).await;
}

/// The other nodes do not run, so that an answer can only be the own one of the node that was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_get_asks_only_the_node_at_its_endpoint() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    cluster.client().put("k", "v").await.unwrap();
    cluster.same_hash().await;
    let kvctl = Kvctl::new(cluster.servers[follower].endpoint());
    // While all run: the follower does not forward the read to a leader that would not answer.
    cluster.servers[leader].signal("-STOP");
    let began = Instant::now();
    kvctl.says(&["get", "k", "--stale"], 0, "v");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    cluster.servers[leader].signal("-CONT");
    for id in (0..3).filter(|id| *id != follower) {
        cluster.servers[id].kill();
    }
    kvctl.says(&["get", "k", "--stale"], 0, "v");
    kvctl.says(&["--timeout-ms", "6000", "get", "k"], 4, "there is no leader");
}
