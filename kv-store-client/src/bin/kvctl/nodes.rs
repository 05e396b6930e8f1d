//! Status and checksum of each node.

use std::collections::BTreeMap;

use consensus_core::Endpoint;
use futures::stream::{FuturesUnordered, StreamExt};
use kv_store_client::{
    ClientError, KvClient,
    idl::{HashResponse, MemberStatus, RangeRequest, RangeResponse, StatusResponse},
    protocol::Fault,
};
use serde_json::{Value, json};

use crate::{Failure, members, show::Show};

/// Prints the status of every endpoint. Returns the exit code: 6 if the endpoints belong to different
/// clusters, 4 if one does not respond, otherwise 0.
pub(crate) async fn status(client: &KvClient, endpoints: &[Endpoint], show: Show) -> Result<u8, Failure> {
    let ask = async |endpoint| client.status_of(endpoint).await;
    let answers = show_all(endpoints, ask, status_rows, status_value, show).await?;
    let clusters = answers.iter().map(|answer| Some(answer.as_ref().ok()?.cluster_id.as_deref()));
    if tell_of_clusters(endpoints, clusters) {
        return Ok(6);
    }
    Ok(if answers.iter().all(Result::is_ok) { 0 } else { 4 })
}

/// Prints the checksum of every endpoint's state. Returns the exit code: 6 if two nodes have applied the same
/// entries and differ, or if the endpoints belong to different clusters; 4 if one does not respond; otherwise
/// 0. A witness, which has no state, does not affect the exit code.
pub(crate) async fn hash(client: &KvClient, endpoints: &[Endpoint], show: Show) -> Result<u8, Failure> {
    let ask = async |endpoint| hash_of(client, endpoint).await;
    let answers = show_all(endpoints, ask, hash_row, hash_value, show).await?;
    let cluster = |answer: &HashResponse| answer.cluster_id.clone();
    let ids: Vec<_> = answers.iter().map(|answer| answer.as_ref().ok()?.as_ref().map(cluster)).collect();
    if tell_of_clusters(endpoints, ids.iter().map(|id| id.as_ref().map(Option::as_deref))) {
        return Ok(6);
    }
    if let Some((one, other)) = differing(answers.iter().flatten().flatten()) {
        eprintln!(
            "kvctl: nodes {one} and {other} have applied the same entries and differ: keep both data directories, find out \
             which one is wrong, remove it (`kvctl member remove`), and add it again with an empty data directory"
        );
        return Ok(6);
    }
    Ok(if answers.iter().all(Result::is_ok) { 0 } else { 4 })
}

/// The checksum of a server's state; `None` for a witness.
pub(crate) async fn hash_of(
    client: &KvClient,
    endpoint: &Endpoint,
) -> Result<Option<HashResponse>, ClientError> {
    match client.hash_of(endpoint).await {
        Err(ClientError::Rejected(Fault::NoData(_))) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Reads from the state of one server: the first endpoint that responds.
pub(crate) async fn read_of_one(
    client: &KvClient,
    endpoints: &[Endpoint],
    request: RangeRequest,
) -> Result<RangeResponse, Failure> {
    let mut silent = Vec::new();
    for endpoint in endpoints {
        match client.range_of(endpoint, request.clone()).await {
            Err(ClientError::Unavailable(why)) => silent.push(why),
            // The endpoint is a witness, which has no data.
            Err(ClientError::Rejected(Fault::NotLeader(why))) => silent.push(format!("{endpoint}: {why:?}")),
            outcome => return Ok(outcome?),
        }
    }
    Err(ClientError::Unavailable(silent.join("; ")).into())
}

/// Returns the leader's status. If the leader is not among the endpoints that respond, returns the status of
/// the best informed one.
pub(crate) async fn best_status(
    client: &KvClient,
    endpoints: &[Endpoint],
) -> Result<StatusResponse, Failure> {
    let ask = |endpoint| client.status_of(endpoint);
    let mut answers: FuturesUnordered<_> = endpoints.iter().map(ask).collect();
    let (mut best, mut silent): (Option<StatusResponse>, Vec<String>) = (None, Vec::new());
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(status) if status.role == "leader" => return Ok(status),
            Ok(status) => best = best.into_iter().chain([status]).max_by_key(information),
            Err(ClientError::Unavailable(why)) => silent.push(why),
            Err(error) => silent.push(error.to_string()),
        }
    }
    best.ok_or_else(|| ClientError::Unavailable(silent.join("; ")).into())
}

/// Rank of a node's information about the cluster. A node that is not a member, or that knows no leader, may
/// have an old configuration.
fn information(status: &StatusResponse) -> (bool, bool, i64) {
    let is_member = !matches!(status.role.as_str(), "removed" | "waiting");
    (is_member, status.leader_id.is_some(), status.header.term)
}

/// Prints to standard error which endpoint belongs to which cluster, if there are several clusters. Returns
/// whether there are. `clusters` has the cluster of each endpoint: `None` if it is not known, `Some(None)`
/// for a standalone server.
fn tell_of_clusters<'a>(
    endpoints: &[Endpoint],
    clusters: impl Iterator<Item = Option<Option<&'a str>>>,
) -> bool {
    let Some(text) = describe_clusters(endpoints, clusters) else { return false };
    eprintln!(
        "kvctl: the endpoints are of different clusters, whose states have nothing to do with each other: {text}; name the \
         endpoints of one cluster"
    );
    true
}

/// Lists the endpoints of each cluster, if there are several clusters.
fn describe_clusters<'a>(
    endpoints: &[Endpoint],
    clusters: impl Iterator<Item = Option<Option<&'a str>>>,
) -> Option<String> {
    let (mut known, mut alone): (BTreeMap<&str, Vec<String>>, Vec<String>) = Default::default();
    for (endpoint, cluster) in endpoints.iter().zip(clusters) {
        match cluster {
            // The cluster of this server has just started, or the server waits to be added to a cluster.
            None | Some(Some("none")) => {}
            Some(Some(cluster)) => known.entry(cluster).or_default().push(endpoint.to_string()),
            Some(None) => alone.push(endpoint.to_string()),
        }
    }
    let of_cluster =
        |(cluster, endpoints): (&str, Vec<String>)| format!("{} of cluster {cluster}", endpoints.join(", "));
    // Standalone servers may be compared with each other, because one may have a copy of another's data.
    let alone = Some(alone.join(", ")).filter(|alone| !alone.is_empty());
    let alone = alone.map(|alone| format!("{alone} of none, as it stands alone"));
    let all: Vec<String> = known.into_iter().map(of_cluster).chain(alone).collect();
    (all.len() > 1).then(|| all.join("; "))
}

/// Returns two nodes that have applied the same entries and have different checksums. Under load, nodes may
/// respond at different applied indexes; their checksums are not comparable.
fn differing<'a>(hashes: impl Iterator<Item = &'a HashResponse>) -> Option<(i64, i64)> {
    let mut seen = BTreeMap::new();
    for HashResponse { header, hash, .. } in hashes {
        let (node, first) = *seen.entry(header.applied_index).or_insert((header.node_id, *hash));
        if first != *hash {
            return Some((node, header.node_id));
        }
    }
    None
}

/// Sends a request to all endpoints at once and prints each response when it arrives. Returns the responses
/// in the order of the endpoints.
pub(crate) async fn show_all<'a, T>(
    endpoints: &'a [Endpoint],
    ask: impl AsyncFn(&'a Endpoint) -> Result<T, ClientError>,
    row: fn(&T) -> String,
    value: fn(&T) -> Value,
    show: Show,
) -> Result<Vec<Result<T, ClientError>>, Failure> {
    let ask = async |(place, endpoint)| (place, endpoint, ask(endpoint).await);
    let mut asked: FuturesUnordered<_> = endpoints.iter().enumerate().map(ask).collect();
    let mut answers = BTreeMap::new();
    while let Some((place, endpoint, answer)) = asked.next().await {
        let (text, mut fields) = match &answer {
            Ok(answer) => (row(answer), value(answer)),
            Err(error) => (silence(endpoint, error), json!({ "error": error.to_string() })),
        };
        show.row(&format!("{endpoint}  {text}"))?;
        fields["endpoint"] = json!(endpoint.to_string());
        answers.insert(place, (fields, answer));
    }
    let (values, answers): (Vec<Value>, Vec<_>) = answers.into_values().unzip();
    show.whole(|| json!(values))?;
    Ok(answers)
}

/// Returns the reason that an endpoint has no row. It omits the endpoint, with which the row starts already.
pub(crate) fn silence(endpoint: &Endpoint, error: &ClientError) -> String {
    match error {
        ClientError::Unavailable(why) => why.strip_prefix(&format!("{endpoint}: ")).unwrap_or(why).to_owned(),
        error => error.to_string(),
    }
}

fn status_rows(status: &StatusResponse) -> String {
    let header = &status.header;
    let leader = status.leader_id.map_or("-".to_owned(), |id| id.to_string());
    let mut rows = vec![format!(
        "node {}  {}  term {}  leader {leader}  commit {}  applied {}  log {}..{}  revision {}",
        header.node_id,
        status.role,
        header.term,
        status.commit_index,
        header.applied_index,
        status.first_log_index,
        status.last_log_index,
        header.revision,
    )];
    rows.extend(status.problems.iter().flatten().cloned());
    let others = status.members.iter().filter(|member| member.node_id != header.node_id);
    // The leader knows the matched index of each member. Other nodes only know which members are not healthy.
    let told = others.filter(|member| member.matched_index.is_some() || !member.healthy);
    rows.extend(told.map(|member| format!("node {}  {}{}", member.node_id, member.kind, condition(member))));
    rows.join("\n    ")
}

/// Describes the condition of a member: its distance from the leader's log, and its problem.
pub(crate) fn condition(member: &MemberStatus) -> String {
    let mut words = String::new();
    match (member.snapshot_bytes, member.matched_index, member.lag_entries) {
        (Some(bytes), ..) => words += &format!("  receives a snapshot ({bytes} bytes so far)"),
        (None, Some(matched), Some(0)) => words += &format!("  has all entries (up to {matched})"),
        (None, Some(matched), Some(lag)) => words += &format!("  {lag} entries behind (has up to {matched})"),
        _ => {}
    }
    match &member.problem {
        Some(problem) => words += &format!("  {problem}"),
        None if !member.healthy => words += "  not seen",
        None => {}
    }
    words
}

pub(crate) fn status_value(status: &StatusResponse) -> Value {
    let members: Vec<Value> = status.members.iter().map(members::value).collect();
    json!({
        "node_id": status.header.node_id, "role": status.role, "term": status.header.term,
        "leader_id": status.leader_id, "commit_index": status.commit_index,
        "applied_index": status.header.applied_index, "first_log_index": status.first_log_index,
        "last_log_index": status.last_log_index, "revision": status.header.revision, "version": status.version,
        "cluster_name": status.cluster_name, "cluster_id": status.cluster_id,
        "problems": status.problems.clone().unwrap_or_default(),
        "members": members,
    })
}

fn hash_row(hash: &Option<HashResponse>) -> String {
    let Some(hash) = hash else { return "a witness: it votes, and has no state".to_owned() };
    let header = &hash.header;
    format!(
        "node {}  hash {:08x}  revision {}  applied {}",
        header.node_id, hash.hash, header.revision, header.applied_index
    )
}

pub(crate) fn hash_value(hash: &Option<HashResponse>) -> Value {
    let Some(hash) = hash else { return json!({ "witness": true }) };
    let header = &hash.header;
    json!({
        "node_id": header.node_id, "hash": hash.hash, "revision": header.revision, "applied_index": header.applied_index,
        "cluster_id": hash.cluster_id,
    })
}

#[cfg(test)]
mod tests {
    use kv_store_client::idl::ResponseHeader;

    use super::*;

    #[test]
    fn only_nodes_that_applied_the_same_are_compared() {
        let hash = |node_id, applied_index, hash| {
            HashResponse::new(ResponseHeader::new(1, node_id, 1, applied_index), hash, None)
        };
        let differ = |hashes: &[HashResponse]| differing(hashes.iter());
        assert_eq!(differ(&[]), None);
        assert_eq!(differ(&[hash(0, 5, 1), hash(1, 6, 2), hash(2, 5, 1)]), None);
        assert_eq!(differ(&[hash(0, 5, 1), hash(1, 6, 2), hash(2, 6, 1)]), Some((1, 2)));
    }

    #[test]
    fn endpoints_of_several_clusters_are_told_by_cluster() {
        let endpoints: Vec<Endpoint> = (1..=4).map(|port| Endpoint::new("h", port).unwrap()).collect();
        let told = |clusters: [Option<Option<&str>>; 4]| describe_clusters(&endpoints, clusters.into_iter());
        let (one, other) = (Some(Some("a1")), Some(Some("b2")));
        assert_eq!(told([one, None, one, Some(Some("none"))]), None);
        assert_eq!(told([one, other, one, None]).unwrap(), "h:1, h:3 of cluster a1; h:2 of cluster b2");
        assert_eq!(
            told([one, Some(None), one, one]).unwrap(),
            "h:1, h:3, h:4 of cluster a1; h:2 of none, as it stands alone"
        );
        assert_eq!(told([Some(None), Some(None), None, None]), None);
    }
}
