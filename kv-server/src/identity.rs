//! Identity of a server: its number, and its cluster. One node that calls another at the endpoint for clients checks
//! this first, as another cluster or a standalone server may listen there and would take the call as its own.

use consensus_core::{ClusterId, NodeId};
use kv_store_client::admin::NodeIdentity;

use crate::cluster::number;

/// The identity of a node as servers tell it each other; `cluster` is `None` on a standalone server.
pub(crate) fn of(node: NodeId, cluster: Option<ClusterId>) -> NodeIdentity {
    NodeIdentity::new(number(node.0), cluster.map(|cluster| cluster.to_string()))
}

/// Whether both are the same node of the same cluster. A cluster whose identity is not known yet is none.
pub(crate) fn is_same(one: &NodeIdentity, other: &NodeIdentity) -> bool {
    one == other && is_known(one)
}

/// Why a server that says it is `found` is not the node `expected`; `None` if it may be that node, as one of the two clusters has
/// no identity yet.
pub(crate) fn mismatch(expected: &NodeIdentity, found: &NodeIdentity) -> Option<String> {
    let node = found.node_id;
    let cluster = |identity: &NodeIdentity| identity.cluster_id.clone().unwrap_or_default();
    if found.cluster_id.is_none() {
        Some("a standalone server is there".to_owned())
    } else if is_known(expected) && is_known(found) && expected.cluster_id != found.cluster_id {
        Some(format!(
            "node {node} of another cluster ({}) is there; this cluster is {}",
            cluster(found),
            cluster(expected)
        ))
    } else if expected.node_id != node {
        Some(format!("node {node} is there, not node {}", expected.node_id))
    } else {
        None
    }
}

/// Whether the cluster of an identity has drawn one.
fn is_known(identity: &NodeIdentity) -> bool {
    identity.cluster_id.as_ref().is_some_and(|cluster| *cluster != ClusterId::NONE.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node: u64, cluster: u64) -> NodeIdentity {
        of(NodeId(node), Some(ClusterId(cluster)))
    }

    #[test]
    fn only_the_same_node_of_a_cluster_with_an_identity_is_the_same() {
        let standalone = of(NodeId(1), None);
        assert!(is_same(&node(1, 7), &node(1, 7)));
        for other in [node(2, 7), node(1, 8), node(1, 0), standalone.clone()] {
            assert!(!is_same(&node(1, 7), &other), "{other:?}");
        }
        assert!(!is_same(&node(1, 0), &node(1, 0)) && !is_same(&standalone, &standalone));
    }

    #[test]
    fn mismatch_says_who_is_there() {
        let told = |found: &NodeIdentity| mismatch(&node(1, 7), found).unwrap();
        assert_eq!(told(&of(NodeId(1), None)), "a standalone server is there");
        assert_eq!(
            told(&node(1, 0xff)),
            "node 1 of another cluster (00000000000000ff) is there; this cluster is 0000000000000007"
        );
        assert_eq!(told(&node(2, 7)), "node 2 is there, not node 1");
        assert_eq!(mismatch(&node(1, 7), &node(1, 7)), None);
        assert_eq!(mismatch(&node(1, 7), &node(1, 0)), None, "it has not heard of its cluster yet");
        assert_eq!(mismatch(&node(1, 0), &node(1, 7)), None);
    }
}
