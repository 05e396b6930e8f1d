//! Accounting of the work of one command. Its limit ensures that no command delays all others for long.
//!
//! The amount depends only on the replicated state, so that all nodes get the same result. A key whose versions are all
//! garbage does not count, because one node may have removed them and another not.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{execute::ExecuteError, limits::Amount};

/// Counts the work of one command.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    /// Revision of the last compaction: deletions at or before it are garbage.
    compacted: u64,
    keys: Cell<u64>,
    bytes: Cell<u64>,
    /// Bytes of living keys and their values.
    living_bytes: Cell<u64>,
    bound: Amount,
    /// Keys that were read although all of their versions are garbage. They do not count, but a leader refuses a command that
    /// would read too many.
    garbage: Cell<u64>,
    garbage_max: u64,
    /// Flag that is set when the caller no longer waits for the result.
    cancelled: Option<&'a AtomicBool>,
}

impl<'a> Work<'a> {
    pub(crate) fn new(bound: Amount, compacted: u64) -> Self {
        let (keys, bytes, living_bytes) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let (garbage, garbage_max) = (Cell::new(0), u64::MAX);
        Self { compacted, keys, bytes, living_bytes, bound, garbage, garbage_max, cancelled: None }
    }

    /// Sets the number of keys without living versions that may be read.
    pub(crate) fn with_garbage_max(self, garbage_max: u64) -> Self {
        Self { garbage_max, ..self }
    }

    /// Notes a key whose versions are all garbage.
    pub(crate) fn note_garbage(&self) -> Result<(), ExecuteError> {
        let garbage = self.garbage.get() + 1;
        self.garbage.set(garbage);
        if garbage > self.garbage_max { Err(ExecuteError::TooMuchGarbage) } else { Ok(()) }
    }

    /// Accounting without a limit, for work that does not count.
    pub(crate) fn unlimited() -> Self {
        Self::new(Amount { keys: u64::MAX, bytes: u64::MAX }, 0)
    }

    /// Notes a living key that is read.
    pub(crate) fn note_living(&self, bytes: usize) {
        self.living_bytes.set(self.living_bytes.get() + bytes as u64);
    }

    /// Bytes of the living keys that were read, and of their values.
    pub(crate) fn living_bytes(&self) -> u64 {
        self.living_bytes.get()
    }

    pub(crate) fn cancelled_by(self, cancelled: &'a AtomicBool) -> Self {
        Self { cancelled: Some(cancelled), ..self }
    }

    /// Whether all versions of a key with this newest version are garbage.
    pub(crate) fn is_garbage(&self, newest_revision: u64, newest_is_deleted: bool) -> bool {
        newest_is_deleted && newest_revision <= self.compacted
    }

    /// Counts a key that is read, and its bytes.
    pub(crate) fn count_key(&self, bytes: usize) -> Result<(), ExecuteError> {
        let keys = self.keys.get() + 1;
        self.keys.set(keys);
        if keys.is_multiple_of(CANCEL_CHECK_INTERVAL)
            && self.cancelled.is_some_and(|cancelled| cancelled.load(Ordering::Relaxed))
        {
            return Err(ExecuteError::Cancelled);
        }
        if keys > self.bound.keys {
            return Err(ExecuteError::TooMuchWork);
        }
        self.count_bytes(bytes)
    }

    /// Counts bytes that are written.
    pub(crate) fn count_bytes(&self, bytes: usize) -> Result<(), ExecuteError> {
        self.bytes.set(self.bytes.get() + bytes as u64);
        if self.bytes.get() > self.bound.bytes { Err(ExecuteError::TooMuchWork) } else { Ok(()) }
    }

    /// Whether a deletion with a limit must stop, because it still has to write the deletions.
    pub(crate) fn is_full(&self) -> bool {
        self.keys.get() >= self.bound.keys || self.bytes.get() > self.bound.bytes / 2
    }

    /// Number of keys that may still be counted.
    pub(crate) fn keys_left(&self) -> u64 {
        self.bound.keys.saturating_sub(self.keys.get())
    }

    /// Work so far.
    pub(crate) fn done(&self) -> Amount {
        Amount { keys: self.keys.get(), bytes: self.bytes.get() }
    }
}

/// Number of keys between two checks of the cancellation flag.
const CANCEL_CHECK_INTERVAL: u64 = 1024;
