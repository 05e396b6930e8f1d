//! The service `Election`.

use bytes::Bytes;
use futures::stream::BoxStream;
use kv_etcd_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse, election_server::Election,
};
use kv_state_machine::{Delete, KeyValue, KvOperation, KvResult, Put, Txn, WatchNews, WatchRequest, Watches};
use tonic::{Request, Response, Status};

use super::{
    Etcd, convert, error,
    lock::{GiveUp, lease_unknown},
    queue::{below, created},
    signed, unexpected,
};

type Result<T> = std::result::Result<T, Status>;

#[tonic::async_trait]
impl Election for Etcd {
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>> {
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = self.lease_or_new(lease).await?;
        let place = self.queue_up(&name, lease, value.clone()).await.map_err(lease_unknown)?;
        let mut given_up = GiveUp { etcd: self.clone(), key: Some(place.key.clone()) };
        let leader =
            LeaderKey { name: name.clone(), key: place.key.clone(), rev: signed(place.revision), lease };
        // It was there before, with another value.
        if place.value != value {
            self.proclaim_as(&leader, value).await?;
        }
        self.wait_for_turn(&name, &place).await?;
        given_up.key = None;
        Ok(Response::new(CampaignResponse { header: Some(self.header_now()?), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>> {
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(no_leader_key)?;
        let revision = self.proclaim_as(&leader, value).await?;
        Ok(Response::new(ProclaimResponse { header: Some(self.header(revision)) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>> {
        match self.first_of_queue(&request.into_inner().name).await? {
            (Some(kv), revision) => Ok(Response::new(self.led_by(kv, revision))),
            (None, _) => Err(Status::unknown("election: no leader")),
        }
    }

    type ObserveStream = BoxStream<'static, Result<LeaderResponse>>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>> {
        let name = request.into_inner().name;
        let mut watches = self.database().watches().map_err(error::of_read)?;
        watches.add(WatchRequest { keys: below(&name), ..WatchRequest::default() });
        let observed = Observed { etcd: self.clone(), name, watches, told: None };
        let leaders = futures::stream::try_unfold(observed, |mut observed| async move {
            let leader = observed.next().await?;
            Ok(Some((leader, observed)))
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    /// Who does not lead any more has nothing to give up.
    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>> {
        let leader = request.into_inner().leader.ok_or_else(no_leader_key)?;
        let delete = KvOperation::Delete(Delete { key: leader.key.clone(), ..Delete::default() });
        let (answer, _) = self.as_leader(&leader, delete).await?;
        Ok(Response::new(ResignResponse { header: Some(self.header(answer)) }))
    }
}

impl Etcd {
    async fn proclaim_as(&self, leader: &LeaderKey, value: Bytes) -> Result<u64> {
        let put = Put { key: leader.key.clone(), value, lease_id: leader.lease, ..Put::default() };
        match self.as_leader(leader, KvOperation::Put(put)).await.map_err(lease_unknown)? {
            (revision, true) => Ok(revision),
            (_, false) => Err(Status::unknown("election: not leader")),
        }
    }

    /// Does what only the holder of a place may do; the revision, and whether it was done.
    async fn as_leader(&self, leader: &LeaderKey, operation: KvOperation) -> Result<(u64, bool)> {
        if leader.key.is_empty() {
            return Err(error::empty_key());
        }
        let revision = u64::try_from(leader.rev).unwrap_or(0);
        let txn =
            Txn { compare: vec![created(&leader.key, revision)], success: vec![operation], ..Txn::default() };
        let answer = self.write(KvOperation::Txn(txn)).await?;
        match answer.result {
            KvResult::Txn(done) => Ok((answer.revision, done.succeeded)),
            other => Err(unexpected(&other)),
        }
    }

    fn led_by(&self, kv: KeyValue, revision: u64) -> LeaderResponse {
        LeaderResponse { header: Some(self.header(revision)), kv: Some(convert::key_value(kv)) }
    }
}

/// Who leads, again whenever that changes or says something else.
struct Observed {
    etcd: Etcd,
    name: Bytes,
    watches: Watches,
    /// The leader that was told last: its key, and when it was written.
    told: Option<(Bytes, u64)>,
}

impl Observed {
    async fn next(&mut self) -> Result<LeaderResponse> {
        let mut stop = self.etcd.stop.clone();
        loop {
            let (first, revision) = self.etcd.first_of_queue(&self.name).await?;
            let told = first.as_ref().map(|kv| (kv.key.clone(), kv.mod_revision));
            if let Some(kv) = first
                && told != self.told
            {
                self.told = told;
                return Ok(self.etcd.led_by(kv, revision));
            }
            let news = tokio::select! {
                () = crate::frontend::stopped(&mut stop) => return Err(error::stopped()),
                news = self.watches.next() => news.map_err(error::of_read)?,
            };
            if let WatchNews::Compacted { .. } = news {
                self.watches.add(WatchRequest { keys: below(&self.name), ..WatchRequest::default() });
            }
        }
    }
}

fn no_leader_key() -> Status {
    Status::invalid_argument("\"leader\" field must be provided")
}
