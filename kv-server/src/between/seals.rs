//! Seals of requests between nodes. A seal is valid once, on one connection, for one node, and for a bounded time:
//!
//! 1. The node that connects asks for a *challenge*: random bytes that the other node draws for this connection.
//! 2. It numbers its requests on the connection. A seal is the HMAC, with the replicated key, of the receiver's node id, the
//!    challenge, the number and the request.
//! 3. The receiver accepts each number once, and none on a connection whose challenge is older than [`CHALLENGE_AGE_MAX`].
//!
//! A node that restarts has lost its connections, and with them their challenges. Requests of one connection may overtake each
//! other, so that the receiver remembers the last [`NUMBERS`] numbers, and refuses older ones.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use consensus_core::NodeId;
use kv_state_machine::AuthSecret;
use tokio::time::Instant;

use crate::auth::{self, Seal};

/// Random bytes that the receiver of requests draws for a connection.
pub(crate) type Challenge = [u8; 32];

/// Seals the requests to one node on one connection.
#[derive(Debug)]
pub(crate) struct Sealer {
    to: NodeId,
    challenge: Challenge,
    /// Number of the last request.
    last: AtomicU64,
    since: Instant,
}

impl Sealer {
    /// Seals requests to node `to`, which drew the challenge.
    pub(crate) fn new(to: NodeId, challenge: Challenge) -> Self {
        Self { to, challenge, last: AtomicU64::new(0), since: Instant::now() }
    }

    /// Whether the connection must be replaced, long before the receiver refuses its requests.
    pub(crate) fn is_old(&self) -> bool {
        self.since.elapsed() > SEALER_AGE_MAX
    }

    /// Returns the number and the seal of a request; `None` without a key.
    pub(super) fn seal(&self, secret: &AuthSecret, request: &[u8]) -> Option<(u64, Seal)> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Some((number, auth::seal(secret, &context(self.to, &self.challenge, number), request)?))
    }
}

/// The receiver's side of a connection. Takes no memory until its client asks for a challenge.
#[derive(Debug, Default)]
pub(crate) struct Channel(OnceLock<Box<Opened>>);

#[derive(Debug)]
struct Opened {
    challenge: Challenge,
    since: Instant,
    used: Mutex<Used>,
}

/// Why a request without a right seal, or with one that is not valid any more, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SealError {
    #[error("no node of this cluster sealed it for this connection")]
    Wrong,
    #[error("it was received before, or long after later ones")]
    Repeated,
    #[error("its connection is older than {CHALLENGE_AGE_MAX:?}; a node opens a new one before")]
    Outdated,
}

impl Channel {
    /// Returns the challenge of the connection.
    ///
    /// # Errors
    /// The operating system has no random numbers.
    pub(crate) fn challenge(&self) -> Result<Challenge, getrandom::Error> {
        let mut challenge = [0; 32];
        getrandom::fill(&mut challenge)?;
        let opened = || Box::new(Opened { challenge, since: Instant::now(), used: Mutex::default() });
        Ok(self.0.get_or_init(opened).challenge)
    }

    /// Checks the seal of a request to node `own`. The request cannot be received again.
    pub(super) fn receive(
        &self,
        own: NodeId,
        secret: &AuthSecret,
        request: &[u8],
        (number, seal): (u64, &Seal),
    ) -> Result<(), SealError> {
        let opened = self.0.get().ok_or(SealError::Wrong)?;
        if !auth::is_sealed(secret, &context(own, &opened.challenge, number), request, seal) {
            return Err(SealError::Wrong);
        }
        if opened.since.elapsed() > CHALLENGE_AGE_MAX {
            return Err(SealError::Outdated);
        }
        let is_first = opened.used.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        if is_first { Ok(()) } else { Err(SealError::Repeated) }
    }
}

/// Returns the bytes to which a seal is bound, beside the request. Their length is fixed.
fn context(to: NodeId, challenge: &Challenge, number: u64) -> [u8; 48] {
    let mut context = [0; 48];
    context[..8].copy_from_slice(&to.0.to_be_bytes());
    context[8..40].copy_from_slice(challenge);
    context[40..].copy_from_slice(&number.to_be_bytes());
    context
}

/// The numbers that were used, of the [`NUMBERS`] up to the highest one. All lower ones count as used.
#[derive(Debug)]
struct Used {
    highest: u64,
    /// A bit for each number, at its remainder.
    bits: [u64; (NUMBERS / 64) as usize],
}

impl Default for Used {
    fn default() -> Self {
        Self { highest: 0, bits: [0; (NUMBERS / 64) as usize] }
    }
}

impl Used {
    /// Notes that a number is used. Returns whether it was not before.
    fn insert(&mut self, number: u64) -> bool {
        if number.saturating_add(NUMBERS) <= self.highest {
            return false;
        }
        if number.saturating_sub(self.highest) >= NUMBERS {
            self.bits.fill(0);
        } else {
            for passed in self.highest + 1..=number {
                *self.word(passed) &= !bit(passed);
            }
        }
        self.highest = self.highest.max(number);
        let word = self.word(number);
        let is_first = *word & bit(number) == 0;
        *word |= bit(number);
        is_first
    }

    fn word(&mut self, number: u64) -> &mut u64 {
        &mut self.bits[(number % NUMBERS / 64) as usize]
    }
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

/// Numbers that a receiver remembers of a connection: more than the requests that a connection has in transit.
const NUMBERS: u64 = 4096;
/// Age of a connection at which its sender opens a new one.
const SEALER_AGE_MAX: Duration = Duration::from_secs(300);
/// Time for which a receiver accepts requests on a connection. It bounds how late a request that was held back is executed. Twice
/// the sender's, so that the clocks of two nodes need not run alike.
const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use kv_state_machine::SECRET_BYTES_MIN;

    use super::*;

    const NODE: NodeId = NodeId(1);

    fn secret() -> AuthSecret {
        AuthSecret(vec![7; SECRET_BYTES_MIN].into())
    }

    fn receive(channel: &Channel, own: NodeId, sealed: (u64, Seal)) -> Result<(), SealError> {
        channel.receive(own, &secret(), b"request", (sealed.0, &sealed.1))
    }

    fn connection() -> (Sealer, Channel) {
        let channel = Channel::default();
        (Sealer::new(NODE, channel.challenge().unwrap()), channel)
    }

    fn sealed(sealer: &Sealer) -> (u64, Seal) {
        sealer.seal(&secret(), b"request").unwrap()
    }

    #[test]
    fn seal_is_valid_once() {
        let (sealer, channel) = connection();
        let (first, second) = (sealed(&sealer), sealed(&sealer));
        assert_eq!(receive(&channel, NODE, second), Ok(()), "it has overtaken the first");
        assert_eq!(receive(&channel, NODE, first), Ok(()));
        for again in [first, second] {
            assert_eq!(receive(&channel, NODE, again), Err(SealError::Repeated));
        }
        let renumbered = (9, first.1);
        assert_eq!(receive(&channel, NODE, renumbered), Err(SealError::Wrong));
    }

    #[test]
    fn seal_is_valid_for_its_node_and_connection_only() {
        let (sealer, channel) = connection();
        let request = sealed(&sealer);
        assert_eq!(receive(&channel, NodeId(2), request), Err(SealError::Wrong), "another node");
        for other in [connection().1, Channel::default()] {
            assert_eq!(receive(&other, NODE, request), Err(SealError::Wrong), "another connection");
        }
        assert_eq!(channel.challenge().unwrap(), channel.challenge().unwrap());
        assert_eq!(receive(&channel, NODE, request), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_was_held_back_is_refused_when_its_connection_is_old() {
        let (sealer, channel) = connection();
        let (early, late) = (sealed(&sealer), sealed(&sealer));
        tokio::time::advance(SEALER_AGE_MAX).await;
        assert!(!sealer.is_old());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(sealer.is_old());
        assert_eq!(receive(&channel, NODE, early), Ok(()));
        tokio::time::advance(CHALLENGE_AGE_MAX - SEALER_AGE_MAX).await;
        assert_eq!(receive(&channel, NODE, late), Err(SealError::Outdated));
    }

    #[test]
    fn number_is_used_once_in_any_order() {
        let mut used = Used::default();
        let mut numbers: Vec<u64> = (1..3 * NUMBERS).collect();
        for part in numbers.chunks_mut(1000) {
            part.reverse();
        }
        assert!(numbers.iter().all(|number| used.insert(*number)));
        assert!(!numbers.iter().any(|number| used.insert(*number)));
        let far = used.highest + 10 * NUMBERS;
        assert!(used.insert(far) && !used.insert(far - NUMBERS) && used.insert(far - NUMBERS + 1));
        assert!(used.insert(u64::MAX) && !used.insert(u64::MAX) && !used.insert(far + 1));
    }
}
