//! A network that loses everything for a while.

mod common;

use std::time::{Duration, Instant};

use common::{
    Cluster,
    proxy::Link,
    writers::{Writers, check},
};

/// Connections that lost something during the blackout would be silent for seconds after it; see [`Link::Lose`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_serves_again_soon_after_a_blackout_of_all_links() {
    let (cluster, proxy) = Cluster::start_behind_proxy(3).await;
    cluster.leader().await;
    let client = cluster.client();
    let writers = Writers::start(&client, 4);
    writers.acknowledged_again(Instant::now()).await;
    let directions = || (0..3).flat_map(|from| (0..3).map(move |to| (from, to)));
    for blackout in [7000, 8000, 9000].map(Duration::from_millis) {
        proxy.set(directions().filter(|(from, to)| from != to).map(|direction| (direction, Link::Lose)));
        let began = Instant::now();
        // By then there is no leader, and writes that were proposed before have their results.
        tokio::time::sleep(blackout / 2).await;
        let acknowledged = writers.count();
        tokio::time::sleep(blackout.saturating_sub(began.elapsed())).await;
        assert_eq!(writers.count(), acknowledged, "no write is acknowledged without a quorum");
        proxy.heal();
        let healed = Instant::now();
        writers.acknowledged_again(healed).await;
        let served = healed.elapsed();
        println!("served {served:?} after a blackout of {blackout:?}");
        assert!(served < SERVED_WITHIN, "{served:?} after a blackout of {blackout:?}");
    }
    let acknowledged = writers.stop().await;
    check(&client, &acknowledged).await;
    cluster.same_hash().await;
}

/// Twice the election timeout of 500 ms, after which every follower campaigns, and as much again for connections, a second
/// election if the votes are split, and a busy machine. A TCP connection that waits takes 3.7 to 5.7 s here.
const SERVED_WITHIN: Duration = Duration::from_millis(2000);
