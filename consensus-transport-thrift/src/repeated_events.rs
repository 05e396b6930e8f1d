//! Limits how often repeated events are logged.
//!
//! A fault between two nodes often lasts for hours, and is detected several times per second. For each cause the log gets one
//! line when it starts, one line with a count every ten minutes while it lasts, and one line when it has ended.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// Counts events by their cause.
#[derive(Debug)]
pub(crate) struct RepeatedEvents<Cause> {
    ongoing: BTreeMap<Cause, Ongoing>,
    /// Events of one cause that are logged individually before they are only counted.
    logged_each: u64,
}

#[derive(Debug)]
struct Ongoing {
    times: u64,
    first: Instant,
    last: Instant,
    last_logged: Instant,
}

/// Number of events of one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Occurrences {
    pub(crate) times: u64,
    /// Time from the first event to the last one.
    pub(crate) within: Duration,
}

impl fmt::Display for Occurrences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.times {
            1 => f.write_str("once"),
            times => write!(f, "{times} times within {} s", self.within.as_secs()),
        }
    }
}

impl<Cause> Default for RepeatedEvents<Cause> {
    fn default() -> Self {
        Self { ongoing: BTreeMap::new(), logged_each: 1 }
    }
}

impl<Cause: Ord + Clone> RepeatedEvents<Cause> {
    /// Creates a counter that logs the first `logged_each` events of each cause individually.
    pub(crate) fn new(logged_each: u64) -> Self {
        Self { ongoing: BTreeMap::new(), logged_each }
    }

    /// Whether no cause is ongoing.
    pub(crate) fn is_empty(&self) -> bool {
        self.ongoing.is_empty()
    }

    /// Records an event. Returns its occurrences so far if they are to be logged now. With too many causes at the same time,
    /// events of further causes are not logged.
    pub(crate) fn record(&mut self, cause: Cause, now: Instant) -> Option<Occurrences> {
        if self.ongoing.len() >= CAUSES_MAX && !self.ongoing.contains_key(&cause) {
            return None;
        }
        let new = Ongoing { times: 0, first: now, last: now, last_logged: now };
        let ongoing = self.ongoing.entry(cause).or_insert(new);
        ongoing.times += 1;
        ongoing.last = now;
        let is_due =
            ongoing.times <= self.logged_each || now.duration_since(ongoing.last_logged) >= SUMMARY_EVERY;
        is_due.then(|| {
            ongoing.last_logged = now;
            ongoing.occurrences()
        })
    }

    /// Removes the causes for which `is_over` returns true, and those without an event for a minute. Returns the ones with
    /// more events than were logged individually.
    pub(crate) fn end_causes(
        &mut self,
        now: Instant,
        is_over: impl Fn(&Cause) -> bool,
    ) -> Vec<(Cause, Occurrences)> {
        let mut more_often = Vec::new();
        self.ongoing.retain(|cause, ongoing| {
            let over = is_over(cause) || now.duration_since(ongoing.last) >= OVER_AFTER;
            if over && ongoing.times > self.logged_each {
                more_often.push((cause.clone(), ongoing.occurrences()));
            }
            !over
        });
        more_often
    }
}

impl Ongoing {
    fn occurrences(&self) -> Occurrences {
        Occurrences { times: self.times, within: self.last.duration_since(self.first) }
    }
}

/// Interval in which an ongoing cause is logged again, with a count.
const SUMMARY_EVERY: Duration = Duration::from_secs(10 * 60);
/// Time without an event after which a cause has ended.
pub(crate) const OVER_AFTER: Duration = Duration::from_secs(60);
/// Most causes at the same time; limited because peers determine parts of the texts.
const CAUSES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lasting_cause_is_logged_once_then_every_ten_minutes_and_at_its_end() {
        let (start, mut repeats) = (Instant::now(), RepeatedEvents::new(1));
        let mut said = Vec::new();
        for second in 0..1500 {
            said.extend(repeats.record("refused", start + second * SECOND));
        }
        let lines: Vec<String> = said.iter().map(Occurrences::to_string).collect();
        assert_eq!(lines, ["once", "601 times within 600 s", "1201 times within 1200 s"]);
        assert_eq!(repeats.end_causes(start + 1510 * SECOND, |_| false), []);
        let end = repeats.end_causes(start + 1560 * SECOND, |_| false);
        assert_eq!(end, [("refused", Occurrences { times: 1500, within: 1499 * SECOND })]);
        assert_eq!(repeats.record("refused", start + 1600 * SECOND).unwrap().times, 1, "a new outage");
    }

    #[test]
    fn each_cause_is_logged() {
        let (now, mut repeats) = (Instant::now(), RepeatedEvents::new(1));
        assert!(repeats.record("a", now).is_some() && repeats.record("b", now).is_some());
        assert!(repeats.record("a", now).is_none());
        assert_eq!(
            repeats.end_causes(now, |cause| *cause == "b"),
            [],
            "a cause that was logged completely needs no count"
        );
        assert!(repeats.record("b", now).is_some());
        assert_eq!(repeats.end_causes(now, |_| true).len(), 1);
        assert!(repeats.is_empty());
    }

    #[test]
    fn first_events_are_logged_individually() {
        let (now, mut repeats) = (Instant::now(), RepeatedEvents::new(3));
        let said: Vec<bool> = (0..5).map(|_| repeats.record("connected", now).is_some()).collect();
        assert_eq!(said, [true, true, true, false, false]);
    }

    #[test]
    fn number_of_causes_is_limited() {
        let (now, mut repeats) = (Instant::now(), RepeatedEvents::new(1));
        let said = (0..10_000).filter(|cause| repeats.record(*cause, now).is_some()).count();
        assert_eq!((said, repeats.ongoing.len()), (CAUSES_MAX, CAUSES_MAX));
    }
}
