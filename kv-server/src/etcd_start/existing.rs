//! A member that was added to a running cluster learns its id from the other members, by its peer URL.

use std::time::Duration;

use consensus_core::Endpoint;
use consensus_transport_thrift::{MemberAtEndpoint, PeerState, find_member};
use tokio::time::{Instant, sleep};

use super::identity::Identity;

/// Why the member has no id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(
        "--initial-cluster-state=existing: no other member of --initial-cluster knows a member at http://{peer}: {answers}. Add it first: \
         etcdctl member add {name} --peer-urls=http://{peer}"
    )]
    Unknown { name: String, peer: String, answers: String },
    #[error("--initial-cluster-state=existing: --initial-cluster has no other member that could be asked")]
    Alone,
    #[error(
        "the member at http://{peer} had data before, and --data-dir has none: check whether the disk is mounted. If the data is lost: \
         etcdctl member remove, then etcdctl member add {name} --peer-urls=http://{peer}, and start it again"
    )]
    DataLost { name: String, peer: String },
}

/// Asks the other members for the member at this one's peer endpoint, for a while, as they may not have heard of it yet.
pub(super) async fn find_own_id(
    name: &str,
    peer: &Endpoint,
    others: &[Endpoint],
) -> Result<Identity, JoinError> {
    if others.is_empty() {
        return Err(JoinError::Alone);
    }
    let (name, deadline) = (name.to_owned(), Instant::now() + PATIENCE);
    loop {
        let mut answers = Vec::new();
        for other in others {
            match find_member(other, peer, ANSWER_MAX).await {
                Ok(answer) => match answer.member_at_endpoint {
                    Some(MemberAtEndpoint { node, storage: None }) => {
                        return Ok(Identity { node, cluster_name: answer.cluster_name });
                    }
                    Some(_) => return Err(JoinError::DataLost { name, peer: peer.to_string() }),
                    None if answer.state == PeerState::Member => {
                        answers.push(format!("http://{other} does not know it"));
                    }
                    None => answers.push(format!("http://{other} is not in a cluster yet")),
                },
                Err(error) => answers.push(error.to_string()),
            }
        }
        if Instant::now() >= deadline {
            let answers = answers.join("; ");
            return Err(JoinError::Unknown { name, peer: peer.to_string(), answers });
        }
        sleep(PAUSE).await;
    }
}

/// Time for a change that another member has just confirmed to reach the one that is asked, or for a cluster to find a leader.
const PATIENCE: Duration = Duration::from_secs(8);
const ANSWER_MAX: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);
