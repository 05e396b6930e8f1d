//! The service `Cluster`.

use consensus_core::{Endpoint, MemberKind, NodeId};
use kv_etcd_api::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse, cluster_server::Cluster,
};
use kv_store_client::{
    admin::MemberChange,
    protocol::{Call, Fault, Reply},
};
use tonic::{Request, Response, Status};

use super::{Etcd, error, member_id, node_of};
use crate::cluster::number;

type Result<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<MemberListResponse> {
        if request.into_inner().linearizable {
            let barrier =
                self.database().engine().read_barrier(consensus_core::ReadConsistency::Linearizable);
            barrier.await.map_err(|_| error::timed_out())?;
        }
        let (header, members) = (Some(self.header_without_revision()), self.members());
        Ok(Response::new(MemberListResponse { header, members }))
    }

    async fn member_remove(&self, request: Request<MemberRemoveRequest>) -> Result<MemberRemoveResponse> {
        let node = self.member(request.into_inner().id)?;
        let change = MemberChange {
            node_id: number(node.0),
            kind: None,
            consensus_endpoint: None,
            client_endpoint: None,
            priority: None,
            is_member: Some(true),
        };
        self.change_members(vec![change]).await?;
        let (header, members) = (Some(self.header_without_revision()), self.members());
        Ok(Response::new(MemberRemoveResponse { header, members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<MemberAddResponse> {
        Err(Status::unimplemented(
            "etcdserver: a member is added with `kvctl member add ID --consensus HOST:PORT --client HOST:PORT`",
        ))
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<MemberUpdateResponse> {
        Err(Status::unimplemented("etcdserver: a member's addresses are changed with `kvctl member update`"))
    }

    async fn member_promote(&self, request: Request<MemberPromoteRequest>) -> Result<MemberPromoteResponse> {
        let node = self.member(request.into_inner().id)?;
        match self.status().membership.get(node).map(|member| member.kind) {
            Some(MemberKind::Learner) => {
                Err(Status::unimplemented("etcdserver: a member is promoted with `kvctl member add`"))
            }
            _ => Err(error::member_not_learner()),
        }
    }
}

impl Etcd {
    /// The node of a member's id, if it is a member.
    fn member(&self, id: u64) -> std::result::Result<NodeId, Status> {
        let node = node_of(id);
        match self.status().membership.get(node) {
            Some(_) => Ok(node),
            None => Err(error::member_not_found()),
        }
    }

    fn members(&self) -> Vec<Member> {
        let status = self.status();
        let Some(cluster) = self.router.cluster() else {
            let id = member_id(self.router.node());
            let urls = self.router.client_endpoint().map(url).into_iter().collect();
            return vec![Member {
                id,
                name: self.router.node().to_string(),
                client_ur_ls: urls,
                ..Default::default()
            }];
        };
        let member = |status: kv_store_client::idl::MemberStatus| {
            let urls = |endpoint: String| {
                if endpoint.is_empty() { Vec::new() } else { vec![format!("http://{endpoint}")] }
            };
            let node = NodeId(u64::try_from(status.node_id).unwrap_or_default());
            Member {
                id: member_id(node),
                name: node.to_string(),
                peer_ur_ls: urls(status.consensus_endpoint),
                client_ur_ls: urls(status.client_endpoint),
                is_learner: status.kind == MemberKind::Learner.to_string(),
            }
        };
        cluster.members(&status).into_iter().map(member).collect()
    }

    async fn change_members(&self, changes: Vec<MemberChange>) -> std::result::Result<(), Status> {
        let mut room = self.budget.room();
        match self.router.execute(Call::ChangeMembers(changes), true, &mut room).await {
            Ok(Reply::ChangeMembers) => Ok(()),
            Err(Fault::Refused(refused)) if refused.maybe_done => Err(error::deadline_exceeded()),
            Err(Fault::Refused(refused)) => {
                Err(Status::failed_precondition(format!("etcdserver: {}", refused.message)))
            }
            other => Err(super::unexpected(&other)),
        }
    }
}

fn url(endpoint: &Endpoint) -> String {
    format!("http://{endpoint}")
}
