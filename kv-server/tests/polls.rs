//! Watches as long polls over Thrift, on real servers.

use std::{sync::Arc, time::Duration};

use crate::common::{Cluster, Server};
use kv_store_client::{
    Connection,
    idl::{PutRequest, WatchRequest, WatchResponse},
    protocol::{Call, Reply},
};
use tokio::time::{Instant, timeout};

async fn connect(port: u16) -> Arc<Connection> {
    let endpoint = format!("127.0.0.1:{port}").parse().unwrap();
    Arc::new(Connection::open(&endpoint, Duration::from_secs(5)).await.unwrap())
}

async fn poll(connection: &Connection, start_revision: i64, wait_ms: i64) -> WatchResponse {
    let (start_revision, wait_ms) = (Some(start_revision), Some(wait_ms));
    let request = WatchRequest { start_revision, wait_ms, ..WatchRequest::of("k", None) };
    match timeout(Duration::from_secs(30), connection.call(Call::Watch(request))).await {
        Ok(Ok(Ok(Reply::Watch(response)))) => response,
        other => panic!("{other:?}"),
    }
}

async fn put(connection: &Connection, key: &str) -> i64 {
    match connection.call(Call::Put(PutRequest::of(key, "v"))).await {
        Ok(Ok(Reply::Put(response))) => response.header.revision,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_that_wait_hold_up_no_other_call_of_their_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::standalone(dir.path());
    server.client().get("k").await.unwrap();
    let connection = connect(server.port).await;
    let start = put(&connection, "other").await + 1;
    let waiting: Vec<_> = (0..500)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { poll(&connection, start, 20_000).await })
        })
        .collect();
    let began = Instant::now();
    for n in 0..200 {
        put(&connection, &format!("other/{n}")).await;
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let revision = put(&connection, "k").await;
    for poll in waiting {
        let response = poll.await.unwrap();
        assert_eq!(response.events.iter().map(|event| event.kv.mod_revision).collect::<Vec<_>>(), [revision]);
    }
    // Polls that wait do not delay the server's end: they are answered.
    let last = {
        let connection = connection.clone();
        tokio::spawn(async move { poll(&connection, revision + 1, 60_000).await })
    };
    while put(&connection, "other").await < revision + 20 {}
    let (code, took) = server.terminate();
    assert!(code == Some(0) && took < Duration::from_secs(10), "{code:?} {took:?}");
    assert!(last.await.unwrap().events.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_answers_polls_with_the_same_events() {
    let cluster = Cluster::start(3, "", "");
    let client = cluster.client();
    let first = client.put("k", "0").await.unwrap().header.revision;
    for n in 1..50 {
        client.put("k", n.to_string()).await.unwrap();
    }
    for server in &cluster.servers {
        let connection = connect(server.port).await;
        let (mut told, mut next) = (Vec::new(), first);
        while told.len() < 50 {
            let response = poll(&connection, next, 10_000).await;
            told.extend(response.events.into_iter().map(|event| String::from_utf8(event.kv.value).unwrap()));
            assert!(response.next_revision > next, "events of 10 s ago");
            next = response.next_revision;
        }
        assert_eq!(told, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}
