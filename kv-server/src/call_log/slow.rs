//! Warnings about slow requests, at most a few a second.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{CallRecord, Protocol};

/// Warns about calls that take long.
pub(super) struct SlowRequests {
    limit: Duration,
    window: Mutex<Window>,
}

/// The warnings of a second.
#[derive(Debug)]
struct Window {
    start: Instant,
    told: u32,
    /// Slow requests without a warning that were not counted in the log yet.
    omitted: u64,
}

impl Window {
    /// Whether there may be a warning now.
    fn admit(&mut self, now: Instant) -> bool {
        if now.duration_since(self.start) >= WINDOW {
            (self.start, self.told) = (now, 0);
        }
        let is_admitted = self.told < TOLD_MAX;
        self.told += u32::from(is_admitted);
        self.omitted += u64::from(!is_admitted);
        is_admitted
    }
}

impl SlowRequests {
    /// `None` for a limit of 0.
    pub(super) fn new(limit: Duration) -> Option<Self> {
        let window = Window { start: Instant::now(), told: 0, omitted: 0 };
        (!limit.is_zero()).then(|| Self { limit, window: Mutex::new(window) })
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    pub(super) fn warn(&self, call: &CallRecord, result: &str, duration: Duration) {
        metrics::counter!("kv_slow_requests_total").increment(1);
        if !self.window.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now()) {
            return;
        }
        let notes = &call.notes;
        let protocol = call.origin.protocol.name();
        let keys = match (notes.keys.is_empty(), serde_json::to_string(&notes.keys.shown(KEYS_MAX))) {
            (false, Ok(keys)) => keys,
            _ => String::new(),
        };
        tracing::warn!(
            method = call.method,
            protocol,
            ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            stages = notes.stages.describe(duration),
            result,
            user = notes.user.as_deref().unwrap_or_default(),
            peer = %call.origin.peer,
            keys,
            more_keys = notes.keys.omitted(KEYS_MAX),
            request_bytes = notes.request_bytes.unwrap_or_default(),
            response_bytes = notes.response_bytes.unwrap_or_default(),
            "a request was slow"
        );
    }

    /// Logs how many slow requests had no warning since this was called last, if there were any.
    pub(super) fn tell_omitted(&self) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let omitted = std::mem::take(&mut window.omitted);
        drop(window);
        if omitted > 0 {
            tracing::warn!(omitted, "more requests were slow; at most {TOLD_MAX} a second are logged");
        }
    }
}

impl Protocol {
    /// Name in the logs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Thrift => "thrift",
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// Time in which at most [`TOLD_MAX`] warnings are logged.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
const TOLD_MAX: u32 = 10;
/// Key ranges of a warning.
const KEYS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_beyond_those_of_a_second_are_counted() {
        let start = Instant::now();
        let mut window = Window { start, told: 0, omitted: 0 };
        let admitted = (0..TOLD_MAX + 5).filter(|_| window.admit(start)).count();
        assert_eq!((admitted, window.omitted), (TOLD_MAX as usize, 5));
        assert!(window.admit(start + WINDOW));
        assert_eq!(window.omitted, 5, "they are counted in the log once");
    }
}
