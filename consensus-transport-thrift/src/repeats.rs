//! Says what happens again and again once, and later how often it happened.
//!
//! What is wrong between two nodes is often wrong for hours, and found again several times a second. Of each cause the log
//! has one line when it begins, one line with a count every ten minutes while it lasts, and one when it has ended.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// Counts events by their cause.
#[derive(Debug)]
pub(crate) struct Repeats<Cause> {
    ongoing: BTreeMap<Cause, Ongoing>,
    /// Events of one cause that are said each, before they are only counted.
    said_each: u64,
}

#[derive(Debug)]
struct Ongoing {
    times: u64,
    first: Instant,
    last: Instant,
    last_said: Instant,
}

/// How often something happened until now, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) times: u64,
    pub(crate) within: Duration,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.times {
            1 => f.write_str("once"),
            times => write!(f, "{times} times within {} s", self.within.as_secs()),
        }
    }
}

impl<Cause> Default for Repeats<Cause> {
    fn default() -> Self {
        Self { ongoing: BTreeMap::new(), said_each: 1 }
    }
}

impl<Cause: Ord + Clone> Repeats<Cause> {
    /// Of each cause the first `said_each` events are said.
    pub(crate) fn new(said_each: u64) -> Self {
        Self { ongoing: BTreeMap::new(), said_each }
    }

    /// Whether anything is going on.
    pub(crate) fn is_empty(&self) -> bool {
        self.ongoing.is_empty()
    }

    /// Takes in an event; how often it happened if that is to be said now. Of more causes at once than can be remembered,
    /// those beyond are not said.
    pub(crate) fn note(&mut self, cause: Cause, now: Instant) -> Option<Times> {
        if self.ongoing.len() >= CAUSES_MAX && !self.ongoing.contains_key(&cause) {
            return None;
        }
        let new = Ongoing { times: 0, first: now, last: now, last_said: now };
        let ongoing = self.ongoing.entry(cause).or_insert(new);
        ongoing.times += 1;
        ongoing.last = now;
        let is_due =
            ongoing.times <= self.said_each || now.duration_since(ongoing.last_said) >= SUMMARY_EVERY;
        is_due.then(|| {
            ongoing.last_said = now;
            ongoing.so_far()
        })
    }

    /// Forgets the causes of which `is_over` is true, and those of which nothing was seen for a minute. Returns those that
    /// happened more often than was said.
    pub(crate) fn end(&mut self, now: Instant, is_over: impl Fn(&Cause) -> bool) -> Vec<(Cause, Times)> {
        let mut more_often = Vec::new();
        self.ongoing.retain(|cause, ongoing| {
            let over = is_over(cause) || now.duration_since(ongoing.last) >= OVER_AFTER;
            if over && ongoing.times > self.said_each {
                more_often.push((cause.clone(), ongoing.so_far()));
            }
            !over
        });
        more_often
    }
}

impl Ongoing {
    fn so_far(&self) -> Times {
        Times { times: self.times, within: self.last.duration_since(self.first) }
    }
}

/// While something lasts it is said again this often, with a count.
const SUMMARY_EVERY: Duration = Duration::from_secs(10 * 60);
/// What did not happen for so long is over.
pub(crate) const OVER_AFTER: Duration = Duration::from_secs(60);
/// Causes remembered at once: a peer chooses some of the words.
const CAUSES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lasting_cause_is_said_once_then_counted_every_ten_minutes_and_at_its_end() {
        let (start, mut repeats) = (Instant::now(), Repeats::new(1));
        let mut said = Vec::new();
        for second in 0..1500 {
            said.extend(repeats.note("refused", start + second * SECOND));
        }
        let lines: Vec<String> = said.iter().map(Times::to_string).collect();
        assert_eq!(lines, ["once", "601 times within 600 s", "1201 times within 1200 s"]);
        assert_eq!(repeats.end(start + 1510 * SECOND, |_| false), []);
        let end = repeats.end(start + 1560 * SECOND, |_| false);
        assert_eq!(end, [("refused", Times { times: 1500, within: 1499 * SECOND })]);
        assert_eq!(repeats.note("refused", start + 1600 * SECOND).unwrap().times, 1, "a new outage");
    }

    #[test]
    fn each_cause_is_said() {
        let (now, mut repeats) = (Instant::now(), Repeats::new(1));
        assert!(repeats.note("a", now).is_some() && repeats.note("b", now).is_some());
        assert!(repeats.note("a", now).is_none());
        assert_eq!(repeats.end(now, |cause| *cause == "b"), [], "what was said needs no count");
        assert!(repeats.note("b", now).is_some());
        assert_eq!(repeats.end(now, |_| true).len(), 1);
        assert!(repeats.is_empty());
    }

    #[test]
    fn first_events_are_said_each_where_wanted() {
        let (now, mut repeats) = (Instant::now(), Repeats::new(3));
        let said: Vec<bool> = (0..5).map(|_| repeats.note("connected", now).is_some()).collect();
        assert_eq!(said, [true, true, true, false, false]);
    }

    #[test]
    fn causes_are_bounded() {
        let (now, mut repeats) = (Instant::now(), Repeats::new(1));
        let said = (0..10_000).filter(|cause| repeats.note(*cause, now).is_some()).count();
        assert_eq!((said, repeats.ongoing.len()), (CAUSES_MAX, CAUSES_MAX));
    }
}
