//! A checker of what watchers were told, compared with the complete history of what they watched.
//!
//! It is for services whose state has revisions: each write has a revision of its own, greater than those before, and a watcher
//! is told of the changes of each revision, as *events*. Record for each watcher what it did and was told as [`Step`]s, read
//! the complete history when the test is over, and call [`check`].
//!
//! # Examples
//! ```
//! use consensus_testkit::watch_history::{Event, Property, Step, check};
//!
//! let event = |revision, what| Event { revision, what };
//! let written = [event(2, "a"), event(3, "b"), event(3, "c")];
//! let told = [Step::Started(2), Step::Events(vec![event(2, "a")]), Step::Progress(3)];
//! let violation = check(&written, &told, None).unwrap_err();
//! assert_eq!(violation.property, Property::Bookmarkable); // Revision 3 has events, which were not delivered.
//! ```

use std::{collections::BTreeMap, fmt};

/// A change: the revision that made it, and what it was. No two changes of one revision are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<E> {
    /// Revision of the write.
    pub revision: u64,
    /// The change, such as a key with its new value.
    pub what: E,
}

/// An action of a watcher, or something that it was told; in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<E> {
    /// The watcher started a stream with this revision. Every stream after the first one resumes: it starts one revision after
    /// the last one that the watcher knows completely.
    Started(u64),
    /// One delivery: events that came together.
    Events(Vec<Event<E>>),
    /// A progress notification: all events up to this revision were delivered.
    Progress(u64),
    /// The watcher was told that revisions before this one were compacted: events that were not delivered are lost. The next
    /// stream starts with this revision.
    Compacted(u64),
}

/// Property of watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// Events come in the order of their revisions.
    Ordered,
    /// No event comes twice, in one stream or after a resumption.
    Unique,
    /// No event between two that were delivered is missing, and each event was written.
    Reliable,
    /// The events of one revision come in one delivery.
    Atomic,
    /// A stream that resumes after a revision begins with the next event after it.
    Resumable,
    /// When a progress notification comes, all events up to its revision were delivered.
    Bookmarkable,
}

/// A property that a history breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Broken property.
    pub property: Property,
    /// Position of the step in the watcher's history; the number of steps if the violation is at the end.
    pub step: usize,
    /// Reason: the expected and the actual event.
    pub why: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the watch is not {:?} at step {}: {}", self.property, self.step, self.why)
    }
}

/// Checks what a watcher was told. `written` is the complete history of what it watched, in the order of revisions. With
/// `through`, everything up to that revision must have been delivered in the end.
///
/// # Errors
/// The first violation.
///
/// # Panics
/// The history is not one: the first step is not [`Step::Started`], or a stream does not start where it has to.
pub fn check<E: PartialEq + fmt::Debug>(
    written: &[Event<E>],
    steps: &[Step<E>],
    through: Option<u64>,
) -> Result<(), Violation> {
    let mut told = Told::new(written);
    for (at, step) in steps.iter().enumerate() {
        told.at = at;
        match step {
            Step::Started(from) => told.start(*from),
            Step::Events(events) => told.deliver(events)?,
            Step::Progress(revision) => told.notify_progress(*revision)?,
            Step::Compacted(oldest) => told.covered = told.covered.max(oldest.saturating_sub(1)),
        }
    }
    told.at = steps.len();
    match through.and_then(|through| told.first_missing(through)) {
        Some(missing) => told.violated(Property::Reliable, format!("revision {missing} was never delivered")),
        None => Ok(()),
    }
}

/// State of the check: everything that the watcher was told until now.
struct Told<'a, E> {
    written: BTreeMap<u64, Vec<&'a E>>,
    /// Number of events that were delivered of each revision.
    delivered: BTreeMap<u64, usize>,
    /// Position of the present step.
    at: usize,
    /// Revision up to which the watcher knows everything, or knows that it is lost.
    covered: u64,
    /// Revision of the last progress notification.
    bookmark: u64,
    is_started: bool,
    /// Whether the present stream has resumed another one and delivered nothing yet.
    is_resuming: bool,
}

impl<'a, E: PartialEq + fmt::Debug> Told<'a, E> {
    fn new(history: &'a [Event<E>]) -> Self {
        let mut written: BTreeMap<u64, Vec<&E>> = BTreeMap::new();
        for event in history {
            written.entry(event.revision).or_default().push(&event.what);
        }
        let delivered = BTreeMap::new();
        Self { written, delivered, at: 0, covered: 0, bookmark: 0, is_started: false, is_resuming: false }
    }

    fn violated<T>(&self, property: Property, why: String) -> Result<T, Violation> {
        Err(Violation { property, step: self.at, why })
    }

    fn start(&mut self, from: u64) {
        if self.is_started {
            assert_eq!(
                from,
                self.covered + 1,
                "step {}: a stream has to resume where the watcher is",
                self.at
            );
        }
        self.is_resuming = self.is_started;
        self.is_started = true;
        self.covered = from.saturating_sub(1);
    }

    /// First revision up to `through` that was written and not delivered, and is not known to be lost.
    fn first_missing(&self, through: u64) -> Option<u64> {
        let next = self.covered + 1;
        if through < next {
            return None;
        }
        self.written.range(next..=through).next().map(|(revision, _)| *revision)
    }

    fn deliver(&mut self, events: &[Event<E>]) -> Result<(), Violation> {
        assert!(self.is_started, "step {}: events before the first stream", self.at);
        for same_revision in events.chunk_by(|one, next| one.revision == next.revision) {
            self.deliver_revision(same_revision)?;
            self.is_resuming = false;
        }
        Ok(())
    }

    fn deliver_revision(&mut self, events: &[Event<E>]) -> Result<(), Violation> {
        let revision = events[0].revision;
        let Some(written) = self.written.get(&revision) else {
            let why = format!("revision {revision} changed nothing that is watched, and {events:?} came");
            return self.violated(Property::Reliable, why);
        };
        if revision <= self.covered {
            return self.deliver_late(revision, events.len(), written.len());
        }
        if let Some(missing) = self.first_missing(revision - 1) {
            let property = if self.is_resuming { Property::Resumable } else { Property::Reliable };
            let why = format!("revision {missing} was to come next, and {revision} came");
            return self.violated(property, why);
        }
        let found: Vec<&E> = events.iter().map(|event| &event.what).collect();
        if let Some(property) = difference(&found, written) {
            let why = format!("revision {revision} wrote {written:?}, and {found:?} came together");
            return self.violated(property, why);
        }
        self.delivered.insert(revision, events.len());
        self.covered = revision;
        Ok(())
    }

    /// Names the property that a revision breaks which the watcher had left behind.
    fn deliver_late(&self, revision: u64, count: usize, written: usize) -> Result<(), Violation> {
        let (property, why) = match self.delivered.get(&revision) {
            Some(delivered) if delivered + count <= written => {
                (Property::Atomic, "the rest of it came later")
            }
            Some(_) => (Property::Unique, "it was delivered before"),
            None if revision <= self.bookmark => {
                (Property::Bookmarkable, "a progress notification had passed it")
            }
            None if self.is_resuming => (Property::Resumable, "the stream starts after it"),
            None => (Property::Ordered, "a later revision was delivered before"),
        };
        let why = format!("revision {revision} came when everything up to {} was there: {why}", self.covered);
        self.violated(property, why)
    }

    fn notify_progress(&mut self, revision: u64) -> Result<(), Violation> {
        if let Some(missing) = self.first_missing(revision) {
            let why = format!("progress {revision} was told before the events of revision {missing}");
            return self.violated(Property::Bookmarkable, why);
        }
        self.covered = self.covered.max(revision);
        self.bookmark = self.bookmark.max(revision);
        Ok(())
    }
}

/// Property that is broken if `found` is delivered for what one revision wrote. The order within a revision is free.
fn difference<E: PartialEq>(found: &[&E], written: &[&E]) -> Option<Property> {
    if found.iter().enumerate().any(|(at, event)| found[..at].contains(event)) {
        return Some(Property::Unique);
    }
    if !found.iter().all(|event| written.contains(event)) {
        return Some(Property::Reliable);
    }
    (found.len() < written.len()).then_some(Property::Atomic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, what: &'static str) -> Event<&'static str> {
        Event { revision, what }
    }

    /// Revision 3 changed two keys, revisions 4 and 7 none that is watched.
    fn written() -> Vec<Event<&'static str>> {
        vec![event(2, "a"), event(3, "b"), event(3, "c"), event(5, "d"), event(6, "e")]
    }

    fn of(range: std::ops::RangeInclusive<u64>) -> Step<&'static str> {
        Step::Events(written().into_iter().filter(|event| range.contains(&event.revision)).collect())
    }

    fn broken(steps: &[Step<&'static str>]) -> Property {
        check(&written(), steps, None).expect_err("the history breaks a property").property
    }

    #[test]
    fn complete_history_with_resumptions_and_progress_is_accepted() {
        use Step::{Compacted, Progress, Started};
        let histories = [
            vec![Started(1), of(2..=6)],
            vec![Started(1), of(2..=2), of(3..=5), Progress(5), of(6..=6), Progress(7)],
            vec![Started(1), of(2..=3), Started(4), of(5..=6)],
            vec![Started(1), of(2..=3), Progress(4), Started(5), Started(5), of(5..=6)],
            vec![Started(3), of(3..=3), of(5..=6)],
            vec![Started(1), of(2..=2), Compacted(5), Started(5), of(5..=6)],
        ];
        for steps in histories {
            assert_eq!(check(&written(), &steps, Some(7)), Ok(()), "{steps:?}");
        }
    }

    #[test]
    fn event_after_a_later_one_is_not_ordered() {
        // A skipped revision would be noticed first, so this watcher starts later.
        let steps = [Step::Started(3), of(3..=3), of(2..=2)];
        assert_eq!(broken(&steps), Property::Ordered);
    }

    #[test]
    fn repeated_event_is_not_unique() {
        assert_eq!(broken(&[Step::Started(1), of(2..=3), of(3..=3)]), Property::Unique);
        let twice = Step::Events(vec![event(2, "a"), event(2, "a")]);
        assert_eq!(broken(&[Step::Started(1), twice]), Property::Unique);
        assert_eq!(broken(&[Step::Started(1), of(2..=3), Step::Started(4), of(3..=5)]), Property::Unique);
    }

    #[test]
    fn gap_invention_and_missing_end_are_not_reliable() {
        assert_eq!(broken(&[Step::Started(1), of(2..=2), of(5..=5)]), Property::Reliable);
        let invented = Step::Events(vec![event(2, "a"), event(4, "x")]);
        assert_eq!(broken(&[Step::Started(1), invented]), Property::Reliable);
        let changed = Step::Events(vec![event(2, "x")]);
        assert_eq!(broken(&[Step::Started(1), changed]), Property::Reliable);
        let unfinished = [Step::Started(1), of(2..=5)];
        assert_eq!(check(&written(), &unfinished, None), Ok(()));
        let violation = check(&written(), &unfinished, Some(6)).unwrap_err();
        assert_eq!((violation.property, violation.step), (Property::Reliable, 2));
    }

    #[test]
    fn split_revision_is_not_atomic() {
        let half = |what| Step::Events(vec![event(3, what)]);
        assert_eq!(broken(&[Step::Started(1), of(2..=2), half("b"), half("c")]), Property::Atomic);
        assert_eq!(
            broken(&[Step::Started(1), of(2..=2), half("b"), Step::Started(3), half("c")]),
            Property::Atomic
        );
    }

    #[test]
    fn resumed_stream_with_a_gap_or_an_earlier_event_is_not_resumable() {
        assert_eq!(broken(&[Step::Started(1), of(2..=2), Step::Started(3), of(5..=5)]), Property::Resumable);
        let steps = [Step::Started(3), of(3..=3), Step::Started(4), of(2..=2)];
        assert_eq!(broken(&steps), Property::Resumable);
    }

    #[test]
    fn progress_before_an_event_is_not_bookmarkable() {
        assert_eq!(
            broken(&[Step::Started(1), of(2..=2), Step::Progress(3), of(3..=3)]),
            Property::Bookmarkable
        );
        // Also if the end of the history is not known to the watcher.
        assert_eq!(broken(&[Step::Started(1), of(2..=5), Step::Progress(7)]), Property::Bookmarkable);
    }

    #[test]
    #[should_panic(expected = "has to resume where the watcher is")]
    fn stream_that_resumes_elsewhere_is_no_history() {
        let _ = check(&written(), &[Step::Started(1), of(2..=2), Step::Started(5)], None);
    }
}
