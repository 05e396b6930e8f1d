//! Health of each endpoint: whether it serves clients.

use std::time::{Duration, Instant};

use clap::Subcommand;
use consensus_core::Endpoint;
use kv_store_client::{ClientError, KvClient, idl::RangeRequest, protocol::Fault};
use serde_json::{Value, json};

use crate::{Failure, nodes, show::Show};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Reads through each endpoint, linearizably, and tells how long that took. An endpoint is healthy if it answers, and its
    /// node has no problem that `kvctl status` would tell. The exit code is 4 if one is not.
    Health,
}

/// Health of one endpoint.
struct Health {
    /// Time that the read took, including the connection. `None`: the endpoint returned the leader instead.
    read: Option<Duration>,
    /// Reasons that the endpoint is not healthy; empty if it is.
    problems: Vec<String>,
}

pub(crate) async fn execute(
    client: &KvClient,
    endpoints: &[Endpoint],
    Command::Health: &Command,
    show: Show,
) -> Result<u8, Failure> {
    let ask = async |endpoint| Ok(health(client, endpoint).await);
    let answers = nodes::show_all(endpoints, ask, row, value, show).await?;
    let is_healthy = |health: &Health| health.problems.is_empty();
    Ok(if answers.iter().flatten().all(is_healthy) { 0 } else { 4 })
}

async fn health(client: &KvClient, endpoint: &Endpoint) -> Health {
    let start = Instant::now();
    let request = RangeRequest { count_only: Some(true), ..RangeRequest::of("health", None) };
    let read = match client.range_through(endpoint, request).await {
        Ok(_) => Some(start.elapsed()),
        // A node that does not forward is healthy if it knows the leader.
        Err(ClientError::Rejected(Fault::NotLeader(why))) if why.leader_endpoint.is_some() => None,
        Err(error) => return Health { read: None, problems: vec![nodes::silence(endpoint, &error)] },
    };
    match client.status_of(endpoint).await {
        Ok(status) => Health { read, problems: status.problems.unwrap_or_default() },
        Err(error) => Health { read, problems: vec![nodes::silence(endpoint, &error)] },
    }
}

fn row(health: &Health) -> String {
    let read = match health.read {
        Some(took) => format!("a linearizable read took {:.1} ms", took.as_secs_f64() * 1e3),
        None => "it refers clients to the leader".to_owned(),
    };
    match (health.problems.join("; "), health.read) {
        (problems, _) if problems.is_empty() => format!("healthy: {read}"),
        (problems, Some(_)) => format!("not healthy, although {read}: {problems}"),
        (problems, None) => format!("not healthy: {problems}"),
    }
}

fn value(health: &Health) -> Value {
    let read_ms = health.read.map(|took| took.as_secs_f64() * 1e3);
    json!({ "healthy": health.problems.is_empty(), "read_ms": read_ms, "problems": health.problems })
}
