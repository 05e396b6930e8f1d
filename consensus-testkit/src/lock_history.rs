//! A checker of whether locks excluded each other, and of whether fencing tokens kept former holders out.
//!
//! A holder has a lock from when it was told so until it gives the lock up, or until the end of its lease as it can know it,
//! if that is earlier. Each time a lock is taken it has a *token*, greater than all tokens before. All times are of one clock
//! that never goes back, which the holders share. Record [`Hold`]s, and [`Write`]s of what the lock protects, of one lock,
//! and call [`check`].

use std::{fmt, time::Duration};

/// A time in which a holder may have used what the lock protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Number of the holder, for messages.
    pub holder: u64,
    /// Token.
    pub token: u64,
    /// Time at which the holder was told that it has the lock.
    pub since: Duration,
    /// Time just before the holder gave it up, or at which its lease ended for all that it knows.
    pub until: Duration,
}

/// A write that the service was to execute only if the lock with this token was still held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Token.
    pub token: u64,
    /// Time just before it was sent.
    pub began: Duration,
    /// Revision at which it was executed; `None` if it was not, or that is not known.
    pub revision: Option<u64>,
}

/// How a lock failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two holders had the lock at once.
    Overlap(Hold, Hold),
    /// The later of two holders does not have the greater token.
    TokenOrder(Hold, Hold),
    /// A write was executed that began after a later holder had the lock.
    LateWrite(Write, Hold),
    /// Two writes were executed in the other order than that of their tokens.
    WriteOrder(Write, Write),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap(one, other) => write!(f, "two hold the lock at once: {one:?} and {other:?}"),
            Self::TokenOrder(one, other) => write!(f, "{other:?} is after {one:?} and needs a greater token"),
            Self::LateWrite(write, hold) => write!(f, "{write:?} was executed, and began after {hold:?} did"),
            Self::WriteOrder(one, other) => {
                write!(f, "{other:?} was executed after {one:?} of a later holder")
            }
        }
    }
}

/// Checks the holds and the guarded writes of one lock.
///
/// # Errors
/// A violation.
pub fn check(holds: &[Hold], writes: &[Write]) -> Result<(), Violation> {
    // A lock whose lease was over before the response came was never held.
    let mut holds: Vec<Hold> = holds.iter().filter(|hold| hold.since < hold.until).copied().collect();
    holds.sort_by_key(|hold| hold.since);
    for pair in holds.windows(2) {
        if pair[1].since < pair[0].until {
            return Err(Violation::Overlap(pair[0], pair[1]));
        }
        if pair[1].token <= pair[0].token {
            return Err(Violation::TokenOrder(pair[0], pair[1]));
        }
    }
    let mut executed: Vec<(u64, Write)> =
        writes.iter().filter_map(|write| Some((write.revision?, *write))).collect();
    executed.sort_by_key(|(revision, _)| *revision);
    for pair in executed.windows(2) {
        if pair[1].1.token < pair[0].1.token {
            return Err(Violation::WriteOrder(pair[0].1, pair[1].1));
        }
    }
    for (_, write) in &executed {
        let later = holds.iter().find(|hold| hold.token > write.token && hold.since < write.began);
        if let Some(hold) = later {
            return Err(Violation::LateWrite(*write, *hold));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(token: u64, since: u64, until: u64) -> Hold {
        Hold {
            holder: token,
            token,
            since: Duration::from_millis(since),
            until: Duration::from_millis(until),
        }
    }

    fn write(token: u64, began: u64, revision: Option<u64>) -> Write {
        Write { token, began: Duration::from_millis(began), revision }
    }

    #[test]
    fn holders_one_after_the_other_are_accepted() {
        let holds = [hold(5, 20, 30), hold(3, 10, 20), hold(9, 32, 31)];
        let writes = [write(3, 15, Some(4)), write(5, 21, Some(6)), write(5, 29, None), write(3, 25, None)];
        assert_eq!(check(&holds, &writes), Ok(()));
    }

    #[test]
    fn two_holders_at_once_are_told() {
        let (first, second) = (hold(3, 10, 21), hold(5, 20, 30));
        assert_eq!(check(&[second, first], &[]), Err(Violation::Overlap(first, second)));
    }

    #[test]
    fn token_that_does_not_grow_is_told() {
        for token in [2, 3] {
            let (first, second) = (hold(3, 10, 20), hold(token, 20, 30));
            assert_eq!(check(&[first, second], &[]), Err(Violation::TokenOrder(first, second)));
        }
    }

    #[test]
    fn write_of_a_former_holder_is_told() {
        let (holds, late) = ([hold(3, 10, 20), hold(5, 20, 30)], write(3, 21, Some(7)));
        assert_eq!(check(&holds, &[late]), Err(Violation::LateWrite(late, holds[1])));
        // It may have been executed before the other one had the lock.
        assert_eq!(check(&holds, &[write(3, 19, Some(7))]), Ok(()));
    }

    #[test]
    fn write_after_one_with_a_greater_token_is_told() {
        let (first, second) = (write(5, 21, Some(6)), write(3, 19, Some(7)));
        assert_eq!(check(&[], &[second, first]), Err(Violation::WriteOrder(first, second)));
    }
}
