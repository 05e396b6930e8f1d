//! Locks and elections.

use futures::{FutureExt, Stream, StreamExt, stream};

use super::{
    ClientError, KvClient, Lease, Watch,
    calls::{PAUSE_MAX, wait},
    queue::{self, Place},
};
use crate::idl::{KeyValue, Operation, PutRequest, WatchRequest};

/// Reason that a lock is not held, or that an election was not won.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The lease has ended, or the key was deleted. Another client may hold the lock.
    #[error("the lock is lost: its lease has ended, or its key was deleted")]
    Lost,
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl KvClient {
    /// Waits for the lock of a name. Clients get the lock in the order of their requests. The lock excludes
    /// locks that etcd's clients take by the same name. Two locks of one name with one lease are the same
    /// lock. If the caller drops this future while it waits, the request is withdrawn.
    ///
    /// # Errors
    /// The lease was lost before the lock was held, or a request failed.
    ///
    /// # Examples
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn f(client: kv_store_client::KvClient) -> Result<(), Box<dyn std::error::Error>> {
    /// let lease = client.hold_lease(Duration::from_secs(10)).await?;
    /// let lock = client.lock("jobs/nightly", &lease).await?;
    /// tokio::select! {
    ///     () = lock.lost() => return Err("stopped before the work was done".into()),
    ///     () = tokio::time::sleep(Duration::from_secs(60)) => {} // The work.
    /// }
    /// lock.unlock().await?;
    /// # Ok(()) }
    /// ```
    pub async fn lock(&self, name: impl Into<Vec<u8>>, lease: &Lease) -> Result<Lock, LockError> {
        let (place, _) = Place::take(self, name.into(), lease, Vec::new()).await?;
        place.wait_for_turn().await?;
        Ok(Lock(place))
    }

    /// Campaigns in the election of a name, and waits until the election is won. Other clients can read
    /// `value`, which describes the candidate. The first candidate is leader until it resigns or loses its
    /// lease. Candidates of etcd's clients take part.
    ///
    /// # Errors
    /// The lease was lost before the election was won, or a request failed.
    pub async fn campaign(
        &self,
        name: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
        lease: &Lease,
    ) -> Result<Leadership, LockError> {
        let value = value.into();
        let (place, known) = Place::take(self, name.into(), lease, value.clone()).await?;
        let leadership = Leadership(place);
        if known != value {
            leadership.proclaim(value).await?;
        }
        leadership.0.wait_for_turn().await?;
        Ok(leadership)
    }

    /// Returns the leader of an election: the key, and the value that the leader proclaims. `None`: there is
    /// no leader.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leader(&self, name: impl AsRef<[u8]>) -> Result<Option<KeyValue>, ClientError> {
        Ok(queue::first(self, name.as_ref()).await?.0)
    }

    /// Returns a stream of the leaders of an election: the present leader first, then each time that the
    /// leader or its value changes. Of several changes in quick succession the stream may have only the last
    /// one. It continues after outages, and ends only with an error of the store.
    pub fn observe(
        &self,
        name: impl Into<Vec<u8>>,
    ) -> impl Stream<Item = Result<KeyValue, ClientError>> + Send + 'static {
        let observed = Observed { client: self.clone(), name: name.into(), watch: None, told: None };
        stream::unfold(Some(observed), |observed| async move {
            let mut observed = observed?;
            match observed.next().await {
                Ok(leader) => Some((Ok(leader), Some(observed))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

/// A lock that is held as long as its lease is held. Dropping it releases the lock in the background.
#[derive(Debug)]
pub struct Lock(Place);

impl Lock {
    /// Returns the key of this holder in the queue of the name.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.0.key
    }

    /// Returns a fencing token: a number that is greater than that of each earlier holder of the lock. A
    /// holder sends it with its writes to other systems, so that these can detect a holder that has lost the
    /// lock and does not know it yet.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.0.revision
    }

    /// Returns the lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        self.0.lease()
    }

    /// Returns whether the lock is held. The result is certain unless the key was deleted, which only
    /// [`lost`](Self::lost) detects. See [`Lease::is_held`].
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// Waits until the lock is lost: its lease has ended, or its key was deleted.
    pub async fn lost(&self) {
        self.0.lost().await;
    }

    /// Releases the lock. It is not an error if the lock was lost before.
    ///
    /// # Errors
    /// See [`ClientError`]. The lock may then exist until its lease ends.
    pub async fn unlock(self) -> Result<(), ClientError> {
        self.0.give_up().await
    }
}

/// Leadership after a won election. It lasts as long as its lease is held. Dropping it resigns in the
/// background.
#[derive(Debug)]
pub struct Leadership(Place);

impl Leadership {
    /// Returns the key of this holder in the queue of the name.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.0.key
    }

    /// Returns a number that is greater than that of each earlier leader. See [`Lock::revision`].
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.0.revision
    }

    /// Returns the lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        self.0.lease()
    }

    /// Returns whether this client is leader. The result is certain unless the key was deleted, which only
    /// [`lost`](Self::lost) detects. See [`Lease::is_held`].
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// Waits until leadership is lost: its lease has ended, or its key was deleted.
    pub async fn lost(&self) {
        self.0.lost().await;
    }

    /// Replaces the value that observers receive.
    ///
    /// # Errors
    /// [`LockError::Lost`]: another client may be leader, and nothing was written. Otherwise a request
    /// failed.
    pub async fn proclaim(&self, value: impl Into<Vec<u8>>) -> Result<(), LockError> {
        let lease_id = Some(self.lease().id());
        let put = PutRequest { lease_id, ..PutRequest::of(self.0.key.clone(), value) };
        self.0.while_there(Operation::Put(put)).await
    }

    /// Resigns. It is not an error if leadership was lost before.
    ///
    /// # Errors
    /// See [`ClientError`]. Leadership may then last until its lease ends.
    pub async fn resign(self) -> Result<(), ClientError> {
        self.0.give_up().await
    }
}

/// State of an observer.
struct Observed {
    client: KvClient,
    name: Vec<u8>,
    /// Watch of the keys below the name; `None` before the first read of the queue, and after the watch has
    /// ended.
    watch: Option<Watch>,
    /// Leader that the stream returned last: its key, and the revision of the key's last write.
    told: Option<(Vec<u8>, i64)>,
}

impl Observed {
    async fn next(&mut self) -> Result<KeyValue, ClientError> {
        loop {
            let (leader, revision) = match queue::first(&self.client, &self.name).await {
                Err(ClientError::Unavailable(why)) => {
                    tracing::debug!(%why, "whether there is another leader is not known");
                    self.client.note_outage(|| why);
                    wait(PAUSE_MAX).await;
                    continue;
                }
                found => found?,
            };
            self.client.note_answer();
            if self.watch.is_none() {
                let (key, range_end) = queue::below(&self.name);
                let start_revision = Some(revision + 1);
                let request = WatchRequest { start_revision, ..WatchRequest::of(key, range_end) };
                self.watch = Some(self.client.watch(request).await?);
            }
            let now = leader.as_ref().map(|kv| (kv.key.clone(), kv.mod_revision));
            if let Some(leader) = leader
                && now != self.told
            {
                self.told = now;
                return Ok(leader);
            }
            self.changed().await;
        }
    }

    /// Waits until the keys below the name may have changed.
    async fn changed(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let mut event = watch.next().await;
        while let Some(Ok(_)) = event {
            match watch.next().now_or_never() {
                Some(next) => event = next,
                None => return,
            }
        }
        // The watch has ended. A new one starts with the present state.
        self.watch = None;
    }
}
