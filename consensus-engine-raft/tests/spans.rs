//! The spans that `consensus_engine_raft::measure` lists.

mod common;

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::Cluster;
use consensus_testkit::{engine::converged, eventually};
use tracing_subscriber::fmt::format::FmtSpan;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_logged_within_the_spans_of_its_engine() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_env_filter("consensus_engine_raft=debug")
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let cluster = Cluster::start(3, |config| {
        config.compact_after_entries = 50;
        config.compact_keep_entries = 10;
        config.snapshot_retry = Duration::from_millis(50);
    })
    .await;
    let leading = cluster.leader().await;
    let away = (leading + 1) % 3;
    cluster.lose(leading, away).await;
    for n in 0..100 {
        cluster.nodes[leading].engine.propose(format!("{n}").into()).await.unwrap();
    }
    cluster.network.heal();
    converged(&cluster.nodes, 100).await;
    let needed = [
        "consensus_engine_raft::driver: role role=leader".to_owned(),
        format!("raft{{node={leading}}}:turn{{inputs=1}}:"),
        format!("raft{{node={leading}}}:write{{entries=1}}:"),
        format!("raft{{node={leading}}}:apply{{after="),
        format!("raft{{node={leading}}}:flush:"),
        format!("raft{{node={leading}}}:snapshot{{to={away} last="),
        format!("raft{{node={away}}}:install{{last="),
    ];
    eventually("all spans", || {
        let text = lines.text();
        let missing: Vec<_> = needed.iter().filter(|part| !text.contains(*part)).collect();
        let begin: Vec<_> = text.lines().take(20).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:#?} in {begin:#?}..")) }
    })
    .await;
}
