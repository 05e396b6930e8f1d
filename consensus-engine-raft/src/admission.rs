//! Limits on requests in flight; requests beyond a limit are refused at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts requests and their bytes, and compares both with limits.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The count in the bits from [`BYTES_BITS`] on, the bytes below: one atomic operation admits or releases a request.
    held: AtomicU64,
    count_max: u64,
    bytes_max: u64,
}

/// Admission of one request. Dropping it releases the request's share.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    bytes: u64,
}

impl Admission {
    /// Limits are capped at about 8 million requests and 512 GiB.
    pub(crate) fn new(count_max: u64, bytes_max: u64) -> Arc<Self> {
        // Half of the range of each number, so that concurrent callers cannot make one overflow into the other.
        let (count_max, bytes_max) = (count_max.min(1 << (63 - BYTES_BITS)), bytes_max.min(BYTES_MASK / 2));
        Arc::new(Self { held: AtomicU64::new(0), count_max, bytes_max })
    }

    /// Number of requests in flight.
    pub(crate) fn count(&self) -> u64 {
        self.held.load(Ordering::Relaxed) >> BYTES_BITS
    }

    /// Admits one request, or returns the current count and bytes. If nothing is in flight, a request of any size is
    /// admitted.
    pub(crate) fn admit(self: &Arc<Self>, bytes: u64) -> Result<Permit, (u64, u64)> {
        let bytes = bytes.min(THING_BYTES_MAX);
        // Added first and subtracted again on refusal: concurrent callers can refuse each other at the limit, but never
        // exceed it.
        let held = self.held.fetch_add(ONE + bytes, Ordering::Relaxed);
        let (count, held) = (held >> BYTES_BITS, held & BYTES_MASK);
        let permit = Permit { admission: self.clone(), bytes };
        if count >= self.count_max || (held > 0 && held + bytes > self.bytes_max) {
            return Err((count, held));
        }
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.held.fetch_sub(ONE + self.bytes, Ordering::Relaxed);
    }
}

const BYTES_BITS: u32 = 40;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const ONE: u64 = 1 << BYTES_BITS;
/// Larger requests are counted with this size, which no frame exceeds.
const THING_BYTES_MAX: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_released_permits_free_room() {
        let admission = Admission::new(2, 10);
        let first = admission.admit(50).expect("one thing is let in whatever its size");
        assert_eq!(admission.admit(1).unwrap_err(), (1, 50));
        drop(first);
        let _two = (admission.admit(5).unwrap(), admission.admit(5).unwrap());
        assert_eq!(admission.admit(0).unwrap_err(), (2, 10));
    }
}
