//! Metrics of a server, and of the nodes of a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kv_etcd_api::etcdserverpb::kv_client::KvClient;

use super::{
    clients::{Alone, PATIENCE, Watching, channel, get, put, watch},
    gateway::ask,
};
use crate::common::Cluster;

/// Values of the metrics, by name and labels.
async fn metrics(port: u16) -> BTreeMap<String, f64> {
    let (status, text) = ask(port, "GET", "/metrics", "").await;
    assert_eq!(status, 200);
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn handled(service: &str, kind: &str, method: &str, code: &str) -> String {
    format!(
        "grpc_server_handled_total{{grpc_type=\"{kind}\",grpc_service=\"etcdserverpb.{service}\",\
         grpc_method=\"{method}\",grpc_code=\"{code}\"}}"
    )
}

fn started(service: &str, kind: &str, method: &str) -> String {
    format!(
        "grpc_server_started_total{{grpc_type=\"{kind}\",grpc_service=\"etcdserverpb.{service}\",grpc_method=\"{method}\"}}"
    )
}

#[tokio::test]
async fn calls_over_grpc_are_counted_by_method_and_code() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let mut kv = alone.kv().await;
    for _ in 0..3 {
        kv.put(put("a", "1")).await.unwrap();
    }
    kv.put(put("", "1")).await.unwrap_err();
    let metrics = metrics(port).await;
    assert_eq!(metrics[&started("KV", "unary", "Put")], 4.0);
    assert_eq!(metrics[&handled("KV", "unary", "Put", "OK")], 3.0);
    assert_eq!(metrics[&handled("KV", "unary", "Put", "InvalidArgument")], 1.0);
    assert_eq!(metrics[&handled("KV", "unary", "Range", "OK")], 0.0, "there from the start");
    assert_eq!(metrics["etcd_mvcc_put_total"], 3.0);
    assert_eq!(metrics["kv_store_puts_total"], 3.0);
    assert!(metrics["etcd_network_client_grpc_received_bytes_total"] > 100.0, "{metrics:#?}");
    assert_eq!(metrics["etcd_debugging_mvcc_keys_total"], 1.0);
    assert_eq!(metrics["etcd_debugging_mvcc_current_revision"], 4.0);
    assert_eq!(metrics["etcd_server_has_leader"], 1.0);
    assert!(!metrics.keys().any(|name| name.starts_with("grpc_server_handling_seconds")));
}

#[tokio::test]
async fn stream_counts_as_open_until_its_client_leaves() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let mut watching = Watching::open(port).await;
    watching.create(watch("a", "")).await;
    let open = async || {
        let metrics = metrics(port).await;
        let ended: f64 = metrics
            .iter()
            .filter(|(name, _)| name.starts_with("grpc_server_handled_total") && name.contains("\"Watch\""))
            .filter(|(name, _)| name.contains("etcdserverpb.Watch"))
            .map(|(_, value)| value)
            .sum();
        (
            metrics[&started("Watch", "bidi_stream", "Watch")] - ended,
            metrics["etcd_debugging_mvcc_watcher_total"],
        )
    };
    assert_eq!(open().await, (1.0, 1.0));
    drop(watching);
    let start = Instant::now();
    while open().await != (0.0, 0.0) {
        assert!(start.elapsed() < PATIENCE, "{:?}", open().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn level_extensive_tells_the_duration_of_calls() {
    let alone = Alone::start_with(&["--metrics", "extensive"]).await;
    alone.kv().await.range(get("a")).await.unwrap();
    let metrics = metrics(alone.server.port).await;
    let count = metrics.iter().find(|(name, _)| {
        name.starts_with("grpc_server_handling_seconds_count") && name.contains("\"Range\"")
    });
    assert_eq!(count.map(|(_, count)| *count), Some(1.0), "{metrics:#?}");
}

#[tokio::test]
async fn level_off_serves_no_metrics() {
    let alone = Alone::start_with(&["--metrics", "off"]).await;
    alone.kv().await.put(put("a", "1")).await.unwrap();
    assert_eq!(ask(alone.server.port, "GET", "/metrics", "").await.0, 404);
}

#[tokio::test]
async fn port_of_its_own_serves_metrics_and_health_alone() {
    let port = crate::common::free_port();
    let alone = Alone::start_with(&["--metrics-listen", &format!("127.0.0.1:{port}")]).await;
    assert_eq!(metrics(port).await["etcd_server_has_leader"], 1.0);
    assert_eq!(ask(port, "GET", "/health", "").await.0, 200);
    assert_eq!(ask(port, "POST", "/v3/kv/range", "{}").await.0, 404);
    drop(alone);
}

/// Names of metrics in an expression of Prometheus.
fn names(expression: &str) -> BTreeSet<String> {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let prefixes = ["etcd_", "grpc_", "kv_", "raft_", "thrift_", "process_", "os_"];
    // A word in quotes is the value of a label.
    let parts = expression.split('"').step_by(2);
    let words = parts.flat_map(|part| part.split(|letter: char| !is_of_name(letter)));
    let is_label = |word: &str| matches!(word, "grpc_type" | "grpc_service" | "grpc_method" | "grpc_code");
    let is_name = |word: &&str| prefixes.iter().any(|prefix| word.starts_with(prefix)) && !is_label(word);
    words.filter(is_name).map(str::to_owned).collect()
}

/// A cluster without load has them all: `make metrics` asks Prometheus for their values.
#[tokio::test]
async fn every_metric_that_dashboards_and_alerts_name_is_there() {
    let cluster = Cluster::start(3, "", "[metrics]\nmetrics = \"extensive\"\n");
    for server in &cluster.servers {
        server.endpoint();
    }
    let mut client = KvClient::new(channel(cluster.servers[0].port).await);
    client.put(put("a", "1")).await.unwrap();
    let files = ["queries.txt", "alerts.yml", "dashboard.json"].map(|name| {
        std::fs::read_to_string(format!("{}/../monitoring/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    });
    let is_expression = |line: &&str| !line.trim_start().starts_with('#') && !line.contains("\"query\"");
    let expressions = files.iter().flat_map(|text| text.lines().filter(is_expression));
    let mut wanted: BTreeSet<String> =
        expressions.flat_map(|line| names(&line.replace("\\\"", "\""))).collect();
    wanted.remove("etcd_debugging_server_alarms"); // There is none.
    assert!(wanted.len() > 50, "{wanted:?}");
    let start = Instant::now();
    loop {
        let mut found = BTreeSet::new();
        for server in &cluster.servers {
            let of = |name: String| name.split('{').next().unwrap_or_default().to_owned();
            found.extend(metrics(server.port).await.into_keys().map(of));
        }
        let missing: Vec<&String> = wanted.difference(&found).collect();
        if missing.is_empty() {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "these are missing: {missing:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
