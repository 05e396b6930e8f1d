//! Proposals to nodes that are not leader.

use bytes::Bytes;
use consensus_core::ProposeError;

use super::{Node, converged, leader_and_followers, stop};

pub(super) async fn followers(nodes: Vec<Node>) {
    let (leading, followers) = leader_and_followers(&nodes).await;
    for follower in followers {
        match follower.engine.propose("x".into()).await {
            Ok(committed) => {
                let applied = (committed.log_id, Bytes::from("x"));
                assert!(
                    leading.journal.commands().contains(&applied),
                    "the follower forwarded it to the leader"
                );
            }
            Err(error) => assert_eq!(error, ProposeError::NotLeader { leader: Some(leading.id()) }),
        }
    }
    stop(&nodes).await;
}

pub(super) async fn not_applied(nodes: Vec<Node>) {
    let (leading, followers) = leader_and_followers(&nodes).await;
    let mut expected = Vec::new();
    for (n, follower) in followers.iter().cycle().take(3 * followers.len()).enumerate() {
        let command = Bytes::from(format!("{n} on a follower"));
        match follower.engine.propose(command.clone()).await {
            Ok(_) => expected.push(command),
            Err(error) => assert!(!error.maybe_applied(), "without faults the outcome is known: {error}"),
        }
    }
    let last = Bytes::from("on the leader");
    leading.engine.propose(last.clone()).await.unwrap();
    expected.push(last);
    let applied: Vec<_> = converged(&nodes, expected.len()).await.into_iter().map(|(_, c)| c).collect();
    assert_eq!(applied, expected);
    stop(&nodes).await;
}
