//! Tests that run a simulation with many seeds.

use std::{collections::BTreeMap, time::Duration};

/// Result of a run with one seed.
#[derive(Clone, Debug, Default)]
pub struct SeedRun {
    /// Description of the failure; `None` if there was none.
    pub failure: Option<String>,
    /// Simulated time.
    pub simulated: Duration,
    /// Number of occurrences of each event.
    pub counts: BTreeMap<&'static str, u64>,
}

/// Runs a simulation with `seeds` seeds from 0. The variable `{name}_SEED` sets the first one, and without `{name}_SEEDS` the only
/// one; `{name}_SEEDS` sets their number.
///
/// # Panics
/// A run fails: the message says how to repeat it with `test`, the arguments of `cargo test`. Or the number of seeds is at
/// least the default and no run had one of the events `rare`.
pub fn sweep(name: &str, test: &str, seeds: u64, rare: &[&str], run: impl Fn(u64) -> SeedRun) {
    let number = |variable: String| -> Option<u64> { std::env::var(variable).ok()?.parse().ok() };
    let first = number(format!("{name}_SEED"));
    let count = number(format!("{name}_SEEDS")).unwrap_or(if first.is_some() { 1 } else { seeds });
    let first = first.unwrap_or(0);
    let (mut counts, mut simulated) = (BTreeMap::<_, u64>::new(), Duration::ZERO);
    for seed in first..first + count {
        let outcome = run(seed);
        if let Some(failure) = outcome.failure {
            panic!("seed {seed}: {failure}\nreplay: {name}_SEED={seed} cargo test {test}");
        }
        outcome.counts.into_iter().for_each(|(what, times)| *counts.entry(what).or_default() += times);
        simulated += outcome.simulated;
    }
    println!("{count} seeds, {} simulated seconds", simulated.as_secs());
    counts.iter().for_each(|(what, times)| println!("{times:>8} {what}"));
    if count >= seeds {
        for rare in rare {
            assert!(counts.contains_key(rare), "no run had the event: {rare}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64) -> SeedRun {
        let failure = (seed == 7).then(|| "lost a write".to_owned());
        SeedRun { failure, counts: BTreeMap::from([("started", 1)]), ..SeedRun::default() }
    }

    #[test]
    fn sweep_without_failures_has_all_events() {
        sweep("SEEDS_TEST", "-p none", 7, &["started"], run);
    }

    #[test]
    #[should_panic(expected = "seed 7: lost a write\nreplay: SEEDS_TEST_SEED=7 cargo test -p none")]
    fn failure_says_how_to_repeat_it() {
        sweep("SEEDS_TEST", "-p none", 9, &["started"], run);
    }

    #[test]
    #[should_panic(expected = "no run had the event: ended")]
    fn missing_event_is_a_failure() {
        sweep("SEEDS_TEST", "-p none", 3, &["ended"], run);
    }
}
