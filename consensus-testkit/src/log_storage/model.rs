//! Comparison of a storage with a model of it.

use std::collections::BTreeMap;

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, SnapshotMeta, Term,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{command, load};

/// Model of a storage, without a disk.
#[derive(Default)]
struct Model {
    hard_state: HardState,
    purged: SnapshotMeta,
    entries: BTreeMap<u64, Entry>,
}

impl Model {
    fn last(&self) -> LogId {
        self.entries.values().next_back().map_or(self.purged.last, |entry| entry.id)
    }

    fn write(&mut self, batch: LogBatch) {
        if let Some(meta) = batch.purge {
            self.entries.retain(|index, _| *index > meta.last.index.0);
            self.purged = meta;
        }
        if let Some(after) = batch.truncate_after {
            self.entries.retain(|index, _| *index <= after.0);
        }
        self.entries.extend(batch.entries.into_iter().map(|entry| (entry.id.index.0, entry)));
        self.hard_state = batch.hard_state.unwrap_or_else(|| self.hard_state.clone());
    }

    fn compare(&self, storage: &impl LogStorage, when: &str) {
        let state = load(storage);
        let ids: Vec<_> = self.entries.values().map(|entry| (entry.id, entry.size_bytes())).collect();
        assert_eq!((&state.hard_state, &state.purged), (&self.hard_state, &self.purged), "{when}");
        assert_eq!(state.entries, ids, "{when}");
        let membership = |entry: &Entry| match &entry.payload {
            Payload::Membership(membership) => Some((entry.id.index, membership.clone())),
            _ => None,
        };
        let memberships: Vec<_> = self.entries.values().filter_map(membership).collect();
        assert_eq!(state.memberships, memberships, "{when}");
        let all: Vec<_> = self.entries.values().cloned().collect();
        let read = storage.read(state.purged.last.index, state.last().index, u64::MAX).unwrap();
        assert_eq!(read, all, "{when}");
    }
}

/// Writes random batches that depend on `seed`, and compares the storage with the model after each.
pub(super) fn random_batches<S: LogStorage>(open: &dyn Fn() -> S, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut model, mut storage) = (Model::default(), open());
    for step in 0..40 {
        let batch = random_batch(&mut random, &model);
        storage.write(batch.clone()).unwrap();
        model.write(batch);
        if random.random_bool(0.2) {
            drop(storage);
            storage = open();
        }
        model.compare(&storage, &format!("seed {seed}, batch {step}"));
    }
}

fn random_batch(random: &mut SmallRng, model: &Model) -> LogBatch {
    let (purged, mut last) = (model.purged.last, model.last());
    let mut batch = LogBatch::default();
    if random.random_bool(0.3) {
        let term = Term(model.hard_state.term.0 + 1);
        batch.hard_state = Some(HardState {
            term,
            voted_for: Some(NodeId(random.random_range(0..3))),
            ..HardState::default()
        });
    }
    if random.random_bool(0.2) && last.index > purged.index {
        let index = random.random_range(purged.index.0 + 1..=last.index.0);
        let id = model.entries[&index].id;
        batch.purge = Some(SnapshotMeta { last: id, membership: Membership::of_voters([index]) });
    }
    if random.random_bool(0.3) {
        let from = batch.purge.as_ref().map_or(purged, |meta| meta.last);
        let index = random.random_range(from.index.0..=last.index.0);
        batch.truncate_after = Some(LogIndex(index));
        last = model.entries.get(&index).map_or(from, |entry| entry.id);
    }
    let term = last.term.0 + u64::from(random.random_bool(0.5));
    let count = random.random_range(0..6);
    batch.entries = (1..=count).map(|n| command(term, last.index.0 + n)).collect();
    if let Some(entry) = batch.entries.first_mut().filter(|_| random.random_bool(0.2)) {
        entry.payload = Payload::Membership(Membership::of_voters([entry.id.index.0]));
    }
    batch
}
