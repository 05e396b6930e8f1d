//! Simulation of whole engines on a paused clock, from a seed; see `simulation/mod.rs`.

mod simulation;

use consensus_testkit::seeds::{SeedRun, sweep};
use simulation::{Outcome, run};

/// `DRIVER_SEED=n` starts with that seed, `DRIVER_SEEDS=n` sets the number of seeds.
#[test]
fn clusters_keep_their_guarantees_under_all_faults() {
    let test = "-p consensus-engine-raft --test driver_simulation";
    sweep("DRIVER", test, SEEDS, RARE, |seed| {
        let Outcome { failure, simulated, counts, .. } = run(seed);
        SeedRun { failure, simulated, counts }
    });
}

/// A run does not depend on threads, clocks, or the order of hash maps.
#[test]
fn same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let (once, again) = (run(seed), run(seed));
        assert_eq!((once.trace, once.simulated, once.counts), (again.trace, again.simulated, again.counts));
    }
}

/// Number of seeds with which the test takes less than 40 s on a busy machine.
const SEEDS: u64 = 400;

/// Events that must occur in a set of runs.
const RARE: &[&str] = &[
    "apply beyond its time limit",
    "cluster went on without the stalled node",
    "committed entries not read",
    "committed entries read in several pages",
    "damage found while an earlier one is repaired",
    "damaged log truncated",
    "damaged log refused",
    "entries applied during a flush",
    "entries for a follower not read",
    "flush failed",
    "interrupted install finished at the start",
    "interrupted install discarded at the start",
    "leader replaced while it was stalled",
    "log purged while entries wait to be applied",
    "member added",
    "member altered that stays",
    "member moved that stays",
    "member removed",
    "member replaced after its disk was wiped",
    "old copy restored",
    "operation abandoned",
    "power lost between two writes",
    "power lost in an install",
    "refused: transferring leadership",
    "refused: no room",
    "refused: overload",
    "restore failed",
    "session found expired after a snapshot was installed",
    "snapshot brought a configuration that the log did not have",
    "snapshot installed",
    "snapshot installed over entries that are not applied",
    "snapshot not taken",
    "snapshot taken before a newer configuration in the log",
    "snapshot taken before the end of the log",
    "stale read",
    "fault: disk failed",
    "fault: machine panicked",
    "unknown outcome",
    "voter demoted",
    "write beyond its time limit",
];
