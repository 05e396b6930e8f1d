//! Protocols without clocks, threads and disks: one thread hands messages over by function call.

use std::time::{Duration, Instant};

use consensus_bench_report::table::{Cell, Table};

use crate::{omnipaxos, ours, raft_rs};

/// Nodes of one of the protocols.
pub(crate) trait Cluster {
    /// `nodes` nodes with a leader, ready for `window` proposals in flight.
    fn elect(nodes: usize, window: usize) -> Self;
    /// Proposals that the leader knows to be decided, and that were applied where the crate applies.
    fn done(&self) -> usize;
    /// Proposes on the leader so many.
    fn propose(&mut self, count: usize);
    /// Hands messages over until nobody has anything to say.
    fn settle(&mut self);
}

/// Proposals per second with `window` in flight.
fn run<C: Cluster>(nodes: usize, window: usize, time: Duration) -> f64 {
    let mut cluster = C::elect(nodes, window);
    let mut proposed = cluster.done();
    keep_busy(&mut cluster, &mut proposed, window, time / 4); // Until it runs evenly.
    keep_busy(&mut cluster, &mut proposed, window, time)
}

fn keep_busy(cluster: &mut impl Cluster, proposed: &mut usize, window: usize, time: Duration) -> f64 {
    let (before, began) = (cluster.done(), Instant::now());
    loop {
        let look = cluster.done() + BETWEEN_LOOKS;
        while cluster.done() < look {
            let room = window - (*proposed - cluster.done());
            cluster.propose(room);
            *proposed += room;
            cluster.settle();
        }
        if began.elapsed() >= time {
            return (cluster.done() - before) as f64 / began.elapsed().as_secs_f64();
        }
    }
}

/// Proposals between two looks at the clock.
const BETWEEN_LOOKS: usize = 512;
/// Of each proposal.
pub(crate) const PAYLOAD_BYTES: usize = 128;

pub(crate) fn compare(windows: &[usize], nodes: &[usize], time: Duration, ours_only: bool) -> Table {
    let head = ["nodes", "window", "ours/s", "raft-rs/s", "times", "omnipaxos/s", "times"];
    let mut table = Table::new("Protocol beside raft-rs and omnipaxos", &head);
    for nodes in nodes {
        for window in windows {
            let ours = run::<ours::Cluster>(*nodes, *window, time);
            let mut row = vec![Cell::count(*nodes), Cell::count(*window), Cell::rate(ours)];
            if !ours_only {
                for run in [run::<raft_rs::Cluster>, run::<omnipaxos::Cluster>] {
                    let theirs = run(*nodes, *window, time);
                    row.extend([Cell::rate(theirs), Cell::factor(ours / theirs)]);
                }
            }
            table.push(row);
        }
    }
    table
}
