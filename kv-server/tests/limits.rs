//! No client takes from a node what others need: descriptors, memory, time.

use crate::common;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::common::{Cluster, Server, etcd_member, kvctl::Kvctl};
use futures::{StreamExt, TryStreamExt};
use kv_etcd_api::etcdserverpb::{self as pb, kv_client::KvClient as EtcdKvClient};
use kv_store_client::{
    ClientError, Connection, KvClient,
    idl::{Operation, PutRequest, RangeRequest, TxnRequest, WatchRequest},
    protocol::{Call, Fault},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

fn put(key: String, value: Vec<u8>) -> Operation {
    Operation::Put(PutRequest::of(key, value))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let cluster = Cluster::start_with_limits(1, "ulimit -Sn 60 && ulimit -Hn 2000");
    let port = cluster.servers[0].port;
    cluster.client().put("k", "v").await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(connect(port).await);
    }
    for client in &clients {
        client.call(Call::Range(all_pairs())).await.unwrap().expect("every client is served");
    }
}

/// Clients that stop in the middle of large requests take no more memory than the node has for requests, and not for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_parts_of_large_requests_take_bounded_memory_and_are_disconnected() {
    let cluster = Cluster::start(1, "", "[limits]\nresponses_size = \"64MiB\"\n");
    cluster.client().put("k", "v").await.unwrap();
    let mut memory = Memory::of(&cluster.servers);
    let (port, part) = (cluster.servers[0].port, vec![0; 15 << 20]);
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let _ = stream.write_all(&(16u32 << 20).to_be_bytes()).await;
        let _ = stream.write_all(&part).await; // Fails where the server has closed the connection.
        memory.look(&cluster.servers);
        streams.push(stream);
    }
    let grown = memory.most_grown >> 20;
    println!("600 MiB of parts were sent, and the node grew by {grown} MiB at most");
    assert!(grown < 200, "{grown} MiB");
    // Requests of other clients still fit in the memory that each frame has.
    common::client(&[port]).put("k", vec![b'v'; 32 << 10]).await.unwrap();
    let began = Instant::now();
    let mut byte = [0];
    for stream in &mut streams {
        assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
    }
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    common::client(&[port]).put("k", vec![b'v'; 1 << 20]).await.unwrap();
}

/// Probes have places of their own at a port for health.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_at_their_port_while_there_are_as_many_clients_as_there_may_be() {
    let health = common::free_port();
    let listen = format!("[limits]\nclients_max = 8\n[metrics]\nmetrics_listen = [\"127.0.0.1:{health}\"]\n");
    let cluster = Cluster::start(1, "", &listen);
    cluster.client().put("k", "v").await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(TcpStream::connect(("127.0.0.1", cluster.servers[0].port)).await.unwrap());
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let response = common::get(health, path);
        assert!(response.contains("200 OK"), "{path}: {response}");
    }
}

fn all_pairs() -> RangeRequest {
    RangeRequest::of("a", Some(b"z".to_vec()))
}

/// Puts eight pairs of 1 MiB each.
async fn put_pairs(client: &KvClient) {
    for key in 0..8 {
        client.put(format!("k{key}"), vec![b'v'; 1 << 20]).await.unwrap();
    }
}

async fn connect(port: u16) -> Connection {
    let endpoint = format!("127.0.0.1:{port}").parse().unwrap();
    Connection::open(&endpoint, Duration::from_secs(5)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_clients_beyond_the_descriptors_are_refused_and_the_cluster_goes_on() {
    let mut cluster = Cluster::start_with_limits(3, "ulimit -n 200");
    let leader = cluster.leader().await;
    let port = cluster.servers[leader].port;
    let client = cluster.client();
    client.put("k", "before").await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    // The next one is told why, at its first call.
    let told = async |_: &Cluster| {
        let put = PutRequest::of("k", "v");
        match connect(port).await.call(Call::Put(put)).await {
            Ok(Err(Fault::Unavailable(why))) if !why.maybe_applied => Some(why.message),
            _ => None,
        }
    };
    let why = cluster.eventually("a client is refused with a reason", told).await;
    assert!(why.contains("clients") && why.contains("ulimit -n"), "{why}");
    let gateway = cluster.servers[leader].request("POST", "/v3/kv/range", r#"{"key": "aw=="}"#);
    assert!(gateway.contains("503") && gateway.contains("ulimit -n"), "{gateway}");
    assert!(cluster.servers[leader].http("/livez").contains("200 OK"), "a probe is answered");
    let channel = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap();
    let refused = EtcdKvClient::new(channel).range(pb::RangeRequest::default()).await.unwrap_err();
    assert!(refused.code() == Code::Unavailable && refused.message().contains("ulimit -n"), "{refused}");
    // Operators are answered, followers forward, peers come back.
    assert!(cluster.status(leader).await.is_some());
    let follower = (leader + 1) % 3;
    common::client(&[cluster.servers[follower].port]).put("k", "during").await.unwrap();
    cluster.servers[follower].kill();
    cluster.servers[follower].start();
    let behind = cluster.status(leader).await.unwrap().commit_index;
    let caught_up = async |cluster: &Cluster| {
        cluster.status(follower).await.filter(|status| status.header.applied_index >= behind).map(|_| ())
    };
    cluster.eventually("a follower that was restarted comes back", caught_up).await;
    assert!(cluster.servers.iter_mut().all(Server::is_running));
    drop(idle);
    cluster
        .eventually("clients are served again", async |_| {
            let call = connect(port).await.call(Call::Range(all_pairs())).await;
            call.ok()?.ok()
        })
        .await;
    let log = cluster.servers[leader].log();
    assert_eq!(log.matches("as many clients as there may be").count(), 1, "said once");
    assert_eq!(log.matches("clients are taken again").count(), 1, "with their number");
    assert!(!log.contains("Too many open files"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_take_bounded_memory_and_give_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    put_pairs(&client).await;
    let before = server.memory();
    // Written by hand: nothing is read.
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        for sequence in 0..500 {
            stream.write_all(&Call::Range(all_pairs()).encode(sequence).unwrap()).await.unwrap();
        }
        greedy.push(stream);
    }
    expect_bounded_memory(&server, &client, before, greedy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_over_grpc_that_nobody_reads_take_bounded_memory_and_give_it_back() {
    expect_bounded_memory_of_unread("/etcdserverpb.KV/Range").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_over_grpc_that_nobody_reads_take_bounded_memory_and_give_it_back() {
    expect_bounded_memory_of_unread("/etcdserverpb.KV/RangeStream").await;
}

/// Clients over gRPC that open no window: each asks for all pairs many times on one connection.
async fn expect_bounded_memory_of_unread(path: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    put_pairs(&client).await;
    let before = server.memory();
    let greedy = Greedy::connect(server.port, path).await;
    expect_bounded_memory(&server, &client, before, greedy).await;
}

/// Three clients, each with 100 calls whose responses it does not read.
struct Greedy(Vec<tokio::task::JoinHandle<()>>);

impl Greedy {
    async fn connect(port: u16, path: &'static str) -> Self {
        let mut greedy = Vec::new();
        for _ in 0..3 {
            let channel = etcd_member::channel(port).await;
            for _ in 0..100 {
                let mut kv = Grpc::new(channel.clone());
                greedy.push(tokio::spawn(async move {
                    let all =
                        pb::RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
                    kv.ready().await.unwrap();
                    let codec = ProstCodec::<pb::RangeRequest, pb::RangeResponse>::default();
                    let path = path.parse().unwrap();
                    // The response begins, and is not read.
                    let response = kv.server_streaming(tonic::Request::new(all), path, codec).await;
                    std::future::pending::<()>().await;
                    drop(response);
                }));
            }
        }
        Self(greedy)
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_over_grpc_that_read_nothing_do_not_stop_the_reads_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = ["--responses-size", "16MiB", "--connection-responses-size", "8MiB"];
    let server = Server::standalone_with(dir.path(), &sizes);
    let client = server.client();
    put_pairs(&client).await;
    let greedy = Greedy::connect(server.port, "/etcdserverpb.KV/Range").await;
    // By then they hold all room.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let connection = connect(server.port).await;
        let range = connection.call(Call::Range(all_pairs()));
        if let Ok(Ok(Ok(_))) = tokio::time::timeout(Duration::from_secs(20), range).await {
            println!("served after {:?}", began.elapsed());
            drop(greedy);
            return;
        }
    }
    panic!("a range is not served");
}

/// Expects that three greedy clients take what three connections may, that others are served, and that the memory is given
/// back once they have left.
async fn expect_bounded_memory<T>(server: &Server, client: &KvClient, before: u64, greedy: T) {
    let (began, mut most) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(4) {
        most = most.max(server.memory());
        // Others are served meanwhile.
        let asked = Instant::now();
        assert!(client.get("k1").await.unwrap().is_some());
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = (most - before) >> 20;
    println!("memory before {} MiB, grown by {grown} MiB at most", before >> 20);
    assert!(grown < 160, "3 connections of 16 MiB each, and what is in hand: {grown} MiB");
    drop(greedy);
    let began = Instant::now();
    loop {
        let left = server.memory().saturating_sub(before) >> 20;
        // The rest is of the caches, and of threads that were at work.
        if left < 48 {
            println!("{left} MiB are left after {:?}", began.elapsed());
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{left} MiB are not given back");
        client.get("k1").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Puts keys `k` with a number, many at once.
async fn put_keys(client: &KvClient, keys: usize, value: &[u8]) {
    const EACH: usize = 100;
    let fill = (0..keys / EACH).map(|part| {
        let puts = (0..EACH).map(|n| put(format!("k{:07}", part * EACH + n), value.to_vec())).collect();
        client.txn(TxnRequest::new(Vec::new(), puts, Vec::new(), None, None, None))
    });
    let mut filled = futures::stream::iter(fill).buffer_unordered(64);
    while filled.try_next().await.unwrap().is_some() {}
}

/// A client that writes all the while, one put after the other, and the longest time that one took.
struct Bystander {
    stop: tokio::sync::oneshot::Sender<()>,
    puts: tokio::task::JoinHandle<Duration>,
}

impl Bystander {
    fn start(client: KvClient) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let puts = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while stopped.try_recv().is_err_and(|why| why == tokio::sync::oneshot::error::TryRecvError::Empty)
            {
                let began = Instant::now();
                client.put("other", "v").await.unwrap();
                longest = longest.max(began.elapsed());
            }
            longest
        });
        Self { stop, puts }
    }

    async fn longest(self) -> Duration {
        self.stop.send(()).unwrap();
        self.puts.await.unwrap()
    }
}

/// Memory of servers, as it grows.
struct Memory {
    before: Vec<u64>,
    most_grown: u64,
}

impl Memory {
    fn of(servers: &[Server]) -> Self {
        Self { before: servers.iter().map(Server::memory).collect(), most_grown: 0 }
    }

    fn look(&mut self, servers: &[Server]) {
        for (server, before) in servers.iter().zip(&self.before) {
            self.most_grown = self.most_grown.max(server.memory().saturating_sub(*before));
        }
    }
}

/// `KV_TEST_DELETED_KEYS=3000000` deletes as many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_delete_is_one_revision_takes_bounded_memory_and_holds_nobody_up() {
    let keys =
        std::env::var("KV_TEST_DELETED_KEYS").ok().and_then(|keys| keys.parse().ok()).unwrap_or(100_000);
    // The cache of what was read is bounded by itself, and grows with every key that is read.
    let cluster = Cluster::start(3, "", "[limits]\nstore_cache_size = \"64MiB\"\n");
    cluster.leader().await;
    let client = cluster.client();
    put_keys(&client, keys, b"v").await;
    let whole = kv_store_client::idl::DeleteRequest::new(b"k".to_vec(), b"l".to_vec(), true, None, None);
    match client.delete_range(whole).await {
        Err(ClientError::Rejected(Fault::Invalid(why))) => assert!(why.message.contains("return_previous")),
        other => panic!("{other:?}"),
    }
    let mut watch = client.watch(WatchRequest::of("k", Some(b"l".to_vec()))).await.unwrap();
    let watcher = tokio::spawn(async move {
        let (mut deleted, mut revisions) = (0, BTreeSet::new());
        while deleted < keys {
            let event = watch.try_next().await.unwrap().expect("the watch goes on");
            revisions.insert(event.kv.mod_revision);
            deleted += 1;
        }
        revisions.len()
    });
    let bystander = Bystander::start(common::client(&cluster.ports()));
    let mut memory = Memory::of(&cluster.servers);
    let endpoints: Vec<String> = cluster.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let began = Instant::now();
    let delete = tokio::task::spawn_blocking(move || {
        (Kvctl::new(endpoints.join(",")).run(&["del", "k", "--prefix"], ""), began.elapsed())
    });
    // Until the watcher has been told of every key: the nodes are at work until then.
    while !(delete.is_finished() && watcher.is_finished()) {
        memory.look(&cluster.servers);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = began.elapsed();
    let ((code, out, error), took) = delete.await.unwrap();
    assert_eq!((code, &out[..]), (0, &format!("{keys} deleted")[..]), "{error}");
    assert_eq!(watcher.await.unwrap(), 1, "one revision");
    let (longest, grown) = (bystander.longest().await, memory.most_grown >> 20);
    println!(
        "{keys} keys deleted in {took:?}, a watcher told in {told:?}; the slowest put meanwhile took {longest:?}; a node grew by {grown} MiB at most"
    );
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(grown < 256, "{grown} MiB");
    cluster.same_hash().await;
}

/// Within the limit of operations, and beyond the one of the bytes that a command may read; beyond both if there are more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_with_too_much_work_is_refused_and_holds_nobody_up() {
    let cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    let client = cluster.client();
    put_keys(&client, 1500, &[b'v'; 10 << 10]).await;
    let bystander = Bystander::start(common::client(&cluster.ports()));
    let mut memory = Memory::of(&cluster.servers);
    for (ranges, words) in [(2000, "128"), (128, "the limit of one command")] {
        let ranges = (0..ranges).map(|_| Operation::Range(all_pairs())).collect();
        let began = Instant::now();
        match client.txn(TxnRequest::new(Vec::new(), ranges, Vec::new(), None, None, None)).await {
            Err(ClientError::Rejected(Fault::Invalid(why))) => {
                println!("after {:?}: {}", began.elapsed(), why.message);
                assert!(why.message.contains(words), "{}", why.message);
            }
            other => panic!("{:?}", other.map(|response| response.responses.len())),
        }
        memory.look(&cluster.servers);
    }
    let (longest, grown) = (bystander.longest().await, memory.most_grown >> 20);
    println!("the slowest put meanwhile took {longest:?}; a node grew by {grown} MiB at most");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(grown < 256, "{grown} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counting_many_keys_leaves_room_for_other_reads() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let client = server.client();
    for part in 0..300 {
        let puts = (0..100).map(|n| put(format!("k{:06}", part * 100 + n), vec![b'v'; 100])).collect();
        client.txn(TxnRequest::new(Vec::new(), puts, Vec::new(), None, None, None)).await.unwrap();
    }
    let counts: Vec<_> = (0..200)
        .map(|_| {
            let client = client.clone();
            let count = RangeRequest { count_only: Some(true), ..all_pairs() };
            tokio::spawn(async move { client.range(count).await })
        })
        .collect();
    let other = common::client(&[server.port]);
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let few = RangeRequest { limit: Some(5), range_end: Some(b"k000100".to_vec()), ..all_pairs() };
        let began = Instant::now();
        assert_eq!(other.range(few).await.unwrap().kvs.len(), 5);
        worst = worst.max(began.elapsed());
    }
    println!("the slowest short read beside 200 long ones took {worst:?}");
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    for count in counts {
        assert_eq!(count.await.unwrap().unwrap().count, 30_000);
    }
}

/// The timers of the connections that the kernel has accepted at a port, as it numbers them.
fn timers_at(port: u16) -> Vec<u8> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connections = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let accepted =
        connections.filter(|fields| fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == ESTABLISHED);
    accepted.map(|fields| u8::from_str_radix(fields[5].split(':').next().unwrap(), 16).unwrap()).collect()
}

const ESTABLISHED: &str = "01";
const KEEPALIVE: u8 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_at_both_ports_are_probed_for_peers_that_are_gone() {
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let port = cluster.servers[leader].port;
    let _idle = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    for port in [port, port + 1000] {
        cluster
            .eventually("each connection has its keepalive timer", async |_| {
                let timers = timers_at(port);
                (!timers.is_empty() && timers.iter().all(|timer| *timer == KEEPALIVE)).then_some(())
            })
            .await;
    }
}
