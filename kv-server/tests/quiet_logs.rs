//! Faults that last: servers log them once, not at each attempt.

use std::time::Duration;

use crate::common::{Cluster, Server, writers::Writers};
use kv_store_client::admin::MemberChange;

/// Lines of a server's log that have all these words, without colors.
fn lines(server: &Server, words: &[&str]) -> Vec<String> {
    let log = server.log();
    let found = log.lines().filter(|line| words.iter().all(|words| line.contains(words)));
    found.map(str::to_owned).collect()
}

/// Time in which a server tries again many times.
async fn many_attempts() {
    tokio::time::sleep(Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_is_down_is_logged_once_per_outage() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let down = (leader + 1) % 3;
    cluster.same_hash().await;
    let others: Vec<usize> = (0..3).filter(|id| *id != down).collect();
    for outage in 1..=2 {
        cluster.servers[down].kill();
        many_attempts().await;
        let node = format!("node={down}");
        for id in &others {
            let failed = lines(&cluster.servers[*id], &["cannot connect to a node", &node]);
            // Each cause once: a connection that ends can fail in another way before all are refused.
            assert!((outage..=3 * outage).contains(&failed.len()), "{failed:#?}");
            let unwell = lines(&cluster.servers[*id], &["a node is not well", &node]);
            assert!(unwell.len() <= outage, "{unwell:#?}");
        }
        cluster.servers[down].start();
        cluster.same_hash().await;
        for id in &others {
            let again = ["connected again after failed attempts", &node, "times"];
            let counted = async |cluster: &Cluster| {
                (lines(&cluster.servers[*id], &again).len() >= outage).then_some(())
            };
            cluster.eventually("the number of attempts is told", counted).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_node_is_not_connected_to_and_is_refused_with_one_line() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.same_hash().await;
    let remove = MemberChange::new(gone as i64, None, None, None, None, None);
    cluster.client().change_members(vec![remove]).await.unwrap();
    cluster
        .eventually("the node knows that it was removed", async |cluster| {
            (cluster.status(gone).await?.role == "removed").then_some(())
        })
        .await;
    many_attempts().await;
    let node = format!("node={gone}");
    for id in [leader, other] {
        let refused = lines(&cluster.servers[id], &["refused the connection", &node]);
        assert!(refused.len() <= 1, "{refused:#?}");
    }
    let warnings = lines(&cluster.servers[gone], &[" WARN "]);
    assert!(warnings.len() <= 6, "two nodes, few causes: {warnings:#?}");

    cluster.servers[gone].kill();
    many_attempts().await;
    for id in [leader, other] {
        let failed = lines(&cluster.servers[id], &["cannot connect to a node", &node]);
        assert!(failed.is_empty(), "a node that was removed is not connected to: {failed:#?}");
    }
}

/// A former member whose cluster became another one without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_of_another_cluster_is_refused_with_one_line_on_both_sides() {
    let mut cluster = Cluster::start(2, "", "");
    cluster.client().put("k", "v").await.unwrap();
    cluster.same_hash().await;
    cluster.servers.iter_mut().for_each(|server| {
        server.terminate();
    });
    let data = cluster.data(0).display().to_string();
    let mut force = std::process::Command::new(env!("CARGO_BIN_EXE_kv-server"));
    let forced = force.args(["--force-new-cluster", "--node-id", "0", "--data-dir", &data]).output().unwrap();
    assert!(forced.status.success(), "{}", String::from_utf8_lossy(&forced.stderr));
    cluster.servers[0].start();
    cluster.leader().await;
    cluster.servers[1].start();
    let words = "exchange no messages";
    cluster.servers[1].says(words);
    many_attempts().await;
    for server in &cluster.servers {
        let said = lines(server, &[" WARN ", words]);
        // As caller and as callee.
        assert!(said.len() <= 2, "{said:#?}");
    }
}

/// The problem of the node names the free space, which changes all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_is_low_on_disk_is_logged_once_by_the_others() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let low = (leader + 1) % 3;
    cluster.same_hash().await;
    cluster.servers[low].terminate();
    cluster.servers[low].set_argument("--disk-reserve", "1PiB");
    cluster.servers[low].start();
    let writers = Writers::start(&cluster.client(), 2);
    cluster
        .eventually("the node says that it is low on disk", async |cluster| {
            let problems = cluster.status(low).await?.problems.unwrap_or_default();
            problems.iter().any(|problem| problem.contains("low on disk")).then_some(())
        })
        .await;
    many_attempts().await;
    writers.stop().await;
    for id in (0..3).filter(|id| *id != low) {
        let words = ["a node is not well", "low on disk", &format!("node={low}")];
        let unwell = lines(&cluster.servers[id], &words);
        // Six seconds have 30 checks. A late answer on a busy machine is another problem, and then this one is logged again.
        assert!((1..=4).contains(&unwell.len()), "{unwell:#?}");
    }
}
