//! Members of the cluster, and who leads it.

use clap::{Args, Subcommand};
use consensus_core::Endpoint;
use kv_store_client::{
    KvClient,
    admin::{MemberChange, MemberKind},
    idl::{MemberStatus, StatusResponse},
};
use serde_json::{Value, json};

use crate::{Failure, show::Show};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the members, as the first endpoint that answers knows them.
    List,
    /// Adds a member: it gets the data, and votes as soon as it has caught up. Start it first, with --join.
    Add {
        /// Its number.
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
        /// It votes and keeps no data; started with --witnesses, too.
        #[arg(long, conflicts_with = "learner")]
        witness: bool,
    },
    /// Removes members, all in one step.
    Remove {
        /// Their numbers.
        #[arg(required = true)]
        node_ids: Vec<i64>,
    },
    /// Makes a voter of a learner, when it has caught up.
    Promote {
        /// Its number.
        node_id: i64,
    },
    /// Changes a member's endpoints or priority.
    Update(Update),
}

#[derive(Args)]
pub(crate) struct Update {
    /// Its number.
    node_id: i64,
    /// Where the other nodes reach it.
    #[arg(long)]
    consensus: Option<Endpoint>,
    /// Where clients reach it.
    #[arg(long)]
    client: Option<Endpoint>,
    /// Who has a higher one gets the lead when it has caught up.
    #[arg(long)]
    priority: Option<i32>,
}

pub(crate) async fn execute(
    client: &KvClient,
    endpoints: &[Endpoint],
    command: &Command,
    show: &Show,
) -> Result<u8, Failure> {
    let changes = match command {
        Command::List => return list(client, endpoints, show).await,
        Command::Add { node_id, consensus, client, learner, witness } => {
            let kind = match (learner, witness) {
                (true, _) => MemberKind::LEARNER,
                (_, true) => MemberKind::WITNESS,
                _ => MemberKind::JOINING,
            };
            vec![MemberChange::new(*node_id, kind, consensus.to_string(), client.to_string(), None)]
        }
        Command::Remove { node_ids } => {
            node_ids.iter().map(|id| MemberChange::new(*id, None, None, None, None)).collect()
        }
        Command::Promote { node_id } => {
            let member = known(client, endpoints, *node_id).await?;
            if member.kind == "voter" {
                return Err(Failure::Usage(format!("node {node_id} is a voter already")));
            }
            vec![MemberChange::new(*node_id, MemberKind::JOINING, None, None, None)]
        }
        Command::Update(Update { node_id, consensus, client: clients, priority }) => {
            let kind = match known(client, endpoints, *node_id).await?.kind.as_str() {
                "voter" => MemberKind::VOTER,
                "joining" => MemberKind::JOINING,
                "witness" => MemberKind::WITNESS,
                _ => MemberKind::LEARNER,
            };
            let text = |endpoint: &Option<Endpoint>| endpoint.as_ref().map(Endpoint::to_string);
            vec![MemberChange::new(*node_id, kind, text(consensus), text(clients), *priority)]
        }
    };
    client.change_members(changes).await?;
    list(client, endpoints, show).await
}

/// What the cluster knows of a member.
async fn known(client: &KvClient, endpoints: &[Endpoint], node_id: i64) -> Result<MemberStatus, Failure> {
    let members = first_status(client, endpoints).await?.members;
    let ids: Vec<String> = members.iter().map(|member| member.node_id.to_string()).collect();
    let found = members.into_iter().find(|member| member.node_id == node_id);
    let unknown = || format!("node {node_id} is not a member; the members are {}", ids.join(", "));
    found.ok_or_else(|| Failure::Usage(unknown()))
}

async fn first_status(client: &KvClient, endpoints: &[Endpoint]) -> Result<StatusResponse, Failure> {
    let mut last = None;
    for endpoint in endpoints {
        match client.status_of(endpoint).await {
            Ok(status) => return Ok(status),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| Failure::Usage("no endpoints".to_owned()), Failure::Client))
}

async fn list(client: &KvClient, endpoints: &[Endpoint], show: &Show) -> Result<u8, Failure> {
    let status = first_status(client, endpoints).await?;
    let row = |member: &MemberStatus| {
        let leads = if status.leader_id == Some(member.node_id) { "  leads" } else { "" };
        let health = if member.healthy { "" } else { "  not seen" };
        format!(
            "node {}  {}  consensus {}  clients {}{leads}{health}",
            member.node_id, member.kind, member.consensus_endpoint, member.client_endpoint
        )
    };
    let rows: Vec<String> = status.members.iter().map(row).collect();
    show.either(&rows.join("\n"), || json!(status.members.iter().map(value).collect::<Vec<Value>>()));
    Ok(0)
}

/// A member, for programs.
pub(crate) fn value(member: &MemberStatus) -> Value {
    json!({
        "node_id": member.node_id, "kind": member.kind, "healthy": member.healthy,
        "client_endpoint": member.client_endpoint, "consensus_endpoint": member.consensus_endpoint,
    })
}

/// Gives the lead to a node, or to whichever is fit.
pub(crate) async fn transfer(client: &KvClient, to: Option<i64>, show: &Show) -> Result<u8, Failure> {
    let leader = client.transfer_leader(to).await?;
    show.either(&format!("node {leader} leads"), || json!({ "leader_id": leader }));
    Ok(0)
}
