//! Breadth-first search on several threads.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::host::panic_text;

use super::{
    fingerprint::Print,
    scenario::Scenario,
    seen::Seen,
    state::{Action, State, World},
};

/// Limits that end a search before it is complete.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of states.
    pub states: u64,
    /// Maximum duration.
    pub time: Duration,
    /// Number of threads.
    pub threads: usize,
}

/// Result of a search.
#[derive(Clone, Debug)]
pub struct Found {
    /// Number of distinct states.
    pub states: u64,
    /// Number of steps, most of which lead to known states.
    pub steps: u64,
    /// Greatest depth that was searched completely.
    pub depth: u32,
    /// Whether all states were searched.
    pub is_complete: bool,
    /// Duration of the search.
    pub took: Duration,
    /// First violation, and a shortest path to it.
    pub violation: Option<(String, String)>,
}

struct Search {
    world: World,
    seen: Seen,
    steps: Mutex<u64>,
    /// First violation: the state before it, the step, and the violated property.
    violation: Mutex<Option<(u64, Action, String)>>,
}

/// A state whose successors are to be visited.
struct Place {
    state: State,
    print: Print,
}

/// Searches a scenario.
///
/// # Errors
/// The scenario's leader is not elected.
pub fn search(scenario: &Scenario, limits: Limits) -> Result<Found, String> {
    search_in(World::new(scenario.clone(), true), limits, &|_, _| ())
}

/// Calls `reached` for each state, as often as it is reached.
pub(super) fn search_in(
    world: World,
    limits: Limits,
    reached: &(impl Fn(&World, &State) + Sync),
) -> Result<Found, String> {
    let began = Instant::now();
    let state = world.begin()?;
    reached(&world, &state);
    let first = Place { print: world.fingerprint(&state), state };
    let search = Search {
        seen: Seen::new(world.reduces),
        steps: Mutex::default(),
        violation: Mutex::default(),
        world,
    };
    search.seen.is_new(&first.print, (first.print.whole, Action::Advance), 0);
    let (beginning, until) = (first.state.clone(), began + limits.time);
    let mut frontier = vec![first];
    let (mut states, mut depth, mut is_cut) = (1, 0, false);
    while !frontier.is_empty() && !is_cut {
        if states >= limits.states || Instant::now() >= until {
            is_cut = true;
            break;
        }
        let room = (limits.states - states) / limits.threads as u64 + 1;
        let (mut next, whole) = search.expand_all(&frontier, limits.threads, &|part| {
            search.expand(part, depth + 1, (room, until), reached)
        });
        next.retain(|place| !search.seen.is_covered(&place.print, depth + 1));
        states += next.len() as u64;
        depth += u32::from(whole);
        frontier = next;
        is_cut = !whole;
    }
    let violation = search.violation.lock().ok().and_then(|violation| violation.clone());
    let violation = violation.map(|(from, action, why)| (why, search.way_to(&beginning, from, action)));
    let is_complete = !is_cut && violation.is_none();
    let steps = search.steps.lock().map_or(0, |steps| *steps);
    Ok(Found { states, steps, depth, is_complete, took: began.elapsed(), violation })
}

impl Search {
    /// Visits all states one step further. Returns `false` if a limit ended the search.
    fn expand_all(
        &self,
        frontier: &[Place],
        threads: usize,
        expand: &(impl Fn(&[Place]) -> (Vec<Place>, bool) + Sync),
    ) -> (Vec<Place>, bool) {
        let piece = frontier.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                frontier.chunks(piece).map(|part| scope.spawn(move || expand(part))).collect();
            let (mut all, mut whole) = (Vec::new(), true);
            for worker in workers {
                let Ok((next, finished)) = worker.join() else { return (all, false) };
                all.extend(next);
                whole &= finished;
            }
            (all, whole)
        })
    }

    fn expand(
        &self,
        part: &[Place],
        depth: u32,
        (room, until): (u64, Instant),
        reached: &impl Fn(&World, &State),
    ) -> (Vec<Place>, bool) {
        let (mut next, mut actions, mut steps, mut finished) = (Vec::new(), Vec::new(), 0, true);
        for (at, Place { state, print }) in part.iter().enumerate() {
            if next.len() as u64 >= room || (at % 256 == 0 && Instant::now() >= until) {
                finished = false;
                break;
            }
            self.world.actions(state, &mut actions);
            for action in &actions {
                steps += 1;
                match self.act(state, *action) {
                    Ok(after) if self.world.is_idle(state, &after, *action) => {}
                    Ok(state) => {
                        let origin = (print.whole, *action);
                        let print = self.world.fingerprint(&state);
                        reached(&self.world, &state);
                        if self.seen.is_new(&print, origin, depth) {
                            next.push(Place { state, print });
                        }
                    }
                    Err(why) => {
                        if let Ok(mut violation) = self.violation.lock() {
                            violation.get_or_insert((print.whole, *action, why));
                        }
                        return (next, false);
                    }
                }
            }
        }
        if let Ok(mut total) = self.steps.lock() {
            *total += steps;
        }
        (next, finished)
    }

    fn act(&self, state: &State, action: Action) -> Result<State, String> {
        let acted = catch_unwind(AssertUnwindSafe(|| {
            let state = self.world.act(state, action)?;
            self.world.check(&state)?;
            Ok(state)
        }));
        acted.unwrap_or_else(|panic| Err(panic_text(&*panic)))
    }

    /// Describes the steps to a state, and one further step.
    fn way_to(&self, first: &State, from: u64, last: Action) -> String {
        let mut way = vec![(from, last)];
        let mut at = from;
        while let Some((before, action)) = self.seen.origin(at).filter(|(before, _)| *before != at) {
            way.push((before, action));
            at = before;
        }
        way.reverse();
        let (mut text, mut state) = (self.world.describe(first), first.clone());
        // A state represents all that differ from it only in names; each step takes the one that was followed.
        for (number, (_, action)) in way.iter().enumerate() {
            text += &format!("{:3}. {}\n", number + 1, self.world.describe_action(&state, *action));
            match self.act(&state, *action) {
                Ok(next) => state = next,
                Err(why) => text += &format!("     {why}\n"),
            }
            text += &self.world.describe(&state);
        }
        text
    }
}
