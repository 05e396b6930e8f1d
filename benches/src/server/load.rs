//! Clients, each with one request in flight, 16 on a connection.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{Connection, System, cluster::Cluster};

/// What the clients ask for. Thrift connections know the first two only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Put,
    /// A linearizable read of one key.
    Get,
    /// A serializable read of one key.
    SerializableGet,
    /// A range of 100 keys.
    Range,
    /// A transaction: a comparison and a put.
    Txn,
    LeaseGrant,
    /// A stream for one renewal.
    LeaseKeepAlive,
}

impl What {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::SerializableGet => "serializable get",
            Self::Range => "range of 100 keys",
            Self::Txn => "transaction with a put",
            Self::LeaseGrant => "lease granted",
            Self::LeaseKeepAlive => "lease renewed",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) what: What,
    pub(crate) clients: usize,
    pub(crate) time: Duration,
    pub(crate) value_bytes: usize,
    /// The keys are out of so many.
    pub(crate) keys: u64,
    pub(crate) per_connection: usize,
    /// What is refused is no error: it is asked for again, after a while.
    pub(crate) patient: bool,
}

pub(crate) struct Measured {
    /// Per second.
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Cores that this program took.
    pub(crate) load_cores: f64,
    /// Requests, also those of the time before the measurement.
    pub(crate) requests: u64,
}

impl Load {
    pub(crate) fn of(what: What) -> Self {
        Self {
            what,
            clients: 64,
            time: Duration::from_secs(3),
            value_bytes: 128,
            keys: 1 << 20,
            per_connection: CLIENTS_PER_CONNECTION,
            patient: false,
        }
    }

    pub(crate) async fn run<S: System>(&self, cluster: &Cluster<S>) -> Result<Measured, String> {
        let phase = Arc::new(AtomicU8::new(WARMING_UP));
        // One for all: each that grows by itself would cost more than what is measured.
        let latencies = Histogram::<u64>::new_with_max(LATENCY_MAX.as_micros() as u64, 3);
        let latencies = Arc::new(Mutex::new(latencies.map_err(|error| error.to_string())?));
        let mut tasks = Vec::new();
        for first in (0..self.clients).step_by(self.per_connection) {
            let connection = cluster.connect().await?;
            for id in first..(first + self.per_connection).min(self.clients) {
                let (connection, phase, latencies) = (connection.clone(), phase.clone(), latencies.clone());
                let requests = Requests::new(self, id as u64);
                tasks.push(tokio::spawn(
                    async move { client(&connection, requests, &phase, &latencies).await },
                ));
            }
        }
        tokio::time::sleep(self.time / 4).await;
        phase.store(MEASURING, Ordering::Relaxed);
        let (began, cpu) = (Instant::now(), cpu_time());
        tokio::time::sleep(self.time).await;
        phase.store(OVER, Ordering::Relaxed);
        let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
        let mut requests = 0;
        for task in tasks {
            requests += task.await.map_err(|error| error.to_string())??;
        }
        let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Measured {
            rate: latencies.len() as f64 / took,
            p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e3,
            p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e3,
            load_cores: cpu.as_secs_f64() / took,
            requests,
        })
    }
}

/// What one client asks for, one after the other.
struct Requests {
    load: Load,
    values: Values,
    random: SmallRng,
}

impl Requests {
    fn new(load: &Load, id: u64) -> Self {
        Self { load: *load, values: Values::new(load.value_bytes), random: SmallRng::seed_from_u64(id) }
    }

    async fn one(&mut self, connection: &impl Connection) -> Result<(), String> {
        let at = self.random.random_range(0..self.load.keys);
        let is_write = matches!(self.load.what, What::Put | What::Txn);
        connection.ask(self.load.what, at, if is_write { self.values.next() } else { Vec::new() }).await
    }
}

/// Writes each of `keys` once, as fast as it goes.
pub(crate) async fn fill(
    connections: &[impl Connection],
    keys: Range<u64>,
    value_bytes: usize,
) -> Result<(), String> {
    let next = Arc::new(AtomicU64::new(keys.start));
    let mut tasks = Vec::new();
    for connection in connections {
        for _ in 0..CLIENTS_PER_CONNECTION {
            let (connection, next, end) = (connection.clone(), next.clone(), keys.end);
            let mut values = Values::new(value_bytes);
            tasks.push(tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return Ok::<(), String>(());
                    }
                    connection.ask(What::Put, number, values.next()).await?;
                }
            }));
        }
    }
    for task in tasks {
        task.await.map_err(|error| error.to_string())??;
    }
    Ok(())
}

/// Values that cannot be compressed, all others than those before.
struct Values {
    noise: Vec<u8>,
    len: usize,
    random: SmallRng,
}

impl Values {
    fn new(len: usize) -> Self {
        let mut random = SmallRng::seed_from_u64(rand::random());
        let mut noise = vec![0; 2 * len];
        random.fill(&mut noise[..]);
        Self { noise, len, random }
    }

    fn next(&mut self) -> Vec<u8> {
        let from = self.random.random_range(0..=self.len);
        let mut value = self.noise[from..from + self.len].to_vec();
        value.iter_mut().zip(self.random.random::<u64>().to_be_bytes()).for_each(|(byte, new)| *byte = new);
        value
    }
}

/// Key with a number. The keys are in the order of their numbers.
pub(crate) fn key(number: u64) -> Vec<u8> {
    format!("bench/{number:016x}").into_bytes()
}

/// Notes latencies, in microseconds. Returns the number of requests.
async fn client(
    connection: &impl Connection,
    mut requests: Requests,
    phase: &AtomicU8,
    latencies: &Mutex<Histogram<u64>>,
) -> Result<u64, String> {
    let mut done = 0;
    loop {
        let began = Instant::now();
        if let Err(why) = requests.one(connection).await {
            if !requests.load.patient {
                return Err(why);
            }
            tokio::time::sleep(PATIENCE).await;
            if phase.load(Ordering::Relaxed) == OVER {
                return Ok(done);
            }
            continue;
        }
        done += 1;
        match phase.load(Ordering::Relaxed) {
            OVER => return Ok(done),
            MEASURING => {
                let took = began.elapsed().min(LATENCY_MAX).as_micros() as u64;
                latencies.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took);
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

const LATENCY_MAX: Duration = Duration::from_secs(100);
const CLIENTS_PER_CONNECTION: usize = 16;
const PATIENCE: Duration = Duration::from_millis(20);
const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;
