//! Compares the size of a store with its quota before a command is proposed.

use std::sync::{Mutex, PoisonError};

use crate::{store::Generation, view::Failure};

/// What was seen when the size was last looked at.
#[derive(Debug, Default)]
pub(crate) struct Quota(Mutex<Option<Look>>);

#[derive(Clone, Copy, Debug)]
struct Look {
    /// Bytes that the store had.
    size: u64,
    /// Bytes that had been written until then.
    written: u64,
}

impl Look {
    /// The size now, if that is known well enough: nothing that was written since is forgotten, and it is little.
    fn estimate(self, written: u64, quota: u64) -> Option<u64> {
        let since = written.checked_sub(self.written)?;
        (since <= (quota / 64).min(LOOK_BYTES)).then(|| self.size.saturating_add(since))
    }
}

impl Quota {
    /// Whether the store would exceed `quota` bytes with `added` more; never with the quota 0.
    ///
    /// The size is looked at again when enough was written since, and before the answer is yes: history that was compacted
    /// may be gone from the disk.
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
        let mut look = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let written = generation.written_bytes();
        if look.and_then(|look| look.estimate(written, quota)).is_some_and(fits) {
            return Ok(false);
        }
        let size = generation.disk_bytes()?;
        *look = Some(Look { size, written });
        Ok(!fits(size))
    }
}

/// The size is looked at again when so much was written.
const LOOK_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimate_grows_with_what_is_written_and_ends_after_enough() {
        let look = Look { size: 100, written: 50 };
        let quota = 64 * 1000;
        assert_eq!(look.estimate(50, quota), Some(100));
        assert_eq!(look.estimate(1050, quota), Some(1100));
        assert_eq!(look.estimate(1051, quota), None);
        assert_eq!(look.estimate(49, quota), None, "it is another store");
    }
}
