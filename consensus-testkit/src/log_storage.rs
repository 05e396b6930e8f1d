//! Conformance of a [`LogStorage`].

use std::collections::BTreeMap;

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogState, LogStorage, Membership, NodeId, Payload,
    SnapshotMeta, StorageError, StorageId, Term,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Checks an implementation: `new` makes an empty place (a directory), `open` opens it, again and again, each time after
/// the previous storage was dropped.
///
/// # Panics
/// A rule is broken; the message says which.
pub fn run_suite<P, S: LogStorage>(new: impl Fn() -> P, open: impl Fn(&P) -> S) {
    let cases: [(&str, fn(&Place<'_, S>)); 7] = [
        ("an empty storage loads as the default", empty),
        ("what a write returned Ok for is there after reopening", durable),
        ("truncation and append in one batch replace the tail", replace_tail),
        ("purged entries are missing, and the configuration there is kept", purge),
        ("a purge beyond the last entry starts the log anew", purge_beyond),
        ("reads are bounded in bytes, but give one entry at least", bounded_reads),
        ("a gap is refused and changes nothing", gap),
    ];
    for (rule, case) in cases {
        let place = new();
        announce(rule);
        case(&Place(&|| open(&place)));
    }
    for seed in 0..20 {
        let place = new();
        announce(&format!("any sequence of batches acts like the model, seed {seed}"));
        random_batches(&Place(&|| open(&place)), seed);
    }
}

/// Shown by the test runner when the rule's assertion fails.
fn announce(rule: &str) {
    println!("log storage: {rule}");
}

struct Place<'a, S>(&'a dyn Fn() -> S);

impl<S> Place<'_, S> {
    fn open(&self) -> S {
        (self.0)()
    }
}

/// What is there, but for the storage's own identity.
fn load(storage: &impl LogStorage) -> LogState {
    LogState { storage: StorageId::default(), ..storage.load().unwrap() }
}

fn command(term: u64, index: u64) -> Entry {
    Entry::command(LogId::new(term, index), format!("command {term}.{index}"))
}

fn append(entries: impl IntoIterator<Item = Entry>) -> LogBatch {
    LogBatch { entries: entries.into_iter().collect(), ..LogBatch::default() }
}

fn empty<S: LogStorage>(place: &Place<'_, S>) {
    assert_eq!(load(&place.open()), LogState::default());
    assert_eq!(load(&place.open()), LogState::default(), "opened again");
}

fn durable<S: LogStorage>(place: &Place<'_, S>) {
    let membership = Membership::of_voters([1, 2, 3]);
    let hard_state = HardState { term: Term(4), voted_for: Some(NodeId(2)), ..HardState::default() };
    let change = Entry { id: LogId::new(3, 2), payload: Payload::Membership(membership.clone()) };
    let blank = Entry { id: LogId::new(3, 3), payload: Payload::Blank };
    let withheld = Entry { id: LogId::new(3, 4), payload: Payload::Withheld };
    let entries = vec![command(1, 1), change, blank, withheld];
    let storage = place.open();
    let batch =
        LogBatch { hard_state: Some(hard_state.clone()), entries: entries.clone(), ..LogBatch::default() };
    storage.write(batch).unwrap();
    drop(storage);
    let storage = place.open();
    let state = load(&storage);
    assert_eq!(state.hard_state, hard_state);
    assert_eq!(state.memberships, [(LogIndex(2), membership)]);
    let ids: Vec<_> = entries.iter().map(|entry| (entry.id, entry.size_bytes())).collect();
    assert_eq!(state.entries, ids);
    assert_eq!(storage.read(LogIndex(0), LogIndex(4), u64::MAX).unwrap(), entries);
}

fn replace_tail<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    storage.write(append((1..=5).map(|i| command(1, i)))).unwrap();
    let replace = LogBatch { truncate_after: Some(LogIndex(2)), ..append([command(2, 3)]) };
    storage.write(replace).unwrap();
    drop(storage);
    let storage = place.open();
    assert_eq!(load(&storage).last(), LogId::new(2, 3));
    assert_eq!(storage.read(LogIndex(1), LogIndex(3), u64::MAX).unwrap(), [command(1, 2), command(2, 3)]);
}

fn purge<S: LogStorage>(place: &Place<'_, S>) {
    let meta = SnapshotMeta { last: LogId::new(1, 3), membership: Membership::of_voters([7]) };
    let storage = place.open();
    storage.write(append((1..=5).map(|i| command(1, i)))).unwrap();
    storage.write(LogBatch { purge: Some(meta.clone()), ..LogBatch::default() }).unwrap();
    drop(storage);
    let storage = place.open();
    let state = load(&storage);
    assert_eq!((state.purged, state.entries.len()), (meta, 2));
    let missing = storage.read(LogIndex(2), LogIndex(5), u64::MAX);
    assert!(matches!(missing, Err(StorageError::Missing { index: LogIndex(3), .. })), "{missing:?}");
    assert_eq!(storage.read(LogIndex(3), LogIndex(5), u64::MAX).unwrap(), [command(1, 4), command(1, 5)]);
}

fn purge_beyond<S: LogStorage>(place: &Place<'_, S>) {
    let meta = SnapshotMeta { last: LogId::new(4, 9), membership: Membership::of_voters([1]) };
    let storage = place.open();
    storage.write(append((1..=5).map(|i| command(1, i)))).unwrap();
    let purge = Some(meta.clone());
    storage.write(LogBatch { purge, truncate_after: Some(LogIndex(9)), ..append([command(4, 10)]) }).unwrap();
    drop(storage);
    let state = load(&place.open());
    assert_eq!((state.purged.clone(), state.last(), state.entries.len()), (meta, LogId::new(4, 10), 1));
}

fn bounded_reads<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    storage.write(append((1..=4).map(|i| command(1, i)))).unwrap();
    let one = command(1, 1).size_bytes();
    let read = |max_bytes| storage.read(LogIndex(0), LogIndex(4), max_bytes).unwrap().len();
    assert_eq!((read(0), read(one), read(2 * one), read(3 * one - 1), read(u64::MAX)), (1, 1, 2, 2, 4));
    assert_eq!(storage.read(LogIndex(4), LogIndex(4), u64::MAX).unwrap(), []);
}

fn gap<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    storage.write(append([command(1, 1)])).unwrap();
    let hard_state = Some(HardState { term: Term(9), ..HardState::default() });
    let refused = storage.write(LogBatch { hard_state, ..append([command(1, 3)]) });
    assert!(matches!(refused, Err(StorageError::Misuse(_))), "{refused:?}");
    drop(storage);
    let state = load(&place.open());
    assert_eq!((state.last(), state.hard_state.term), (LogId::new(1, 1), Term(0)));
}

/// What a storage is, without a disk.
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
}

fn random_batches<S: LogStorage>(place: &Place<'_, S>, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut model, mut storage) = (Model::default(), place.open());
    for _ in 0..40 {
        let batch = random_batch(&mut random, &model);
        storage.write(batch.clone()).unwrap();
        model.write(batch);
        if random.random_bool(0.2) {
            drop(storage);
            storage = place.open();
        }
        let state = load(&storage);
        let ids: Vec<_> = model.entries.values().map(|entry| (entry.id, entry.size_bytes())).collect();
        assert_eq!((&state.hard_state, &state.purged), (&model.hard_state, &model.purged));
        assert_eq!(state.entries, ids);
        let all: Vec<_> = model.entries.values().cloned().collect();
        assert_eq!(storage.read(state.purged.last.index, state.last().index, u64::MAX).unwrap(), all);
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
    batch
}
