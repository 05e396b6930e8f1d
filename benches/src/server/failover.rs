//! How long there are no acknowledged writes after `kill -9` of the leader.

use std::time::{Duration, Instant};

use super::{
    Connection, System, Timeouts,
    cluster::{Cluster, NODES},
    etcd::Etcd,
    load::What,
    ours::Ours,
};
use consensus_bench_report::table::{Cell, Table};

pub(crate) fn compare(runs: usize, ours_only: bool) -> Result<Table, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let head = ["", "runs", "median ms", "worst ms"];
        let mut table = Table::new("Failover beside etcd", &head);
        for timeouts in [None, Some(LAN)] {
            let name = |system: &str| match timeouts {
                None => format!("{system}, default"),
                Some(Timeouts { heartbeat_ms, election_ms }) => {
                    format!("{system}, {heartbeat_ms} and {election_ms} ms")
                }
            };
            table.push(row(&name("ours"), measure::<Ours>(runs, timeouts).await?));
            if !ours_only {
                table.push(row(&name("etcd"), measure::<Etcd>(runs, timeouts).await?));
            }
        }
        Ok(table)
    })
}

fn row(name: &str, mut times: Vec<Duration>) -> Vec<Cell> {
    times.sort_unstable();
    let ms = |at: usize| Cell::number(times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3), 0);
    vec![Cell::text(name), Cell::count(times.len()), ms(times.len() / 2), ms(times.len().saturating_sub(1))]
}

async fn measure<S: System>(runs: usize, timeouts: Option<Timeouts>) -> Result<Vec<Duration>, String> {
    let mut cluster = Cluster::<S>::start_with(NODES, NODES, timeouts).await?;
    let mut times = Vec::new();
    for run in 0..runs {
        put(&cluster.connect().await?).await?;
        let others = cluster.kill_leader().await?;
        let began = Instant::now();
        // Whoever of the others answers first: both know whom to ask.
        let (a, b) = (put_sometime(&others[0]), put_sometime(&others[1]));
        tokio::select! {
            () = a => {}
            () = b => {}
            () = tokio::time::sleep(LONGEST) => return Err(format!("run {run}: no write within {LONGEST:?}")),
        }
        times.push(began.elapsed());
        cluster.restart_killed().await?;
    }
    Ok(times)
}

async fn put(connection: &impl Connection) -> Result<(), String> {
    connection.ask(What::Put, 0, b"x".to_vec()).await
}

async fn put_sometime(connection: &impl Connection) {
    loop {
        let tried = tokio::time::timeout(TRY, put(connection)).await;
        if matches!(tried, Ok(Ok(()))) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Heartbeats and elections as on a network of one place.
const LAN: Timeouts = Timeouts { heartbeat_ms: 20, election_ms: 100 };
const LONGEST: Duration = Duration::from_secs(30);
/// One that hangs, as it went to the dead leader, is not waited for long.
const TRY: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);
