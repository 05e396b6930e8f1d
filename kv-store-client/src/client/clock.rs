//! The client's own clock, by which it knows for how long a lease is held at least.

use std::time::Duration;

/// Returns the time since a fixed moment. It includes time in which the machine was suspended.
#[cfg(target_os = "linux")]
pub(super) fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Returns the time since a fixed moment.
#[cfg(not(target_os = "linux"))]
pub(super) fn now() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}
