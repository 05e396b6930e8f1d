//! Leases, watches and locks of whole clusters under simulated time and faults, from a seed; see `lease_simulation/world.rs`.

use consensus_testkit::seeds::sweep;

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

/// `LEASE_SEED=n` starts with that seed, `LEASE_SEEDS=n` sets the number of seeds.
#[test]
fn leases_watches_and_locks_keep_their_promises_under_all_faults() {
    sweep("LEASE", "-p kv-state-machine --test lease_simulation", SEEDS, RARE, run::run);
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
