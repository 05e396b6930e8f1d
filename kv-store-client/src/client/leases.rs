//! Leases that renew themselves.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    ClientError, KvClient,
    calls::{Attempted, PAUSE_MAX, PAUSE_MIN, wait},
    clock, expect,
};
use crate::{
    idl::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseListRequest, LeaseRevokeRequest,
        LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, ResponseHeader,
    },
    protocol::{Call, Fault, Reply},
};

impl KvClient {
    /// Grants a lease with the time to live `ttl`, rounded down to whole seconds, but at least one second.
    /// The lease is renewed until the last clone of the handle is dropped or the lease is lost.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn hold_lease(&self, ttl: Duration) -> Result<Lease, ClientError> {
        let ttl_seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let sent = clock::now();
        let granted = self.grant_lease(ttl_seconds, None).await?;
        Ok(Lease::keep(self.clone(), granted.lease_id, granted.ttl_seconds, sent))
    }

    /// Renews an existing lease, for example one that was granted to another program, until the last clone of
    /// the handle is dropped or the lease is lost.
    ///
    /// # Errors
    /// See [`ClientError`]. [`Fault::NoLease`]: the lease does not exist.
    pub async fn adopt_lease(&self, lease_id: i64) -> Result<Lease, ClientError> {
        let sent = clock::now();
        let ttl_seconds = self.keep_alive(lease_id).await?;
        Ok(Lease::keep(self.clone(), lease_id, ttl_seconds, sent))
    }

    /// Grants a lease with a time to live of `ttl_seconds` without renewal. Without an id, the client draws
    /// one.
    ///
    /// # Errors
    /// See [`ClientError`]. [`Fault::LeaseExists`]: another lease has the id.
    pub async fn grant_lease(
        &self,
        ttl_seconds: i64,
        lease_id: Option<i64>,
    ) -> Result<LeaseGrantResponse, ClientError> {
        let lease_id = lease_id.unwrap_or_else(|| rand::random_range(1..i64::MAX));
        let call = |session| Call::LeaseGrant(LeaseGrantRequest::new(ttl_seconds, lease_id, session));
        let reply = self.write(call).await?;
        expect(reply, |reply| if let Reply::LeaseGrant(response) = reply { Some(response) } else { None })
    }

    /// Ends a lease. When the call returns, the keys of the lease are deleted: up to 10,000 at one revision,
    /// and if there are more, the others at later revisions.
    ///
    /// # Errors
    /// See [`ClientError`]. [`Fault::NoLease`]: the lease does not exist.
    pub async fn revoke_lease(&self, lease_id: i64) -> Result<ResponseHeader, ClientError> {
        let call = |session| Call::LeaseRevoke(LeaseRevokeRequest::new(lease_id, session));
        let reply = self.write(call).await?;
        expect(
            reply,
            |reply| if let Reply::LeaseRevoke(response) = reply { Some(response.header) } else { None },
        )
    }

    /// Renews a lease, so that it has its whole time to live again. Returns the time to live in seconds. A
    /// [`Lease`] renews itself.
    ///
    /// # Errors
    /// See [`ClientError`]. [`Fault::NoLease`]: the lease does not exist.
    pub async fn keep_alive(&self, lease_id: i64) -> Result<i64, ClientError> {
        let reply = self.read(Call::LeaseKeepAlive(LeaseKeepAliveRequest::new(lease_id))).await?;
        expect(reply, |reply| {
            if let Reply::LeaseKeepAlive(response) = reply { Some(response.ttl_seconds) } else { None }
        })
    }

    /// Returns the time to live of a lease, and with `keys` the keys that are attached to it.
    ///
    /// # Errors
    /// See [`ClientError`]. [`Fault::NoLease`]: the lease does not exist.
    pub async fn time_to_live(
        &self,
        lease_id: i64,
        keys: bool,
    ) -> Result<LeaseTimeToLiveResponse, ClientError> {
        let reply = self.read(Call::LeaseTimeToLive(LeaseTimeToLiveRequest::new(lease_id, keys))).await?;
        expect(
            reply,
            |reply| if let Reply::LeaseTimeToLive(response) = reply { Some(response) } else { None },
        )
    }

    /// Returns the ids of all leases, in ascending order.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leases(&self) -> Result<Vec<i64>, ClientError> {
        let mut all: Vec<i64> = Vec::new();
        loop {
            let reply = self.read(Call::LeaseList(LeaseListRequest::new(all.last().copied(), None))).await?;
            let response =
                expect(
                    reply,
                    |reply| if let Reply::LeaseList(response) = reply { Some(response) } else { None },
                )?;
            let is_last = !response.more || response.lease_ids.is_empty();
            all.extend(response.lease_ids);
            if is_last {
                return Ok(all);
            }
        }
    }
}

/// A lease that a background task renews. Clones are handles of the same lease. When the last clone is
/// dropped, the renewal stops, and the lease ends after its time to live. [`revoke`](Self::revoke) ends it
/// immediately.
///
/// This client's own clock decides whether the lease is held. It is held for its time to live, counted from
/// the moment at which the grant or the last successful renewal was *sent*. One percent is subtracted,
/// because clocks may run at different speeds. While the lease is held, no other client can therefore hold
/// what it protects, however late responses arrive and however long this program is stopped. A lease that was
/// lost stays lost.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Held>);

#[derive(Debug)]
struct Held {
    client: KvClient,
    id: i64,
    ttl: Duration,
    term: Term,
    renewal: JoinHandle<()>,
}

/// Time until which a lease is held, by [`clock::now`]. `None`: the lease is lost.
#[derive(Clone, Debug)]
struct Term(watch::Sender<Option<Duration>>);

impl Term {
    fn new(until: Duration) -> Self {
        Self(watch::Sender::new(Some(until)))
    }

    /// Returns the remaining time. `None`: the lease is lost.
    fn left(&self) -> Option<Duration> {
        let now = clock::now();
        let left = self.0.borrow().and_then(|until| until.checked_sub(now)).filter(|left| !left.is_zero());
        if left.is_none() {
            self.lose();
        }
        left
    }

    /// Extends the time to `until`, if the lease is still held. Returns whether it is.
    fn extend(&self, until: Duration) -> bool {
        let mut is_held = false;
        self.0.send_modify(|held| {
            *held = held.filter(|held| *held > clock::now()).map(|held| held.max(until));
            is_held = held.is_some();
        });
        is_held
    }

    fn lose(&self) {
        self.0.send_if_modified(|held| held.take().is_some());
    }
}

impl Lease {
    /// Starts the renewal of a lease. `sent` is the time at which its grant or renewal was sent.
    fn keep(client: KvClient, id: i64, ttl_seconds: i64, sent: Duration) -> Self {
        let ttl = Duration::from_secs(ttl_seconds.unsigned_abs());
        let term = Term::new(sent + safe(ttl));
        let renewal = tokio::spawn(renew(client.clone(), id, ttl, term.clone()));
        Self(Arc::new(Held { client, id, ttl, term, renewal }))
    }

    /// Returns the id of the lease.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.0.id
    }

    /// Returns the time to live without renewal.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.0.ttl
    }

    /// Returns whether the lease is certainly held. A program may use what the lease protects only within the
    /// time that is [left](Self::left).
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.term.left().is_some()
    }

    /// Returns the time for which the lease is certainly held, even if no further renewal succeeds. Zero if
    /// the lease is lost.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.0.term.left().unwrap_or_default()
    }

    /// Waits until the lease is lost: its time is over by this client's clock, or a server responds that it
    /// has ended.
    pub async fn lost(&self) {
        let mut changes = self.0.term.0.subscribe();
        while let Some(left) = self.0.term.left() {
            // Timers are paused while the machine is suspended. Therefore the clock is read at intervals.
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(left.min(LOOK)) => {}
            }
        }
    }

    /// Ends the lease, which deletes its keys. It is not an error if the lease has ended already.
    ///
    /// # Errors
    /// See [`ClientError`]. A lease that could not be revoked ends after its time to live.
    pub async fn revoke(self) -> Result<(), ClientError> {
        self.0.renewal.abort();
        self.0.term.lose();
        match self.0.client.revoke_lease(self.0.id).await {
            Ok(_) | Err(ClientError::Rejected(Fault::NoLease(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Renews a lease until it is lost.
async fn renew(client: KvClient, id: i64, ttl: Duration, term: Term) {
    let call = Call::LeaseKeepAlive(LeaseKeepAliveRequest::new(id));
    let mut pause = PAUSE_MIN;
    let mut next = ttl / 3;
    while let Some(left) = term.left() {
        sleep(next.min(left)).await;
        let (sent, deadline) = (clock::now(), Instant::now() + (ttl / 3).max(ATTEMPT_MIN));
        match client.try_once(&call, deadline, Duration::ZERO).await {
            Ok(Reply::LeaseKeepAlive(response)) => {
                let ttl = Duration::from_secs(response.ttl_seconds.unsigned_abs());
                if !term.extend(sent + safe(ttl)) {
                    return;
                }
                (next, pause) = (ttl / 3, PAUSE_MIN);
                continue;
            }
            Err(Attempted::Refused(Fault::NoLease(_))) => return term.lose(),
            other => tracing::debug!(?other, "a lease was not renewed; trying again"),
        }
        wait(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        next = Duration::ZERO;
    }
}

/// Returns the part of a time to live that is safe to rely on, because the server's clock may run faster.
fn safe(ttl: Duration) -> Duration {
    ttl - ttl / 100
}

/// Maximum time between two reads of the clock.
const LOOK: Duration = Duration::from_millis(500);
/// Minimum time limit of a renewal.
const ATTEMPT_MIN: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn term_that_has_passed_is_not_extended() {
        let now = clock::now();
        let term = Term::new(now + Duration::from_secs(60));
        assert!(term.left().is_some_and(|left| left > Duration::from_secs(50)));
        assert!(term.extend(now + Duration::from_secs(600)));
        assert!(term.left().is_some_and(|left| left > Duration::from_secs(500)));
        let passed = Term::new(now.saturating_sub(Duration::from_millis(1)));
        assert!(!passed.extend(now + Duration::from_secs(60)), "it was lost meanwhile");
        assert_eq!(passed.left(), None);
        term.lose();
        assert!(!term.extend(now + Duration::from_secs(60)) && term.left().is_none());
    }

    #[test]
    fn later_answer_to_an_earlier_renewal_does_not_shorten_a_term() {
        let now = clock::now();
        let term = Term::new(now + Duration::from_secs(60));
        assert!(term.extend(now + Duration::from_secs(30)));
        assert!(term.left().is_some_and(|left| left > Duration::from_secs(50)));
    }
}
