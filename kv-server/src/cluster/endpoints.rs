//! Endpoints of the file that differ from those of the configuration in the log, which count.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use consensus_core::{
    ChangeError, ConsensusEngine, Endpoint, Health, Member, MemberChange, Membership, NodeId,
};

use crate::config::NodeEndpoints;

/// The members whose endpoints in the file are not those of `membership`.
fn moved<'a>(
    membership: &'a Membership,
    file: &'a BTreeMap<NodeId, NodeEndpoints>,
) -> impl Iterator<Item = (NodeId, &'a Member, &'a NodeEndpoints)> {
    membership.members().iter().filter_map(|(id, member)| {
        let file = file.get(id)?;
        let is_same = member.endpoint.as_ref().is_none_or(|endpoint| *endpoint == file.consensus)
            && (file.client.is_none()
                || member.client_endpoint.is_none()
                || member.client_endpoint == file.client);
        (!is_same).then_some((*id, member, file))
    })
}

/// Warning at the start if endpoints differ.
pub(crate) fn warning(membership: &Membership, file: &BTreeMap<NodeId, NodeEndpoints>) -> Option<String> {
    let text = |endpoint: &Option<Endpoint>| {
        endpoint.as_ref().map_or_else(|| "no endpoint".to_owned(), Endpoint::to_string)
    };
    let difference = |(id, member, file): (NodeId, &Member, &NodeEndpoints)| {
        let (consensus, client) = (text(&member.endpoint), text(&member.client_endpoint));
        format!(
            "node {id} is at {consensus} (clients {client}) by the log, at {} (clients {}) by the file",
            file.consensus,
            text(&file.client)
        )
    };
    let differences: Vec<String> = moved(membership, file).map(difference).collect();
    (!differences.is_empty()).then(|| {
        format!(
            "{}. The log's endpoints count. If one node moved: `kvctl member update`. If so many moved that there is no \
             leader: start all nodes with --rewrite-endpoints. If the file is out of date: correct it",
            differences.join("; ")
        )
    })
}

/// Warning at a start in place of etcd if the cluster has another endpoint of the node than its peer URL.
pub(crate) fn peer_url_warning(
    membership: &Membership,
    node: NodeId,
    given: &BTreeMap<NodeId, NodeEndpoints>,
) -> Option<String> {
    let (known, given) = (membership.get(node)?.endpoint.as_ref()?, &given.get(&node)?.consensus);
    (known != given).then(|| {
        format!(
            "the other members look for this one at http://{known}, and --initial-advertise-peer-urls is http://{given}, which counts \
             only at the first start; if it moved: etcdctl member update ID --peer-urls=http://{given}"
        )
    })
}

/// Writes the endpoints of the file into the configuration as soon as this node is leader, unless they were changed
/// meanwhile; `before` is the configuration that the node started with.
pub(crate) async fn rewrite(
    engine: Arc<dyn ConsensusEngine>,
    node: NodeId,
    before: Arc<Membership>,
    file: BTreeMap<NodeId, NodeEndpoints>,
) {
    let mut status = engine.status();
    loop {
        let leads = status.wait_for(|status| status.leader == Some(node) || status.health != Health::Running);
        let Ok(membership) = leads.await.map(|status| status.membership.clone()) else { return };
        if status.borrow().health != Health::Running {
            return;
        }
        let changes = changes(&before, &membership, &file);
        if changes.is_empty() {
            return;
        }
        match engine.change_membership(changes).await {
            Ok(membership) => {
                let now = places(&membership);
                return tracing::info!(
                    now,
                    "the cluster has the file's endpoints: --rewrite-endpoints is no longer needed"
                );
            }
            Err(error @ ChangeError::Invalid(_)) => {
                return tracing::error!(%error, "the cluster cannot have the file's endpoints: correct the file");
            }
            Err(error) => tracing::info!(%error, "the file's endpoints are not in the configuration yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The members' new endpoints, as far as they still have the old ones.
fn changes(
    before: &Membership,
    now: &Membership,
    file: &BTreeMap<NodeId, NodeEndpoints>,
) -> Vec<MemberChange> {
    let endpoints = |member: &Member| (member.endpoint.clone(), member.client_endpoint.clone());
    let change = |(id, old, file): (NodeId, &Member, &NodeEndpoints)| {
        let member = now.members().get(&id).filter(|member| endpoints(member) == endpoints(old))?;
        let client_endpoint = file.client.clone().or_else(|| member.client_endpoint.clone());
        let endpoint = Some(file.consensus.clone());
        Some(MemberChange::Set(id, Member { endpoint, client_endpoint, ..member.clone() }))
    };
    moved(before, file).filter_map(change).collect()
}

fn places(membership: &Membership) -> String {
    let place =
        |(id, member): (&NodeId, &Member)| Some(format!("node {id} at {}", member.endpoint.as_ref()?));
    membership.members().iter().filter_map(place).collect::<Vec<_>>().join(", ")
}

/// Before a change that another one was in the way of is tried again.
const RETRY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use consensus_core::MemberKind;

    use super::*;

    fn at(port: u16) -> Endpoint {
        Endpoint::new("h", port).unwrap()
    }

    fn membership(ports: [u16; 2]) -> Membership {
        let member = |port| Member {
            endpoint: Some(at(port + 1000)),
            client_endpoint: Some(at(port)),
            priority: 3,
            ..Member::new(MemberKind::Voter)
        };
        Membership::new((0..).map(NodeId).zip(ports.map(member)).collect())
    }

    fn file(ports: [u16; 2]) -> BTreeMap<NodeId, NodeEndpoints> {
        let endpoints =
            |port| NodeEndpoints { client: Some(at(port)), consensus: at(port + 1000), name: None };
        (0..).map(NodeId).zip(ports.map(endpoints)).collect()
    }

    #[test]
    fn warning_names_both_endpoints_of_each_node_that_differs() {
        assert_eq!(warning(&membership([1, 2]), &file([1, 2])), None);
        assert_eq!(warning(&Membership::default(), &file([1, 2])), None);
        let text = warning(&membership([1, 2]), &file([1, 5])).unwrap();
        assert!(text.starts_with(
            "node 1 is at h:1002 (clients h:2) by the log, at h:1005 (clients h:5) by the file"
        ));
        assert!(text.contains("--rewrite-endpoints") && !text.contains("node 0"), "{text}");
    }

    #[test]
    fn member_in_place_of_etcd_is_told_of_another_peer_url() {
        let of = |node, ports| peer_url_warning(&membership([1, 2]), NodeId(node), &file(ports));
        assert_eq!((of(0, [1, 2]), of(0, [1, 5]), of(7, [1, 2])), (None, None, None));
        let text = of(1, [1, 5]).unwrap();
        assert!(text.contains("at http://h:1002") && text.contains("--peer-urls=http://h:1005"), "{text}");
    }

    #[test]
    fn only_endpoints_that_nobody_changed_meanwhile_are_rewritten() {
        let (before, file) = (membership([1, 2]), file([7, 8]));
        let set = changes(&before, &membership([1, 3]), &file);
        let [MemberChange::Set(NodeId(0), member)] = &set[..] else { panic!("{set:?}") };
        assert_eq!((member.endpoint.clone(), member.client_endpoint.clone()), (Some(at(1007)), Some(at(7))));
        assert_eq!(member.priority, 3, "the rest is kept");
        assert!(changes(&before, &membership([7, 8]), &file).is_empty());
    }
}
