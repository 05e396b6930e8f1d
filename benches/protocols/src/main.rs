//! `bench-protocols`: measures the protocol alone beside what a user would pick instead.

mod compare;
mod omnipaxos;
mod ours;
mod raft_rs;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use consensus_bench_report::page;

/// Measures the protocol alone, on one thread, beside raft-rs and omnipaxos. Release builds only.
#[derive(Parser)]
struct Arguments {
    /// Numbers of proposals in flight to measure with.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1024])]
    windows: Vec<usize>,
    /// Numbers of nodes to measure with.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 5])]
    nodes: Vec<usize>,
    /// Seconds for which each figure is measured.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Measure only this project's protocol.
    #[arg(long)]
    ours_only: bool,
    /// Directory of performance.md, which then gets the figures and plots too.
    #[arg(long)]
    docs: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let machine = page::machine();
    let time = Duration::from_secs_f64(arguments.seconds);
    let table = compare::compare(&arguments.windows, &arguments.nodes, time, arguments.ours_only);
    page::report("bench-protocols", Ok(table), arguments.docs.as_deref(), &machine)
}
