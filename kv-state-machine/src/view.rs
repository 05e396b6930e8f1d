//! The store as it stands at some moment: RocksDB, and what the batch in hand has added.

use std::{collections::BTreeMap, iter::Peekable, ops::ControlFlow};

use bytes::Bytes;
use consensus_core::StateMachineError;
use rocksdb::{DBIteratorWithThreadMode, DBWithThreadMode, IteratorMode, ReadOptions, SingleThreaded};

use crate::{
    KeyRange,
    keys::{self, Record},
};

type Db = DBWithThreadMode<SingleThreaded>;

/// Versions written by the batch in hand and not yet by RocksDB, by place.
pub(crate) type Overlay = BTreeMap<Vec<u8>, Bytes>;

/// Where versions are read from.
pub(crate) trait Source {
    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db>;
}

impl Source for Db {
    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db> {
        self.iterator_opt(mode, read)
    }
}

impl Source for rocksdb::Snapshot<'_> {
    fn iterate(&self, mode: IteratorMode<'_>, read: ReadOptions) -> DBIteratorWithThreadMode<'_, Db> {
        self.iterator_opt(mode, read)
    }
}

/// Reads versions.
pub(crate) struct View<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) overlay: &'a Overlay,
}

/// One version of a key.
pub(crate) struct Version {
    pub(crate) key: Bytes,
    pub(crate) revision: u64,
    pub(crate) record: Record,
}

/// An error on the way through the store: of the disk, or of what lies on it.
pub(crate) type Failure = StateMachineError;

pub(crate) fn disk(error: rocksdb::Error) -> Failure {
    StateMachineError::Io(std::io::Error::other(error))
}

impl View<'_> {
    /// Calls `f` with every version in `range`, in the order of their places or against it.
    pub(crate) fn versions(
        &self,
        range: std::ops::Range<Vec<u8>>,
        descending: bool,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        if range.is_empty() {
            return Ok(());
        }
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(range.start.clone());
        read.set_iterate_upper_bound(range.end.clone());
        let mode = if descending { IteratorMode::End } else { IteratorMode::Start };
        let stored = self.source.iterate(mode, read);
        let stored = stored.map(|item| item.map(|(place, bytes)| (Vec::from(place), Bytes::from(bytes))));
        let added = self.overlay.range(range).map(|(place, bytes)| Ok((place.clone(), bytes.clone())));
        let added: Box<dyn Iterator<Item = Item>> =
            if descending { Box::new(added.rev()) } else { Box::new(added) };
        let merged = Merge { stored: stored.peekable(), added: added.peekable(), descending };
        for item in merged {
            let (place, bytes) = item.map_err(disk)?;
            let (key, revision) = keys::split(&place)?;
            let record = Record::decode(key.clone(), revision, &bytes)?;
            if f(Version { key, revision, record }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Calls `f` with the version of every key of `range` that is in force at `revision`, deleted ones included.
    pub(crate) fn at(
        &self,
        range: &KeyRange,
        revision: u64,
        descending: bool,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let one = range.range_end.is_none();
        if descending && !one {
            return self.at_descending(range, revision, f);
        }
        let mut found: Option<Bytes> = None;
        self.versions(keys::bounds(range), false, |version| {
            // Newest first: of one key, the first that is old enough counts.
            if version.revision > revision || found.as_ref() == Some(&version.key) {
                return ControlFlow::Continue(());
            }
            found = Some(version.key.clone());
            let flow = f(version);
            if one { ControlFlow::Break(()) } else { flow }
        })
    }

    /// Going down, the versions of a key come oldest first: the last that is old enough counts, and it is known when the
    /// next key begins.
    fn at_descending(
        &self,
        range: &KeyRange,
        revision: u64,
        mut f: impl FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let mut current: Option<Version> = None;
        let mut stopped = false;
        self.versions(keys::bounds(range), true, |version| {
            if version.revision > revision {
                return ControlFlow::Continue(());
            }
            let same_key = current.as_ref().is_some_and(|found| found.key == version.key);
            match current.replace(version) {
                Some(complete) if !same_key => {
                    let flow = f(complete);
                    stopped = flow.is_break();
                    flow
                }
                _ => ControlFlow::Continue(()),
            }
        })?;
        if let (Some(last), false) = (current, stopped) {
            let _ = f(last);
        }
        Ok(())
    }

    /// The newest version of one key.
    pub(crate) fn newest(&self, key: &Bytes) -> Result<Option<Version>, Failure> {
        let mut newest = None;
        let range = KeyRange { key: key.clone(), range_end: None };
        self.versions(keys::bounds(&range), false, |version| {
            newest = Some(version);
            ControlFlow::Break(())
        })?;
        Ok(newest)
    }
}

type Item = Result<(Vec<u8>, Bytes), rocksdb::Error>;

/// Two ordered runs as one. Where both have a place, the added one counts: it overwrites within one revision.
struct Merge<A: Iterator<Item = Item>, B: Iterator<Item = Item>> {
    stored: Peekable<A>,
    added: Peekable<B>,
    descending: bool,
}

impl<A: Iterator<Item = Item>, B: Iterator<Item = Item>> Iterator for Merge<A, B> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let (Some(Ok((stored, _))), Some(Ok((added, _)))) = (self.stored.peek(), self.added.peek()) else {
            return self.stored.next().or_else(|| self.added.next());
        };
        let order = if self.descending { added.cmp(stored) } else { stored.cmp(added) };
        match order {
            std::cmp::Ordering::Less => self.stored.next(),
            std::cmp::Ordering::Greater => self.added.next(),
            std::cmp::Ordering::Equal => {
                self.stored.next();
                self.added.next()
            }
        }
    }
}
