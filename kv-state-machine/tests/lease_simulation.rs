//! Leases, watches and locks of whole clusters under simulated time and faults, from a seed; see `lease_simulation/world.rs`.

use std::{collections::BTreeMap, time::Duration};

#[path = "lease_simulation/world.rs"]
mod world;

#[path = "lease_simulation/faults.rs"]
mod faults;
#[path = "lease_simulation/history.rs"]
mod history;
#[path = "lease_simulation/leases.rs"]
mod leases;
#[path = "lease_simulation/locks.rs"]
mod locks;
#[path = "lease_simulation/plan.rs"]
mod plan;
#[path = "lease_simulation/run.rs"]
mod run;
#[path = "lease_simulation/watches.rs"]
mod watches;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `LEASE_SEED=n` starts with that seed, `LEASE_SEEDS=n` sets the number of seeds.
#[test]
fn leases_watches_and_locks_keep_their_promises_under_all_faults() {
    let first = number("LEASE_SEED");
    let count = number("LEASE_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or(0);
    let (mut counts, mut simulated) = (BTreeMap::<_, u64>::new(), Duration::ZERO);
    for seed in first..first + count {
        let outcome = run::run(seed);
        if let Some(failure) = outcome.failure {
            panic!(
                "seed {seed}: {failure}\n\
                 replay: LEASE_SEED={seed} cargo test -p kv-state-machine --test lease_simulation"
            );
        }
        outcome.counts.into_iter().for_each(|(what, times)| *counts.entry(what).or_default() += times);
        simulated += outcome.simulated;
    }
    println!("{count} seeds, {} simulated seconds", simulated.as_secs());
    counts.iter().for_each(|(what, times)| println!("{times:>8} {what}"));
    if count >= SEEDS {
        for rare in RARE {
            assert!(counts.contains_key(rare), "no run had the event: {rare}");
        }
    }
}

/// Number of seeds with which the test takes less than 40 s on a busy machine.
const SEEDS: u64 = 30;

/// Events that must occur in a set of runs.
const RARE: &[&str] = &[
    "events delivered",
    "guarded write of a former holder refused",
    "history compacted",
    "lease had ended when it was to be renewed",
    "lease outlived a change of leaders",
    "lease renewed",
    "lease renewal without an answer",
    "lock released",
    "lock left to its lease",
    "progress told",
    "snapshot installed",
    "watch resumed on another node",
    "watch lost its revision to a compaction",
];
