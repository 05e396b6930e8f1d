//! Servers: three processes each on loopback, every write synced by a majority before it is acknowledged, one client
//! program that is the same but for the protocol.

mod cluster;
mod etcd;
pub(crate) mod failover;
pub(crate) mod grpc;
mod load;
mod ours;
mod processes;
pub(crate) mod queue;
pub(crate) mod resources;
pub(crate) mod scale;
mod usage;

use std::time::Duration;

use cluster::{Cluster, NODES};
use load::{Load, Measured, What};
use processes::Processes;

use consensus_bench_report::table::{Cell, Plot, Table};

/// What is measured: how its nodes are started, and how one talks to them.
pub(crate) trait System {
    type Connection: Connection;

    const NAME: &str;

    /// Adds a node for each of `ports`, where it is to serve clients.
    fn add_nodes(processes: &mut Processes, ports: &[u16], timeouts: Option<Timeouts>) -> Result<(), String>;
    /// To the node at `port`.
    async fn connect(port: u16) -> Result<Self::Connection, String>;
    /// Whether that node leads, if it answers.
    async fn leads(port: u16) -> Result<bool, String>;
}

/// Other than a system's defaults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
}

/// A connection to a node. Calls may share it.
pub(crate) trait Connection: Clone + Send + Sync + 'static {
    /// Sends one request and waits for the answer.
    fn ask(&self, what: What, at: u64, value: Vec<u8>) -> impl Future<Output = Result<(), String>> + Send;
}

pub(crate) fn compare(clients: &[usize], time: Duration, ours_only: bool) -> Result<Table, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut table = Table::new("Server beside etcd", &HEAD).with_note(etcd::version()?);
        for (only, rates, latencies) in [
            ("put", ("puts.svg", "puts per second"), ("put-latency.svg", "p99 of puts, ms")),
            ("get", ("gets.svg", "linearizable gets per second"), ("get-latency.svg", "p99 of gets, ms")),
        ] {
            for ((file, title), columns) in [(rates, (2, 6)), (latencies, (4, 8))] {
                let lines = vec![(columns.0, "ours"), (columns.1, "etcd")];
                table = table.with_plot(Plot { file, title, x: 1, lines, only: Some(only) });
            }
        }
        let ours = Cluster::<ours::Ours>::start(NODES).await?;
        let etcd = if ours_only { None } else { Some(Cluster::<etcd::Etcd>::start(NODES).await?) };
        for what in [What::Put, What::Get] {
            let name = what.name();
            let one_each =
                clients.iter().map(|clients| (name, Load { clients: *clients, time, ..Load::of(what) }));
            let pipelined = format!("{name}, pipelined");
            let many = Load { clients: 4096, per_connection: 256, time, ..Load::of(what) };
            for (name, load) in one_each.chain([(pipelined.as_str(), many)]) {
                // In turn, so that what else the machine does is the same for both.
                let mine = load.run(&ours).await?;
                let mut row = vec![Cell::text(name), Cell::count(load.clients)];
                row.extend(cells(&mine));
                if let Some(etcd) = &etcd {
                    let theirs = load.run(etcd).await?;
                    row.extend(cells(&theirs));
                    row.push(Cell::factor(mine.rate / theirs.rate));
                }
                table.push(row);
            }
        }
        Ok(table)
    })
}

fn cells(measured: &Measured) -> [Cell; 4] {
    let Measured { rate, p50_ms, p99_ms, load_cores, .. } = measured;
    [Cell::rate(*rate), Cell::number(*p50_ms, 2), Cell::number(*p99_ms, 2), Cell::number(*load_cores, 2)]
}

/// "load CPU": cores that the clients took.
const HEAD: [&str; 11] = [
    "", "clients", "ours/s", "p50 ms", "p99 ms", "load CPU", "etcd/s", "p50 ms", "p99 ms", "load CPU",
    "times",
];
