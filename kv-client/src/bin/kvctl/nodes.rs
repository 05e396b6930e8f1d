//! What every node says of itself.

use consensus_core::Endpoint;
use futures::future::join_all;
use kv_client::{
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

/// Asks every endpoint for the checksum of its state. The exit code: 4 if one does not answer.
pub(crate) async fn hash(client: &KvClient, endpoints: &[Endpoint], show: &Show) -> u8 {
    let answers = join_all(endpoints.iter().map(|endpoint| client.hash_of(endpoint))).await;
    show_all(endpoints, answers, hash_row, hash_value, show)
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
