//! Members of the cluster, and its leader.

use clap::{Args, Subcommand};
use consensus_core::Endpoint;
use kv_store_client::{
    KvClient,
    admin::{MemberChange, MemberKind},
    idl::MemberStatus,
};
use serde_json::{Value, json};

use crate::{Failure, nodes, show::Show};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the members, as the leader knows them, or the best informed of the endpoints that answer.
    List,
    /// Adds a member: it gets the data, and votes as soon as it has caught up. Start its server first, with --join and an
    /// empty data directory. Refused for a number that is a member.
    Add {
        /// Number of the new member.
        #[arg(value_parser = clap::value_parser!(i64).range(0..))]
        node_id: i64,
        /// Where the other nodes reach it.
        #[arg(long)]
        consensus: Endpoint,
        /// Where clients reach it.
        #[arg(long)]
        client: Endpoint,
        /// It never votes.
        #[arg(long)]
        learner: bool,
        /// It votes and keeps no data; its server is started with --witnesses, too.
        #[arg(long, conflicts_with = "learner")]
        witness: bool,
    },
    /// Removes members, all in one step.
    Remove {
        /// Numbers of the members.
        #[arg(required = true, value_parser = clap::value_parser!(i64).range(0..))]
        node_ids: Vec<i64>,
    },
    /// Makes a voter of a learner, when it has caught up.
    Promote {
        /// Number of the learner.
        #[arg(value_parser = clap::value_parser!(i64).range(0..))]
        node_id: i64,
    },
    /// Changes a member's endpoints or priority.
    Update(Update),
}

#[derive(Args)]
pub(crate) struct Update {
    /// Number of the member.
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    node_id: i64,
    /// Where the other nodes reach it.
    #[arg(long)]
    consensus: Option<Endpoint>,
    /// Where clients reach it.
    #[arg(long)]
    client: Option<Endpoint>,
    /// A member with a higher priority gets leadership when it has caught up.
    #[arg(long)]
    priority: Option<i32>,
}

pub(crate) async fn execute(
    client: &KvClient,
    endpoints: &[Endpoint],
    command: &Command,
    show: Show,
) -> Result<u8, Failure> {
    let changes = match command {
        Command::List => return list(client, endpoints, show).await,
        Command::Add { node_id, consensus, client, learner, witness } => {
            let kind = match (learner, witness) {
                (true, _) => MemberKind::LEARNER,
                (_, true) => MemberKind::WITNESS,
                _ => MemberKind::JOINING,
            };
            let (consensus, client) = (consensus.to_string(), client.to_string());
            vec![MemberChange::new(*node_id, kind, consensus, client, None, false)]
        }
        Command::Remove { node_ids } => {
            node_ids.iter().map(|id| MemberChange::new(*id, None, None, None, None, true)).collect()
        }
        Command::Promote { node_id } => {
            vec![MemberChange::new(*node_id, MemberKind::JOINING, None, None, None, true)]
        }
        Command::Update(Update { node_id, consensus, client: clients, priority }) => {
            let text = |endpoint: &Option<Endpoint>| endpoint.as_ref().map(Endpoint::to_string);
            let (consensus, clients) = (text(consensus), text(clients));
            vec![MemberChange::new(*node_id, MemberKind::AS_IS, consensus, clients, *priority, true)]
        }
    };
    client.change_members(changes).await?;
    list(client, endpoints, show).await
}

async fn list(client: &KvClient, endpoints: &[Endpoint], show: Show) -> Result<u8, Failure> {
    let status = nodes::best_status(client, endpoints).await?;
    let row = |member: &MemberStatus| {
        let leads = if status.leader_id == Some(member.node_id) { "  leads" } else { "" };
        let disk = match member.storage_known {
            Some(true) => "  disk known",
            Some(false) => "  disk not known yet",
            None => "",
        };
        format!(
            "node {}  {}{disk}  consensus {}  clients {}{leads}{}",
            member.node_id,
            member.kind,
            member.consensus_endpoint,
            member.client_endpoint,
            nodes::condition(member)
        )
    };
    let rows: Vec<String> = status.members.iter().map(row).collect();
    show.either(&rows.join("\n"), || json!(status.members.iter().map(value).collect::<Vec<Value>>()))?;
    Ok(0)
}

/// Returns a member as JSON, for programs.
pub(crate) fn value(member: &MemberStatus) -> Value {
    json!({
        "node_id": member.node_id, "kind": member.kind, "healthy": member.healthy, "problem": member.problem,
        "client_endpoint": member.client_endpoint, "consensus_endpoint": member.consensus_endpoint,
        "matched_index": member.matched_index, "lag_entries": member.lag_entries,
        "snapshot_bytes": member.snapshot_bytes, "storage_mismatch": member.storage_mismatch,
        "storage_known": member.storage_known,
    })
}

/// Transfers leadership to a node, or to the most up-to-date voter.
pub(crate) async fn transfer(client: &KvClient, to: Option<i64>, show: Show) -> Result<u8, Failure> {
    let leader = client.transfer_leader(to).await?;
    show.either(&format!("node {leader} leads"), || json!({ "leader_id": leader }))?;
    Ok(0)
}
