//! Random batches in segments of a few frames each, with random restarts, compared with a storage in memory.

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, SnapshotMeta, Term,
};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::{MemLogStorage, log_storage::workload::Content};
use proptest::prelude::*;

/// One random batch. Positions are relative to the log at that time, so that every step is possible.
#[derive(Clone, Debug)]
struct Step {
    /// Lengths of the appended commands in bytes.
    entries: Vec<usize>,
    new_term: bool,
    vote: bool,
    /// Replaces the first command by a configuration.
    membership: bool,
    truncate: Option<prop::sample::Index>,
    purge: Option<prop::sample::Index>,
    /// Installs a snapshot beyond the end of the log.
    install: bool,
    /// Opens the log again after the batch.
    reopen: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 0..300_usize, 1 => 3000..9000_usize];
    let often = |weight: f64| prop::bool::weighted(weight);
    let position = |weight| prop::option::weighted(weight, any::<prop::sample::Index>());
    (
        prop::collection::vec(length, 0..5),
        (often(0.2), often(0.2), often(0.2)),
        position(0.2),
        position(0.2),
        (often(0.03), often(0.2)),
    )
        .prop_map(|(entries, (new_term, vote, membership), truncate, purge, (install, reopen))| Step {
            entries,
            new_term,
            vote,
            membership,
            truncate,
            purge,
            install,
            reopen,
        })
}

fn batch(step: &Step, model: &MemLogStorage, number: u64) -> LogBatch {
    let state = model.load().unwrap();
    let (purged, mut last, mut batch) = (state.purged.last, state.last(), LogBatch::default());
    let membership = Membership::of_voters([number]);
    let at = |index: &prop::sample::Index, from: u64| {
        from + index.index((last.index.0 - from + 1) as usize) as u64
    };
    let id_at = |index: u64| {
        let entry = index.checked_sub(purged.index.0 + 1).map(|n| state.entries[n as usize].0);
        entry.unwrap_or(purged)
    };
    let mut begin = purged;
    if let Some(purge) = &step.purge {
        begin = id_at(at(purge, purged.index.0));
        batch.purge = Some(SnapshotMeta { last: begin, membership: membership.clone() });
    }
    if let Some(truncate) = &step.truncate {
        let cut = id_at(at(truncate, begin.index.0));
        batch.truncate_after = Some(cut.index);
        last = cut;
    }
    if step.install {
        last = LogId { term: last.term, index: LogIndex(last.index.0 + 7) };
        batch.purge = Some(SnapshotMeta { last, membership: membership.clone() });
        batch.truncate_after = Some(last.index);
    }
    let term = Term(last.term.0.max(1) + u64::from(step.new_term));
    for length in &step.entries {
        last = LogId { term, index: last.index.next() };
        batch.entries.push(Entry::command(last, vec![number as u8; *length]));
    }
    if step.membership
        && let Some(entry) = batch.entries.first_mut()
    {
        entry.payload = Payload::Membership(membership);
    }
    let hard_state = HardState { term: Term(number), voted_for: Some(NodeId(1)), ..HardState::default() };
    batch.hard_state = step.vote.then_some(hard_state);
    batch
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 500, ..ProptestConfig::default() })]
    #[test]
    fn random_batches_have_the_effect_of_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let open = || WalLogStorage::open_with_segment_bytes(dir.path(), NodeId(1), 0).unwrap();
        let (model, mut storage) = (MemLogStorage::new(), open());
        for (step, number) in steps.iter().zip(1..) {
            let batch = batch(step, &model, number);
            model.write(batch.clone()).unwrap();
            storage.write(batch).unwrap();
            if step.reopen {
                drop(storage);
                storage = open();
            }
            let state = model.load().unwrap();
            let (after, last) = (state.purged.last.index, state.last().index);
            for bound in [0, 500, 5000] {
                if after < last {
                    let expected = model.read(after, last, bound).unwrap();
                    prop_assert_eq!(storage.read(after, last, bound).unwrap(), expected);
                }
            }
            prop_assert_eq!(Content::of(&storage), Content::of(&model), "batch {}", number);
        }
        drop(storage);
        prop_assert_eq!(Content::of(&open()), Content::of(&model), "at the end");
    }
}
