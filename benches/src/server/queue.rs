//! A list of many keys, as a queue of jobs or a paged view asks for it: its first key, its length, its pages.

use std::time::Instant;

use kv_etcd_api::etcdserverpb::{DeleteRangeRequest, RangeRequest};

use super::{
    System,
    cluster::{Cluster, NODES},
    etcd::{Connection, Etcd, version},
    load::{fill, key},
    ours::OverGrpc,
    scale::connections,
};
use consensus_bench_report::table::{Cell, Table};

/// Measures with each number of keys: all of them there, and after all but the last thousand were deleted.
pub(crate) fn compare(keys: &[u64]) -> Result<Table, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut table =
            Table::new("Lists", &["", "keys", "ours ms", "etcd ms", "times"]).with_note(version()?);
        for keys in keys {
            let (ours, etcd) =
                (Cluster::<OverGrpc>::start(NODES).await?, Cluster::<Etcd>::start(NODES).await?);
            let (mine, theirs) = (list(&ours, *keys).await?, list(&etcd, *keys).await?);
            for ((name, mine), (_, theirs)) in mine.into_iter().zip(theirs) {
                table.push(vec![
                    Cell::text(name),
                    Cell::count(*keys as usize),
                    Cell::number(mine, 2),
                    Cell::number(theirs, 2),
                    Cell::factor(theirs / mine),
                ]);
            }
        }
        Ok(table)
    })
}

/// Names and milliseconds.
type Rows = Vec<(&'static str, f64)>;

async fn list<S: System<Connection = Connection>>(cluster: &Cluster<S>, keys: u64) -> Result<Rows, String> {
    fill(&connections(cluster).await?, 0..keys, 128).await?;
    let connection = cluster.connect().await?;
    let first = RangeRequest { limit: 1, ..all() };
    let count = RangeRequest { count_only: true, ..all() };
    let mut rows = vec![
        ("first key", median(&connection, &first, keys).await?),
        ("number of keys", median(&connection, &count, keys).await?),
        ("all, in pages of 10,000", pages(&connection, keys).await?),
    ];
    delete(&connection, keys - LEFT).await?;
    rows.push(("first key, the others deleted", median(&connection, &first, LEFT).await?));
    rows.push(("number of keys, the others deleted", median(&connection, &count, LEFT).await?));
    Ok(rows)
}

fn all() -> RangeRequest {
    RangeRequest { key: "bench/".into(), range_end: "bench0".into(), ..RangeRequest::default() }
}

/// Median time of a request, whose answer must tell the right number of keys.
async fn median(connection: &Connection, request: &RangeRequest, keys: u64) -> Result<f64, String> {
    let mut times = Vec::new();
    for _ in 0..REPEATED {
        let began = Instant::now();
        let answer = connection.range(request.clone()).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        if answer.count != keys as i64 {
            return Err(format!("{} keys instead of {keys}", answer.count));
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

async fn pages(connection: &Connection, keys: u64) -> Result<f64, String> {
    let (began, mut read, mut next) = (Instant::now(), 0, all().key);
    loop {
        let answer = connection.range(RangeRequest { key: next, limit: PAGE as i64, ..all() }).await?;
        read += answer.kvs.len() as u64;
        match answer.kvs.last() {
            Some(last) if answer.more => next = [&last.key[..], &[0]].concat().into(),
            _ if read == keys => return Ok(began.elapsed().as_secs_f64() * 1e3),
            _ => return Err(format!("{read} keys instead of {keys}")),
        }
    }
}

/// Deletes the keys up to number `end`, in parts.
async fn delete(connection: &Connection, end: u64) -> Result<(), String> {
    for from in (0..end).step_by(PAGE) {
        let range_end = key(end.min(from + PAGE as u64)).into();
        let request =
            DeleteRangeRequest { key: key(from).into(), range_end, ..DeleteRangeRequest::default() };
        connection.delete(request).await?;
    }
    Ok(())
}

const PAGE: usize = 10_000;
/// Keys that are left.
const LEFT: u64 = 1000;
const REPEATED: usize = 21;
