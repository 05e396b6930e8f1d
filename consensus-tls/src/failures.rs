//! Log of failed handshakes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Logs a line for each failed handshake. A program that connects again and again must not fill the disk, nor hide the reasons of
/// others: in each [`WINDOW`] there are at most [`LINES_MAX`] lines for one address and reason, and [`CAUSES_MAX`] of these.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    /// Number of lines by address and reason.
    lines: BTreeMap<(IpAddr, String), u32>,
    left_out: u64,
}

impl Failures {
    pub(crate) fn failed(&self, peers: &str, from: SocketAddr, why: &str) {
        let (is_shown, left_out) = self.count(from.ip(), why, Instant::now());
        if left_out > 0 {
            tracing::warn!(peers, left_out, "more TLS handshakes failed for the reasons above");
        }
        if is_shown {
            tracing::warn!(peers, %from, why, "a TLS handshake failed; the connection is closed");
        }
    }

    /// Whether a failure is logged by itself, and how many of the window before were not.
    fn count(&self, from: IpAddr, why: &str, now: Instant) -> (bool, u64) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if window.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            left_out = window.left_out;
            *window = Window { began: Some(now), ..Window::default() };
        }
        let cause = (from, why.to_owned());
        let is_shown = if window.lines.len() < CAUSES_MAX || window.lines.contains_key(&cause) {
            let lines = window.lines.entry(cause).or_default();
            *lines = lines.saturating_add(1);
            *lines <= LINES_MAX
        } else {
            false
        };
        window.left_out += u64::from(!is_shown);
        (is_shown, left_out)
    }
}

const LINES_MAX: u32 = 3;
const CAUSES_MAX: usize = 32;
const WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn repeated_failures_are_counted_and_do_not_hide_others() {
        let (failures, start) = (Failures::default(), Instant::now());
        let from = |last: u8| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
        let shown = |address, why, now| (0..100).filter(|_| failures.count(address, why, now).0).count();
        assert_eq!(shown(from(1), "one", start), 3);
        assert_eq!(shown(from(1), "other", start), 3);
        assert_eq!(shown(from(2), "one", start), 3);
        let many = (3..=255).filter(|last| failures.count(from(*last), "one", start).0).count();
        assert_eq!(many, CAUSES_MAX - 3);
        let left_out = 3 * 97 + 253 - many as u64;
        assert_eq!(failures.count(from(1), "one", start + WINDOW), (true, left_out));
        assert_eq!(failures.count(from(1), "one", start + WINDOW * 2), (true, 0));
    }
}
