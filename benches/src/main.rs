//! `bench`: measures these libraries beside what a user would pick instead.

mod engine;
mod place;
mod server;
mod single;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use consensus_bench_report::page;

/// Measures these libraries beside what a user would pick instead. Release builds only.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How long each figure is measured, in seconds.
    #[arg(long, default_value_t = 3.0, global = true)]
    seconds: f64,
    /// Leave out the others.
    #[arg(long, global = true)]
    ours_only: bool,
    /// Puts the figures and plots into performance.md in this directory, too.
    #[arg(long, global = true)]
    docs: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Three nodes in one process, log and network in memory, beside openraft.
    Engine {
        /// Clients, each with one proposal in flight.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256, 1024, 4096])]
        clients: Vec<usize>,
    },
    /// Three servers on loopback, beside etcd.
    Server {
        /// Clients, each with one request in flight.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256, 1000])]
        clients: Vec<usize>,
    },
    /// Three servers on loopback, beside etcd, both over gRPC.
    Grpc {
        /// Clients, each with one request in flight.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256, 1000])]
        clients: Vec<usize>,
    },
    /// The first key, the number and the pages of a list of keys, beside etcd, both over gRPC.
    Queue {
        #[arg(long, value_delimiter = ',', default_values_t = [60_000, 300_000])]
        keys: Vec<u64>,
    },
    /// Writes that are not acknowledged after `kill -9` of the leader, beside etcd.
    Failover {
        /// Leaders killed.
        #[arg(long, default_value_t = 20)]
        runs: usize,
    },
    /// How cost grows with voters, with the size of values, with the number of keys: three servers on loopback, 64 clients.
    Scale {
        #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 5, 7])]
        voters: Vec<usize>,
        #[arg(long, value_delimiter = ',', default_values_t = [16, 128, 1024, 16_384, 131_072, 1_000_000])]
        value_bytes: Vec<usize>,
        /// In ascending order.
        #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000, 1_000_000, 10_000_000])]
        keys: Vec<u64>,
    },
    /// Memory, processor, disk, network; starting, catching up, and what writers feel of that.
    Resources {
        /// Of 1 KiB each.
        #[arg(long, default_value_t = 1_000_000)]
        keys: u64,
    },
    /// One node that writes to disk, beside bare RocksDB.
    Single {
        /// Writers, each with one write in flight.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
        writers: Vec<usize>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let time = Duration::from_secs_f64(arguments.seconds);
    let ours_only = arguments.ours_only;
    let machine = page::machine();
    let table = match arguments.command {
        Command::Engine { clients } => Ok(engine::compare(&clients, time, ours_only)),
        Command::Server { clients } => server::compare(&clients, time, ours_only),
        Command::Grpc { clients } => server::grpc::compare(&clients, time),
        Command::Queue { keys } => server::queue::compare(&keys),
        Command::Failover { runs } => server::failover::compare(runs, ours_only),
        Command::Scale { voters, value_bytes, keys } => {
            server::scale::measure(&server::scale::Ranges { voters, value_bytes, keys }, time)
        }
        Command::Resources { keys } => server::resources::measure(keys, time),
        Command::Single { writers } => single::compare(&writers, time),
    };
    page::report("bench", table, arguments.docs.as_deref(), &machine)
}
