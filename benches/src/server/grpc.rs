//! Both servers over gRPC: the same clients, the same requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use kv_etcd_api::etcdserverpb::{
    WatchCreateRequest, WatchRequest, watch_client::WatchClient, watch_request::RequestUnion,
};

use super::{
    System,
    cluster::{Cluster, NODES},
    etcd::{Connection, Etcd, LEASES, version},
    load::{Load, What, fill, key},
    ours::OverGrpc,
    scale::connections,
    usage::Usage,
};
use consensus_bench_report::table::{Cell, Table};

/// Measures each kind of request, in turn on both.
pub(crate) fn compare(clients: &[usize], time: Duration) -> Result<Table, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut table = Table::new("Server beside etcd, both over gRPC", &HEAD).with_note(version()?);
        let (ours, etcd) = (Cluster::<OverGrpc>::start(NODES).await?, Cluster::<Etcd>::start(NODES).await?);
        prepare(&ours).await?;
        prepare(&etcd).await?;
        for (what, clients) in rows(clients) {
            let keys = if what == What::Range { FILLED - 100 } else { Load::of(what).keys };
            let load = Load { clients, time, keys, ..Load::of(what) };
            let (mine, theirs) = (one(load, &ours).await?, one(load, &etcd).await?);
            let mut row = vec![Cell::text(what.name()), Cell::count(clients)];
            for Figures { rate, p99_ms, server_micros } in [&mine, &theirs] {
                row.extend([Cell::rate(*rate), Cell::number(*p99_ms, 2), Cell::number(*server_micros, 0)]);
            }
            row.push(Cell::factor(mine.rate / theirs.rate));
            row.push(Cell::factor(mine.server_micros / theirs.server_micros));
            table.push(row);
        }
        for watchers in WATCHERS {
            let (mine, theirs) =
                (fan_out(&ours, watchers, time).await?, fan_out(&etcd, watchers, time).await?);
            let mut row = vec![Cell::text("events to watches of one key"), Cell::count(watchers)];
            for Figures { rate, server_micros, .. } in [&mine, &theirs] {
                row.extend([Cell::rate(*rate), Cell::text(""), Cell::number(*server_micros, 0)]);
            }
            row.push(Cell::factor(mine.rate / theirs.rate));
            row.push(Cell::factor(mine.server_micros / theirs.server_micros));
            table.push(row);
        }
        Ok(table)
    })
}

fn rows(clients: &[usize]) -> Vec<(What, usize)> {
    let of = |what: What| clients.iter().map(move |clients| (what, *clients));
    let at_64 = [What::Range, What::Txn, What::LeaseGrant, What::LeaseKeepAlive].map(|what| (what, 64));
    of(What::Put).chain(of(What::Get)).chain(of(What::SerializableGet)).chain(at_64).collect()
}

/// Keys for the ranges, and leases for the renewals.
async fn prepare<S: System<Connection = Connection>>(cluster: &Cluster<S>) -> Result<(), String> {
    fill(&connections(cluster).await?, 0..FILLED, 128).await?;
    let connection = cluster.connect().await?;
    for id in 1..=LEASES {
        connection.grant(id as i64).await?;
    }
    Ok(())
}

struct Figures {
    rate: f64,
    p99_ms: f64,
    /// Microseconds of processor time that the servers took for a request, all together.
    server_micros: f64,
}

async fn one<S: System>(load: Load, cluster: &Cluster<S>) -> Result<Figures, String> {
    let before = Usage::of(cluster)?;
    let measured = load.run(cluster).await?;
    let cpu = (Usage::of(cluster)?.cpu - before.cpu) * NODES as f64;
    let server_micros = 1e6 * cpu / measured.requests as f64;
    Ok(Figures { rate: measured.rate, p99_ms: measured.p99_ms, server_micros })
}

/// Events that reach watches of a key while 16 clients put it as fast as it goes.
async fn fan_out<S: System<Connection = Connection>>(
    cluster: &Cluster<S>,
    watchers: usize,
    time: Duration,
) -> Result<Figures, String> {
    let events = Arc::new(AtomicU64::new(0));
    let mut watching = Vec::new();
    for _ in 0..WATCH_CONNECTIONS {
        let connection = cluster.connect().await?;
        watching.push(watch(&connection, watchers / WATCH_CONNECTIONS, events.clone()).await?);
    }
    let load = Load { clients: 16, time, keys: 1, ..Load::of(What::Put) };
    let (before, began) = (Usage::of(cluster)?, Instant::now());
    load.run(cluster).await?;
    let (seen, took) = (events.load(Ordering::Relaxed) as f64, began.elapsed().as_secs_f64());
    let cpu = (Usage::of(cluster)?.cpu - before.cpu) * NODES as f64;
    watching.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(Figures { rate: seen / took, p99_ms: f64::NAN, server_micros: 1e6 * cpu / seen })
}

/// Starts watches of key 0 on one stream. Returns once all are created.
async fn watch(
    connection: &Connection,
    watchers: usize,
    events: Arc<AtomicU64>,
) -> Result<tokio::task::JoinHandle<()>, String> {
    let create = WatchCreateRequest { key: key(0).into(), ..WatchCreateRequest::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::stream::iter(vec![create; watchers]).chain(futures::stream::pending());
    let answers = WatchClient::new(connection.channel()).watch(requests).await;
    let mut answers = answers.map_err(|error| error.to_string())?.into_inner();
    let mut created = 0;
    while created < watchers {
        let answer = answers.message().await.map_err(|error| error.to_string())?;
        created += usize::from(answer.ok_or("the stream of watches ended")?.created);
    }
    Ok(tokio::spawn(async move {
        while let Ok(Some(answer)) = answers.message().await {
            events.fetch_add(answer.events.len() as u64, Ordering::Relaxed);
        }
    }))
}

const WATCHERS: [usize; 2] = [100, 1000];
const WATCH_CONNECTIONS: usize = 10;
/// Keys that exist before anything is measured.
const FILLED: u64 = 20_000;
/// "CPU": microseconds of the servers for each request.
const HEAD: [&str; 10] =
    ["", "clients", "ours/s", "p99 ms", "CPU", "etcd/s", "p99 ms", "CPU", "times", "CPU times"];
