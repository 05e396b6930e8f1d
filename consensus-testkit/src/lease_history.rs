//! A checker of when leases ended, as the owner of a lease and readers of what goes with it can know it.
//!
//! A service grants *leases*: each lives for a time (its TTL), and for that time again after every renewal. Something is
//! attached to a lease, such as a key, and is removed when the lease ends. All times are of one clock that never goes back,
//! which owners and readers share. Record a [`Lease`] for each lease that a test holds and what [`Read`]s saw, and call
//! [`check`].
//!
//! * A lease does not end early: what is attached is there until the TTL has passed since the last renewal that succeeded was
//!   *sent*. The owner cannot know a later time, as the service may have renewed the lease as soon as that.
//! * It does not stay: what is attached is gone when the TTL and a grace have passed since the last renewal that may have had
//!   an effect. A new leader may not know how much of the TTL has passed, so that a [`Disturbance`] starts it again, unless the service
//!   has noted regularly how much of it was left ([`Promise::checkpoint_interval`]).

use std::{fmt, time::Duration};

/// A grant or renewal of a lease that its owner requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Time just before the request was sent.
    pub sent: Duration,
    /// Time of the response, or at which the request can have no effect any more.
    pub ended: Duration,
    /// For how long the lease lives after it; `None` without a response that says so.
    pub ttl: Option<Duration>,
}

/// A lease and what its owner did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Name in messages.
    pub name: String,
    /// Time to live.
    pub ttl: Duration,
    /// Grant and renewals.
    pub renewals: Vec<Renewal>,
    /// Time at which the owner was told that something was attached.
    pub attached: Duration,
}

/// A linearizable read of whether what is attached to a lease is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Time just before it was sent.
    pub began: Duration,
    /// Time of its response.
    pub ended: Duration,
    /// Whether it was there.
    pub is_there: bool,
}

/// A time in which leaders changed, there was none, or the machine was too busy: leases may be counted from the start at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// Its start.
    pub from: Duration,
    /// Time from which one leader leads and serves.
    pub to: Duration,
}

/// Bounds on the end of leases, which the service promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Time in addition to the TTL within which what is attached is gone.
    pub grace: Duration,
    /// How often the time that is left of a lease is noted, so that a new leader counts no more than that, rounded up to
    /// seconds; `None`: never.
    pub checkpoint_interval: Option<Duration>,
}

/// How a lease broke its promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A read missed what was attached before the lease ended.
    EndedEarly {
        /// Name of the lease.
        lease: String,
        /// Until when the owner could rely on it.
        held_until: Duration,
        /// The read that missed it.
        read: Read,
    },
    /// A read found what was attached when it had to be gone.
    Stayed {
        /// Name of the lease.
        lease: String,
        /// Time at which it had to be gone.
        gone_by: Duration,
        /// The read that found it.
        read: Read,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndedEarly { lease, held_until, read } => {
                write!(
                    f,
                    "lease {lease} ended early: its owner could rely on it until {held_until:?}, but {read:?}"
                )
            }
            Self::Stayed { lease, gone_by, read } => {
                write!(f, "lease {lease} stayed: it had to be gone by {gone_by:?}, but {read:?}")
            }
        }
    }
}

/// Time until which the owner can rely on a lease: its TTL after the last successful renewal was sent.
#[must_use]
pub fn held_until(lease: &Lease) -> Duration {
    let until = |renewal: &Renewal| renewal.ttl.map(|ttl| renewal.sent + ttl);
    lease.renewals.iter().filter_map(until).max().unwrap_or_default()
}

/// Time at which what is attached to a lease has to be gone. `disturbances` are in the order of time.
#[must_use]
pub fn gone_by(lease: &Lease, promise: &Promise, disturbances: &[Disturbance]) -> Duration {
    // From here on nothing renews the lease; the leader counts what is left.
    let mut since = lease.renewals.iter().map(|renewal| renewal.ended).max().unwrap_or_default();
    let mut left = lease.ttl;
    for disturbance in disturbances {
        if disturbance.to <= since {
            continue;
        }
        if disturbance.from >= since + left + promise.grace {
            break;
        }
        let counted = disturbance.from.saturating_sub(since).saturating_sub(promise.grace);
        left = left_after(left, lease.ttl, counted, promise.checkpoint_interval);
        // A disturbance may start before the last renewal ended.
        since = since.max(disturbance.to);
    }
    since + left + promise.grace
}

/// Time that is left by the last checkpoint, if `counted` has passed for certain.
fn left_after(left: Duration, ttl: Duration, counted: Duration, interval: Option<Duration>) -> Duration {
    let Some(interval) = interval.filter(|interval| !interval.is_zero()) else { return ttl };
    let checkpoints = u32::try_from(counted.as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
    if checkpoints == 0 {
        return left;
    }
    let noted = left.saturating_sub(interval.saturating_mul(checkpoints));
    left.min(Duration::from_secs(noted.as_secs() + 1))
}

/// Checks what readers saw of a lease. `disturbances` are in the order of time.
///
/// # Errors
/// The first violation in the order of `reads`.
pub fn check(
    lease: &Lease,
    reads: &[Read],
    promise: &Promise,
    disturbances: &[Disturbance],
) -> Result<(), Violation> {
    let (held_until, gone_by) = (held_until(lease), gone_by(lease, promise, disturbances));
    for read in reads {
        if !read.is_there && read.began > lease.attached && read.ended < held_until {
            return Err(Violation::EndedEarly { lease: lease.name.clone(), held_until, read: *read });
        }
        if read.is_there && read.began > gone_by {
            return Err(Violation::Stayed { lease: lease.name.clone(), gone_by, read: *read });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A lease of 5 s that was granted at once, renewed at 3 s, and that is not known to have been renewed at 6 s.
    fn lease() -> Lease {
        let renewal =
            |sent, ended, ttl: Option<u64>| Renewal { sent: ms(sent), ended: ms(ended), ttl: ttl.map(ms) };
        let renewals = vec![
            renewal(0, 100, Some(5_000)),
            renewal(3_000, 3_200, Some(5_000)),
            renewal(6_000, 6_500, None),
        ];
        Lease { name: "7".to_owned(), ttl: ms(5_000), renewals, attached: ms(200) }
    }

    fn read(began: u64, ended: u64, is_there: bool) -> Read {
        Read { began: ms(began), ended: ms(ended), is_there }
    }

    const GRACE_MS: u64 = 2_000;
    const NO_CHECKPOINTS: Promise =
        Promise { grace: Duration::from_millis(GRACE_MS), checkpoint_interval: None };

    fn outcome(reads: &[Read], disturbances: &[Disturbance]) -> Result<(), Violation> {
        check(&lease(), reads, &NO_CHECKPOINTS, disturbances)
    }

    #[test]
    fn lease_that_keeps_its_promise_is_accepted() {
        // Before it was attached, and as the lease ends, nothing is promised.
        let reads = [
            read(100, 150, false),
            read(210, 300, true),
            read(7_000, 7_999, true),
            read(7_900, 8_000, false),
        ];
        assert_eq!(outcome(&reads, &[]), Ok(()));
        assert_eq!(outcome(&[read(13_500, 13_600, true), read(13_600, 13_700, false)], &[]), Ok(()));
    }

    #[test]
    fn absence_before_the_known_end_is_told() {
        for missed in [read(210, 300, false), read(7_900, 7_999, false)] {
            let Err(Violation::EndedEarly { held_until, read, .. }) = outcome(&[missed], &[]) else {
                panic!("{missed:?} is too early");
            };
            assert_eq!((held_until, read), (ms(8_000), missed));
        }
    }

    #[test]
    fn presence_after_the_time_of_the_last_possible_renewal_is_told() {
        let Err(Violation::Stayed { gone_by, .. }) = outcome(&[read(13_501, 13_600, true)], &[]) else {
            panic!("the lease may have been renewed at 6.5 s and has to be gone by 13.5 s");
        };
        assert_eq!(gone_by, ms(13_500));
    }

    #[test]
    fn disturbance_starts_the_time_again() {
        let disturbance = |from, to| Disturbance { from: ms(from), to: ms(to) };
        let gone_by = |disturbances: &[_]| gone_by(&lease(), &NO_CHECKPOINTS, disturbances);
        assert_eq!(gone_by(&[disturbance(1_000, 5_000)]), ms(13_500), "it is over when the lease is renewed");
        assert_eq!(gone_by(&[disturbance(5_000, 9_000)]), ms(16_000));
        assert_eq!(gone_by(&[disturbance(13_499, 15_000)]), ms(22_000));
        assert_eq!(gone_by(&[disturbance(13_500, 15_000)]), ms(13_500), "it starts when the lease is gone");
        assert_eq!(gone_by(&[disturbance(10_000, 11_000), disturbance(17_000, 18_000)]), ms(25_000));
    }

    #[test]
    fn time_that_was_noted_is_not_counted_again() {
        let promise = Promise { checkpoint_interval: Some(ms(2_000)), ..NO_CHECKPOINTS };
        let gone_by = |from| gone_by(&lease(), &promise, &[Disturbance { from: ms(from), to: ms(20_000) }]);
        assert_eq!(gone_by(10_000), ms(27_000), "nothing was noted for certain within 3.5 s");
        assert_eq!(
            gone_by(10_501),
            ms(26_000),
            "that 3 s are left was noted, and that may have been 3.999 s"
        );
        assert_eq!(gone_by(13_000), ms(24_000), "that 1 s is left was noted");
    }
}
