//! Which version of a key is the newest, in memory, of the keys written last. A put has to know it, and so has a read: it
//! then gets that one version from RocksDB, where a search for it would look through every table.
//!
//! A cache of what RocksDB holds, never of the batch in hand: an operation that is rejected half-way leaves nothing here. It
//! says of a key what RocksDB would say, or nothing; so no answer depends on it, nor on its size, which nodes need not share.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What a put has to know of the newest version of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) create_revision: u64,
    /// 0: the key is deleted.
    pub(crate) version: u64,
    pub(crate) lease_id: i64,
}

impl Counts {
    pub(crate) const DELETED: Self = Self { create_revision: 0, version: 0, lease_id: 0 };
}

/// A newest version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Newest {
    pub(crate) revision: u64,
    pub(crate) counts: Counts,
}

/// The newest versions of the keys written last, as far as there is room. A key has its place in one set of slots, in that
/// of the key written longest ago, whose memory it takes over: nothing is moved, and little allocated.
#[derive(Debug)]
pub(crate) struct Recent {
    /// Each for a part of the keys, so that readers and the writer seldom meet. Empty before the first write.
    shards: [Mutex<Vec<Slot>>; SHARDS],
    /// Sets in a shard.
    sets: usize,
    hasher: RandomState,
}

#[derive(Clone, Debug)]
struct Slot {
    hash: u64,
    /// Empty: the slot is.
    prefix: Vec<u8>,
    newest: Newest,
}

impl Recent {
    /// For `slots_max` keys, rounded down to whole sets of each shard.
    pub(crate) fn new(slots_max: usize) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, sets: slots_max / (SHARDS * SET_LEN), hasher: RandomState::new() }
    }

    /// Of the key whose places begin with `prefix`.
    pub(crate) fn get(&self, prefix: &[u8]) -> Option<Newest> {
        let hash = self.hasher.hash_one(prefix);
        let slots = self.shard(hash);
        let set = slots.get(self.set(hash)?..)?.first_chunk::<SET_LEN>()?;
        set.iter().find(|slot| slot.is_of(hash, prefix)).map(|slot| slot.newest)
    }

    /// Notes what was written, unless something newer is known.
    pub(crate) fn note(&self, prefix: &[u8], newest: Newest) {
        let hash = self.hasher.hash_one(prefix);
        let Some(set) = self.set(hash) else { return };
        let mut slots = self.shard(hash);
        if slots.is_empty() {
            slots.resize(self.sets * SET_LEN, Slot::EMPTY);
        }
        let set = &mut slots[set..set + SET_LEN];
        if let Some(known) = set.iter_mut().find(|slot| slot.is_of(hash, prefix)) {
            if known.newest.revision < newest.revision {
                known.newest = newest;
            }
        } else if prefix.len() <= PREFIX_BYTES_MAX
            && let Some(oldest) = set.iter_mut().min_by_key(|slot| slot.newest.revision)
        {
            oldest.prefix.clear();
            oldest.prefix.extend_from_slice(prefix);
            (oldest.hash, oldest.newest) = (hash, newest);
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Vec<Slot>> {
        self.shards[hash as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where in its shard a set begins.
    fn set(&self, hash: u64) -> Option<usize> {
        Some((hash as usize / SHARDS).checked_rem(self.sets)? * SET_LEN)
    }
}

impl Slot {
    const EMPTY: Self =
        Self { hash: 0, prefix: Vec::new(), newest: Newest { revision: 0, counts: Counts::DELETED } };

    fn is_of(&self, hash: u64, prefix: &[u8]) -> bool {
        self.hash == hash && self.prefix == prefix
    }
}

const SHARDS: usize = 16;
/// Slots that a key can be in.
const SET_LEN: usize = 4;
/// Longer keys are looked up.
const PREFIX_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: u64) -> Newest {
        Newest { revision, counts: Counts { create_revision: 7, version: revision, lease_id: 0 } }
    }

    #[test]
    fn the_newest_versions_are_kept_and_the_oldest_keys_go() {
        let recent = Recent::new(SHARDS * SET_LEN);
        assert_eq!(recent.get(b"a"), None);
        recent.note(b"a", at(2));
        recent.note(b"a", at(1));
        assert_eq!(recent.get(b"a"), Some(at(2)));
        let keys: Vec<_> = (3..1000).map(|revision| (revision, format!("key {revision}"))).collect();
        for (revision, key) in &keys {
            recent.note(key.as_bytes(), at(*revision));
        }
        assert_eq!(recent.get(b"a"), None);
        let kept: Vec<_> = keys.iter().filter_map(|(_, key)| recent.get(key.as_bytes())).collect();
        assert_eq!(kept.len(), SHARDS * SET_LEN);
        assert!(kept.iter().all(|newest| newest.revision > 500));
        assert!(kept.contains(&at(999)));
    }

    #[test]
    fn without_room_and_of_long_keys_nothing_is_kept() {
        let none = Recent::new(SHARDS * SET_LEN - 1);
        none.note(b"a", at(1));
        assert_eq!(none.get(b"a"), None);
        let (some, long) = (Recent::new(SHARDS * SET_LEN), [0; PREFIX_BYTES_MAX + 1]);
        some.note(&long, at(1));
        assert_eq!(some.get(&long), None);
    }
}
