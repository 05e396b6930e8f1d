//! Amount what one command may look at and write, so that no command holds up all others.
//!
//! What is counted depends on the replicated state alone, so that all nodes come to the same end: a key whose versions are
//! all garbage, which one node may have removed and another not, does not count.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{execute::Halt, limits::Amount};

/// Counts the work of one command.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    /// What is a deletion up to this revision is garbage.
    compacted: u64,
    keys: Cell<u64>,
    bytes: Cell<u64>,
    bound: Amount,
    /// Set when nobody waits for the outcome any more.
    abandoned: Option<&'a AtomicBool>,
}

impl<'a> Work<'a> {
    pub(crate) fn new(bound: Amount, compacted: u64) -> Self {
        Self { compacted, keys: Cell::new(0), bytes: Cell::new(0), bound, abandoned: None }
    }

    pub(crate) fn abandoned_by(self, abandoned: &'a AtomicBool) -> Self {
        Self { abandoned: Some(abandoned), ..self }
    }

    /// Whether a key with this newest version has nothing but garbage.
    pub(crate) fn is_garbage(&self, newest_revision: u64, newest_is_deleted: bool) -> bool {
        newest_is_deleted && newest_revision <= self.compacted
    }

    /// Counts a key that is looked at, and its bytes.
    pub(crate) fn look_at(&self, bytes: usize) -> Result<(), Halt> {
        let keys = self.keys.get() + 1;
        self.keys.set(keys);
        if keys.is_multiple_of(ABANDONED_EVERY)
            && self.abandoned.is_some_and(|abandoned| abandoned.load(Ordering::Relaxed))
        {
            return Err(Halt::Abandoned);
        }
        if keys > self.bound.keys {
            return Err(Halt::TooMuch);
        }
        self.write(bytes)
    }

    /// Counts bytes that are written.
    pub(crate) fn write(&self, bytes: usize) -> Result<(), Halt> {
        self.bytes.set(self.bytes.get() + bytes as u64);
        if self.bytes.get() > self.bound.bytes { Err(Halt::TooMuch) } else { Ok(()) }
    }

    /// Whether a deletion that may be done in part goes no further: its deletions are still to be written.
    pub(crate) fn is_full(&self) -> bool {
        self.keys.get() >= self.bound.keys || self.bytes.get() > self.bound.bytes / 2
    }

    /// What was done so far.
    pub(crate) fn done(&self) -> Amount {
        Amount { keys: self.keys.get(), bytes: self.bytes.get() }
    }
}

/// Keys between two looks whether somebody still waits.
const ABANDONED_EVERY: u64 = 1024;
