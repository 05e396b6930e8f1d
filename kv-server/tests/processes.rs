//! Real processes, killed and restarted.

use crate::common;

use std::time::{Duration, Instant};

use crate::common::{
    Cluster, Server,
    writers::{Writers, check},
};
use kv_store_client::{
    ClientConfig, Connection, KvClient,
    idl::{Consistency, PutRequest, RangeRequest},
    protocol::{Call, Fault, Reply},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_lose_nothing_and_apply_nothing_twice() {
    let seed = std::env::var("KV_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_124);
    println!("replay with KV_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut cluster =
        Cluster::start(3, "", "[log]\ncompact_after_entries = 200\ncompact_keep_entries = 20\n");
    cluster.leader().await;
    let client = cluster.client();
    let writers = Writers::start(&client, 4);
    writers.acknowledged_again(Instant::now()).await;
    let mut failovers = Vec::new();
    for round in 0..20 {
        let leader = cluster.leader().await;
        // The leader every other time, anybody the others.
        let victim = if round % 2 == 0 { leader } else { random.random_range(0..3) };
        let last = cluster.status(victim).await.unwrap().last_log_index;
        let killed = Instant::now();
        cluster.servers[victim].kill();
        let outage = writers.acknowledged_again(killed).await;
        if victim == leader {
            failovers.push(outage);
            assert!(outage < Duration::from_secs(2), "round {round}: no write for {outage:?}");
        }
        // Every fourth time it stays away until its log is gone at the others.
        if round % 4 == 3 {
            // Far fewer than 500 messages arrived between the two looks.
            let is_gone = async |cluster: &Cluster| {
                let leader = cluster.status(cluster.leader().await).await?;
                (leader.first_log_index > last + 500).then_some(())
            };
            cluster.eventually("the log that the killed node lacks is gone", is_gone).await;
        }
        cluster.servers[victim].start();
        let behind = cluster.status(cluster.leader().await).await.unwrap().commit_index;
        let caught_up = async |cluster: &Cluster| {
            cluster.status(victim).await.filter(|status| status.header.applied_index >= behind).map(|_| ())
        };
        cluster.eventually("the killed node catches up", caught_up).await;
    }
    let acknowledged = writers.stop().await;
    failovers.sort();
    let median = failovers[failovers.len() / 2];
    println!(
        "{} writes acknowledged; failover median {median:?}, worst {:?}",
        acknowledged.len(),
        failovers.last()
    );
    assert!(
        median < Duration::from_millis(500),
        "connections that were closed are reason enough to elect another"
    );
    check(&client, &acknowledged).await;
    cluster.same_hash().await;
    let snapshots: usize =
        cluster.servers.iter().map(|server| server.log().matches("installing a snapshot").count()).sum();
    assert!(snapshots > 0, "no node came back by snapshot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_at_once_lose_nothing() {
    let mut cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    let client = cluster.client();
    let writers = Writers::start(&client, 4);
    while writers.count() < 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.servers.iter_mut().for_each(Server::kill);
    cluster.servers.iter_mut().for_each(Server::start);
    writers.acknowledged_again(Instant::now()).await;
    let acknowledged = writers.stop().await;
    check(&client, &acknowledged).await;
    cluster.same_hash().await;
}

async fn killed_again_and_again(mut restart: impl FnMut(), client: KvClient) {
    let writers = Writers::start(&client, 4);
    for _ in 0..4 {
        let enough = writers.count() + 100;
        while writers.count() < enough {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        restart();
    }
    writers.acknowledged_again(Instant::now()).await;
    let acknowledged = writers.stop().await;
    check(&client, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_server_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::standalone(dir.path());
    let client = server.client();
    let restart = || {
        server.kill();
        server.start();
    };
    killed_again_and_again(restart, client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_survives_kill_9() {
    let mut cluster =
        Cluster::start(1, "", "[log]\ncompact_after_entries = 150\ncompact_keep_entries = 10\n");
    let client = cluster.client();
    let restart = || {
        cluster.servers[0].kill();
        cluster.servers[0].start();
    };
    killed_again_and_again(restart, client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_session_was_forgotten_goes_on_with_another() {
    let cluster = Cluster::start(1, "sessions_max = 1", "");
    let (first, second) = (cluster.client(), cluster.client());
    for round in 0..3 {
        first.put("first", round.to_string()).await.unwrap();
        second.put("second", round.to_string()).await.unwrap();
    }
    let everything = RangeRequest::of("a", Some(b"z".to_vec()));
    let found = first.range(everything).await.unwrap();
    let versions: Vec<i64> = found.kvs.iter().map(|kv| kv.version).collect();
    assert_eq!(versions, [3, 3], "each write applied once");
}

/// Requests that a follower forwarded to a hanging leader end once there is another leader, and every node sees
/// who does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hangs_is_replaced_and_seen_as_failed_until_it_is_back() {
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let endpoint = format!("127.0.0.1:{}", cluster.servers[follower].port).parse().unwrap();
    let connection = Connection::open(&endpoint, Duration::from_secs(1)).await.unwrap();
    let put = || {
        let request = PutRequest::of("k", "v");
        tokio::time::timeout(Duration::from_secs(5), connection.call(Call::Put(request)))
    };
    assert!(matches!(put().await, Ok(Ok(Ok(Reply::Put(_))))), "forwarded");
    cluster.servers[leader].signal("-STOP");
    let outcome = put().await.expect("an answer long before the leader is given up").unwrap();
    assert!(matches!(&outcome, Err(Fault::Unavailable(why)) if why.maybe_applied), "{outcome:?}");
    assert!(matches!(put().await, Ok(Ok(Ok(Reply::Put(_))))), "the next leader does it");
    let is_healthy = async |cluster: &Cluster| {
        let members = cluster.status(follower).await?.members;
        Some(members.iter().find(|member| member.node_id == leader as i64)?.healthy)
    };
    cluster.eventually("it is seen as failed", async |c| (!is_healthy(c).await?).then_some(())).await;
    cluster.servers[leader].signal("-CONT");
    cluster.eventually("it is seen as well", async |c| is_healthy(c).await?.then_some(())).await;
    cluster.same_hash().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_busy_node_in_time_and_in_order() {
    let mut cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    let client = cluster.client();
    let writers = Writers::start(&client, 8);
    writers.acknowledged_again(Instant::now()).await;
    for id in 0..3 {
        let (code, took) = cluster.servers[id].terminate();
        assert_eq!(code, Some(0), "{}", cluster.servers[id].log());
        assert!(took < Duration::from_secs(5), "it took {took:?}");
        cluster.servers[id].start();
        writers.acknowledged_again(Instant::now()).await;
    }
    let acknowledged = writers.stop().await;
    check(&client, &acknowledged).await;
    cluster.same_hash().await;
}

/// The leader transfers its leadership before it stops serving, so that requests of other nodes find it or its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_other_nodes_get_no_error_when_leaders_stop_one_after_another() {
    let mut cluster = Cluster::start(3, "", "");
    for round in 0..3 {
        let leader = cluster.leader().await;
        cluster.same_hash().await;
        let follower = (leader + 1) % 3;
        let endpoint = format!("127.0.0.1:{}", cluster.servers[follower].port).parse().unwrap();
        let connection = Connection::open(&endpoint, Duration::from_secs(30)).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let putting = tokio::spawn(async move {
            let mut stopped = std::pin::pin!(stopped);
            let mut puts = 0;
            loop {
                let outcome = connection.call(Call::Put(PutRequest::of("k", "v"))).await.unwrap();
                // An election that takes long is no fault of the leader that stopped.
                let waited = matches!(&outcome, Err(Fault::Unavailable(why)) if !why.maybe_applied);
                assert!(
                    waited || matches!(&outcome, Ok(Reply::Put(_))),
                    "round {round}, put {puts}: {outcome:?}"
                );
                puts += 1;
                if futures::poll!(stopped.as_mut()).is_ready() {
                    return puts;
                }
            }
        });
        tokio::task::block_in_place(|| cluster.servers[leader].terminate());
        cluster
            .eventually("a successor leads", async |cluster| {
                let status = cluster.status(follower).await?;
                status.leader_id.filter(|id| *id != leader as i64).map(|_| ())
            })
            .await;
        let _ = stop.send(());
        assert!(putting.await.unwrap() > 0);
        cluster.servers[leader].start();
    }
}

#[tokio::test]
async fn a_data_directory_is_not_served_in_the_other_mode() {
    let dir = tempfile::tempdir().unwrap();
    let mut standalone = Server::standalone(dir.path());
    let data = dir.path().join("data");
    standalone.client().put("k", "v").await.unwrap();
    let start = |arguments: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_kv-server")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let data = data.to_str().unwrap();
    let (code, error) = start(&["--port", "1", "--data-dir", data]);
    assert!(code == Some(1) && error.contains("in use by another process"), "{error}");
    standalone.terminate();
    let (code, error) = start(&["--replica-endpoints", "127.0.0.1:1", "--data-dir", data]);
    assert!(code == Some(3) && error.contains("holds the data of a standalone server"), "{error}");
    let (code, error) = start(&["--port", "1", "--node-id", "3", "--data-dir", data]);
    assert!(code == Some(3) && error.contains("belongs to node 0, not to node 3"), "{error}");
    std::fs::remove_file(dir.path().join("data/MODE")).unwrap();
    let (code, error) = start(&["--port", "1", "--data-dir", data]);
    assert!(code == Some(3) && error.contains("its file MODE is missing"), "{error}");
    let (code, error) = start(&["--config", "/nowhere.toml"]);
    assert!(code == Some(2) && error.contains("/nowhere.toml: cannot be read"), "{error}");
}

#[tokio::test]
async fn node_of_a_cluster_without_its_log_is_not_served_standalone() {
    let mut cluster = Cluster::start(1, "", "");
    cluster.leader().await;
    cluster.client().put("k", "v").await.unwrap();
    cluster.servers[0].terminate();
    let data = cluster.dir.path().join("node-0");
    std::fs::remove_dir_all(data.join("log")).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kv-server"));
    let output = command.args(["--port", "1", "--data-dir"]).arg(&data).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let says =
        error.contains("holds the data of a node of a cluster") && error.contains("a standalone server");
    assert!(output.status.code() == Some(3) && says, "{error}");
}

#[tokio::test]
async fn server_listens_at_an_ipv6_address_in_brackets() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("this machine has no IPv6");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone_with(dir.path(), &["--listen-host", "[::1]"]);
    let endpoint = format!("[::1]:{}", server.port).parse().unwrap();
    let client = KvClient::new(ClientConfig::new(vec![endpoint])).unwrap();
    client.put("k", "v").await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_holds_up_nobody() {
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    cluster.client().put("large", vec![b'x'; 512 << 10]).await.unwrap();
    let follower = cluster.servers[(leader + 1) % 3].port;
    // Before anybody else has the follower forward something: a put, which makes it connect to the leader, and 64 MiB of
    // answers that nobody takes.
    let mut mute = std::net::TcpStream::connect(("127.0.0.1", follower)).unwrap();
    let put = PutRequest::of("k", "v");
    let get = RangeRequest { consistency: Some(Consistency::STALE), ..RangeRequest::of("large", None) };
    let calls = std::iter::once(Call::Put(put)).chain((0..128).map(|_| Call::Range(get.clone())));
    for (sequence, call) in (1..).zip(calls) {
        std::io::Write::write_all(&mut mute, &call.encode(sequence).unwrap()).unwrap();
    }
    let other = common::client(&[follower]);
    for _ in 0..20 {
        let put = other.put("other", "x");
        tokio::time::timeout(Duration::from_secs(5), put).await.expect("an answer").unwrap();
    }
}
