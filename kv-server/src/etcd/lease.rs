//! The service `Lease`.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use kv_etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, lease_server::Lease,
};
use kv_state_machine::{KvOperation, LEASE_TTL_MAX, random_lease_id};
use tonic::{Request, Response, Status, Streaming};

use super::{Etcd, error, signed, unexpected};
use crate::{
    between::{NodeAnswer, NodeRequest},
    frontend::stopped,
};

type Result<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Lease for Etcd {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<LeaseGrantResponse> {
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        let ttl = u64::try_from(ttl).unwrap_or(0).max(TTL_MIN);
        if ttl > LEASE_TTL_MAX {
            self.database().check_user(&self.caller).map_err(error::of_auth)?;
            self.check_alarms(true)?;
            return Err(error::lease_ttl_too_large());
        }
        let id = if id == 0 { random_lease_id() } else { id };
        let answer = self.write(KvOperation::GrantLease { id, ttl }).await?;
        let (header, ttl) = (Some(self.header(answer.revision)), signed(ttl));
        Ok(Response::new(LeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    async fn lease_revoke(&self, request: Request<LeaseRevokeRequest>) -> Result<LeaseRevokeResponse> {
        let answer = self.write(KvOperation::RevokeLease { id: request.into_inner().id }).await?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.header(answer.revision)) }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, std::result::Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Self::LeaseKeepAliveStream> {
        let etcd = self.clone();
        let mut stop = self.stop.clone();
        let answers = request.into_inner().map(move |request| {
            let etcd = etcd.clone();
            async move { etcd.keep_alive(request?.id).await }
        });
        let stopped = async move { stopped(&mut stop).await };
        // Clients send many at once. The responses are in their order.
        Ok(Response::new(Box::pin(answers.buffered(AT_ONCE).take_until(Box::pin(stopped)))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<LeaseTimeToLiveResponse> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let answer = self.lead(&NodeRequest::TimeToLive { id }).await?;
        let NodeAnswer::TimeToLive(state) = answer else { return Err(unexpected(&answer)) };
        let keys = match &state {
            Some(_) if keys => {
                let database = self.data()?;
                self.when_led(|| database.lease_keys_as(&self.caller, id)).await?
            }
            _ => Vec::new(),
        };
        let header = Some(self.header_now()?);
        Ok(Response::new(match state {
            None => LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() },
            Some(state) => LeaseTimeToLiveResponse {
                header,
                id,
                ttl: signed(state.left.as_secs()),
                granted_ttl: signed(state.ttl),
                keys,
            },
        }))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<LeaseLeasesResponse> {
        let database = self.data()?;
        let ids = self.when_led(|| database.leases_as(&self.caller)).await?;
        let leases = ids.into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: Some(self.header_now()?), leases }))
    }
}

impl Etcd {
    /// The response for an unknown lease has a time to live of 0.
    async fn keep_alive(&self, id: i64) -> std::result::Result<LeaseKeepAliveResponse, Status> {
        let request = NodeRequest::KeepAlive { id };
        let answer = tokio::time::timeout(KEEP_ALIVE_TIMEOUT, self.lead(&request)).await;
        let answer = answer.map_err(|_| error::no_leader())??;
        let NodeAnswer::KeptAlive(ttl) = answer else { return Err(unexpected(&answer)) };
        let header = Some(self.header_now()?);
        Ok(LeaseKeepAliveResponse { header, id, ttl: signed(ttl.unwrap_or(0)) })
    }
}

/// Minimum time to live in seconds, as in etcd with an election timeout of 1 s.
const TTL_MIN: u64 = 2;
/// Maximum number of concurrent requests of a stream.
const AT_ONCE: usize = 128;
/// Go's client gives a lease up if its first renewal has no response for long. After an error it retries.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
