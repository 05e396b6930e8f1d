//! Protocols without clocks, threads and disks: one thread hands messages over by function call.

mod omnipaxos;
mod ours;
mod raft_rs;

use std::time::Duration;

/// Of each proposal.
pub(crate) const PAYLOAD_BYTES: usize = 128;

pub(crate) fn compare(windows: &[usize], nodes: &[usize], time: Duration, ours_only: bool) {
    println!("{:>6} {:>7} {:>12} {:>12} {:>12}", "nodes", "window", "ours/s", "raft-rs/s", "omnipaxos/s");
    for nodes in nodes {
        for window in windows {
            let ours = ours::run(*nodes, *window, time);
            if ours_only {
                println!("{nodes:>6} {window:>7} {ours:>12.0}");
                continue;
            }
            let raft_rs = raft_rs::run(*nodes, *window, time);
            let omnipaxos = omnipaxos::run(*nodes, *window, time);
            println!("{nodes:>6} {window:>7} {ours:>12.0} {raft_rs:>12.0} {omnipaxos:>12.0}");
        }
    }
}
