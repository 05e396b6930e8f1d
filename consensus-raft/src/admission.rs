//! Bounds what is in flight; overload is refused at the door.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts things and their bytes against limits.
#[derive(Debug)]
pub(crate) struct Admission {
    count: AtomicU64,
    bytes: AtomicU64,
    count_max: u64,
    bytes_max: u64,
}

/// Room for one thing; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    bytes: u64,
}

impl Admission {
    pub(crate) fn new(count_max: u64, bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { count: AtomicU64::new(0), bytes: AtomicU64::new(0), count_max, bytes_max })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Room for one more, or how many and how many bytes there are already. One thing is let in whatever its size.
    pub(crate) fn admit(self: &Arc<Self>, bytes: u64) -> Result<Permit, (u64, u64)> {
        // Counted first and taken back if it was too much: concurrent callers can refuse each other at the very limit,
        // never exceed it.
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit { admission: self.clone(), bytes };
        if count >= self.count_max || (held > 0 && held.saturating_add(bytes) > self.bytes_max) {
            return Err((count, held));
        }
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.count.fetch_sub(1, Ordering::Relaxed);
        self.admission.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_room_comes_back() {
        let admission = Admission::new(2, 10);
        let first = admission.admit(50).expect("one thing is let in whatever its size");
        assert_eq!(admission.admit(1).unwrap_err(), (1, 50));
        drop(first);
        let _two = (admission.admit(5).unwrap(), admission.admit(5).unwrap());
        assert_eq!(admission.admit(0).unwrap_err(), (2, 10));
    }
}
