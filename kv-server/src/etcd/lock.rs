//! The service `Lock`.

use bytes::Bytes;
use kv_etcd_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock};
use kv_state_machine::{KvOperation, random_lease_id};
use tonic::{Code, Request, Response, Status};

use super::{Etcd, error, queue::Place};

#[tonic::async_trait]
impl Lock for Etcd {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { name, lease } = request.into_inner();
        let lease = self.lease_or_new(lease).await?;
        let place = self.queue_up(&name, lease, Bytes::new()).await.map_err(lease_unknown)?;
        let mut given_up = GiveUp { etcd: self.clone(), place: Some(place.clone()) };
        self.wait_for_turn(&name, &place).await?;
        given_up.place = None;
        Ok(Response::new(LockResponse { header: Some(self.header_now()?), key: place.key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let key = request.into_inner().key;
        if key.is_empty() {
            return Err(error::empty_key());
        }
        let revision = self.leave_queue(key).await?;
        Ok(Response::new(UnlockResponse { header: Some(self.header(revision)) }))
    }
}

impl Etcd {
    /// Returns the lease, or grants one of a minute if there is none.
    pub(super) async fn lease_or_new(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let id = random_lease_id();
        self.write(KvOperation::GrantLease { id, ttl: LEASE_TTL }).await?;
        Ok(id)
    }
}

/// Changes the code of an unknown lease: this service uses another one than the others.
pub(super) fn lease_unknown(status: Status) -> Status {
    if status.message() == error::lease_not_found().message() {
        Status::new(Code::Unknown, status.message())
    } else {
        status
    }
}

/// Gives up a place in a queue when the call ends, unless the place was kept: the client may have left while it waited.
pub(super) struct GiveUp {
    pub(super) etcd: Etcd,
    pub(super) place: Option<Place>,
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        let (Some(place), Ok(runtime)) = (self.place.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let etcd = self.etcd.clone();
        runtime.spawn(async move {
            if let Err(status) = etcd.give_up_place(place).await {
                tracing::debug!(%status, "a place in a queue is left to its lease");
            }
        });
    }
}

/// Time to live in seconds of a lease that is granted for a lock.
const LEASE_TTL: u64 = 60;
