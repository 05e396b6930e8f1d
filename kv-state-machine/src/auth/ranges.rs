//! Sets of keys as ranges.

use std::sync::Arc;

use bytes::Bytes;

use crate::KeyRange;

/// A set of keys: ranges in ascending order that neither overlap nor adjoin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet(Arc<[Interval]>);

/// The keys from `start` up to `end`, exclusive; without an end, all keys from `start` on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    start: Bytes,
    end: Option<Bytes>,
}

impl Interval {
    fn of(range: &KeyRange) -> Self {
        let end = match range.range_end.as_deref() {
            None => Some([&range.key[..], &[0]].concat().into()),
            Some([0]) => None,
            Some(_) => range.range_end.clone(),
        };
        Self { start: range.key.clone(), end }
    }

    fn ends_before(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_some_and(|end| end[..] < *key)
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.start[..] <= *key && self.end.as_ref().is_none_or(|end| *key < end[..])
    }
}

/// Where a key is in relation to a set.
pub(crate) enum Place<'a> {
    Outside,
    /// The key is in the set, and so are all keys after it.
    InsideFromHereOn,
    /// The key is in the set, and so are all keys between it and this one.
    InsideUpTo(&'a Bytes),
}

impl RangeSet {
    pub(crate) fn new<'a>(ranges: impl IntoIterator<Item = &'a KeyRange>) -> Self {
        let mut intervals: Vec<_> = ranges.into_iter().map(Interval::of).collect();
        intervals.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for interval in intervals {
            match merged.last_mut() {
                Some(last) if !last.ends_before(&interval.start) => {
                    if interval.end.is_none() || last.end.is_some() && last.end < interval.end {
                        last.end = interval.end;
                    }
                }
                _ => merged.push(interval),
            }
        }
        Self(merged.into())
    }

    /// Whether the set contains all keys of a range. A range whose end is not after its start counts as its first key.
    pub(crate) fn contains(&self, range: &KeyRange) -> bool {
        let Some(interval) = self.around(&range.key) else { return false };
        match (&range.range_end, &interval.end) {
            (None, _) | (_, None) => true,
            (Some(wanted), Some(end)) => wanted[..] != [0] && wanted <= end,
        }
    }

    /// A number that no other set has while this one or a clone of it exists.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    pub(crate) fn place_of(&self, key: &[u8]) -> Place<'_> {
        match self.around(key) {
            None => Place::Outside,
            Some(Interval { end: None, .. }) => Place::InsideFromHereOn,
            Some(Interval { end: Some(end), .. }) => Place::InsideUpTo(end),
        }
    }

    /// The interval that contains a key.
    fn around(&self, key: &[u8]) -> Option<&Interval> {
        let after = self.0.partition_point(|interval| interval.start[..] <= *key);
        self.0[..after].last().filter(|interval| interval.contains(key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(key: &str, end: Option<&str>) -> KeyRange {
        KeyRange { key: key.to_owned().into(), range_end: end.map(|end| end.to_owned().into()) }
    }

    #[test]
    fn adjoining_ranges_contain_the_range_over_both() {
        let set = RangeSet::new(&[range("m", Some("z")), range("a", Some("m"))]);
        assert!(set.contains(&range("a", Some("z"))));
        assert!(!set.contains(&range("a", Some("z\0"))) && !set.contains(&range("a", Some("\0"))));
        let gap = RangeSet::new(&[range("a", Some("m")), range("m\0", Some("z"))]);
        assert!(!gap.contains(&range("a", Some("z"))) && !gap.contains(&range("m", None)));
    }

    #[test]
    fn range_without_end_contains_all_later_keys() {
        let set = RangeSet::new(&[range("b", Some("\0")), range("c", Some("d"))]);
        assert!(set.contains(&range("b", Some("\0"))) && set.contains(&range("zz", None)));
        assert!(!set.contains(&range("a", Some("\0"))) && !set.contains(&range("a", None)));
    }

    proptest! {
        #[test]
        fn set_contains_a_range_if_a_permission_covers_each_of_its_keys(
            granted in prop::collection::vec((0_u8..12, 0_u8..14), 0..6), start in 0_u8..12, end in 0_u8..14,
        ) {
            // 12 stands for an open end, 13 for no end.
            let range = |start: u8, end: u8| KeyRange {
                key: vec![b'a' + start].into(),
                range_end: match end { 13 => None, 12 => Some(vec![0].into()), end => Some(vec![b'a' + end].into()) },
            };
            let covers = |(from, to): (u8, u8), key: u8| match to { 13 => key == from, 12 => key >= from, to => from <= key && key < to };
            let granted: Vec<_> = granted.into_iter().filter(|(from, to)| from < to).collect();
            prop_assume!(start < end);
            let ranges: Vec<_> = granted.iter().map(|(from, to)| range(*from, *to)).collect();
            let set = RangeSet::new(&ranges);
            // Only single letters are keys here, but ranges contain longer keys, too: single keys cover no range.
            let wide: Vec<_> = granted.iter().copied().filter(|(_, to)| end == 13 || *to != 13).collect();
            let all = |keys: std::ops::Range<u8>| keys.into_iter().all(|key| wide.iter().any(|one| covers(*one, key)));
            let expected = match end {
                13 => all(start..start + 1),
                12 => all(start..13) && wide.iter().any(|(_, to)| *to == 12),
                end => all(start..end),
            };
            prop_assert_eq!(set.contains(&range(start, end)), expected);
        }
    }
}
