//! Compares the size of a store with its quota before a command is proposed.

use std::sync::{Mutex, PoisonError};

use crate::{store::Generation, view::Failure};

/// Last measurement of the size of the store.
#[derive(Debug, Default)]
pub(crate) struct Quota(Mutex<Option<Measurement>>);

#[derive(Clone, Copy, Debug)]
struct Measurement {
    /// Size of the store in bytes.
    size: u64,
    /// Bytes that had been written to the store at the time of the measurement.
    written: u64,
}

impl Measurement {
    /// Estimates the current size; `None` if too much was written since the measurement.
    fn estimate(self, written: u64, quota: u64) -> Option<u64> {
        let since = written.checked_sub(self.written)?;
        (since <= (quota / 64).min(MEASURE_INTERVAL_BYTES)).then(|| self.size.saturating_add(since))
    }
}

impl Quota {
    /// Whether the store would exceed `quota` bytes after `added` more; always `false` with quota 0.
    ///
    /// The size is measured again after enough writes, and before the method returns true, because compacted history
    /// may have been removed from the disk.
    pub(crate) fn is_exceeded(
        &self,
        generation: &Generation,
        quota: u64,
        added: u64,
    ) -> Result<bool, Failure> {
        if quota == 0 {
            return Ok(false);
        }
        let fits = |size: u64| size.saturating_add(added) < quota;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let written = generation.written_bytes();
        if last.and_then(|last| last.estimate(written, quota)).is_some_and(fits) {
            return Ok(false);
        }
        let size = generation.disk_bytes()?;
        *last = Some(Measurement { size, written });
        Ok(!fits(size))
    }
}

/// Bytes written after which the size is measured again.
const MEASURE_INTERVAL_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimate_grows_with_writes_until_next_measurement() {
        let last = Measurement { size: 100, written: 50 };
        let quota = 64 * 1000;
        assert_eq!(last.estimate(50, quota), Some(100));
        assert_eq!(last.estimate(1050, quota), Some(1100));
        assert_eq!(last.estimate(1051, quota), None);
        assert_eq!(last.estimate(49, quota), None, "another store was restored");
    }
}
