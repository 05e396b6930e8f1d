//! The scoreboard: each known bug switched on, and what finds it.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use consensus_core::bugs::{ALL, Bug, switch_on};

use crate::{
    model::{Limits, Scenario, scenarios, search},
    run::Options,
    sweep::sweep_on,
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
    let (mut seeds, mut found, began) = (0, BTreeMap::new(), Instant::now());
    sweep_on(threads, &Options::default(), 0..u64::MAX, |seed, outcome| {
        seeds += 1;
        found.extend(outcome.failure.map(|failure| (seed, failure)));
        let enough = !found.is_empty() || began.elapsed() >= limit;
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    switch_on(None);
    let text = ALL.iter().find(|(known, _)| *known == bug).map_or("", |(_, text)| *text);
    Some(Score { bug, text, found: found.pop_first(), seeds, took: began.elapsed() })
}
