//! Whether all keys attached to leases are in a set of keys. A caller needs this permission to use, renew, revoke or see leases.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use bytes::Bytes;
use rocksdb::ReadOptions;

use crate::{
    auth::{Place, RangeSet},
    keys,
    pending_writes::Attachments,
    view::{Failure, View, disk},
};

/// Checks of one batch of commands, or of one request. A check that succeeded is remembered, so that many commands with the same lease
/// and the same set take time in proportion to their number.
#[derive(Debug)]
pub(crate) struct LeaseChecks {
    /// By lease and identity of the set.
    succeeded: RefCell<BTreeMap<(i64, usize), Succeeded>>,
    /// Number of attachments that were looked at.
    steps: Cell<u64>,
    steps_max: u64,
}

/// A check that succeeded.
#[derive(Debug)]
struct Succeeded {
    /// Keeps its identity from being reused.
    _set: RangeSet,
    /// Length of the lease's [`Attachments::log`] at the time. Every attached key that is not in the set is in the log after it.
    log_len: usize,
}

/// Whether keys of a log are in a set, if they are attached.
enum Logged {
    Inside,
    Outside,
    /// The change of a key that is not in the set was undone: it is attached if it is in the store.
    Unknown,
}

impl LeaseChecks {
    /// Checks as part of commands that are applied, which must have the same outcome on all nodes.
    pub(crate) fn unbounded() -> Self {
        Self::with_steps(u64::MAX)
    }

    /// Checks for a request. When it has looked at too many attachments, no check succeeds any more.
    pub(crate) fn bounded() -> Self {
        Self::with_steps(STEPS_MAX)
    }

    fn with_steps(steps_max: u64) -> Self {
        Self { succeeded: RefCell::default(), steps: Cell::new(0), steps_max }
    }

    /// Whether a check did not succeed because it had looked at too many attachments.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.steps.get() > self.steps_max
    }

    /// Counts a step. Returns whether it may be taken.
    fn step(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        !self.is_exhausted()
    }

    /// Whether all keys attached to a lease are in a set. `pending` are the attachments that the batch changed.
    pub(crate) fn are_attached_keys_in(
        &self,
        view: &View<'_>,
        lease: i64,
        set: &RangeSet,
        pending: &Attachments,
    ) -> Result<bool, Failure> {
        let (id, log) = ((lease, set.identity()), pending.log(lease));
        let seen = self.succeeded.borrow().get(&id).map(|succeeded| succeeded.log_len);
        let is_permitted = match seen.map(|seen| self.are_logged_in(&log[seen..], lease, set, pending)) {
            Some(Logged::Inside) => true,
            Some(Logged::Outside) => false,
            Some(Logged::Unknown) | None => {
                self.are_pending_in(lease, set, pending) && self.are_stored_in(view, lease, set, pending)?
            }
        };
        if is_permitted {
            let succeeded = Succeeded { _set: set.clone(), log_len: log.len() };
            self.succeeded.borrow_mut().insert(id, succeeded);
        }
        Ok(is_permitted)
    }

    /// Looks at the keys that became attached since a check that succeeded.
    fn are_logged_in(&self, log: &[Bytes], lease: i64, set: &RangeSet, pending: &Attachments) -> Logged {
        let mut found = Logged::Inside;
        for key in log {
            if !self.step() {
                return Logged::Outside;
            }
            if matches!(set.place_of(key), Place::Outside) {
                match pending.get(lease, key) {
                    Some(true) => return Logged::Outside,
                    Some(false) => {}
                    None => found = Logged::Unknown,
                }
            }
        }
        found
    }

    /// Passes over the keys that are in the set.
    fn are_pending_in(&self, lease: i64, set: &RangeSet, pending: &Attachments) -> bool {
        let mut from = Bytes::new();
        while let Some((key, is_attached)) = pending.first_of(lease, &from) {
            if !self.step() {
                return false;
            }
            from = match set.place_of(key) {
                Place::InsideFromHereOn => return true,
                Place::InsideUpTo(end) => end.clone(),
                Place::Outside if is_attached => return false,
                Place::Outside => [&key[..], &[0]].concat().into(),
            };
        }
        true
    }

    /// Passes over the keys that are in the set without reading them.
    fn are_stored_in(
        &self,
        view: &View<'_>,
        lease: i64,
        set: &RangeSet,
        pending: &Attachments,
    ) -> Result<bool, Failure> {
        let bounds = keys::attached_to(lease);
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_lower_bound(bounds.start.clone());
        read.set_iterate_upper_bound(bounds.end);
        let mut found = view.source.raw(read);
        found.seek(bounds.start);
        while let Some(place) = found.key() {
            if !self.step() {
                return Ok(false);
            }
            let key = keys::attached_key(place);
            match set.place_of(&key) {
                Place::InsideFromHereOn => break,
                Place::InsideUpTo(end) => found.seek(keys::attached(lease, end)),
                Place::Outside => {
                    let is_detached = pending.get(lease, &key) == Some(false);
                    if !is_detached && view.is_attached(lease, &key)? {
                        return Ok(false);
                    }
                    found.next();
                }
            }
        }
        found.status().map_err(disk)?;
        Ok(true)
    }

    /// Whether all keys attached to the leases that count are in a set. Leases without keys take no step.
    pub(crate) fn are_keys_of_all_in(
        &self,
        view: &View<'_>,
        set: &RangeSet,
        counts: impl Fn(i64) -> bool,
    ) -> Result<bool, Failure> {
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_range(keys::ATTACHED.start.to_vec()..keys::ATTACHED.end.to_vec());
        let mut found = view.source.raw(read);
        found.seek_to_first();
        while let Some(place) = found.key() {
            if !self.step() {
                return Ok(false);
            }
            let (lease, key) = (keys::attached_lease(place)?, keys::attached_key(place));
            match set.place_of(&key) {
                Place::InsideFromHereOn => found.seek(keys::after_attached_to(lease)),
                Place::InsideUpTo(end) => found.seek(keys::attached(lease, end)),
                Place::Outside if !counts(lease) => found.seek(keys::after_attached_to(lease)),
                Place::Outside if view.is_attached(lease, &key)? => return Ok(false),
                Place::Outside => found.next(),
            }
        }
        found.status().map_err(disk)?;
        Ok(true)
    }
}

/// Attachments that a request looks at: a fraction of a second.
pub(crate) const STEPS_MAX: u64 = 100_000;

#[cfg(test)]
mod tests {
    use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};

    use super::*;
    use crate::{
        Durability, KeyRange, KvCommand, KvOperation, KvStateMachine, Put,
        range_deletions::RangeDeletions,
        store::Generation,
        view::{Base, Overlay},
    };

    fn range(key: &str, end: &str) -> KeyRange {
        KeyRange { key: key.to_owned().into(), range_end: Some(end.to_owned().into()) }
    }

    fn key(name: &str, number: u64) -> Bytes {
        format!("{name}{number:06}").into()
    }

    /// A store in which the leases have these keys.
    struct Store {
        machine: KvStateMachine,
        _dir: tempfile::TempDir,
    }

    impl Store {
        fn new(attached: &[(i64, Bytes)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut machine = KvStateMachine::open(dir.path(), NodeId(1), Durability::FromLog).unwrap();
            let leases: std::collections::BTreeSet<_> = attached.iter().map(|(lease, _)| *lease).collect();
            let grants = leases.into_iter().map(|id| KvOperation::GrantLease { id, ttl: 9 });
            let puts = attached.iter().map(|(lease, key)| {
                KvOperation::Put(Put { key: key.clone(), lease_id: *lease, ..Put::default() })
            });
            for (index, operation) in (1..).zip(grants.chain(puts)) {
                let command = codec::encode(1, &KvCommand::new(None, operation));
                machine.apply(&[Entry::command(LogId::new(1, index), command)]).unwrap();
            }
            Self { machine, _dir: dir }
        }

        fn with_view<T>(&self, f: impl FnOnce(&View<'_>) -> T) -> T {
            let generation: std::sync::Arc<Generation> = self.machine.current_generation();
            let (base, nothing, none) = (Base::new(&generation), Overlay::new(), RangeDeletions::default());
            f(&View { source: &base, overlay: &nothing, deletions: &none })
        }
    }

    #[test]
    fn puts_with_one_lease_in_a_batch_take_steps_in_proportion_to_their_number() {
        let before: Vec<_> = (0..500).flat_map(|n| [(7, key("a", n)), (7, key("x", n))]).collect();
        let store = Store::new(&before);
        let (mine, other) = (RangeSet::new(&[range("a", "b")]), RangeSet::new(&[range("x", "y")]));
        store.with_view(|view| {
            let (checks, mut pending) = (LeaseChecks::unbounded(), Attachments::default());
            let check = |checks: &LeaseChecks, pending: &Attachments| {
                checks.are_attached_keys_in(view, 7, &mine, pending).unwrap()
            };
            assert!(!check(&checks, &pending), "keys that are not in the set");
            for number in 0..500 {
                pending.set((7, key("x", number)), false);
            }
            let puts = 1000;
            for number in 0..puts {
                assert!(check(&checks, &pending));
                pending.set((7, key("a", 1000 + number)), true);
            }
            assert!(checks.steps.get() < 5 * puts, "{} steps", checks.steps.get());
            assert!(!checks.are_attached_keys_in(view, 7, &other, &pending).unwrap(), "another set");
            pending.set((7, key("x", 1)), true);
            assert!(!check(&checks, &pending), "a key outside was attached after a check that succeeded");
        });
    }

    #[test]
    fn attachment_that_a_rollback_restores_is_checked_again() {
        let store = Store::new(&[(7, key("x", 1))]);
        let mine = RangeSet::new(&[range("a", "b")]);
        store.with_view(|view| {
            let (checks, mut pending) = (LeaseChecks::unbounded(), Attachments::default());
            let check = |pending: &Attachments| checks.are_attached_keys_in(view, 7, &mine, pending).unwrap();
            let before = pending.set((7, key("x", 1)), false);
            assert!(check(&pending));
            pending.restore((7, key("x", 1)), before);
            assert!(!check(&pending), "it is attached in the store");
            pending.set((7, key("y", 1)), true);
            pending.set((7, key("x", 1)), false);
            let before = pending.set((7, key("y", 1)), false);
            assert!(check(&pending));
            pending.restore((7, key("y", 1)), before);
            assert!(!check(&pending), "it is attached by the batch");
        });
    }

    #[test]
    fn list_of_leases_is_checked_in_steps_that_have_a_bound() {
        let attached: Vec<_> = (1..100)
            .map(|lease: i64| (lease, key("a", lease.unsigned_abs())))
            .chain([(-1, key("x", 1))])
            .collect();
        let store = Store::new(&attached);
        let (mine, all) = (RangeSet::new(&[range("a", "b")]), RangeSet::new(&[range("a", "\0")]));
        store.with_view(|view| {
            let check = |steps_max: u64, set: &RangeSet, counts: &dyn Fn(i64) -> bool| {
                let checks = LeaseChecks::with_steps(steps_max);
                let is_permitted = checks.are_keys_of_all_in(view, set, counts).unwrap();
                (is_permitted, checks.is_exhausted(), checks.steps.get())
            };
            assert_eq!(check(1000, &mine, &|_| true), (false, false, 100));
            assert_eq!(check(1000, &mine, &|lease| lease != -1), (true, false, 100));
            assert_eq!(check(10, &mine, &|_| true), (false, true, 11));
            assert_eq!(check(1000, &all, &|_| true), (true, false, 100));
            assert_eq!(check(1000, &RangeSet::default(), &|_| true), (false, false, 1));
        });
    }
}
