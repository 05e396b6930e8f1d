//! A member that was added to a running cluster learns its id from the other members, by its peer URL.

use std::{collections::BTreeSet, time::Duration};

use consensus_core::{ClusterId, Endpoint, TransportError};
use consensus_transport_thrift::{PeerIdentity, PeerState, find_member};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::identity::Identity;
use crate::tls::Security;

/// Why the member has no id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(
        "--initial-cluster-state=existing: no other member of --initial-cluster knows a member at {peer}: {answers}. Add it first: \
         etcdctl member add {name} --peer-urls={peer}"
    )]
    Unknown { name: String, peer: String, answers: String },
    #[error(
        "--initial-cluster-state=existing: none of {urls} answered as a member of a cluster: {answers}; check --initial-cluster and the \
         network"
    )]
    NoMember { urls: String, answers: String },
    #[error("--initial-cluster-state=existing: --initial-cluster has no other member that could be asked")]
    Alone,
    #[error(
        "the member at {peer} had data before, and --data-dir has none: check whether the disk is mounted. If the data is lost: \
         etcdctl member remove, then etcdctl member add {name} --peer-urls=http://{peer}, and start it again"
    )]
    DataLost { name: String, peer: String },
    #[error(
        "--initial-cluster-state=existing: the members of --initial-cluster are of different clusters: {answers}; correct \
         --initial-cluster. Nothing was written"
    )]
    SeveralClusters { answers: String },
}

/// Asks all other members for the member at this one's peer endpoint, for a while, as they may not have heard of it yet.
pub(super) async fn find_own_id(
    name: &str,
    peer: &Endpoint,
    others: &[Endpoint],
    security: &Security,
) -> Result<Identity, JoinError> {
    if others.is_empty() {
        return Err(JoinError::Alone);
    }
    let deadline = Instant::now() + PATIENCE;
    let url = |endpoint: &Endpoint| format!("{}://{endpoint}", security.peer_scheme());
    let ask = |other: &Endpoint| {
        let other = other.clone();
        async move {
            let result = find_member(&other, peer, security.peers.as_ref(), ANSWER_MAX).await;
            Answer { other: url(&other), result }
        }
    };
    loop {
        let answers = join_all(others.iter().map(ask)).await;
        match identity_from(name, &url(peer), &answers) {
            Err(_) if Instant::now() < deadline => sleep(PAUSE).await,
            result => return result,
        }
    }
}

/// Response of another member.
struct Answer {
    /// URL of that member.
    other: String,
    result: Result<PeerIdentity, TransportError>,
}

/// The member at the peer endpoint, from one answer of each other member. Members that lag behind may still answer with a former member
/// there. Ids are not used again, so the highest id is the newest.
fn identity_from(name: &str, peer: &str, answers: &[Answer]) -> Result<Identity, JoinError> {
    let clusters: BTreeSet<ClusterId> = answers.iter().filter_map(Answer::cluster).collect();
    if clusters.len() > 1 {
        return Err(JoinError::SeveralClusters { answers: describe_clusters(answers) });
    }
    let found = answers.iter().filter_map(|answer| {
        let identity = answer.result.as_ref().ok()?;
        Some((identity.member_at_endpoint?, &identity.cluster_name))
    });
    let newest = found.max_by_key(|(member, _)| (member.node, member.storage.is_some()));
    let (name, peer) = (name.to_owned(), peer.to_owned());
    match newest {
        Some((member, cluster_name)) if member.storage.is_none() => {
            Ok(Identity { node: member.node, cluster_name: cluster_name.clone() })
        }
        Some(_) => Err(JoinError::DataLost { name, peer }),
        None if answers.iter().any(Answer::is_of_member) => {
            Err(JoinError::Unknown { name, peer, answers: describe(answers) })
        }
        None => {
            let urls: Vec<String> = answers.iter().map(|answer| answer.other.clone()).collect();
            Err(JoinError::NoMember { urls: urls.join(", "), answers: describe(answers) })
        }
    }
}

impl Answer {
    /// The identity of the cluster that the other one is a member of.
    fn cluster(&self) -> Option<ClusterId> {
        let cluster = self.result.as_ref().ok().filter(|_| self.is_of_member())?.cluster;
        Some(cluster).filter(|cluster| *cluster != ClusterId::NONE)
    }

    fn is_of_member(&self) -> bool {
        self.result.as_ref().is_ok_and(|identity| identity.state == PeerState::Member)
    }
}

fn describe_clusters(answers: &[Answer]) -> String {
    let describe = |answer: &Answer| Some(format!("{} of cluster {}", answer.other, answer.cluster()?));
    answers.iter().filter_map(describe).collect::<Vec<_>>().join("; ")
}

fn describe(answers: &[Answer]) -> String {
    let describe = |answer: &Answer| match &answer.result {
        Ok(_) if answer.is_of_member() => format!("{} does not know it", answer.other),
        Ok(_) => format!("{} is not in a cluster yet", answer.other),
        Err(error) => error.to_string(),
    };
    answers.iter().map(describe).collect::<Vec<_>>().join("; ")
}

/// Time for a change that another member has just confirmed to reach the one that is asked, or for a cluster to find a leader.
const PATIENCE: Duration = Duration::from_secs(8);
const ANSWER_MAX: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use consensus_core::{NodeId, StorageId};
    use consensus_transport_thrift::{Founders, MemberAtEndpoint};

    use super::*;

    /// The answer of a member that knows, or does not know, a member at the endpoint.
    fn knows(member: Option<(u64, Option<u64>)>) -> Answer {
        let member_at_endpoint = member
            .map(|(node, storage)| MemberAtEndpoint { node: NodeId(node), storage: storage.map(StorageId) });
        answered(PeerState::Member, member_at_endpoint)
    }

    fn answered(state: PeerState, member_at_endpoint: Option<MemberAtEndpoint>) -> Answer {
        let result = Ok(PeerIdentity {
            node: NodeId(0),
            storage: StorageId(1),
            cluster: ClusterId(1),
            cluster_name: "c".to_owned(),
            formats: 1..=1,
            state,
            knows_asker: None,
            member_at_endpoint,
        });
        Answer { other: "http://10.0.0.1:2380".to_owned(), result }
    }

    fn silent() -> Answer {
        let source = std::io::ErrorKind::ConnectionRefused.into();
        let error = TransportError::Io { context: "probing 10.0.0.2:2380".to_owned(), source };
        Answer { other: "http://10.0.0.2:2380".to_owned(), result: Err(error) }
    }

    fn identity(answers: &[Answer]) -> Result<u64, JoinError> {
        identity_from("m", "http://10.0.0.9:2380", answers).map(|identity| identity.node.0)
    }

    #[test]
    fn newest_member_at_the_endpoint_counts_whoever_answers_first() {
        let (former, added) = (knows(Some((3, Some(7)))), knows(Some((5, None))));
        assert_eq!(identity(&[former, added]), Ok(5));
        let (added, former) = (knows(Some((5, None))), knows(Some((3, Some(7)))));
        assert_eq!(identity(&[silent(), added, former, knows(None)]), Ok(5));
        let lost = identity(&[knows(Some((5, None))), knows(Some((5, Some(7))))]);
        assert!(matches!(lost, Err(JoinError::DataLost { .. })), "one of them knows its disk: {lost:?}");
    }

    #[test]
    fn members_of_different_clusters_give_no_identity() {
        let mut foreign = knows(Some((9, None)));
        foreign.result.as_mut().unwrap().cluster = ClusterId(2);
        let error = identity(&[knows(Some((5, None))), foreign]).unwrap_err().to_string();
        let told = "http://10.0.0.1:2380 of cluster 0000000000000001; http://10.0.0.1:2380 of cluster 0000000000000002";
        assert!(error.contains(told), "{error}");
    }

    #[test]
    fn member_that_nobody_knows_is_to_be_added_only_if_a_member_answered() {
        let empty = || answered(PeerState::Empty { founders: Founders::new() }, None);
        let unknown = identity(&[silent(), knows(None)]).unwrap_err();
        assert!(matches!(unknown, JoinError::Unknown { .. }), "{unknown}");
        let unreachable = identity(&[silent(), empty()]).unwrap_err().to_string();
        for words in [
            "none of http://10.0.0.2:2380, http://10.0.0.1:2380 answered as a member of a cluster",
            "probing 10.0.0.2:2380",
            "http://10.0.0.1:2380 is not in a cluster yet",
            "check --initial-cluster and the network",
        ] {
            assert!(unreachable.contains(words), "{unreachable}");
        }
        assert!(!unreachable.contains("member add"), "{unreachable}");
    }
}
