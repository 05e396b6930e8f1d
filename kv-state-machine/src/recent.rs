//! In-memory cache of the newest versions of recently written keys. A put needs the newest version of its key, and so
//! does a read: it can then get that version from RocksDB, instead of searching every table for it.
//!
//! The cache contains only versions that are in RocksDB, never those of a batch in progress, so a rejected operation
//! leaves nothing here. It returns what RocksDB would return, or nothing. So responses do not depend on the cache or
//! its size, which may differ between nodes.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Data about the newest version of a key that a put needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) create_revision: u64,
    /// Number of writes since the key was created; 0 if the key is deleted.
    pub(crate) version: u64,
    pub(crate) lease_id: i64,
}

impl Counts {
    pub(crate) const DELETED: Self = Self { create_revision: 0, version: 0, lease_id: 0 };
}

/// The newest version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Newest {
    pub(crate) revision: u64,
    pub(crate) counts: Counts,
}

/// Cache of the newest versions of recently written keys. Each key belongs to one set of slots. A new key replaces the
/// key of its set that was written longest ago and reuses its memory: nothing is moved, and little is allocated.
#[derive(Debug)]
pub(crate) struct VersionCache {
    /// Each shard has a part of the keys, so that readers and the writer seldom contend. Empty before the first write.
    shards: [Mutex<Vec<Slot>>; SHARDS],
    /// Number of sets in a shard.
    sets: usize,
    hasher: RandomState,
}

#[derive(Clone, Debug)]
struct Slot {
    hash: u64,
    /// Prefix of the key's places; empty if the slot is unused.
    prefix: Vec<u8>,
    newest: Newest,
}

impl VersionCache {
    /// Creates a cache for `slots_max` keys, rounded down to whole sets of each shard.
    pub(crate) fn new(slots_max: usize) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, sets: slots_max / (SHARDS * SET_LEN), hasher: RandomState::new() }
    }

    /// Newest version of the key whose places start with `prefix`.
    pub(crate) fn get(&self, prefix: &[u8]) -> Option<Newest> {
        let hash = self.hasher.hash_one(prefix);
        let slots = self.shard(hash);
        let set = slots.get(self.set(hash)?..)?.first_chunk::<SET_LEN>()?;
        set.iter().find(|slot| slot.is_of(hash, prefix)).map(|slot| slot.newest)
    }

    /// Records a written version, unless a newer one is known.
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

    /// Records a deletion, if an older version of the key is known.
    pub(crate) fn note_deletion(&self, prefix: &[u8], revision: u64) {
        let hash = self.hasher.hash_one(prefix);
        let Some(set) = self.set(hash) else { return };
        let mut slots = self.shard(hash);
        let set = slots.get_mut(set..set + SET_LEN).unwrap_or_default();
        if let Some(known) = set.iter_mut().find(|slot| slot.is_of(hash, prefix))
            && known.newest.revision < revision
        {
            known.newest = Newest { revision, counts: Counts::DELETED };
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Vec<Slot>> {
        self.shards[hash as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Index of the first slot of a set in its shard.
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
/// Number of slots in a set.
const SET_LEN: usize = 4;
/// Maximum length of a cached prefix in bytes; longer keys are not cached.
const PREFIX_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: u64) -> Newest {
        Newest { revision, counts: Counts { create_revision: 7, version: revision, lease_id: 0 } }
    }

    #[test]
    fn full_cache_keeps_newest_versions_and_evicts_oldest_keys() {
        let recent = VersionCache::new(SHARDS * SET_LEN);
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
    fn long_keys_and_caches_without_slots_keep_nothing() {
        let none = VersionCache::new(SHARDS * SET_LEN - 1);
        none.note(b"a", at(1));
        assert_eq!(none.get(b"a"), None);
        let (some, long) = (VersionCache::new(SHARDS * SET_LEN), [0; PREFIX_BYTES_MAX + 1]);
        some.note(&long, at(1));
        assert_eq!(some.get(&long), None);
    }
}
