//! Pins: revisions whose versions stay on disk although they are compacted, because a read of several parts needs them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The pinned revisions of a generation.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<Pinned>);

#[derive(Debug, Default)]
struct Pinned {
    /// When each pin expires, by revision and number of the pin.
    expiries: BTreeMap<(u64, u64), Instant>,
    last_number: u64,
}

/// A pinned revision. Dropping it releases the revision.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    place: (u64, u64),
    expiry: Instant,
}

impl Pins {
    /// Pins a revision for at most `duration`. The caller has to check afterwards that the revision is not compacted: then
    /// the garbage collector, which looks for pins after each compaction, sees this one in time.
    pub(crate) fn pin(self: &Arc<Self>, revision: u64, duration: Duration) -> Pin {
        let mut pinned = self.pinned();
        pinned.last_number += 1;
        let (place, expiry) = ((revision, pinned.last_number), Instant::now() + duration);
        pinned.expiries.insert(place, expiry);
        Pin { pins: self.clone(), place, expiry }
    }

    /// Whether a revision before `revision` is pinned.
    pub(crate) fn is_pinned_before(&self, revision: u64) -> bool {
        let now = Instant::now();
        self.pinned().expiries.range(..(revision, 0)).any(|(_, expiry)| now < *expiry)
    }

    fn pinned(&self) -> MutexGuard<'_, Pinned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pin {
    /// Whether the pin does not protect its revision any more.
    pub(crate) fn is_expired(&self) -> bool {
        Instant::now() >= self.expiry
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pins.pinned().expiries.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_is_pinned_until_its_last_pin_is_dropped_or_expires() {
        let pins = Arc::new(Pins::default());
        let long = Duration::from_secs(3600);
        let (first, second) = (pins.pin(5, long), pins.pin(5, long));
        assert!(pins.is_pinned_before(6) && !pins.is_pinned_before(5));
        drop(first);
        assert!(pins.is_pinned_before(6) && !second.is_expired());
        drop(second);
        assert!(!pins.is_pinned_before(6));
        let expired = pins.pin(5, Duration::ZERO);
        assert!(expired.is_expired() && !pins.is_pinned_before(6));
    }
}
