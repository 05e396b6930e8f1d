//! Protocols without clocks, threads and disks: one thread hands messages over by function call.

mod omnipaxos;
mod ours;
mod raft_rs;

use std::time::Duration;

use crate::table::{Cell, Table};

/// Of each proposal.
pub(crate) const PAYLOAD_BYTES: usize = 128;

pub(crate) fn compare(windows: &[usize], nodes: &[usize], time: Duration, ours_only: bool) -> Table {
    let head = ["nodes", "window", "ours/s", "raft-rs/s", "times", "omnipaxos/s", "times"];
    let mut table = Table::new("Protocol beside raft-rs and omnipaxos", &head);
    for nodes in nodes {
        for window in windows {
            let ours = ours::run(*nodes, *window, time);
            let mut row = vec![Cell::count(*nodes), Cell::count(*window), Cell::rate(ours)];
            if !ours_only {
                for run in [raft_rs::run, omnipaxos::run] {
                    let theirs = run(*nodes, *window, time);
                    row.extend([Cell::rate(theirs), Cell::factor(ours / theirs)]);
                }
            }
            table.push(row);
        }
    }
    table
}
