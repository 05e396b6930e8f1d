//! Locks and elections.

use futures::{FutureExt, Stream, StreamExt, stream};

use super::{
    ClientError, KvClient, Lease, Watch,
    calls::{PAUSE_MAX, wait},
    queue::{self, Place},
};
use crate::idl::{KeyValue, Operation, PutRequest, WatchRequest};

/// Why a lock is not held, or an election not won.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The lease has ended, or somebody has deleted the key: another one may hold the lock.
    #[error("the lock is lost: its lease has ended, or its key was deleted")]
    Lost,
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl KvClient {
    /// Waits for the lock of a name; whoever asked first has it first. The lock excludes those that clients of etcd take by the
    /// same name. Two locks of one name with one lease are the same lock. If this is dropped while it waits, the place is given up.
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

    /// Stands for election under a name, with a value that tells the others about the candidate; waits until it has won. The
    /// first candidate leads until it resigns or loses its lease. Candidates of etcd's clients take part.
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

    /// Who leads under a name: the key, and the value that the leader proclaims. `None`: nobody.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leader(&self, name: impl AsRef<[u8]>) -> Result<Option<KeyValue>, ClientError> {
        Ok(queue::first(self, name.as_ref()).await?.0)
    }

    /// Who leads under a name, now and whenever it is another one or proclaims something else. Of changes that follow each
    /// other closely only the last one is told. It goes on over outages, and ends only with an error of the store's.
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

/// A lock that is held as long as its lease is. Dropping it unlocks, in the background.
#[derive(Debug)]
pub struct Lock(Place);

impl Lock {
    /// The key that stands for it.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.0.key
    }

    /// A number that is greater than that of everyone who held the lock before: who writes elsewhere sends it along, so that
    /// a holder that has lost the lock and does not know it yet can be told (a fencing token).
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.0.revision
    }

    /// Its lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        self.0.lease()
    }

    /// Whether it is held, for certain as long as nobody deletes its key; see [`Lease::is_held`]. A deleted key is noticed by
    /// [`lost`](Self::lost) alone.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// Waits until it is lost: its lease has ended, or its key was deleted.
    pub async fn lost(&self) {
        self.0.lost().await;
    }

    /// Unlocks. A lock that was lost before is no error.
    ///
    /// # Errors
    /// See [`ClientError`]; the lock may stay until its lease ends.
    pub async fn unlock(self) -> Result<(), ClientError> {
        self.0.give_up().await
    }
}

/// An election that was won, as long as its lease is held. Dropping it resigns, in the background.
#[derive(Debug)]
pub struct Leadership(Place);

impl Leadership {
    /// The key that stands for it.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.0.key
    }

    /// A number that is greater than that of every leader before; see [`Lock::revision`].
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.0.revision
    }

    /// Its lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        self.0.lease()
    }

    /// Whether this is the leader, for certain as long as nobody deletes its key; see [`Lease::is_held`]. A deleted key is noticed
    /// by [`lost`](Self::lost) alone.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// Waits until leadership is lost: its lease has ended, or its key was deleted.
    pub async fn lost(&self) {
        self.0.lost().await;
    }

    /// Tells observers something else.
    ///
    /// # Errors
    /// [`LockError::Lost`]: another one may lead. Nothing was written. Else a request failed.
    pub async fn proclaim(&self, value: impl Into<Vec<u8>>) -> Result<(), LockError> {
        let lease_id = Some(self.lease().id());
        let put = PutRequest { lease_id, ..PutRequest::of(self.0.key.clone(), value) };
        self.0.while_there(Operation::Put(put)).await
    }

    /// Resigns. A leadership that was lost before is no error.
    ///
    /// # Errors
    /// See [`ClientError`]; it may stay until its lease ends.
    pub async fn resign(self) -> Result<(), ClientError> {
        self.0.give_up().await
    }
}

/// What an observer knows.
struct Observed {
    client: KvClient,
    name: Vec<u8>,
    /// Of the keys below the name.
    watch: Option<Watch>,
    /// The leader that was told last: its key, and when that was written.
    told: Option<(Vec<u8>, i64)>,
}

impl Observed {
    async fn next(&mut self) -> Result<KeyValue, ClientError> {
        loop {
            let (leader, revision) = match queue::first(&self.client, &self.name).await {
                Err(ClientError::Unavailable(why)) => {
                    tracing::debug!(%why, "whether there is another leader is not known");
                    wait(PAUSE_MAX).await;
                    continue;
                }
                found => found?,
            };
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

    /// Waits until something may be different.
    async fn changed(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let mut event = watch.next().await;
        while let Some(Ok(_)) = event {
            match watch.next().now_or_never() {
                Some(next) => event = next,
                None => return,
            }
        }
        // It has ended: another one begins with what is there now.
        self.watch = None;
    }
}
