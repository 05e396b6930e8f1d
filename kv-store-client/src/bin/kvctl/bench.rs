//! A write load, for a rough estimate of a cluster's throughput and latency.

use std::time::{Duration, Instant};

use kv_store_client::{ClientError, KvClient};
use serde_json::json;

use crate::{Failure, show::Show};

pub(crate) async fn run(
    client: &KvClient,
    clients: usize,
    time: Duration,
    value_bytes: usize,
    show: Show,
) -> Result<u8, Failure> {
    // Each client opens its connection and sessions once. These writes open them before the measurement.
    let warm_up = (0..clients).map(|id| client.put(format!("bench/warm-up/{id}"), "x"));
    futures::future::try_join_all(warm_up).await?;
    let (start, value) = (Instant::now(), vec![b'x'; value_bytes]);
    let writer = || {
        let (client, value) = (client.clone(), value.clone());
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let key = format!("bench/{:016x}", rand::random::<u64>());
                let began = Instant::now();
                client.put(key, value.clone()).await?;
                latencies.push(began.elapsed());
            }
            Ok::<_, ClientError>(latencies)
        })
    };
    let writers: Vec<_> = (0..clients).map(|_| writer()).collect();
    let mut latencies = Vec::new();
    for writer in writers {
        latencies.extend(writer.await.map_err(|error| Failure::Usage(error.to_string()))??);
    }
    let rate = latencies.len() as f64 / start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |part: f64| latencies.get((latencies.len() as f64 * part) as usize).copied().unwrap_or_default();
    let ms = |latency: Duration| (latency.as_secs_f64() * 1e5).round() / 100.0;
    let (p50, p99, worst) = (ms(at(0.5)), ms(at(0.99)), ms(latencies.last().copied().unwrap_or_default()));
    show.either(&format!("{clients} clients: {rate:.0} writes/s, p50 {p50} ms, p99 {p99} ms, worst {worst} ms"), || {
        json!({ "clients": clients, "writes_per_s": rate, "p50_ms": p50, "p99_ms": p99, "worst_ms": worst })
    })?;
    Ok(0)
}
