//! Log of failed handshakes.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Logs a line for each failed handshake, but at most [`LINES_MAX`] in [`WINDOW`], so that who connects again and again does
/// not fill the disk.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    failures: u32,
}

impl Failures {
    pub(crate) fn failed(&self, peers: &str, from: SocketAddr, why: &str) {
        let (is_shown, left_out) = self.count(Instant::now());
        if left_out > 0 {
            tracing::warn!(peers, left_out, "more TLS handshakes failed");
        }
        if is_shown {
            tracing::warn!(peers, %from, why, "a TLS handshake failed; the connection is closed");
        }
    }

    /// Whether a failure is logged by itself, and how many before it were not.
    fn count(&self, now: Instant) -> (bool, u32) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if window.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            left_out = window.failures.saturating_sub(LINES_MAX);
            *window = Window { began: Some(now), failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
        (window.failures <= LINES_MAX, left_out)
    }
}

const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_beyond_the_limit_are_counted_and_told_in_the_next_window() {
        let (failures, start) = (Failures::default(), Instant::now());
        let shown = (0..100).filter(|_| failures.count(start).0).count();
        assert_eq!(shown, LINES_MAX as usize);
        assert_eq!(failures.count(start + WINDOW), (true, 100 - LINES_MAX));
        assert_eq!(failures.count(start + WINDOW * 2), (true, 0));
    }
}
