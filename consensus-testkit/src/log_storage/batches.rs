//! The effect of one batch, and reads after it.

use consensus_core::{
    ClusterId, Entry, HardState, LogBatch, LogId, LogIndex, LogState, LogStorage, Membership, NodeId,
    Payload, SnapshotMeta, StorageError, StorageId, Term,
};

use super::{Place, append, command, load};

pub(super) fn empty<S: LogStorage>(place: &Place<'_, S>) {
    assert_eq!(load(&place.open()), LogState::default());
    assert_eq!(load(&place.open()), LogState::default(), "opened again");
}

pub(super) fn identity<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    let identity = storage.load().unwrap().storage;
    storage.write(append([command(1, 1)])).unwrap();
    drop(storage);
    assert_eq!(place.open().load().unwrap().storage, identity, "opened again");
    let other = (place.open_other)().load().unwrap().storage;
    assert!(identity != other || identity == StorageId::default(), "two storages with identity {identity:?}");
}

pub(super) fn durable<S: LogStorage>(place: &Place<'_, S>) {
    let membership = Membership::of_voters([1, 2, 3]);
    let installing = Some(SnapshotMeta { last: LogId::new(3, 40), membership: membership.clone() });
    let hard_state = HardState {
        term: Term(4),
        voted_for: Some(NodeId(2)),
        installing,
        lost_through: Some(LogId::new(3, 9)),
        joining: Some(LogIndex(7)),
        cluster: ClusterId(11),
    };
    let entry = |index, payload| Entry { id: LogId::new(3, index), payload };
    let entries = vec![
        command(1, 1),
        entry(2, Payload::Membership(membership.clone())),
        entry(3, Payload::Blank),
        entry(4, Payload::Withheld),
        entry(5, Payload::Command(Vec::new().into())),
        entry(6, Payload::Command(vec![0xff; 100_000].into())),
    ];
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
    assert_eq!(storage.read(LogIndex(0), LogIndex(6), u64::MAX).unwrap(), entries);
}

pub(super) fn hard_state_stays<S: LogStorage>(place: &Place<'_, S>) {
    let hard_state = HardState { term: Term(2), voted_for: Some(NodeId(1)), ..HardState::default() };
    let storage = place.open();
    storage.write(LogBatch { hard_state: Some(hard_state.clone()), ..LogBatch::default() }).unwrap();
    storage.write(append([command(2, 1)])).unwrap();
    drop(storage);
    assert_eq!(load(&place.open()).hard_state, hard_state);
}

pub(super) fn replace_tail<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    storage.write(append((1..=5).map(|i| command(1, i)))).unwrap();
    let replace = LogBatch { truncate_after: Some(LogIndex(2)), ..append([command(2, 3)]) };
    storage.write(replace).unwrap();
    drop(storage);
    let storage = place.open();
    assert_eq!(load(&storage).last(), LogId::new(2, 3));
    assert_eq!(storage.read(LogIndex(1), LogIndex(3), u64::MAX).unwrap(), [command(1, 2), command(2, 3)]);
}

pub(super) fn truncate_beyond<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    storage.write(append((1..=3).map(|i| command(1, i)))).unwrap();
    storage.write(LogBatch { truncate_after: Some(LogIndex(7)), ..append([command(1, 4)]) }).unwrap();
    drop(storage);
    assert_eq!(load(&place.open()).entries.len(), 4);
}

pub(super) fn purge<S: LogStorage>(place: &Place<'_, S>) {
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

pub(super) fn purge_beyond<S: LogStorage>(place: &Place<'_, S>) {
    let meta = SnapshotMeta { last: LogId::new(4, 9), membership: Membership::of_voters([1]) };
    let storage = place.open();
    storage.write(append((1..=5).map(|i| command(1, i)))).unwrap();
    let purge = Some(meta.clone());
    storage.write(LogBatch { purge, truncate_after: Some(LogIndex(9)), ..append([command(4, 10)]) }).unwrap();
    drop(storage);
    let state = load(&place.open());
    assert_eq!((state.purged.clone(), state.last(), state.entries.len()), (meta, LogId::new(4, 10), 1));
}

/// The log starts after the purged position, so that position cannot move back: the earlier entries are removed. A storage
/// may treat such a purge as misuse or ignore it; engines never request it.
pub(super) fn purge_below<S: LogStorage>(place: &Place<'_, S>) {
    let meta =
        |index| SnapshotMeta { last: LogId::new(1, index), membership: Membership::of_voters([index]) };
    let storage = place.open();
    storage.write(LogBatch { purge: Some(meta(4)), ..append((5..=6).map(|i| command(1, i))) }).unwrap();
    storage.write(LogBatch { truncate_after: Some(LogIndex(2)), ..append([command(2, 5)]) }).unwrap();
    let below = storage.write(LogBatch { purge: Some(meta(2)), ..LogBatch::default() });
    assert!(matches!(below, Ok(()) | Err(StorageError::Misuse(_))), "{below:?}");
    drop(storage);
    let state = load(&place.open());
    assert_eq!((state.purged.clone(), state.last(), state.entries.len()), (meta(4), LogId::new(2, 5), 1));
}

pub(super) fn bounded_reads<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    storage.write(append((1..=4).map(|i| command(1, i)))).unwrap();
    let one = command(1, 1).size_bytes();
    let read = |max_bytes| storage.read(LogIndex(0), LogIndex(4), max_bytes).unwrap().len();
    assert_eq!((read(0), read(one), read(2 * one), read(3 * one - 1), read(u64::MAX)), (1, 1, 2, 2, 4));
    assert_eq!(storage.read(LogIndex(4), LogIndex(4), u64::MAX).unwrap(), []);
}

pub(super) fn read_beyond<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    let meta = SnapshotMeta { last: LogId::new(1, 2), membership: Membership::of_voters([1]) };
    storage.write(LogBatch { purge: Some(meta), ..append((3..=4).map(|i| command(1, i))) }).unwrap();
    assert_eq!(storage.read(LogIndex(3), LogIndex(9), u64::MAX).unwrap(), [command(1, 4)]);
    let missing = storage.read(LogIndex(4), LogIndex(9), u64::MAX);
    let Err(StorageError::Missing { index, purged, last }) = missing else { panic!("{missing:?}") };
    assert_eq!((index, purged, last), (LogIndex(5), LogIndex(2), LogIndex(4)));
}

pub(super) fn gap<S: LogStorage>(place: &Place<'_, S>) {
    let wrong = [vec![command(1, 3)], vec![command(1, 1)], vec![command(1, 2), command(1, 4)]];
    let first = place.open();
    first.write(append([command(1, 1)])).unwrap();
    drop(first);
    for entries in wrong {
        // Opened again for each case, because an engine does not continue after misuse.
        let storage = place.open();
        let hard_state = Some(HardState { term: Term(9), ..HardState::default() });
        let indexes: Vec<_> = entries.iter().map(|entry| entry.id.index.0).collect();
        let refused = storage.write(LogBatch { hard_state, ..append(entries) });
        assert!(matches!(refused, Err(StorageError::Misuse(_))), "entries {indexes:?} after 1: {refused:?}");
        drop(storage);
        let state = load(&place.open());
        assert_eq!((state.last(), state.hard_state.term), (LogId::new(1, 1), Term(0)), "entries {indexes:?}");
    }
}
