//! `kv-server dev` with real processes.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::client;

/// Ends the cluster when the test fails.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal(self.0.id(), "-TERM");
            let _ = self.0.wait();
        }
    }
}

fn signal(process: u32, signal: &str) -> bool {
    let status = Command::new("kill").args([signal, &process.to_string()]).stderr(Stdio::null()).status();
    status.unwrap().success()
}

/// The first of three free ports in a row, whose ports 1000 higher are free too.
fn three_free_ports() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = 31_000 + (std::process::id() % 100) as u16 * 9;
    (0..300)
        .map(|n| start + n * 3)
        .find(|first| (*first..first + 3).all(|port| free(port) && free(port + 1000)))
        .expect("three free ports")
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_runs_a_cluster_until_it_is_told_to_stop() {
    let (dir, port) = (tempfile::tempdir().unwrap(), three_free_ports());
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.args(["dev", "--nodes", "3", "--first-port", &port.to_string(), "--dir"]).arg(dir.path());
    command.args(["--", "--cluster-name", "mine"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut dev = Dev(command.spawn().unwrap());
    let output = BufReader::new(dev.0.stdout.take().unwrap());
    let lines = std::thread::spawn(move || output.lines().map(Result::unwrap).collect::<Vec<_>>());

    let clients = client(&[port, port + 1, port + 2]);
    let start = Instant::now();
    while clients.put("k", "v").await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "no leader within 60 s");
    }
    assert!(signal(dev.0.id(), "-INT"));
    assert_eq!(dev.0.wait().unwrap().code(), Some(0));
    let lines = lines.join().unwrap();
    let has = |words: &str| lines.iter().any(|line| line.contains(words));
    let endpoints = format!("127.0.0.1:{port},127.0.0.1:{},127.0.0.1:{}", port + 1, port + 2);
    for words in [
        &*format!("kvctl --endpoints {endpoints} status"),
        "node 0 | ",
        "node 2 | ",
        "node 1 ended: exit status: 0",
    ] {
        assert!(has(words), "{words} in {lines:#?}");
    }
    for id in 0..3 {
        assert!(dir.path().join(format!("node-{id}/MODE")).exists());
        TcpListener::bind(("127.0.0.1", port + id)).expect("the node is gone");
    }
}
