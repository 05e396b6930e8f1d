//! What nodes take: memory, processor, disk and network; how long they take to start and to catch up, and what writers feel
//! of that.

use std::{
    cell,
    time::{Duration, Instant},
};

use super::{
    cluster::{Cluster, NODES},
    load::{Load, What, fill},
    ours::{Ours, revision},
    scale::connections,
    usage::Usage,
};
use consensus_bench_report::table::{Cell, Table};

/// With stores of so many keys, of values of `VALUE_BYTES`.
pub(crate) fn measure(keys: u64, time: Duration) -> Result<Table, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let mut figures = Figures(Table::new("Resources", &["what", "", "unit"]));
    runtime.block_on(async {
        // The third has nothing, and is not there yet.
        let mut cluster = Cluster::<Ours>::start_with(NODES, NODES - 1, None).await?;
        figures.idle(&cluster, time).await?;
        figures.filling(&cluster, keys).await?;
        figures.catching_up(&mut cluster, keys, time).await?;
        figures.start(&mut cluster).await?;
        figures.overload(&cluster, keys, time).await
    })?;
    Ok(figures.0)
}

struct Figures(Table);

impl Figures {
    fn tell(&mut self, what: &str, figure: f64, digits: usize, unit: &str) {
        self.0.push(vec![Cell::text(what), Cell::number(figure, digits), Cell::text(unit)]);
    }

    async fn idle(&mut self, cluster: &Cluster<Ours>, time: Duration) -> Result<(), String> {
        tokio::time::sleep(SETTLING).await;
        let before = Usage::of(cluster)?;
        tokio::time::sleep(time).await;
        let after = Usage::of(cluster)?;
        let cpu = (after.cpu - before.cpu) / time.as_secs_f64();
        self.tell("CPU of an idle node", 100.0 * cpu, 2, "% of a core");
        self.tell("memory of an idle node", after.resident, 0, "MiB");
        Ok(())
    }

    async fn filling(&mut self, cluster: &Cluster<Ours>, keys: u64) -> Result<(), String> {
        let (before, began) = (Usage::of(cluster)?, Instant::now());
        fill(&connections(cluster).await?, 0..keys, VALUE_BYTES).await?;
        let (after, took) = (Usage::of(cluster)?, began.elapsed().as_secs_f64());
        let (count, pair) = (keys as f64, PAIR_BYTES as f64);
        self.tell("writes by 512 clients, each key once", count / took, 0, "per second");
        let disk = (after.disk - before.disk) / (count * pair);
        self.tell("written to disk by each node", disk, 2, "bytes per byte of key and value");
        if let (Some(before), Some(after)) = (before.network, after.network) {
            let sent = (after - before) / (count * pair);
            self.tell("sent between two nodes", sent, 3, "bytes per byte of key and value");
        }
        self.tell("memory of a node then", after.resident, 0, "MiB");
        Ok(())
    }

    /// The third node, which is empty: it is sent a snapshot, and then the log.
    async fn catching_up(
        &mut self,
        cluster: &mut Cluster<Ours>,
        keys: u64,
        time: Duration,
    ) -> Result<(), String> {
        let load = Load { clients: WRITERS, time, value_bytes: VALUE_BYTES, keys, ..Load::of(What::Put) };
        let alone = load.run(cluster).await?;
        let (bytes, began) = (cluster.store_bytes(0)? as f64, Instant::now());
        cluster.start_node(NODES - 1)?;
        let (is_done, mut windows) = (cell::Cell::new(false), Vec::new());
        let catching_up = async {
            let result = caught_up(cluster, NODES - 1).await;
            is_done.set(true);
            result.map(|()| began.elapsed().as_secs_f64())
        };
        let writing = async {
            let load = Load { time: time / 4, ..load };
            while !is_done.get() {
                windows.push(load.run(cluster).await?.p99_ms);
            }
            Ok(())
        };
        let (took, ()) = tokio::try_join!(catching_up, writing)?;
        self.tell("files of a node, log included", bytes / 1e6, 0, "MB");
        self.tell("an empty node catches up, beside 16 writers, within", took, 1, "s");
        self.tell("which is, of those files", bytes / 1e6 / took, 0, "MB/s");
        self.tell("p99 of these writers before", alone.p99_ms, 2, "ms");
        let first = windows.first().copied().unwrap_or(f64::NAN);
        self.tell("while the snapshot is taken and the first of it sent", first, 2, "ms");
        self.tell(
            "in the worst second until it has caught up",
            windows.into_iter().fold(first, f64::max),
            2,
            "ms",
        );
        Ok(())
    }

    async fn start(&mut self, cluster: &mut Cluster<Ours>) -> Result<(), String> {
        cluster.kill_node(NODES - 1)?;
        let began = Instant::now();
        cluster.start_node(NODES - 1)?;
        cluster.answers(NODES - 1).await?;
        let took = began.elapsed().as_secs_f64();
        self.tell("start of a node that was killed, until it answers", took * 1e3, 0, "ms");
        Ok(())
    }

    async fn overload(&mut self, cluster: &Cluster<Ours>, keys: u64, time: Duration) -> Result<(), String> {
        let (clients, value_bytes) = (4096, 16 << 10);
        let load = Load { clients, time, value_bytes, keys, patient: true, ..Load::of(What::Put) };
        load.run(cluster).await?;
        let peak = Usage::of(cluster)?.peak;
        self.tell("most memory of a node, with 4096 clients that write 16 KiB each", peak, 0, "MiB");
        Ok(())
    }
}

/// Until node `number` has applied what the leader had at some time during the last look.
async fn caught_up(cluster: &Cluster<Ours>, number: usize) -> Result<(), String> {
    let (node, leader) = (cluster.ports()[number], cluster.ports()[cluster.leader()]);
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let goal = revision(leader).await?;
        if goal > 0 && revision(node).await.is_ok_and(|at| at >= goal) {
            return Ok(());
        }
    }
}

const VALUE_BYTES: usize = 1024;
/// With its key.
const PAIR_BYTES: usize = VALUE_BYTES + 22;
const WRITERS: usize = 16;
const SETTLING: Duration = Duration::from_secs(3);
