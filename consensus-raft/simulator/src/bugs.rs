//! The scoreboard: each known bug switched on, and what finds it.

use std::{
    sync::Mutex,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use consensus_core::bugs::{ALL, Bug, switch_on};

use crate::{
    model::{Limits, Scenario, scenarios, search},
    run::{Options, run},
};

/// What became of the search for one bug.
#[derive(Clone, Debug)]
pub struct Score {
    /// Which.
    pub bug: Bug,
    /// What it does.
    pub text: &'static str,
    /// The seed that found it, and what the checker said.
    pub found: Option<(u64, String)>,
    /// Seeds tried.
    pub seeds: u64,
    /// For how long.
    pub took: Duration,
}

/// Searches the scenarios of the model checker with the bug switched on, `states` of each at most. The scenario that shows
/// it, and what is wrong there.
#[must_use]
pub fn model_check_with(bug: Bug, limits: Limits) -> Option<(&'static str, String)> {
    if !switch_on(Some(bug)) {
        return None;
    }
    let shows = |scenario: &Scenario| match search(scenario, limits) {
        Ok(found) => found.violation.map(|(why, _)| (scenario.name, why)),
        Err(why) => Some((scenario.name, why)),
    };
    let found = scenarios().iter().find_map(shows);
    switch_on(None);
    found
}

/// Runs seeds with the bug switched on until one fails, on `threads` threads, for `limit` at most. `None` if this build has
/// no bugs to switch on.
#[must_use]
pub fn hunt(bug: Bug, threads: usize, limit: Duration) -> Option<Score> {
    if !switch_on(Some(bug)) {
        return None;
    }
    let (next, done, found, began) =
        (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(None), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) && began.elapsed() < limit {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let Some(failure) = run(&Options { seed, ..Options::default() }).failure else {
                        continue;
                    };
                    done.store(true, Ordering::Relaxed);
                    if let Ok(mut found) = found.lock() {
                        *found = Some((seed, failure));
                    }
                }
            });
        }
    });
    switch_on(None);
    let text = ALL.iter().find(|(known, _)| *known == bug).map_or("", |(_, text)| *text);
    let found = found.into_inner().ok().flatten();
    Some(Score { bug, text, found, seeds: next.into_inner(), took: began.elapsed() })
}
