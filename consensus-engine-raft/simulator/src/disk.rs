//! A simulated disk that can lose writes, fail and become full: a [`LogStorage`] whose records can be damaged one by one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use consensus_core::{
    Damage, Entry, HardState, LogBatch, LogId, LogIndex, LogState, LogStorage, Payload, SnapshotMeta,
    StorageError, StorageId, record,
};

/// A log storage in memory that outlives its node. Entries are stored as records like those of real storages, each in its own
/// slot, and can be damaged there.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<Slots>>);

/// Content of the disk.
#[derive(Clone, Debug, Default)]
struct Slots {
    storage: StorageId,
    hard: HardState,
    purged: SnapshotMeta,
    records: BTreeMap<u64, Slot>,
    /// Last entry, recorded separately.
    last: LogId,
    fails: bool,
    is_full: bool,
}

#[derive(Clone, Debug)]
struct Slot {
    /// Entry that belongs here; `None` once it is damaged.
    sound: Option<LogId>,
    record: Bytes,
}

/// Damage to the record of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordDamage {
    /// A bit is flipped.
    Flip,
    /// The record was never written, although the disk acknowledged it.
    Lost,
    /// Another record was written in its place.
    Misdirected,
}

impl SimDisk {
    /// Creates an empty disk with this identity.
    #[must_use]
    pub fn new(storage: StorageId) -> Self {
        Self(Arc::new(Mutex::new(Slots { storage, ..Slots::default() })))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a copy of the present content.
    #[must_use]
    pub fn image(&self) -> Self {
        Self(Arc::new(Mutex::new(self.slots().clone())))
    }

    /// Identity of the disk.
    #[must_use]
    pub fn storage(&self) -> StorageId {
        self.slots().storage
    }

    /// Hard state on the disk.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.slots().hard.clone()
    }

    /// Whether nothing was ever written.
    #[must_use]
    pub fn is_new(&self) -> bool {
        let slots = self.slots();
        slots.records.is_empty() && slots.purged.last == LogId::ZERO && slots.hard == HardState::default()
    }

    /// Whether the log has more than a first configuration.
    #[must_use]
    pub fn has_history(&self) -> bool {
        let slots = self.slots();
        slots.last.index > LogIndex(1) || slots.hard.term > consensus_core::Term::ZERO
    }

    /// Last entry of the log.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.slots().last
    }

    /// Whether the entry is intact on the disk, or was purged.
    #[must_use]
    pub fn holds(&self, id: LogId) -> bool {
        let slots = self.slots();
        id.index <= slots.purged.last.index
            || slots.records.get(&id.index.0).is_some_and(|slot| slot.sound == Some(id))
    }

    /// Makes every write fail completely from now on, or succeed again.
    pub fn fail(&self, fails: bool) {
        self.slots().fails = fails;
    }

    /// Makes the disk full for entries from now on, or frees it again.
    pub fn fill(&self, is_full: bool) {
        self.slots().is_full = is_full;
    }

    /// Indices of the entries on the disk.
    #[must_use]
    pub fn indices(&self) -> Vec<u64> {
        self.slots().records.keys().copied().collect()
    }

    /// Damages the record at `index`.
    pub fn damage(&self, index: u64, damage: RecordDamage, random: u64) {
        let mut slots = self.slots();
        let other = slots.records.range(..index).next_back().map(|(_, slot)| slot.record.clone());
        // Damaging a record twice could restore it.
        let Some(slot) = slots.records.get_mut(&index).filter(|slot| slot.sound.is_some()) else { return };
        slot.sound = None;
        let mut bytes = slot.record.to_vec();
        match damage {
            RecordDamage::Lost => {
                slots.records.remove(&index);
                return;
            }
            RecordDamage::Misdirected if other.is_some() => bytes = other.unwrap_or_default().to_vec(),
            RecordDamage::Flip | RecordDamage::Misdirected => {
                let at = random as usize % bytes.len();
                bytes[at] ^= 1 << (random >> 60 & 7);
            }
        }
        slot.record = bytes.into();
    }
}

impl LogStorage for SimDisk {
    fn load(&self) -> Result<LogState, StorageError> {
        let slots = self.slots();
        let mut state = LogState {
            storage: slots.storage,
            hard_state: slots.hard.clone(),
            purged: slots.purged.clone(),
            ..LogState::default()
        };
        for (index, slot) in &slots.records {
            let position = || format!("the record of log index {index}");
            let entry = record::decode(&slot.record).map_err(|error| error.to_string());
            let followed = entry.and_then(|entry| state.push(&entry).map_err(|error| error.to_string()));
            let Err(why) = followed else { continue };
            let later =
                slots.records.range(index..).filter_map(|(_, slot)| record::decode(&slot.record).ok());
            let memberships = later.filter_map(|entry| match entry.payload {
                Payload::Membership(membership) => Some(membership),
                _ => None,
            });
            let memberships = memberships.collect();
            state.damage = Some(Damage { last: slots.last, memberships, position: position(), why });
            break;
        }
        Ok(state)
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        let mut slots = self.slots();
        if slots.fails {
            return Err(StorageError::Failed("the simulation makes the disk fail".to_owned()));
        }
        if slots.is_full && batch.must_leave_reserve() {
            let why = "the simulation filled the disk".to_owned();
            return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
        }
        if let Some(meta) = batch.purge {
            slots.records = slots.records.split_off(&(meta.last.index.0 + 1));
            slots.last = if slots.records.is_empty() { meta.last } else { slots.last };
            slots.purged = meta;
        }
        if let Some(after) = batch.truncate_after {
            slots.records.split_off(&(after.0 + 1));
            let end = slots.records.values().next_back().and_then(|slot| slot.sound);
            slots.last = end.unwrap_or(slots.purged.last);
        }
        let mut buffer = Vec::new();
        for entry in &batch.entries {
            record::encode(entry, &mut buffer);
            let record = Bytes::copy_from_slice(&buffer);
            buffer.clear();
            slots.last = entry.id;
            slots.records.insert(entry.id.index.0, Slot { sound: Some(entry.id), record });
        }
        if let Some(hard) = batch.hard_state {
            let old = &slots.hard;
            assert!(
                hard.term >= old.term,
                "I7: the durable term decreased from {} to {}",
                old.term,
                hard.term
            );
            let another = old.voted_for.is_some() && hard.voted_for != old.voted_for;
            assert!(hard.term > old.term || !another, "I1: a second vote in term {}", hard.term);
            slots.hard = hard;
        }
        Ok(())
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let slots = self.slots();
        let (mut found, mut bytes) = (Vec::new(), 0);
        if after >= last {
            return Ok(found);
        }
        for (_, slot) in slots.records.range(after.0 + 1..=last.0) {
            let corrupt = |why| StorageError::Corrupt { position: "a record".to_owned(), why };
            let entry = record::decode(&slot.record).map_err(|error| corrupt(error.to_string()))?;
            bytes += entry.size_bytes();
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }
}
