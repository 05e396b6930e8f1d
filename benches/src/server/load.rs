//! Clients, each with one request in flight, 16 on a connection.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{Connection, System, cluster::Cluster};

/// What the clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Put,
    Get,
}

impl What {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
        }
    }
}

pub(crate) struct Load {
    pub(crate) what: What,
    pub(crate) clients: usize,
    pub(crate) time: Duration,
}

pub(crate) struct Measured {
    /// Per second.
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Cores that this program took.
    pub(crate) load_cores: f64,
}

impl Load {
    pub(crate) async fn run<S: System>(&self, cluster: &Cluster<S>) -> Result<Measured, String> {
        let phase = Arc::new(AtomicU8::new(WARMING_UP));
        let latencies = Arc::new(Mutex::new(Histogram::<u64>::new(3).map_err(|error| error.to_string())?));
        let mut tasks = Vec::new();
        for first in (0..self.clients).step_by(CLIENTS_PER_CONNECTION) {
            let connection = cluster.connect().await?;
            for id in first..(first + CLIENTS_PER_CONNECTION).min(self.clients) {
                let (connection, phase, latencies) = (connection.clone(), phase.clone(), latencies.clone());
                let what = self.what;
                tasks.push(tokio::spawn(async move {
                    let own = client(&connection, what, id as u64, &phase).await?;
                    let mut all = latencies.lock().unwrap_or_else(PoisonError::into_inner);
                    all.add(own).map_err(|error| error.to_string())
                }));
            }
        }
        tokio::time::sleep(self.time / 4).await;
        phase.store(MEASURING, Ordering::Relaxed);
        let (began, cpu) = (Instant::now(), cpu_time());
        tokio::time::sleep(self.time).await;
        phase.store(OVER, Ordering::Relaxed);
        let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
        for task in tasks {
            task.await.map_err(|error| error.to_string())??;
        }
        let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Measured {
            rate: latencies.len() as f64 / took,
            p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e3,
            p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e3,
            load_cores: cpu.as_secs_f64() / took,
        })
    }
}

/// Latencies, in microseconds.
async fn client(
    connection: &impl Connection,
    what: What,
    id: u64,
    phase: &AtomicU8,
) -> Result<Histogram<u64>, String> {
    let mut random = SmallRng::seed_from_u64(id);
    let mut latencies = Histogram::new(3).map_err(|error| error.to_string())?;
    loop {
        let key = format!("bench/{:016x}", random.random_range(0..KEYS)).into_bytes();
        let began = Instant::now();
        match what {
            What::Put => connection.put(key, vec![b'x'; VALUE_BYTES]).await?,
            What::Get => connection.get(key).await?,
        }
        match phase.load(Ordering::Relaxed) {
            OVER => return Ok(latencies),
            MEASURING => {
                latencies.record(began.elapsed().as_micros() as u64).map_err(|error| error.to_string())?;
            }
            _ => {}
        }
    }
}

/// Of this process.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

const CLIENTS_PER_CONNECTION: usize = 16;
const KEYS: u64 = 1 << 20;
const VALUE_BYTES: usize = 128;
const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;
