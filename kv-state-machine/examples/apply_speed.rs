//! Measures the CPU time to apply puts and to read single keys, including RocksDB's threads. Run it in release mode:
//!
//! ```text
//! cargo run --release -p kv-state-machine --example apply_speed [puts per line] [keys,...] [batch,...] [reads per line]
//! ```
//! The tool reports CPU time because the machine may have other work. Values have 128 bytes, keys are random, and each
//! session has one put in flight, as with the client.

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};
use kv_state_machine::{Durability, KvCommand, KvOperation, KvStateMachine, Put, Range, Session};
use rustix::time::{ClockId, clock_gettime};

/// Microseconds of a CPU clock.
fn cpu(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// A machine under load.
struct Load {
    machine: KvStateMachine,
    index: u64,
    random: u64,
    keys: u64,
    sessions: u64,
}

impl Load {
    fn open(dir: &std::path::Path, keys: u64, sessions: u64) -> Self {
        let machine = KvStateMachine::open(dir, NodeId(1), Durability::FromLog).unwrap();
        let mut load = Self { machine, index: 0, random: 88_172_645_463_325_252, keys, sessions };
        let open = KvOperation::OpenSession { sessions_max: 10_000 };
        let batch: Vec<_> = (0..sessions).map(|_| load.entry(None, open.clone())).collect();
        load.machine.apply(&batch).unwrap();
        load
    }

    fn entry(&mut self, session: Option<Session>, operation: KvOperation) -> Entry {
        self.index += 1;
        Entry::command(LogId::new(1, self.index), codec::encode(1, &KvCommand::new(session, operation)))
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn put(&mut self, key: u64) -> Entry {
        let client_id = self.index % self.sessions + 1;
        let mut value = Vec::with_capacity(128);
        while value.len() < 128 {
            // Half of each value is compressible.
            value.extend((self.random() >> 32).to_be_bytes());
        }
        let put = Put { key: name(key), value: value.into(), ..Put::default() };
        self.entry(Some(Session { client_id, sequence: self.index }), KvOperation::Put(put))
    }

    /// Each key once.
    fn fill(&mut self) {
        for first in (0..self.keys).step_by(1000) {
            let batch: Vec<_> = (first..self.keys.min(first + 1000)).map(|key| self.put(key)).collect();
            self.machine.apply(&batch).unwrap();
        }
    }

    /// Microseconds per put: CPU time of this thread, CPU time of the process without the generation of puts, and
    /// elapsed time.
    fn apply(&mut self, puts: u64, batch: u64) -> [f64; 3] {
        let (mut applying, mut clock) = (0.0, 0.0);
        let clocks = || [ClockId::ThreadCPUTime, ClockId::ProcessCPUTime].map(cpu);
        let start = clocks();
        for _ in 0..puts / batch {
            let entries: Vec<_> = (0..batch)
                .map(|_| {
                    let key = self.random() % self.keys;
                    self.put(key)
                })
                .collect();
            let (now, before) = (Instant::now(), cpu(ClockId::ThreadCPUTime));
            black_box(self.machine.apply(&entries).unwrap());
            applying += cpu(ClockId::ThreadCPUTime) - before;
            clock += now.elapsed().as_secs_f64() * 1e6;
        }
        let end = clocks();
        let generation = end[0] - start[0] - applying;
        [applying, end[1] - start[1] - generation, clock].map(|sum| sum / (puts / batch * batch) as f64)
    }

    /// CPU time of this thread in microseconds per read of one key.
    fn read(&mut self, reads: u64) -> f64 {
        let executor = self.machine.executor();
        let ranges: Vec<_> = (0..reads)
            .map(|_| KvOperation::Range(Range { key: name(self.random() % self.keys), ..Range::default() }))
            .collect();
        let before = cpu(ClockId::ThreadCPUTime);
        for range in &ranges {
            black_box(executor.read(range).unwrap().unwrap());
        }
        (cpu(ClockId::ThreadCPUTime) - before) / reads as f64
    }
}

fn name(key: u64) -> Bytes {
    format!("key-{key:012}").into()
}

/// Parses numbers from an argument.
fn numbers(argument: Option<String>, default: &[u64]) -> Vec<u64> {
    argument.map_or(default.to_vec(), |text| text.split(',').map(|number| number.parse().unwrap()).collect())
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let puts = numbers(arguments.next(), &[300_000])[0];
    let keys = numbers(arguments.next(), &[100_000, 10_000_000]);
    let batches = numbers(arguments.next(), &[1, 16, 128, 1024]);
    let reads = numbers(arguments.next(), &[200_000])[0];
    println!("     keys  batch | µs CPU per put: apply thread, process | µs by the clock | µs CPU per read");
    for keys in keys {
        for batch in &batches {
            let dir = tempfile::tempdir().unwrap();
            let mut load = Load::open(dir.path(), keys, (*batch).max(64));
            if keys <= FILLED_MAX {
                load.fill();
            }
            let [thread, process, clock] = load.apply(puts, *batch);
            let read = load.read(reads);
            println!("{keys:>9} {batch:>6} | {thread:>28.2} {process:>8.2} | {clock:>15.2} | {read:>15.2}");
        }
    }
}

/// Maximum number of keys that are all written before the measurement.
const FILLED_MAX: u64 = 5_000_000;
