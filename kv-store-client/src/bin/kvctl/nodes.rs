//! What every node says of itself.

use std::collections::BTreeMap;

use consensus_core::Endpoint;
use futures::future::join_all;
use kv_store_client::{
    ClientError, KvClient,
    idl::{HashResponse, StatusResponse},
};
use serde_json::{Value, json};

use crate::{members, show::Show};

/// Asks every endpoint how it is. The exit code: 4 if one does not answer.
pub(crate) async fn status(client: &KvClient, endpoints: &[Endpoint], show: &Show) -> u8 {
    let answers = join_all(endpoints.iter().map(|endpoint| client.status_of(endpoint))).await;
    show_all(endpoints, answers, status_row, status_value, show)
}

/// Asks every endpoint for the checksum of its state. The exit code: 6 if two have applied the same and differ, 4 if one
/// does not answer.
pub(crate) async fn hash(client: &KvClient, endpoints: &[Endpoint], show: &Show) -> u8 {
    let answers = join_all(endpoints.iter().map(|endpoint| client.hash_of(endpoint))).await;
    let differing = differing(answers.iter().flatten());
    let code = show_all(endpoints, answers, hash_row, hash_value, show);
    let Some((one, other)) = differing else { return code };
    eprintln!(
        "kvctl: nodes {one} and {other} have applied the same and differ: keep both data directories, remove the one that \
         is wrong (`kvctl member remove`), and add it again with an empty one"
    );
    6
}

/// Two nodes that differ although they have applied the same. Nodes that were asked under load may be apart, and then
/// say nothing of each other.
fn differing<'a>(hashes: impl Iterator<Item = &'a HashResponse>) -> Option<(i64, i64)> {
    let mut seen = BTreeMap::new();
    for HashResponse { header, hash } in hashes {
        let (node, first) = *seen.entry(header.applied_index).or_insert((header.node_id, *hash));
        if first != *hash {
            return Some((node, header.node_id));
        }
    }
    None
}

fn show_all<T>(
    endpoints: &[Endpoint],
    answers: Vec<Result<T, ClientError>>,
    row: fn(&T) -> String,
    value: fn(&T) -> Value,
    show: &Show,
) -> u8 {
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for (endpoint, answer) in endpoints.iter().zip(&answers) {
        let (text, mut fields) = match answer {
            Ok(answer) => (row(answer), value(answer)),
            Err(error) => (error.to_string(), json!({ "error": error.to_string() })),
        };
        rows.push(format!("{endpoint}  {text}"));
        fields["endpoint"] = json!(endpoint.to_string());
        values.push(fields);
    }
    show.either(&rows.join("\n"), || json!(values));
    if answers.iter().all(Result::is_ok) { 0 } else { 4 }
}

fn status_row(status: &StatusResponse) -> String {
    let header = &status.header;
    let leader = status.leader_id.map_or("-".to_owned(), |id| id.to_string());
    let mut row = format!(
        "node {}  {}  term {}  leader {leader}  commit {}  applied {}  log {}..{}  revision {}",
        header.node_id,
        status.role,
        header.term,
        status.commit_index,
        header.applied_index,
        status.first_log_index,
        status.last_log_index,
        header.revision,
    );
    let unwell: Vec<String> = status
        .members
        .iter()
        .filter(|member| !member.healthy)
        .map(|member| member.node_id.to_string())
        .collect();
    if !unwell.is_empty() {
        row += &format!("  not seen: {}", unwell.join(", "));
    }
    row
}

fn status_value(status: &StatusResponse) -> Value {
    let members: Vec<Value> = status.members.iter().map(members::value).collect();
    json!({
        "node_id": status.header.node_id, "role": status.role, "term": status.header.term,
        "leader_id": status.leader_id, "commit_index": status.commit_index,
        "applied_index": status.header.applied_index, "first_log_index": status.first_log_index,
        "last_log_index": status.last_log_index, "revision": status.header.revision, "version": status.version,
        "members": members,
    })
}

fn hash_row(hash: &HashResponse) -> String {
    let header = &hash.header;
    format!(
        "node {}  hash {:08x}  revision {}  applied {}",
        header.node_id, hash.hash, header.revision, header.applied_index
    )
}

fn hash_value(hash: &HashResponse) -> Value {
    let header = &hash.header;
    json!({
        "node_id": header.node_id, "hash": hash.hash, "revision": header.revision, "applied_index": header.applied_index,
    })
}

#[cfg(test)]
mod tests {
    use kv_store_client::idl::ResponseHeader;

    use super::*;

    #[test]
    fn only_nodes_that_applied_the_same_are_compared() {
        let hash = |node_id, applied_index, hash| {
            HashResponse::new(ResponseHeader::new(1, node_id, 1, applied_index), hash)
        };
        let differ = |hashes: &[HashResponse]| differing(hashes.iter());
        assert_eq!(differ(&[]), None);
        assert_eq!(differ(&[hash(0, 5, 1), hash(1, 6, 2), hash(2, 5, 1)]), None);
        assert_eq!(differ(&[hash(0, 5, 1), hash(1, 6, 2), hash(2, 6, 1)]), Some((1, 2)));
    }
}
