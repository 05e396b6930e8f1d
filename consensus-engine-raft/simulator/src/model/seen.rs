//! The states that were reached, and which of them cover others.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{fingerprint::Print, state::Action};

/// State and action from which a state was first reached.
pub(super) type Origin = (u64, Action);
/// Identity hasher, because fingerprints are hashes already.
type ByPrint<T> = HashMap<u64, T, BuildHasherDefault<AsIs>>;

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

/// The reached states, in parts, so that threads rarely wait for each other.
pub(super) struct Seen {
    origins: Vec<Mutex<ByPrint<Origin>>>,
    /// States that are followed, with their depth.
    followed: Vec<Mutex<ByPrint<Vec<(u32, Print)>>>>,
    /// Whether covered states are skipped.
    covers: bool,
}

impl Seen {
    pub(super) fn new(covers: bool) -> Self {
        Self {
            origins: (0..SHARDS).map(|_| Mutex::default()).collect(),
            followed: (0..SHARDS).map(|_| Mutex::default()).collect(),
            covers,
        }
    }

    /// Whether the state must be followed: it was not reached before, and no reached state covers it.
    pub(super) fn is_new(&self, print: &Print, origin: Origin, depth: u32) -> bool {
        let mut origins = part(&self.origins, print.whole);
        let before = origins.len();
        origins.entry(print.whole).or_insert(origin);
        if origins.len() == before {
            return false;
        }
        drop(origins);
        if !self.covers {
            return true;
        }
        let mut followed = part(&self.followed, print.core);
        let alike = followed.entry(print.core).or_default();
        if alike.iter().any(|(_, other)| other.covers(print)) {
            return false;
        }
        alike.push((depth, print.clone()));
        true
    }

    /// Whether another state that is not deeper covers this one. A deeper state need not be on a shortest path.
    pub(super) fn is_covered(&self, print: &Print, depth: u32) -> bool {
        let followed = part(&self.followed, print.core);
        let covers =
            |(at, other): &(u32, Print)| *at <= depth && other.whole != print.whole && other.covers(print);
        followed.get(&print.core).is_some_and(|alike| alike.iter().any(covers))
    }

    pub(super) fn origin(&self, whole: u64) -> Option<Origin> {
        part(&self.origins, whole).get(&whole).copied()
    }
}

fn part<T>(parts: &[Mutex<T>], print: u64) -> MutexGuard<'_, T> {
    parts[print as usize >> 3 & (SHARDS - 1)].lock().unwrap_or_else(PoisonError::into_inner)
}

const SHARDS: usize = 64;
