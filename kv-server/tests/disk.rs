//! Disks that fill up: real ones, by a file that takes most of what is left.

use crate::common;

use std::{path::Path, time::Duration};

use crate::common::{
    Cluster, Server,
    disk::{free_mib, give_back, take_mib},
};
use kv_store_client::{ClientConfig, KvClient};

/// These tests move the very number that they go by: one at a time, in whatever process.
fn alone() -> std::fs::File {
    let lock = std::fs::File::create(std::env::temp_dir().join("kv-server-disk-tests.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// A reserve that is kept until the ballast is there: far enough from both that others on this disk do not matter.
fn reserve(dir: &Path) -> String {
    (free_mib(dir) - BALLAST_MIB / 2).to_string()
}

fn impatient(ports: &[u16]) -> KvClient {
    let endpoints = ports.iter().map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect();
    KvClient::new(ClientConfig { timeout: Duration::from_secs(2), ..ClientConfig::new(endpoints) }).unwrap()
}

async fn refused_while_full_and_taken_afterwards(dir: &Path, ports: &[u16]) {
    let (client, hasty) = (common::client(ports), impatient(ports));
    client.put("k", "before").await.unwrap();
    take_mib(dir, BALLAST_MIB);
    for _ in 0..2 {
        let refused = hasty.put("k", "refused").await.unwrap_err().to_string();
        assert!(refused.contains("MiB free") || refused.contains("room"), "{refused}");
    }
    client.get("k").await.expect("reads go on");
    give_back(dir);
    // The same processes, without a restart.
    client.put("k", "after").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap().value, b"after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_server_refuses_writes_while_its_disk_is_full() {
    let (_alone, dir) = (alone(), tempfile::tempdir().unwrap());
    let server = Server::standalone_with(dir.path(), &["--disk-reserve-mib", &reserve(dir.path())]);
    refused_while_full_and_taken_afterwards(dir.path(), &[server.port]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_refuses_writes_while_all_its_disks_are_full() {
    let (_alone, disk) = (alone(), tempfile::tempdir().unwrap());
    let setting = format!("disk_reserve_mib = {}", reserve(disk.path()));
    let cluster = Cluster::start(3, &setting, "");
    refused_while_full_and_taken_afterwards(disk.path(), &cluster.ports()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_starts_without_room_serves_reads_and_refuses_writes() {
    // No disk has as much.
    let cluster = Cluster::start(3, "", "[limits]\ndisk_reserve = \"900PiB\"\n");
    cluster.leader().await;
    let client = cluster.client();
    assert!(client.get("k").await.expect("reads are served").is_none());
    let refused = impatient(&cluster.ports()).put("k", "v").await.unwrap_err().to_string();
    assert!(refused.contains("MiB free") || refused.contains("room"), "{refused}");
    assert!(client.get("k").await.expect("reads are served").is_none());
}

const BALLAST_MIB: u64 = 2048;
