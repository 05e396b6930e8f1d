//! Breadth first, on several threads.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{
    scenario::Scenario,
    state::{Action, State, World},
};

/// When a search ends that is not through.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After so many states.
    pub states: u64,
    /// After so long.
    pub time: Duration,
    /// Threads.
    pub threads: usize,
}

/// What a search came to.
#[derive(Clone, Debug)]
pub struct Found {
    /// Distinct states.
    pub states: u64,
    /// Steps taken, most of them to states already known.
    pub steps: u64,
    /// Length of the longest way of which all of that length were followed.
    pub depth: u32,
    /// Nothing is left to search.
    pub is_complete: bool,
    /// How long it took.
    pub took: Duration,
    /// What is wrong somewhere, and a shortest way there.
    pub violation: Option<(String, String)>,
}

/// From where a state was first reached, by what.
type Origin = (u64, Action);
/// Fingerprints are hashes already.
type Seen = HashMap<u64, Origin, BuildHasherDefault<AsIs>>;

#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("fingerprints are numbers")
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const SHARDS: usize = 64;

struct Search {
    world: World,
    seen: Vec<Mutex<Seen>>,
    steps: Mutex<u64>,
    /// The first violation: the state before it, the step, and what is wrong.
    violation: Mutex<Option<(u64, Action, String)>>,
}

/// Searches a scenario.
///
/// # Errors
/// The scenario's leader is not elected.
pub fn search(scenario: &Scenario, limits: Limits) -> Result<Found, String> {
    let began = Instant::now();
    let world = World::new(scenario.clone());
    let first = world.begin()?;
    let search = Search {
        seen: (0..SHARDS).map(|_| Mutex::default()).collect(),
        steps: Mutex::default(),
        violation: Mutex::default(),
        world,
    };
    let origin = search.world.fingerprint(&first);
    search.is_new(origin, (origin, Action::Advance));
    let mut frontier = vec![first.clone()];
    let (mut states, mut depth) = (1, 0);
    let mut is_cut = false;
    while !frontier.is_empty() {
        if states >= limits.states || began.elapsed() >= limits.time {
            is_cut = true;
            break;
        }
        let (next, whole) = search.expand_all(&frontier, limits, began, states);
        states += next.len() as u64;
        depth += u32::from(whole);
        frontier = next;
        is_cut |= !whole;
        if search.violation.lock().is_ok_and(|violation| violation.is_some()) || is_cut {
            break;
        }
    }
    let violation = search.violation.lock().ok().and_then(|violation| violation.clone());
    let violation = violation.map(|(from, action, why)| (why, search.way_to(&first, from, action)));
    let is_complete = !is_cut && violation.is_none();
    let steps = search.steps.lock().map_or(0, |steps| *steps);
    Ok(Found { states, steps, depth, is_complete, took: began.elapsed(), violation })
}

impl Search {
    fn is_new(&self, fingerprint: u64, origin: Origin) -> bool {
        let shard = &self.seen[fingerprint as usize >> 3 & (SHARDS - 1)];
        let Ok(mut seen) = shard.lock() else { return false };
        let before = seen.len();
        seen.entry(fingerprint).or_insert(origin);
        seen.len() > before
    }

    /// All states one step further; `false` if it was cut short.
    fn expand_all(
        &self,
        frontier: &[State],
        limits: Limits,
        began: Instant,
        states: u64,
    ) -> (Vec<State>, bool) {
        let piece = frontier.len().div_ceil(limits.threads).max(1);
        let room = limits.states.saturating_sub(states) / limits.threads as u64 + 1;
        std::thread::scope(|scope| {
            let work = |part| scope.spawn(move || self.expand(part, room, began + limits.time));
            let workers: Vec<_> = frontier.chunks(piece).map(work).collect();
            let (mut all, mut whole) = (Vec::new(), true);
            for worker in workers {
                let Ok((next, finished)) = worker.join() else { return (all, false) };
                all.extend(next);
                whole &= finished;
            }
            (all, whole)
        })
    }

    fn expand(&self, part: &[State], room: u64, until: Instant) -> (Vec<State>, bool) {
        let (mut next, mut actions, mut steps, mut finished) = (Vec::new(), Vec::new(), 0, true);
        for (at, state) in part.iter().enumerate() {
            if next.len() as u64 >= room || (at % 256 == 0 && Instant::now() >= until) {
                finished = false;
                break;
            }
            let from = self.world.fingerprint(state);
            self.world.actions(state, &mut actions);
            for action in &actions {
                steps += 1;
                match self.act(state, *action) {
                    Ok(after) if self.world.is_idle(state, &after, *action) => {}
                    Ok(state) => {
                        if self.is_new(self.world.fingerprint(&state), (from, *action)) {
                            next.push(state);
                        }
                    }
                    Err(why) => {
                        if let Ok(mut violation) = self.violation.lock() {
                            violation.get_or_insert((from, *action, why));
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
        acted.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default())
        })
    }

    /// The steps to a state, and one more.
    fn way_to(&self, first: &State, from: u64, last: Action) -> String {
        let mut way = vec![(from, last)];
        let mut at = from;
        while let Some((before, action)) = self.origin(at).filter(|(before, _)| *before != at) {
            way.push((before, action));
            at = before;
        }
        way.reverse();
        let (mut text, mut state) = (self.world.describe(first), first.clone());
        // A state stands for all that differ from it in names: at each step that one is taken which was followed.
        for (number, (_, action)) in way.iter().enumerate() {
            text += &format!("{:3}. {}\n", number + 1, self.world.tell(&state, *action));
            match self.act(&state, *action) {
                Ok(next) => state = next,
                Err(why) => text += &format!("     {why}\n"),
            }
            text += &self.world.describe(&state);
        }
        text
    }

    fn origin(&self, fingerprint: u64) -> Option<Origin> {
        let shard = &self.seen[fingerprint as usize >> 3 & (SHARDS - 1)];
        shard.lock().ok()?.get(&fingerprint).copied()
    }
}
