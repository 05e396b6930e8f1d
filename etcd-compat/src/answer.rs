//! Answers, without what two servers cannot have in common: identities, terms, and the order of what is equal.

use std::time::Duration;

use kv_etcd_api::{
    etcdserverpb::{
        DeleteRangeResponse, LeaseLeasesRequest, Member, MemberAddRequest, MemberListRequest,
        MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, PutResponse, RangeRequest,
        RangeResponse, ResponseHeader, StatusRequest, TxnResponse, WatchCreateRequest, WatchProgressRequest,
        WatchRequest, range_request::SortOrder, request_op::Request, response_op::Response,
        watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;

use crate::{
    request::{Step, Whom},
    server::Clients,
};

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    /// Revision.
    Compact(i64),
    /// Revision, id, time.
    Grant(i64, i64, i64),
    /// Revision.
    Revoke(i64),
    /// Id, granted time, keys in order.
    TimeToLive(i64, i64, Vec<bytes::Bytes>),
    /// Ids in order.
    Leases(Vec<i64>),
    /// Revision; members and alarms in order.
    Alarms(i64, Vec<(u64, i32)>),
    /// Revision; what is wrong, in order.
    Status(i64, Vec<String>),
    /// Compacted revision, revision of the hash.
    HashKv(i64, i64),
    /// Of the members other than the first one: whether it has started, its peer URLs, whether it is a learner.
    Members(Vec<(bool, Vec<String>, bool)>),
    /// What was told, and whether the watch was cancelled, with which revision and reason.
    Watch(Vec<Event>, Option<(i64, String)>),
    /// Code and text.
    Error(i32, String),
}

impl Answer {
    pub(crate) fn is_of_lost_connection(&self) -> bool {
        matches!(self, Self::Error(code, text) if [1, 2, 14].contains(code) && !text.starts_with("etcdserver"))
    }

    pub(crate) fn revision(&self) -> i64 {
        let of = |header: &Option<ResponseHeader>| header.as_ref().map_or(0, |header| header.revision);
        match self {
            Self::Range(answer) => of(&answer.header),
            Self::Put(answer) => of(&answer.header),
            Self::Delete(answer) => of(&answer.header),
            Self::Txn(answer) => of(&answer.header),
            Self::Compact(revision) | Self::Grant(revision, ..) | Self::Revoke(revision) => *revision,
            _ => 0,
        }
    }
}

impl Clients {
    /// Asks the server. `Err`: it could not be asked.
    pub(crate) async fn ask(&mut self, step: &Step) -> Result<Answer, String> {
        let answer = match step {
            Step::Range(request) => self.kv.range(request.clone()).await.map(|answer| {
                let mut answer = answer.into_inner();
                bare_header(&mut answer.header);
                sorted(request, &mut answer);
                Answer::Range(answer)
            }),
            Step::Put(request) => self.kv.put(request.clone()).await.map(|answer| {
                let mut answer = answer.into_inner();
                bare_header(&mut answer.header);
                Answer::Put(answer)
            }),
            Step::Delete(request) => self.kv.delete_range(request.clone()).await.map(|answer| {
                let mut answer = answer.into_inner();
                bare_header(&mut answer.header);
                Answer::Delete(answer)
            }),
            Step::Txn(request) => self.kv.txn(request.clone()).await.map(|answer| {
                let mut answer = answer.into_inner();
                bare_header(&mut answer.header);
                bare_txn(request, &mut answer);
                Answer::Txn(answer)
            }),
            Step::Compact(request) => self
                .kv
                .compact(*request)
                .await
                .map(|answer| Answer::Compact(revision(answer.into_inner().header))),
            Step::Grant(request) => self.lease.lease_grant(*request).await.map(|answer| {
                let answer = answer.into_inner();
                Answer::Grant(revision(answer.header), answer.id, answer.ttl)
            }),
            Step::Revoke(request) => self
                .lease
                .lease_revoke(*request)
                .await
                .map(|answer| Answer::Revoke(revision(answer.into_inner().header))),
            Step::TimeToLive(request) => self.lease.lease_time_to_live(*request).await.map(|answer| {
                let mut answer = answer.into_inner();
                answer.keys.sort();
                Answer::TimeToLive(answer.id, answer.granted_ttl, answer.keys)
            }),
            Step::Leases => self.lease.lease_leases(LeaseLeasesRequest {}).await.map(|answer| {
                let mut ids: Vec<_> = answer.into_inner().leases.into_iter().map(|lease| lease.id).collect();
                ids.sort_unstable();
                Answer::Leases(ids)
            }),
            Step::Alarm(request) => self.maintenance.alarm(*request).await.map(|answer| {
                let answer = answer.into_inner();
                let alarms = answer.alarms.iter().map(|alarm| (bare_member(alarm.member_id), alarm.alarm));
                let mut alarms: Vec<_> = alarms.collect();
                alarms.sort_unstable();
                Answer::Alarms(revision(answer.header), alarms)
            }),
            Step::Status => self.maintenance.status(StatusRequest {}).await.map(|answer| {
                let answer = answer.into_inner();
                let mut errors: Vec<_> = answer.errors.iter().map(|error| bare_error(error)).collect();
                errors.sort_unstable();
                Answer::Status(revision(answer.header), errors)
            }),
            Step::HashKv(request) => self.maintenance.hash_kv(*request).await.map(|answer| {
                let answer = answer.into_inner();
                Answer::HashKv(answer.compact_revision, answer.hash_revision)
            }),
            Step::Members => {
                let list = self.cluster.member_list(MemberListRequest { linearizable: true }).await;
                list.map(|answer| members(answer.into_inner().members))
            }
            Step::AddLearner(urls) => {
                let request = MemberAddRequest { peer_ur_ls: urls.clone(), is_learner: true };
                self.cluster.member_add(request).await.map(|answer| {
                    let answer = answer.into_inner();
                    self.added = answer.member.map(|member| member.id);
                    members(answer.members)
                })
            }
            Step::Promote(whom) => {
                let id = self.id(*whom);
                let promoted = self.cluster.member_promote(MemberPromoteRequest { id }).await;
                promoted.map(|answer| members(answer.into_inner().members))
            }
            Step::Move(whom, urls) => {
                let request = MemberUpdateRequest { id: self.id(*whom), peer_ur_ls: urls.clone() };
                let moved = self.cluster.member_update(request).await;
                moved.map(|answer| members(answer.into_inner().members))
            }
            Step::Remove(whom) => {
                let id = self.id(*whom);
                let removed = self.cluster.member_remove(MemberRemoveRequest { id }).await;
                removed.map(|answer| members(answer.into_inner().members))
            }
            Step::Watch(request) => self.watch(request.clone()).await,
        };
        Ok(answer.unwrap_or_else(|status| Answer::Error(status.code() as i32, status.message().to_owned())))
    }

    fn id(&self, whom: Whom) -> u64 {
        match whom {
            Whom::Added => self.added.unwrap_or(NOBODY),
            Whom::Nobody => NOBODY,
        }
    }

    /// Watches until the server says that all was told.
    async fn watch(&mut self, request: WatchCreateRequest) -> Result<Answer, Status> {
        let (requests, sent) = mpsc::channel(8);
        let sent = futures::stream::unfold(sent, |mut sent: mpsc::Receiver<WatchRequest>| async move {
            Some((sent.recv().await?, sent))
        });
        let ask = async |request| requests.send(WatchRequest { request_union: Some(request) }).await;
        let _ = ask(RequestUnion::CreateRequest(request)).await;
        let mut answers = self.watch.watch(sent).await?.into_inner();
        let (mut events, mut is_created) = (Vec::new(), false);
        for _ in 0..LOOKS_MAX {
            let Ok(answer) = timeout(LOOK, answers.message()).await else {
                // One that comes while the watch is behind is dropped by etcd.
                let _ = ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
                continue;
            };
            let Some(answer) = answer? else { return Err(Status::aborted("the stream ended")) };
            is_created |= answer.created;
            if answer.canceled {
                return Ok(Answer::Watch(events, Some((answer.compact_revision, answer.cancel_reason))));
            }
            if answer.watch_id == -1 && is_created {
                return Ok(Answer::Watch(events, None));
            }
            events.extend(answer.events);
        }
        Err(Status::aborted("the watch did not say how far it is"))
    }
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// The member without the tag that kv-server puts above the number of a node.
fn bare_member(id: u64) -> u64 {
    if id >> 48 == KV_TAG { id & ((1 << 48) - 1) } else { id }
}

/// `memberID:7 alarm:NOSPACE`, with a bare id; how many spaces etcd puts there differs from build to build.
fn bare_error(error: &str) -> String {
    let bare = |word: &str| match word.strip_prefix("memberID:").and_then(|id| id.parse().ok()) {
        Some(id) => format!("memberID:{}", bare_member(id)),
        None => word.to_owned(),
    };
    error.split_whitespace().map(bare).collect::<Vec<_>>().join(" ")
}

/// Without the member that answers, whose URLs are its own.
fn members(members: Vec<Member>) -> Answer {
    let others = members.into_iter().filter(|member| member.client_ur_ls.is_empty());
    let mut others: Vec<_> =
        others.map(|member| (!member.name.is_empty(), member.peer_ur_ls, member.is_learner)).collect();
    others.sort_unstable();
    Answer::Members(others)
}

fn bare_header(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        *header = ResponseHeader { revision: header.revision, ..Default::default() };
    }
}

fn bare_txn(request: &kv_etcd_api::etcdserverpb::TxnRequest, answer: &mut TxnResponse) {
    let branch = if answer.succeeded { &request.success } else { &request.failure };
    for (operation, response) in branch.iter().zip(&mut answer.responses) {
        match (&operation.request, &mut response.response) {
            (Some(Request::RequestRange(range)), Some(Response::ResponseRange(found))) => {
                sorted(range, found);
            }
            (Some(Request::RequestTxn(nested)), Some(Response::ResponseTxn(done))) => bare_txn(nested, done),
            _ => {}
        }
    }
}

/// Pairs that are equal in what they are sorted by have no order: which of them a limit leaves is not compared, either.
fn sorted(request: &RangeRequest, answer: &mut RangeResponse) {
    if request.keys_only {
        // etcd 3.7 leaves it out.
        answer.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
    let by: fn(&KeyValue) -> Vec<u8> = match request.sort_target {
        1 => |kv| kv.version.to_be_bytes().to_vec(),
        2 => |kv| kv.create_revision.to_be_bytes().to_vec(),
        3 => |kv| kv.mod_revision.to_be_bytes().to_vec(),
        4 => |kv| kv.value.to_vec(),
        _ => return,
    };
    if request.limit > 0 {
        let kept: Vec<_> = answer.kvs.iter().map(by).collect();
        answer.kvs = kept.into_iter().map(|by| KeyValue { value: by.into(), ..Default::default() }).collect();
        return;
    }
    // What is equal is put into the order of keys.
    let is_descending = request.sort_order == SortOrder::Descend as i32;
    let is_sorted =
        answer.kvs.is_sorted_by(|a, b| if is_descending { by(a) >= by(b) } else { by(a) <= by(b) });
    // Values were compared before they were left out.
    if is_sorted || request.keys_only && request.sort_target == 4 {
        answer.kvs.sort_by(|a, b| by(a).cmp(&by(b)).then(a.key.cmp(&b.key)));
    }
}

/// A member that there is not.
const NOBODY: u64 = 77;
/// In the highest bytes of a member's id.
const KV_TAG: u64 = 0x6b76;
/// For how long an answer is waited for before the server is asked how far it is.
const LOOK: Duration = Duration::from_millis(40);
const LOOKS_MAX: usize = 400;
