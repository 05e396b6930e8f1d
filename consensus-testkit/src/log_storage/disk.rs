//! Behaviour of a storage on a failing or full disk.

use consensus_core::{
    HardState, LogBatch, LogId, LogStorage, Membership, NodeId, SnapshotMeta, StorageError, Term,
};

use super::{append, command, load};
use crate::{MemLogStorage, rule};

/// Checks an implementation on a failing disk. `fail` makes all writes to the disk of a place fail (`true`) or succeed again
/// (`false`), also while a storage is open there.
///
/// # Panics
/// A rule is broken; the message names it.
pub fn run_failing_disk_suite<P, S: LogStorage>(
    new: impl Fn() -> P,
    open: impl Fn(&P) -> S,
    fail: impl Fn(&P, bool),
) {
    run(failing_disk_cases(), new, open, fail);
}

/// Checks an implementation that verifies free space before it writes, on a full disk. `fill` makes the disk of a place too
/// full for entries (`true`) or frees it again (`false`), while no storage is open there.
///
/// # Panics
/// A rule is broken; the message names it.
pub fn run_full_disk_suite<P, S: LogStorage>(
    new: impl Fn() -> P,
    open: impl Fn(&P) -> S,
    fill: impl Fn(&P, bool),
) {
    run(full_disk_cases(), new, open, fill);
}

/// The rules of [`run_failing_disk_suite`].
#[must_use]
pub fn failing_disk_rules() -> Vec<&'static str> {
    failing_disk_cases::<MemLogStorage>().into_iter().map(|(rule, _)| rule).collect()
}

/// The rules of [`run_full_disk_suite`].
#[must_use]
pub fn full_disk_rules() -> Vec<&'static str> {
    full_disk_cases::<MemLogStorage>().into_iter().map(|(rule, _)| rule).collect()
}

type Case<S> = (&'static str, fn(&Disk<'_, S>));

fn failing_disk_cases<S: LogStorage>() -> [Case<S>; 2] {
    [
        (
            "after a failed write every further write is refused, even if the disk works again",
            failure_is_final,
        ),
        ("after reopening, a failed write is present completely or not at all", all_or_nothing),
    ]
}

fn full_disk_cases<S: LogStorage>() -> [Case<S>; 3] {
    [
        ("entries without room are returned, and nothing of their batch is written", no_room),
        ("a purge or a vote is accepted without room", small_batches),
        ("a batch that was refused for lack of room can be written later", room_again),
    ]
}

struct Disk<'a, S> {
    open: &'a dyn Fn() -> S,
    /// `true` makes the disk fail, or full.
    set: &'a dyn Fn(bool),
}

fn run<P, S: LogStorage, const N: usize>(
    cases: [Case<S>; N],
    new: impl Fn() -> P,
    open: impl Fn(&P) -> S,
    set: impl Fn(&P, bool),
) {
    for (rule, case) in cases {
        let place = new();
        let disk = Disk { open: &|| open(&place), set: &|bad| set(&place, bad) };
        rule::check("log storage", rule, || case(&disk));
    }
}

fn vote(term: u64) -> Option<HardState> {
    Some(HardState { term: Term(term), voted_for: Some(NodeId(1)), ..HardState::default() })
}

/// A storage whose second write failed, on a disk that works again.
fn after_failure<S: LogStorage>(disk: &Disk<'_, S>) -> S {
    let storage = (disk.open)();
    storage.write(append([command(1, 1)])).unwrap();
    (disk.set)(true);
    let failed = storage.write(LogBatch { hard_state: vote(2), ..append([command(2, 2)]) });
    let refused = matches!(failed, Ok(()) | Err(StorageError::NoRoom { .. } | StorageError::Misuse(_)));
    assert!(!refused, "a write to a failing disk: {failed:?}");
    (disk.set)(false);
    storage
}

fn failure_is_final<S: LogStorage>(disk: &Disk<'_, S>) {
    let storage = after_failure(disk);
    for _ in 0..2 {
        let again = storage.write(LogBatch { hard_state: vote(3), ..LogBatch::default() });
        assert!(matches!(again, Err(StorageError::Failed(_))), "{again:?}");
    }
}

fn all_or_nothing<S: LogStorage>(disk: &Disk<'_, S>) {
    drop(after_failure(disk));
    let storage = (disk.open)();
    let state = load(&storage);
    let found = (state.last(), state.hard_state.term);
    let (nothing, all) = ((LogId::new(1, 1), Term(0)), (LogId::new(2, 2), Term(2)));
    assert!(found == nothing || found == all, "a part of a batch: {found:?}");
    storage.write(append([command(3, found.0.index.0 + 1)])).unwrap();
}

/// A storage with one entry on a full disk, and a batch that it refused.
fn on_full_disk<S: LogStorage>(disk: &Disk<'_, S>) -> (S, LogBatch) {
    let storage = (disk.open)();
    storage.write(append([command(1, 1)])).unwrap();
    drop(storage);
    (disk.set)(true);
    let storage = (disk.open)();
    let given = LogBatch { hard_state: vote(2), ..append([command(2, 2)]) };
    match storage.write(given.clone()) {
        Err(StorageError::NoRoom { batch, .. }) => assert_eq!(*batch, given, "the returned batch"),
        other => panic!("entries on a full disk: {other:?}"),
    }
    (storage, given)
}

fn no_room<S: LogStorage>(disk: &Disk<'_, S>) {
    let (storage, _) = on_full_disk(disk);
    drop(storage);
    let state = load(&(disk.open)());
    assert_eq!((state.last(), state.hard_state.term), (LogId::new(1, 1), Term(0)));
}

fn small_batches<S: LogStorage>(disk: &Disk<'_, S>) {
    let (storage, _) = on_full_disk(disk);
    storage.write(LogBatch { hard_state: vote(3), ..LogBatch::default() }).expect("a vote is small");
    let meta = SnapshotMeta { last: LogId::new(1, 1), membership: Membership::of_voters([1]) };
    storage.write(LogBatch { purge: Some(meta.clone()), ..LogBatch::default() }).expect("a purge frees room");
    drop(storage);
    let state = load(&(disk.open)());
    assert_eq!((state.purged, state.hard_state.term), (meta, Term(3)));
}

fn room_again<S: LogStorage>(disk: &Disk<'_, S>) {
    let (storage, refused) = on_full_disk(disk);
    let again = storage.write(refused.clone());
    assert!(
        matches!(again, Err(StorageError::NoRoom { .. })),
        "a refusal for lack of room is not final: {again:?}"
    );
    drop(storage);
    (disk.set)(false);
    let storage = (disk.open)();
    storage.write(refused).expect("there is room");
    assert_eq!(load(&storage).last(), LogId::new(2, 2));
}
