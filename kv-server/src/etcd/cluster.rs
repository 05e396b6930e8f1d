//! The service `Cluster`.

use consensus_core::{Endpoint, MemberKind, NodeId};
use kv_etcd_api::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse, cluster_server::Cluster,
};
use tonic::{Request, Response, Status};

use super::{Etcd, error, member_id, node_of};
use crate::between::{MemberRequest, NodeAnswer, NodeRequest};

type Result<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<MemberListResponse> {
        if request.into_inner().linearizable {
            let barrier = || self.database().read_barrier();
            self.when_led(barrier).await.map_err(|_| error::timed_out())?;
        }
        let (header, members) = (Some(self.header_without_revision()), self.members());
        Ok(Response::new(MemberListResponse { header, members }))
    }

    async fn member_remove(&self, request: Request<MemberRemoveRequest>) -> Result<MemberRemoveResponse> {
        let node = node_of(request.into_inner().id);
        self.change_members(MemberRequest::Remove(node)).await?;
        let (header, members) = (Some(self.header_without_revision()), self.members());
        Ok(Response::new(MemberRemoveResponse { header, members }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<MemberAddResponse> {
        let MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        let endpoint = peer_endpoint(&peer_ur_ls)?;
        let node = self.change_members(MemberRequest::Add { endpoint, is_learner }).await?;
        let (header, members) = (Some(self.header_without_revision()), self.members());
        let member = members.iter().find(|member| member.id == member_id(node)).cloned();
        Ok(Response::new(MemberAddResponse { header, member, members }))
    }

    async fn member_update(&self, request: Request<MemberUpdateRequest>) -> Result<MemberUpdateResponse> {
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let node = node_of(id);
        let endpoint = peer_endpoint(&peer_ur_ls).map_err(|invalid| {
            // As in etcd, an unknown member is reported first.
            let status = self.router.database().status();
            let is_member = node == self.router.node() || status.borrow().membership.get(node).is_some();
            if is_member { invalid } else { error::member_not_found() }
        })?;
        self.change_members(MemberRequest::Move { node, endpoint }).await?;
        let (header, members) = (Some(self.header_without_revision()), self.members());
        Ok(Response::new(MemberUpdateResponse { header, members }))
    }

    async fn member_promote(&self, request: Request<MemberPromoteRequest>) -> Result<MemberPromoteResponse> {
        let node = node_of(request.into_inner().id);
        self.change_members(MemberRequest::Promote(node)).await?;
        let (header, members) = (Some(self.header_without_revision()), self.members());
        Ok(Response::new(MemberPromoteResponse { header, members }))
    }
}

impl Etcd {
    fn members(&self) -> Vec<Member> {
        let status = self.status();
        let security = self.router.security();
        let (client_scheme, peer_scheme) = (security.client_scheme(), security.peer_scheme());
        let Some(cluster) = self.router.cluster() else {
            let id = member_id(self.router.node());
            let url = |endpoint| format!("{client_scheme}://{endpoint}");
            let urls = self.router.client_endpoint().map(url).into_iter().collect();
            return vec![Member {
                id,
                name: self.router.node().to_string(),
                client_ur_ls: urls,
                ..Default::default()
            }];
        };
        let membership = &status.membership;
        let member = |status: kv_store_client::idl::MemberStatus| {
            let urls = |scheme: &str, endpoint: String| {
                if endpoint.is_empty() { Vec::new() } else { vec![format!("{scheme}://{endpoint}")] }
            };
            let node = NodeId(u64::try_from(status.node_id).unwrap_or_default());
            // A witness has no data, and clients go to every URL that is listed.
            let is_witness = status.kind == MemberKind::Witness.to_string();
            let client_ur_ls =
                if is_witness { Vec::new() } else { urls(client_scheme, status.client_endpoint.clone()) };
            let name = membership.get(node).and_then(|member| member.name.clone());
            let name = name.unwrap_or_else(|| match &status {
                // It was added and has not started yet.
                status if status.client_endpoint.is_empty() => String::new(),
                _ if is_witness => format!("witness-{node}"),
                _ => node.to_string(),
            });
            Member {
                id: member_id(node),
                name,
                peer_ur_ls: urls(peer_scheme, status.consensus_endpoint),
                client_ur_ls,
                is_learner: status.kind == MemberKind::Learner.to_string(),
            }
        };
        cluster.members(&status).into_iter().map(member).collect()
    }

    /// Changes the members on the leader, and waits a moment until this node knows the change. Returns the changed member.
    async fn change_members(&self, request: MemberRequest) -> std::result::Result<NodeId, Status> {
        let is_removal = matches!(request, MemberRequest::Remove(_));
        let answer = self.lead(&NodeRequest::Member(request)).await?;
        let NodeAnswer::Member(node) = answer else { return Err(super::unexpected(&answer)) };
        let mut status = self.database().status();
        let known = status.wait_for(|status| status.membership.get(node).is_none() == is_removal);
        let _ = tokio::time::timeout(KNOWN_MAX, known).await;
        Ok(node)
    }
}

/// The endpoint of a member's peer URLs. A member has one. Whether nodes use TLS is a setting of each node, so either scheme will do.
fn peer_endpoint(urls: &[String]) -> std::result::Result<Endpoint, Status> {
    let [url] = urls else { return Err(error::bad_member_urls()) };
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let endpoint = rest.and_then(|rest| rest.parse().ok());
    endpoint.ok_or_else(error::bad_member_urls)
}

/// Maximum time that the response to a change waits until this node knows the change.
const KNOWN_MAX: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_url_is_one_with_host_and_port_and_nothing_else() {
        let endpoint = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            peer_endpoint(&urls).ok().map(|endpoint| endpoint.to_string())
        };
        assert_eq!(endpoint(&["http://db:2380"]).as_deref(), Some("db:2380"));
        assert_eq!(endpoint(&["http://[::1]:2380"]).as_deref(), Some("[::1]:2380"));
        assert_eq!(endpoint(&["https://db:2380"]).as_deref(), Some("db:2380"));
        for wrong in [
            &[][..],
            &["http://db:1", "http://db:2"],
            &["db:2380"],
            &["http://db"],
            &["http://db:99999"],
            &["http://db:2380/x"],
            &["ftp://db:2380"],
        ] {
            assert_eq!(endpoint(wrong), None, "{wrong:?}");
        }
    }
}
