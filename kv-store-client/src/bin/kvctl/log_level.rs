//! The level of a node's log.

use consensus_core::Endpoint;
use futures::stream::{FuturesUnordered, StreamExt};
use kv_store_client::{ClientError, KvClient, protocol::Fault};
use serde_json::json;

use crate::{Failure, show::Show};

/// Changes what a node logs, and prints the directives that are in effect then.
pub(crate) async fn set(
    client: &KvClient,
    endpoints: &[Endpoint],
    node: i64,
    directives: &str,
    show: Show,
) -> Result<u8, Failure> {
    let endpoint = endpoint_of(client, endpoints, node).await?;
    let current = client.set_log_level_of(&endpoint, directives).await.map_err(|error| match error {
        // A release without this call.
        ClientError::Rejected(Fault::Application { message, .. }) => {
            Failure::Refused(format!("node {node} cannot change the level of its log: {message}"))
        }
        error => error.into(),
    })?;
    show.either(&format!("node {node}  {current}"), || json!({ "node_id": node, "directives": current }))?;
    Ok(0)
}

/// The endpoint of a node: one of those that were given, or the one that the members know.
async fn endpoint_of(client: &KvClient, endpoints: &[Endpoint], node: i64) -> Result<Endpoint, Failure> {
    let ask = async |endpoint| (endpoint, client.status_of(endpoint).await);
    let mut answers: FuturesUnordered<_> = endpoints.iter().map(ask).collect();
    let (mut told, mut silent) = (None, Vec::new());
    while let Some((endpoint, answer)) = answers.next().await {
        match answer {
            Ok(status) if status.header.node_id == node => return Ok(endpoint.clone()),
            Ok(status) => {
                let member = status.members.into_iter().find(|member| member.node_id == node);
                told = told.or_else(|| member?.client_endpoint.parse().ok());
            }
            Err(error) => silent.push(error.to_string()),
        }
    }
    match (told, silent.is_empty()) {
        (Some(endpoint), _) => Ok(endpoint),
        (None, true) => {
            Err(Failure::Usage(format!("there is no node {node}; `kvctl member list` lists the members")))
        }
        (None, false) => Err(ClientError::Unavailable(silent.join("; ")).into()),
    }
}
