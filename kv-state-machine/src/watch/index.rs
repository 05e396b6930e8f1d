//! Index of watches by key.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::Watch;

/// Index of the watches that have caught up.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Number of watches.
    len: usize,
    /// Watches of one key, sorted by their addresses.
    single_keys: HashMap<Bytes, Vec<Arc<Watch>>>,
    ranges: Ranges,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, watch: Arc<Watch>) {
        self.len += usize::from(!watch.is_indexed.load(Ordering::Relaxed));
        watch.is_indexed.store(true, Ordering::Relaxed);
        let keys = &watch.request.keys;
        if keys.range_end.is_none() {
            let watches = self.single_keys.entry(keys.key.clone()).or_default();
            let at = watches.partition_point(|other| address(other) < address(&watch));
            watches.insert(at, watch);
        } else {
            self.ranges.insert(watch);
        }
    }

    /// Removes a watch that has ended or is behind.
    pub(super) fn remove(&mut self, watch: &Arc<Watch>) {
        self.len -= usize::from(watch.is_indexed.load(Ordering::Relaxed));
        watch.is_indexed.store(false, Ordering::Relaxed);
        let keys = &watch.request.keys;
        if keys.range_end.is_some() {
            return self.ranges.remove(watch);
        }
        if let Some(watches) = self.single_keys.get_mut(&keys.key) {
            if let Ok(at) = watches.binary_search_by_key(&address(watch), address) {
                watches.remove(at);
            }
            if watches.is_empty() {
                self.single_keys.remove(&keys.key);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.single_keys.is_empty() && self.ranges.len() == 0
    }

    /// Calls `f` with each watch whose keys include `key`.
    pub(super) fn visit_matches(&self, key: &Bytes, mut f: impl FnMut(&Arc<Watch>)) {
        self.single_keys.get(key).into_iter().flatten().for_each(&mut f);
        self.ranges.visit_matches(key, &mut f);
    }

    pub(super) fn all(&self) -> Vec<Arc<Watch>> {
        let sorted = self.ranges.sorted.iter().filter_map(|slot| slot.watch.as_ref());
        let ranges = sorted.chain(&self.ranges.added);
        self.single_keys.values().flatten().chain(ranges).cloned().collect()
    }
}

/// Watches of ranges, sorted by start, with a tree of the greatest ends (an interval tree). Only ranges that contain a
/// key are visited, and few inner nodes for each.
#[derive(Debug, Default)]
struct Ranges {
    /// Slots by start, then by address of the watch.
    sorted: Vec<Slot>,
    /// Number of empty slots.
    empty: usize,
    /// Greatest end in each part of `sorted`. Part 1 is everything; the halves of part n are 2n and 2n+1.
    ends: Vec<Option<End>>,
    /// New watches that are not in `sorted` yet.
    added: Vec<Arc<Watch>>,
}

/// Place of a watch in the sorted ranges. It is empty once the watch was removed, until the tree is built again.
#[derive(Debug)]
struct Slot {
    start: Bytes,
    /// Address of the watch. Another watch may have it after this one was removed.
    address: usize,
    watch: Option<Arc<Watch>>,
}

impl Slot {
    fn of(watch: Arc<Watch>) -> Self {
        Self { start: watch.request.keys.key.clone(), address: address(&watch), watch: Some(watch) }
    }

    fn place(&self) -> (&Bytes, usize) {
        (&self.start, self.address)
    }
}

fn address(watch: &Arc<Watch>) -> usize {
    Arc::as_ptr(watch).addr()
}

/// End of a range. The end of the key space is after all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Unbounded,
}

impl End {
    fn of(watch: &Watch) -> Self {
        match &watch.request.keys.range_end {
            Some(end) if end[..] == [0] => Self::Unbounded,
            Some(end) => Self::Before(end.clone()),
            None => Self::Before(watch.request.keys.key.clone()),
        }
    }

    fn is_after(&self, key: &Bytes) -> bool {
        match self {
            Self::Before(end) => end > key,
            Self::Unbounded => true,
        }
    }
}

impl Ranges {
    fn len(&self) -> usize {
        self.sorted.len() - self.empty + self.added.len()
    }

    fn insert(&mut self, watch: Arc<Watch>) {
        self.added.push(watch);
        if self.added.len() > ADDED_MAX {
            self.sorted.extend(self.added.drain(..).map(Slot::of));
            self.rebuild();
        }
    }

    /// Empties the slot of a watch. Takes steps in the order of the logarithm of the number of watches, so that a client
    /// with many watches that goes does not delay the dispatcher.
    fn remove(&mut self, watch: &Arc<Watch>) {
        if let Some(at) = self.added.iter().position(|other| Arc::ptr_eq(other, watch)) {
            self.added.swap_remove(at);
            return;
        }
        let place = (&watch.request.keys.key, address(watch));
        let first = self.sorted.partition_point(|slot| slot.place() < place);
        let mut same_place = self.sorted[first..].iter().take_while(|slot| slot.place() == place);
        let Some(at) = same_place.position(|slot| slot.watch.is_some()) else { return };
        self.sorted[first + at].watch = None;
        self.empty += 1;
        if self.empty > EMPTY_MAX && self.empty > self.sorted.len() / 2 {
            self.rebuild();
        } else {
            self.update_ends(first + at);
        }
    }

    /// Updates the ends of all parts that contain a slot.
    fn update_ends(&mut self, at: usize) {
        let mut part = self.ends.len() / 2 + at;
        self.ends[part] = self.sorted[at].watch.as_deref().map(End::of);
        while part > 1 {
            part /= 2;
            self.ends[part] = self.ends[2 * part].clone().max(self.ends[2 * part + 1].clone());
        }
    }

    /// Sorts the slots, without the empty ones, and builds their tree.
    fn rebuild(&mut self) {
        self.sorted.retain(|slot| slot.watch.is_some());
        self.empty = 0;
        self.sorted.sort_by(|a, b| a.place().cmp(&b.place()));
        self.build();
    }

    fn build(&mut self) {
        let leaves = self.sorted.len().next_power_of_two();
        self.ends = vec![None; 2 * leaves];
        for (at, slot) in self.sorted.iter().enumerate() {
            self.ends[leaves + at] = slot.watch.as_deref().map(End::of);
        }
        for part in (1..leaves).rev() {
            self.ends[part] = self.ends[2 * part].clone().max(self.ends[2 * part + 1].clone());
        }
    }

    fn visit_matches(&self, key: &Bytes, f: &mut impl FnMut(&Arc<Watch>)) {
        for watch in &self.added {
            if watch.request.keys.key <= *key && End::of(watch).is_after(key) {
                f(watch);
            }
        }
        let before = self.sorted.partition_point(|slot| slot.start <= *key);
        if before > 0 {
            self.visit_part(1, 0, self.ends.len() / 2, before, key, f);
        }
    }

    /// Visits the matching watches of the part that starts at `from` and has length `len`, up to `before`.
    fn visit_part(
        &self,
        part: usize,
        from: usize,
        len: usize,
        before: usize,
        key: &Bytes,
        f: &mut impl FnMut(&Arc<Watch>),
    ) {
        let is_after = self.ends.get(part).and_then(Option::as_ref).is_some_and(|end| end.is_after(key));
        if from >= before || !is_after {
            return;
        }
        if len == 1 {
            return self.sorted[from].watch.iter().for_each(f);
        }
        let half = len / 2;
        self.visit_part(2 * part, from, half, before, key, f);
        self.visit_part(2 * part + 1, from + half, half, before, key, f);
    }
}

/// Maximum number of watches in `added`, which are scanned one by one.
const ADDED_MAX: usize = 64;
/// Number of empty slots from which the tree is built again, if they are more than half of all.
const EMPTY_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{KeyRange, WatchRequest, pending_writes::Change, watch::session::Queue};

    fn watch(id: u64, key: Vec<u8>, end: Option<Vec<u8>>) -> Arc<Watch> {
        let keys = KeyRange { key: key.into(), range_end: end.map(Bytes::from) };
        let request = WatchRequest { keys, ..WatchRequest::default() };
        let queue = Arc::new(Queue::default());
        Arc::new(Watch {
            id,
            request,
            start: 0,
            next: 0.into(),
            within: crate::watch::Within::default().into(),
            is_resumable: false,
            ended: false.into(),
            is_indexed: false.into(),
            queue,
        })
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0u8..4, 1..4)
    }

    proptest! {
        #[test]
        fn index_returns_exactly_the_watches_of_a_key(
            ranges in proptest::collection::vec((key(), proptest::option::of(key())), 0..200),
            removed in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..250),
            probe in key(),
        ) {
            let mut all: Vec<_> =
                (0..).zip(ranges).map(|(id, (key, end))| watch(id, key, end)).collect();
            let mut index = Index::default();
            all.iter().for_each(|watch| index.insert(watch.clone()));
            for (at, comes_back) in removed {
                if !all.is_empty() {
                    let at = at.index(all.len());
                    index.remove(&all[at]);
                    // A watch that fell behind comes back when it has caught up.
                    if comes_back {
                        index.insert(all[at].clone());
                    } else {
                        all.swap_remove(at);
                    }
                }
            }
            let change = Change { revision: 1, key: probe.into(), deleted: false, replaced: None };
            let mut found = Vec::new();
            index.visit_matches(&change.key, |watch| found.push(watch.id));
            found.sort_unstable();
            let mut wanted: Vec<_> = all.iter().filter(|watch| watch.wants(&change)).map(|watch| watch.id).collect();
            wanted.sort_unstable();
            prop_assert_eq!(found, wanted);
            prop_assert_eq!(index.is_empty(), all.is_empty());
        }
    }

    #[test]
    fn removal_of_many_ranges_takes_few_steps_each() {
        let mut index = Index::default();
        let all: Vec<_> =
            (0..20_000u64).map(|id| watch(id, id.to_be_bytes().to_vec(), Some(vec![0xff]))).collect();
        all.iter().for_each(|watch| index.insert(watch.clone()));
        let (mut slots, mut rebuilt) = (index.ranges.sorted.len(), 0);
        for watch in &all {
            index.remove(watch);
            rebuilt += usize::from(index.ranges.sorted.len() < slots);
            slots = index.ranges.sorted.len();
        }
        assert!(index.is_empty());
        assert!(rebuilt < 100, "the tree was built {rebuilt} times");
    }
}
