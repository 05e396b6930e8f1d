//! The queue behind locks and elections: keys `NAME/LEASE` below a name. The client whose key was created
//! first holds the lock, or is leader. Etcd's clients use the same scheme, so that they share queues with the
//! clients of this library.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use tokio::runtime::Handle;

use super::{
    ClientError, KvClient, Lease, LockError,
    calls::{PAUSE_MAX, wait},
};
use crate::{
    idl::{
        Compare, CompareResult, CompareTarget, KeyValue, Operation, OperationResponse, PutRequest,
        RangeRequest, RangeResponse, SortBy, TxnRequest, WatchRequest,
    },
    prefix_end,
    protocol::Fault,
};

/// A key in the queue of a name. The key is deleted when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    client: KvClient,
    lease: Lease,
    name: Vec<u8>,
    pub(super) key: Vec<u8>,
    /// Revision at which the key was created.
    pub(super) revision: i64,
    /// Whether [`lost`](Self::lost) has detected that the key was deleted.
    was_deleted: AtomicBool,
    is_given_up: bool,
}

impl Place {
    /// Adds the key of a lease to the queue of a name, with a value. If the key exists already, it keeps its
    /// value and its place. Returns the place, and the value of the key.
    pub(super) async fn take(
        client: &KvClient,
        name: Vec<u8>,
        lease: &Lease,
        value: Vec<u8>,
    ) -> Result<(Self, Vec<u8>), LockError> {
        let key = [&name[..], format!("/{:x}", lease.id()).as_bytes()].concat();
        let put = PutRequest { lease_id: Some(lease.id()), ..PutRequest::of(key.clone(), value.clone()) };
        let request = TxnRequest::new(
            vec![created(&key, 0)],
            vec![Operation::Put(put)],
            vec![Operation::Range(RangeRequest::of(key.clone(), None))],
            None,
            None,
            None,
        );
        let (client, lease) = (client.clone(), lease.clone());
        // The place exists before the request is sent, so that the key is deleted if the caller drops this
        // future.
        let mut place = Self {
            client,
            lease,
            name,
            key,
            revision: 0,
            was_deleted: AtomicBool::new(false),
            is_given_up: false,
        };
        let mut response = place.client.txn(request).await.map_err(lease_lost)?;
        let before = match response.responses.pop() {
            Some(OperationResponse::Range(mut found)) => found.kvs.pop(),
            _ => None,
        };
        let (revision, value) =
            before.map_or((response.header.revision, value), |kv| (kv.create_revision, kv.value));
        place.revision = revision;
        Ok((place, value))
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Waits until no key of the queue is older than this one.
    pub(super) async fn wait_for_turn(&self) -> Result<(), LockError> {
        tokio::select! {
            () = self.lease.lost() => Err(LockError::Lost),
            turn = self.turn() => turn,
        }
    }

    async fn turn(&self) -> Result<(), LockError> {
        loop {
            let before = RangeRequest {
                limit: Some(1),
                descending: Some(true),
                sort_by: Some(SortBy::CREATE_REVISION),
                max_create_revision: Some(self.revision - 1),
                keys_only: Some(true),
                ..queue(&self.name)
            };
            let found = self.read(before).await?;
            let Some(before) = found.kvs.into_iter().next() else { return self.check().await };
            let deleted = WatchRequest {
                start_revision: Some(found.header.revision + 1),
                without_puts: Some(true),
                ..WatchRequest::of(before.key, None)
            };
            // Whatever the watch returns, the loop reads the queue again.
            let _ = self.client.watch(deleted).await?.next().await;
        }
    }

    /// Checks that the key still exists. Without its key, the client has no place in the queue.
    async fn check(&self) -> Result<(), LockError> {
        let found = self.read(self.own_key()).await?;
        if self.is_in(&found) && self.lease.is_held() { Ok(()) } else { Err(LockError::Lost) }
    }

    /// Waits until the place is lost: its lease has ended, or its key was deleted.
    pub(super) async fn lost(&self) {
        if self.was_deleted.load(Ordering::Relaxed) {
            return;
        }
        tokio::select! {
            () = self.lease.lost() => {}
            () = self.deleted() => self.was_deleted.store(true, Ordering::Relaxed),
        }
    }

    /// Returns whether the place is held, as far as is known.
    pub(super) fn is_held(&self) -> bool {
        self.lease.is_held() && !self.was_deleted.load(Ordering::Relaxed)
    }

    /// Waits until the key is deleted. An operator or another client may delete it while the lease is held.
    async fn deleted(&self) {
        let mut start_revision = self.revision + 1;
        loop {
            let deletion = WatchRequest {
                start_revision: Some(start_revision),
                without_puts: Some(true),
                ..WatchRequest::of(self.key.clone(), None)
            };
            if let Ok(mut watch) = self.client.watch(deletion).await
                && let Some(Ok(_)) = watch.next().await
            {
                return;
            }
            // The revision may be compacted. A read of the key shows whether it was deleted in the meantime.
            match self.read(self.own_key()).await {
                Ok(found) if !self.is_in(&found) => return,
                Ok(found) => start_revision = found.header.revision + 1,
                Err(error) => tracing::debug!(%error, "whether a key still exists is not known"),
            }
            wait(PAUSE_MAX).await;
        }
    }

    fn own_key(&self) -> RangeRequest {
        RangeRequest { keys_only: Some(true), ..RangeRequest::of(self.key.clone(), None) }
    }

    fn is_in(&self, found: &RangeResponse) -> bool {
        found.kvs.first().is_some_and(|kv| kv.create_revision == self.revision)
    }

    /// Reads, and repeats the read until a server responds. There is no time limit, because callers stop when
    /// the lease is lost.
    async fn read(&self, request: RangeRequest) -> Result<RangeResponse, ClientError> {
        loop {
            match self.client.range(request.clone()).await {
                Err(ClientError::Unavailable(why)) => {
                    tracing::debug!(%why, "a queue is read again");
                    self.client.note_outage(|| why);
                }
                outcome => {
                    self.client.note_answer();
                    return outcome;
                }
            }
            wait(PAUSE_MAX).await;
        }
    }

    /// Executes an operation, on the condition that the key still exists.
    pub(super) async fn while_there(&self, operation: Operation) -> Result<(), LockError> {
        let condition = vec![created(&self.key, self.revision)];
        let request = TxnRequest::new(condition, vec![operation], Vec::new(), None, None, None);
        let response = self.client.txn(request).await.map_err(lease_lost)?;
        if response.succeeded { Ok(()) } else { Err(LockError::Lost) }
    }

    /// Leaves the queue. It is not an error if the key does not exist any more.
    pub(super) async fn give_up(mut self) -> Result<(), ClientError> {
        self.is_given_up = true;
        self.client.delete(self.key.clone()).await.map(|_| ())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_given_up {
            return;
        }
        // The task holds the lease until the key is deleted, so that the name does not look free before.
        let (client, lease, key) = (self.client.clone(), self.lease.clone(), self.key.clone());
        runtime.spawn(async move {
            if let Err(error) = client.delete(key).await {
                tracing::debug!(%error, lease = lease.id(), "a place in a queue is left to its lease");
            }
        });
    }
}

/// Returns the first key of a queue, and the revision of the store.
pub(super) async fn first(client: &KvClient, name: &[u8]) -> Result<(Option<KeyValue>, i64), ClientError> {
    let oldest = RangeRequest { limit: Some(1), sort_by: Some(SortBy::CREATE_REVISION), ..queue(name) };
    let mut found = client.range(oldest).await?;
    Ok((found.kvs.pop(), found.header.revision))
}

/// Returns the range of the keys below a name.
pub(super) fn below(name: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let prefix = [name, b"/"].concat();
    let end = prefix_end(prefix.clone());
    (prefix, Some(end))
}

fn queue(name: &[u8]) -> RangeRequest {
    let (prefix, end) = below(name);
    RangeRequest::of(prefix, end)
}

/// Returns the condition that a key was created at a revision. 0: that the key does not exist.
fn created(key: &[u8], revision: i64) -> Compare {
    Compare::new(key.to_vec(), CompareTarget::CREATE_REVISION, CompareResult::EQUAL, revision, None, None)
}

fn lease_lost(error: ClientError) -> LockError {
    match error {
        ClientError::Rejected(Fault::NoLease(_)) => LockError::Lost,
        error => error.into(),
    }
}
