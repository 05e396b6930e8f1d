//! The service `Election`.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::stream::BoxStream;
use kv_etcd_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse, election_server::Election,
};
use kv_state_machine::{
    Delete, KeyRange, KeyValue, KvOperation, KvResult, Put, Txn, WatchEvent, WatchId, WatchNews,
    WatchRequest, Watches,
};
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
        let mut given_up = GiveUp { etcd: self.clone(), place: Some(place.clone()) };
        let leader =
            LeaderKey { name: name.clone(), key: place.key.clone(), rev: signed(place.revision), lease };
        // It was there before, with another value.
        if place.value != value {
            self.proclaim_as(&leader, value).await?;
        }
        self.wait_for_turn(&name, &place).await?;
        given_up.place = None;
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
        let watches = self.data()?.watches().map_err(error::of_read)?;
        let observed = Observed {
            etcd: self.clone(),
            name,
            watches,
            watch: None,
            leader: None,
            events: VecDeque::new(),
            more: false,
        };
        let leaders = futures::stream::try_unfold(observed, |mut observed| async move {
            let leader = observed.next().await?;
            Ok(Some((leader, observed)))
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    /// A resignation of a candidate that is not leader any more has no effect.
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

    /// Executes an operation if the caller still has its place. Returns the revision, and whether it was executed.
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

/// The leaders of an election, and all their proclamations, in the order of revisions.
struct Observed {
    etcd: Etcd,
    name: Bytes,
    watches: Watches,
    /// The watch of the leader's key, or of the queue if there is no leader. `None`: the queue must be read.
    watch: Option<WatchId>,
    /// Key of the leader; `None` if there is none.
    leader: Option<Bytes>,
    /// Events of the watch that were not processed yet.
    events: VecDeque<Arc<WatchEvent>>,
    /// Whether more events of the last revision follow.
    more: bool,
}

impl Observed {
    async fn next(&mut self) -> Result<LeaderResponse> {
        let mut stop = self.etcd.stop.clone();
        loop {
            // Before events are sent: users or roles may have changed while the stream waited.
            let keys = below(&self.name);
            self.etcd.database().check_read(&self.etcd.caller, &keys).map_err(error::of_watcher)?;
            while let Some(event) = self.events.pop_front() {
                if let Some(told) = self.take(&event) {
                    return Ok(told);
                }
            }
            if self.watch.is_none() {
                let (first, revision) = self.etcd.first_of_queue(&self.name).await?;
                self.watch_from(first.as_ref().map(|kv| kv.key.clone()), revision + 1);
                if let Some(kv) = first {
                    return Ok(self.etcd.led_by(kv, revision));
                }
            }
            let news = tokio::select! {
                () = crate::frontend::stopped(&mut stop) => return Err(error::stopped()),
                news = self.watches.next() => news.map_err(error::of_read)?,
            };
            match news {
                WatchNews::Events { events, more, .. } => (self.events, self.more) = (events.into(), more),
                // Proclamations in between are compacted; the newest one is sent.
                _ => self.end_watch(),
            }
        }
    }

    /// Processes an event. Returns a response if it is a proclamation.
    fn take(&mut self, event: &WatchEvent) -> Option<LeaderResponse> {
        let (key, revision) = (&event.kv.key, event.kv.mod_revision);
        if event.deleted {
            if self.leader.is_some() {
                self.end_watch();
            }
            return None;
        }
        if self.leader.is_none() {
            // The first key in an empty queue is the leader, unless the same transaction removes it.
            let mut same = self.events.iter().filter(|other| other.kv.mod_revision == revision);
            let is_gone = same.any(|other| other.deleted && other.kv.key == *key);
            self.end_watch();
            // With more to come it may be removed there: the queue is read again.
            if !is_gone && !self.more {
                self.watch_from(Some(key.clone()), revision + 1);
            }
        }
        Some(self.etcd.led_by(event.kv.clone(), revision))
    }

    /// Watches the key of a leader, or the whole queue if there is none.
    fn watch_from(&mut self, leader: Option<Bytes>, start_revision: u64) {
        let keys = match &leader {
            Some(key) => KeyRange { key: key.clone(), range_end: None },
            None => below(&self.name),
        };
        let (watch, _) = self.watches.add(WatchRequest { keys, start_revision, ..WatchRequest::default() });
        (self.watch, self.leader) = (Some(watch), leader);
    }

    /// Makes the next step read the queue again.
    fn end_watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.watches.remove(watch);
        }
        self.leader = None;
        self.events.clear();
    }
}

fn no_leader_key() -> Status {
    Status::invalid_argument("\"leader\" field must be provided")
}
