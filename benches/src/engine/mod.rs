//! Whole engines in one process, three nodes of each.

mod openraft;
mod ours;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use consensus_bench_report::table::{Cell, Plot, Table};

/// A running cluster.
pub(crate) trait Cluster: Clone + Send + Sync + 'static {
    /// With a leader.
    fn start() -> impl Future<Output = Self> + Send;
    /// One proposal, committed and applied when it returns.
    fn propose(&self) -> impl Future<Output = ()> + Send;
    /// Ends all nodes.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

pub(crate) fn compare(clients: &[usize], time: Duration, ours_only: bool) -> Table {
    let mut table = Table::new("Engine beside openraft", &["clients", "ours/s", "openraft/s", "times"])
        .with_plot(Plot {
            file: "engine.svg",
            title: "proposals per second, three nodes in one process",
            x: 0,
            lines: vec![(1, "ours"), (2, "openraft")],
            only: None,
        });
    for clients in clients {
        let ours = measure::<ours::Ours>(*clients, time);
        let mut row = vec![Cell::count(*clients), Cell::rate(ours)];
        if !ours_only {
            let theirs = measure::<openraft::Openraft>(*clients, time);
            row.extend([Cell::rate(theirs), Cell::factor(ours / theirs)]);
        }
        table.push(row);
    }
    table
}

/// Proposals per second with so many clients, each with one in flight.
pub(crate) fn measure<C: Cluster>(clients: usize, time: Duration) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let rate = runtime.block_on(async {
        let cluster = C::start().await;
        let (done, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let tasks: Vec<_> =
            (0..clients).map(|_| tokio::spawn(client(cluster.clone(), done.clone(), over.clone()))).collect();
        tokio::time::sleep(time / 4).await; // Until it runs evenly.
        let (before, began) = (done.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(time).await;
        let rate = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("a client");
        }
        cluster.stop().await;
        rate
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    rate
}

async fn client<C: Cluster>(cluster: C, done: Arc<AtomicU64>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        cluster.propose().await;
        done.fetch_add(1, Ordering::Relaxed);
    }
}
