//! Records of the entries that cannot be read.

use std::collections::BTreeMap;

use consensus_core::{LogIndex, StorageError};

/// A damaged or missing part of the log.
#[derive(Clone, Debug)]
pub(super) struct Flaw {
    pub(super) position: String,
    pub(super) why: String,
}

impl From<Flaw> for StorageError {
    fn from(flaw: Flaw) -> Self {
        Self::Corrupt { position: flaw.position, why: flaw.why }
    }
}

/// Ranges of entries that cannot be read: by first index, the last index and the reason.
#[derive(Debug, Default)]
pub(super) struct Flaws(BTreeMap<LogIndex, (LogIndex, Flaw)>);

impl Flaws {
    /// Adds the entries `first..=last`; nothing if the range is empty.
    pub(super) fn add(&mut self, first: LogIndex, last: LogIndex, flaw: Flaw) {
        if first <= last {
            self.0.insert(first, (last, flaw));
        }
    }

    /// Removes the entries up to `to`.
    pub(super) fn purge(&mut self, to: LogIndex) {
        let later = self.0.split_off(&to.next());
        let across = std::mem::replace(&mut self.0, later).pop_last();
        if let Some((_, (last, flaw))) = across {
            self.add(to.next(), last, flaw);
        }
    }

    /// Removes the entries after `after`.
    pub(super) fn truncate_after(&mut self, after: LogIndex) {
        self.0.split_off(&after.next());
        if let Some(mut across) = self.0.last_entry() {
            let last = &mut across.get_mut().0;
            *last = (*last).min(after);
        }
    }

    pub(super) fn first(&self) -> Option<(LogIndex, &Flaw)> {
        self.0.first_key_value().map(|(first, (_, flaw))| (*first, flaw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purged_or_truncated_entries_are_no_flaws() {
        let flaw = Flaw { position: String::new(), why: String::new() };
        let mut flaws = Flaws::default();
        flaws.add(LogIndex(3), LogIndex(2), flaw.clone());
        assert!(flaws.first().is_none());
        flaws.add(LogIndex(3), LogIndex(3), flaw.clone());
        flaws.add(LogIndex(5), LogIndex(9), flaw.clone());
        flaws.add(LogIndex(12), LogIndex(12), flaw);
        let first = |flaws: &Flaws| flaws.first().map(|(index, _)| index.0);
        flaws.purge(LogIndex(4));
        assert_eq!(first(&flaws), Some(5));
        flaws.purge(LogIndex(6));
        assert_eq!(first(&flaws), Some(7));
        flaws.truncate_after(LogIndex(8));
        flaws.purge(LogIndex(7));
        assert_eq!(first(&flaws), Some(8));
        flaws.purge(LogIndex(8));
        assert_eq!(first(&flaws), None);
    }
}
