//! One run: faults and clients, then the checks.

use std::sync::Arc;

use consensus_raft_simulator::Random;
use consensus_testkit::{lock_history, seeds::SeedRun, watch_history};
use tokio::{sync::watch, task::JoinHandle};

use crate::{faults, history, leases, locks, plan::Plan, watches, world::World};

/// Runs a seed on a clock of its own.
pub(crate) fn run(seed: u64) -> SeedRun {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    runtime.block_on(run_plan(Plan::of(seed)))
}

async fn run_plan(plan: Plan) -> SeedRun {
    let world = World::start(plan).await;
    let result = live(&world).await;
    world.shut_down().await;
    SeedRun { failure: world.failure().or(result.err()), simulated: world.now(), counts: world.counts() }
}

async fn live(world: &Arc<World>) -> Result<(), String> {
    faults::serve_again(world, &mut Random::new(world.plan.seed, 2)).await;
    let (watch_until, until) = watch::channel(None);
    let observer = tokio::spawn(world.clone().observe_leaders());
    let history = tokio::spawn(history::read(world.clone()));
    let watchers: Vec<_> =
        (0..WATCHERS).map(|id| tokio::spawn(watches::run(world.clone(), id, until.clone()))).collect();
    let records = Arc::<locks::Records>::default();
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    for id in 0..CLIENTS_OF_EACH_KIND {
        clients.push(tokio::spawn(history::write(world.clone(), id)));
        clients.push(tokio::spawn(leases::own(world.clone(), 2 * id)));
        clients.push(tokio::spawn(leases::own(world.clone(), 2 * id + 1)));
        clients.push(tokio::spawn(locks::hold(world.clone(), id, records.clone())));
    }
    faults::run(world.clone()).await;
    world.end();
    for client in clients {
        client.await.map_err(|error| format!("a client ended early: {error}"))?;
    }
    observer.abort();
    world.settle();
    let history = history.await.map_err(|error| format!("the history: {error}"))?;
    watch_until.send_replace(Some(history.through));
    for (number, watcher) in watchers.into_iter().enumerate() {
        let steps = watcher.await.map_err(|error| format!("a watcher ended early: {error}"))?;
        check_watcher(number, &history, &steps)?;
    }
    let (holds, writes) = (records.holds.lock().unwrap(), records.writes.lock().unwrap());
    lock_history::check(&holds, &writes).map_err(|violation| violation.to_string())
}

fn check_watcher(
    number: usize,
    history: &history::History,
    steps: &[watch_history::Step<history::Change>],
) -> Result<(), String> {
    watch_history::check(&history.events, steps, Some(history.through)).map_err(|violation| {
        let shown = &steps[violation.step.saturating_sub(SHOWN)..steps.len().min(violation.step + 1)];
        format!("watcher {number}: {violation}\nthe last steps until then: {shown:#?}")
    })
}

const WATCHERS: u64 = 4;
const CLIENTS_OF_EACH_KIND: u64 = 2;
/// Steps that a failure shows.
const SHOWN: usize = 8;
