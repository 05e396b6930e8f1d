//! How cost grows: with voters, with the size of values, with the number of keys.

use std::time::Duration;

use super::{
    System,
    cluster::{Cluster, NODES},
    load::{Load, Measured, What, fill},
    ours::Ours,
};
use consensus_bench_report::table::{Cell, Plot, Table};

pub(crate) struct Ranges {
    pub(crate) voters: Vec<usize>,
    pub(crate) value_bytes: Vec<usize>,
    pub(crate) keys: Vec<u64>,
}

pub(crate) fn measure(ranges: &Ranges, time: Duration) -> Result<Table, String> {
    let head = ["by", "", "puts/s", "p50 ms", "p99 ms", "MB/s", "gets/s", "p50 ms", "p99 ms"];
    let mut table = Table::new("Scale", &head);
    for (file, only) in [("scale-voters.svg", VOTERS), ("scale-values.svg", VALUES), ("scale-keys.svg", KEYS)]
    {
        let lines = vec![(2, "puts per second"), (6, "linearizable gets per second")];
        table = table.with_plot(Plot { file, title: only, x: 1, lines, only: Some(only) });
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        for voters in &ranges.voters {
            let cluster = Cluster::<Ours>::start(*voters).await?;
            row(&mut table, VOTERS, *voters, &cluster, |load| Load { time, ..load }).await?;
        }
        for value_bytes in &ranges.value_bytes {
            // All of them together are no more than a disk holds.
            let keys = (KEPT_BYTES / *value_bytes as u64).min(1 << 20);
            let cluster = Cluster::<Ours>::start(NODES).await?;
            let of = |load| Load { time, value_bytes: *value_bytes, keys, ..load };
            row(&mut table, VALUES, *value_bytes, &cluster, of).await?;
        }
        let (cluster, mut there) = (Cluster::<Ours>::start(NODES).await?, 0);
        for keys in &ranges.keys {
            fill(&connections(&cluster).await?, there..*keys, VALUE_BYTES).await?;
            there = *keys;
            row(&mut table, KEYS, *keys as usize, &cluster, |load| Load { time, keys: *keys, ..load })
                .await?;
        }
        Ok(table)
    })
}

async fn row<S: System>(
    table: &mut Table,
    by: &str,
    at: usize,
    cluster: &Cluster<S>,
    of: impl Fn(Load) -> Load,
) -> Result<(), String> {
    let mut row = vec![Cell::text(by), Cell::count(at)];
    for what in [What::Put, What::Get] {
        let load = of(Load::of(what));
        let Measured { rate, p50_ms, p99_ms, .. } = load.run(cluster).await?;
        row.extend([Cell::rate(rate), Cell::number(p50_ms, 2), Cell::number(p99_ms, 2)]);
        if what == What::Put {
            row.push(Cell::number(rate * load.value_bytes as f64 / 1e6, 1));
        }
    }
    table.push(row);
    Ok(())
}

/// Enough to fill a store fast.
pub(crate) async fn connections<S: System>(cluster: &Cluster<S>) -> Result<Vec<S::Connection>, String> {
    let mut connections = Vec::new();
    for _ in 0..32 {
        connections.push(cluster.connect().await?);
    }
    Ok(connections)
}

const VOTERS: &str = "voters";
const VALUES: &str = "bytes per value";
const KEYS: &str = "keys";
const VALUE_BYTES: usize = 128;
const KEPT_BYTES: u64 = 256 << 20;
