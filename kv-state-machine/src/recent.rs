//! What was written last, in memory: a put has to know its key's counts, and to ask RocksDB costs more than all the rest.
//!
//! A cache of what RocksDB holds, never of the batch in hand: an operation that is rejected half-way leaves nothing here. It
//! says of a key what RocksDB would say, or nothing; so no answer depends on it, nor on its size, which nodes need not share.

use std::hash::{BuildHasher, RandomState};

/// What a put has to know of the newest version of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) create_revision: u64,
    /// 0: the key is deleted.
    pub(crate) version: u64,
}

impl Counts {
    pub(crate) const DELETED: Self = Self { create_revision: 0, version: 0 };
}

/// Counts of the keys written last, as far as there is room. A key has its place in one set of slots, in that of the key
/// written longest ago, whose memory it takes over: nothing is moved, and little allocated.
#[derive(Debug)]
pub(crate) struct Recent {
    /// Not there before the first write.
    slots: Vec<Slot>,
    slots_max: usize,
    hasher: RandomState,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    hash: u64,
    /// Empty: the slot is.
    prefix: Vec<u8>,
    revision: u64,
    create_revision: u64,
    version: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Self::new(SLOTS_MAX)
    }
}

impl Recent {
    /// For `slots_max` keys, rounded down to whole sets.
    pub(crate) fn new(slots_max: usize) -> Self {
        Self { slots: Vec::new(), slots_max: slots_max / SET_LEN * SET_LEN, hasher: RandomState::new() }
    }

    /// Of the key whose places begin with `prefix`.
    pub(crate) fn get(&self, prefix: &[u8]) -> Option<Counts> {
        let hash = self.hasher.hash_one(prefix);
        let slots = self.slots.get(self.set(hash)?)?;
        let slot = slots.iter().find(|slot| slot.is_of(hash, prefix))?;
        Some(Counts { create_revision: slot.create_revision, version: slot.version })
    }

    /// Notes what was written at `revision`, unless something newer is known.
    pub(crate) fn set_newest(&mut self, prefix: &[u8], revision: u64, counts: Counts) {
        let hash = self.hasher.hash_one(prefix);
        let Some(set) = self.set(hash) else { return };
        if self.slots.is_empty() {
            self.slots.resize(self.slots_max, Slot::default());
        }
        let set = &mut self.slots[set];
        let known = set.iter().position(|slot| slot.is_of(hash, prefix));
        if known.is_none() && prefix.len() > PREFIX_BYTES_MAX {
            return;
        }
        let oldest = || (0..SET_LEN).min_by_key(|at| set[*at].revision).unwrap_or_default();
        let slot = &mut set[known.unwrap_or_else(oldest)];
        if known.is_some() && slot.revision > revision {
            return;
        }
        if known.is_none() {
            slot.hash = hash;
            slot.prefix.clear();
            slot.prefix.extend_from_slice(prefix);
        }
        (slot.revision, slot.create_revision, slot.version) =
            (revision, counts.create_revision, counts.version);
    }

    /// Forgets all: the store is another.
    pub(crate) fn clear(&mut self) {
        self.slots = Vec::new();
    }

    fn set(&self, hash: u64) -> Option<std::ops::Range<usize>> {
        let set = (hash as usize).checked_rem(self.slots_max / SET_LEN)?;
        Some(set * SET_LEN..(set + 1) * SET_LEN)
    }
}

impl Slot {
    fn is_of(&self, hash: u64, prefix: &[u8]) -> bool {
        self.hash == hash && self.prefix == prefix
    }
}

/// With the longest keys 48 MiB, with keys of 16 bytes 22.
const SLOTS_MAX: usize = 1 << 18;
/// Slots that a key can be in.
const SET_LEN: usize = 4;
/// Longer keys are looked up.
const PREFIX_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(version: u64) -> Counts {
        Counts { create_revision: 7, version }
    }

    #[test]
    fn the_newest_counts_are_kept_and_the_oldest_keys_go() {
        let mut recent = Recent::new(SET_LEN);
        assert_eq!(recent.get(b"a"), None);
        recent.set_newest(b"a", 2, counts(2));
        recent.set_newest(b"a", 1, counts(1));
        assert_eq!(recent.get(b"a"), Some(counts(2)));
        for (revision, key) in (3..).zip([b"b", b"c", b"d", b"e"]) {
            recent.set_newest(key, revision, Counts::DELETED);
        }
        assert_eq!(recent.get(b"a"), None);
        assert_eq!(recent.get(b"b"), Some(Counts::DELETED));
        recent.clear();
        assert_eq!(recent.get(b"b"), None);
    }

    #[test]
    fn without_room_and_of_long_keys_nothing_is_kept() {
        let mut none = Recent::new(SET_LEN - 1);
        none.set_newest(b"a", 1, counts(1));
        assert_eq!(none.get(b"a"), None);
        let (mut some, long) = (Recent::new(SET_LEN), [0; PREFIX_BYTES_MAX + 1]);
        some.set_newest(&long, 1, counts(1));
        assert_eq!(some.get(&long), None);
    }
}
