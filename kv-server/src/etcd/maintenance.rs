//! The service `Maintenance`.

use consensus_core::NodeId;
use kv_etcd_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, StatusRequest, StatusResponse,
    alarm_request::AlarmAction, maintenance_server::Maintenance,
};
use kv_state_machine::{Alarm, AlarmKind, KvOperation, KvResult};
use kv_store_client::{
    admin::RefusedReason,
    protocol::{Call, Fault, Reply},
};
use tonic::{Request, Response, Status};

use super::{Etcd, error, member_id, node_of, signed, snapshot};
use crate::cluster::number;

type Result<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Maintenance for Etcd {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<AlarmResponse> {
        let AlarmRequest { action, member_id, alarm } = request.into_inner();
        let action =
            AlarmAction::try_from(action).map_err(|_| error::unknown_number("alarm action", action))?;
        let kind = match AlarmType::try_from(alarm).map_err(|_| error::unknown_number("alarm", alarm))? {
            AlarmType::None => None,
            AlarmType::Nospace => Some(AlarmKind::NoSpace),
            AlarmType::Corrupt => Some(AlarmKind::Corrupt),
        };
        let alarms = match (action, kind) {
            (AlarmAction::Get, kind) => {
                let database = self.data()?;
                let mut all = self.when_led(|| database.current_alarms()).await?;
                all.retain(|alarm| kind.is_none_or(|kind| alarm.kind == kind));
                all
            }
            (_, None) => {
                self.database().check_root(&self.caller).map_err(error::of_auth)?;
                Vec::new()
            }
            (AlarmAction::Activate, Some(kind)) => {
                self.change_alarm(KvOperation::RaiseAlarm, Alarm { kind, node: alarm_node(member_id) })
                    .await?
            }
            (AlarmAction::Deactivate, Some(kind)) => {
                self.change_alarm(KvOperation::DisarmAlarm, Alarm { kind, node: alarm_node(member_id) })
                    .await?
            }
        };
        let alarms = alarms.into_iter().map(alarm_member).collect();
        Ok(Response::new(AlarmResponse { header: Some(self.header_now()?), alarms }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<StatusResponse> {
        let status = Etcd::status(self);
        let size = signed(self.database().disk_bytes().map_err(error::of_read)?);
        let no_leader = self.has_no_leader().then(|| error::no_leader().message().to_owned());
        let alarm = |alarm: Alarm| {
            let member = alarm.node.map_or(0, member_id);
            format!("memberID:{member} alarm:{}", alarm.kind)
        };
        let errors = no_leader.into_iter().chain(self.database().alarms().into_iter().map(alarm)).collect();
        // A standalone server is its own leader.
        let leader = match (status.leader, self.router.cluster()) {
            (None, None) => Some(self.router.node()),
            (leader, _) => leader,
        };
        Ok(Response::new(StatusResponse {
            header: Some(self.header_now()?),
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            leader: leader.map_or(0, member_id),
            raft_index: status.commit.0,
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: size,
            is_learner: self.is_learner(),
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: signed(self.database().limits().quota_bytes),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// Without a quota this has no effect. With a quota, the space of compacted versions is freed at once, so that an
    /// alarm can be disarmed. As in etcd, the response has no header.
    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<DefragmentResponse> {
        if self.database().limits().quota_bytes > 0 {
            self.database().reclaim_space().await.map_err(error::of_read)?;
        }
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<HashResponse> {
        let hash = self.data()?.hash().await.map_err(error::of_read)?;
        self.check_root_again()?;
        Ok(Response::new(HashResponse { header: Some(self.header(hash.revision)), hash: hash.hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<HashKvResponse> {
        let revision = request.into_inner().revision;
        let hash =
            self.data()?.hash_at(u64::try_from(revision).unwrap_or(0)).await.map_err(error::of_read)?;
        self.check_root_again()?;
        // etcd accepts a negative revision, at which there are no keys.
        let (hash_value, hash_revision) =
            if revision < 0 { (0, revision) } else { (hash.hash, signed(hash.revision)) };
        Ok(Response::new(HashKvResponse {
            header: Some(self.header_now()?),
            hash: hash_value,
            compact_revision: if hash.compacted == 0 { -1 } else { signed(hash.compacted) },
            hash_revision,
        }))
    }

    type SnapshotStream = snapshot::Answers;

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Self::SnapshotStream> {
        let copy = self.data()?.snapshot().await.map_err(error::of_read)?;
        self.check_root_again()?;
        Ok(Response::new(snapshot::send(copy, self.stop.clone())))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<MoveLeaderResponse> {
        let target = node_of(request.into_inner().target_id);
        if Etcd::status(self).leader != Some(self.router.node()) {
            return Err(error::not_leader());
        }
        if target == self.router.node() {
            return Ok(Response::new(MoveLeaderResponse { header: None })); // As in etcd.
        }
        if self.router.database().status().borrow().membership.get(target).is_none() {
            return Err(error::bad_leader_transferee());
        }
        let mut room = self.budget.room();
        match self
            .router
            .execute(&self.caller, Call::TransferLeader(number(target.0)), false, &mut room)
            .await
        {
            Ok(Reply::TransferLeader(_)) => {
                Ok(Response::new(MoveLeaderResponse { header: Some(self.header_without_revision()) }))
            }
            Err(Fault::Refused(refused)) if refused.reason == Some(RefusedReason::UNKNOWN) => {
                Err(error::deadline_exceeded())
            }
            Err(Fault::Refused(_)) => Err(error::bad_leader_transferee()),
            other => Err(super::unexpected(&other)),
        }
    }

    /// There is no older version.
    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<DowngradeResponse> {
        if request.into_inner().version.is_empty() {
            return Err(error::wrong_downgrade_version());
        }
        Err(error::invalid_downgrade_version())
    }
}

impl Etcd {
    /// Raises or disarms an alarm on the leader. Returns it, unless it was not raised before it was disarmed.
    async fn change_alarm(
        &self,
        change: fn(Alarm) -> KvOperation,
        alarm: Alarm,
    ) -> std::result::Result<Vec<Alarm>, Status> {
        match self.write(change(alarm)).await?.result {
            KvResult::Alarm(is_affected) => Ok(is_affected.then_some(alarm).into_iter().collect()),
            other => Err(super::unexpected(&other)),
        }
    }
}

fn alarm_member(alarm: Alarm) -> AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => AlarmType::Nospace,
        AlarmKind::Corrupt => AlarmType::Corrupt,
    };
    AlarmMember { member_id: alarm.node.map_or(0, member_id), alarm: kind.into() }
}

/// 0 means no member.
fn alarm_node(member_id: u64) -> Option<NodeId> {
    (member_id != 0).then(|| node_of(member_id))
}

/// Version of etcd whose API is served. Clients choose features by it.
pub(crate) const ETCD_VERSION: &str = "3.7.0";
