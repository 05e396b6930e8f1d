//! Whole engines under tokio's paused clock, from a seed: the driver with its queues, waiters, snapshots and shutdowns.
//!
//! The protocol, the driver, the network in memory and the log on disk are the real ones; the state machine keeps its state in
//! files. Both are called on tasks of the engines' runtime, where a call takes a simulated time, so that time passes only while
//! all tasks wait. The power may be lost between any two operations on their disks.
//!
//! ```text
//! clients ─▶ RaftEngine ─▶ boundary ─▶ log_disk (WalLogStorage, in a directory)
//!              │   │        (checks) ─▶ machine (ExactlyOnce in OnFiles, in a SimDir)
//!              │   └─────────────────▶ addressed ─▶ MemNetwork
//!            faults, members
//! ```

#![allow(dead_code, reason = "each test uses a part of the module")]

mod addressed;
mod boundary;
mod clients;
mod cluster;
mod disks;
mod faults;
mod log_disk;
mod machine;
mod members;
mod plan;
mod record;
mod stalls;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use consensus_raft_simulator::{KEYS, Random};
use consensus_testkit::linearizability::{CheckResult, Operation, Register, check, explain};
use tokio::time::{Instant, sleep, timeout};

pub(crate) use cluster::World;
pub(crate) use plan::Plan;
pub(crate) use record::Record;

/// Result of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) failure: Option<String>,
    /// Hash of all results with their times.
    pub(crate) trace: u64,
    pub(crate) simulated: Duration,
    /// Number of occurrences of each event.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// Runs a seed on a clock of its own.
pub(crate) fn run(seed: u64) -> Outcome {
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    clock.expect("a runtime").block_on(run_plan(Plan::of(seed)))
}

async fn run_plan(plan: Plan) -> Outcome {
    let began = Instant::now();
    let world = World::start(plan).await;
    let result = live(&world).await;
    let record = world.record();
    let failure = record.failure.clone().or(result.err());
    Outcome { failure, trace: record.trace, simulated: began.elapsed(), counts: record.counts.clone() }
}

/// Injects faults, then stops them; afterwards the cluster must recover.
async fn live(world: &Arc<World>) -> Result<(), String> {
    let clients: Vec<_> =
        (0..world.plan.clients).map(|id| tokio::spawn(clients::run(world.clone(), id))).collect();
    let mut random = Random::new(world.plan.seed, 2);
    let (mut faults, began) = (Vec::new(), Instant::now());
    while began.elapsed() < world.plan.fault_period {
        sleep(Duration::from_millis(50 + random.below(800))).await;
        world.check_health()?;
        faults.push(tokio::spawn(faults::any(world.clone(), Random::new(random.next(), 3))));
    }
    for fault in faults {
        fault.await.map_err(|error| format!("a fault ended early: {error}"))?;
    }
    world.network.heal();
    sleep(QUIET).await;
    world.check_health()?;
    world.restart_lost().await;
    world.end_clients();
    for client in clients {
        let ended = timeout(2 * cluster::FOREVER, client).await.map_err(|_| "a client does not end")?;
        ended.map_err(|error| format!("a client ended early: {error}"))?;
    }
    converge(world).await?;
    clients::read_everything(world).await?;
    world.rests().await?;
    check_histories(&world.record().history)?;
    world.shut_down().await
}

/// Waits until all nodes have the same state.
async fn converge(world: &World) -> Result<(), String> {
    let began = Instant::now();
    loop {
        world.check_health()?;
        let states = world.states();
        if !states.is_empty() && states.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(());
        }
        if began.elapsed() > CONVERGED_BY {
            let told: Vec<_> = world.nodes().iter().map(cluster::Node::status).collect();
            return Err(format!(
                "the members do not converge: applied and hash of each are {states:?}\n{told:#?}"
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn check_histories(history: &[Vec<Operation<Register, Option<u64>>>; KEYS]) -> Result<(), String> {
    for (key, history) in history.iter().enumerate() {
        let result = check(&Register::Read, history, SEARCH_STEPS);
        if matches!(result, CheckResult::Violation { .. }) {
            return Err(format!("not linearizable, key {key}: {}", explain(history, &result)));
        }
    }
    Ok(())
}

/// Time after the last fault with active clients.
const QUIET: Duration = Duration::from_secs(3);
const CONVERGED_BY: Duration = Duration::from_secs(30);
/// More steps than almost all histories need.
const SEARCH_STEPS: u64 = 400_000;
