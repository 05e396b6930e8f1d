//! Alarms: conditions in which the store refuses requests until an operator resolves them.

use clap::{Subcommand, ValueEnum};
use kv_store_client::{
    KvClient,
    admin::{Alarm, AlarmKind},
};
use serde_json::{Value, json};

use crate::{Failure, show::Show};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the alarms that are raised.
    List,
    /// Disarms alarms, and lists those that were raised. An alarm whose cause lasts is raised again.
    Disarm {
        /// Only those of this node.
        #[arg(long, value_name = "NODE_ID", value_parser = clap::value_parser!(i64).range(0..))]
        node: Option<i64>,
        /// Only those of this kind.
        #[arg(long, value_enum, ignore_case = true)]
        kind: Option<Kind>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The node's store exceeds its quota; what adds data is refused.
    Nospace,
    /// The node's state differs from that of the others; all requests on keys and leases are refused.
    Corrupt,
}

pub(crate) async fn execute(client: &KvClient, command: &Command, show: Show) -> Result<u8, Failure> {
    let mut alarms = client.alarms().await?;
    if let Command::Disarm { node, kind } = command {
        alarms.retain(|alarm| node.is_none() || *node == alarm.node_id);
        alarms.retain(|alarm| kind.is_none_or(|kind| kind.of_protocol() == alarm.kind));
        for alarm in &alarms {
            client.disarm_alarm(alarm.clone()).await?;
        }
    }
    let rows: Vec<String> = alarms.iter().map(row).collect();
    show.either(&rows.join("\n"), || json!(alarms.iter().map(value).collect::<Vec<Value>>()))?;
    Ok(0)
}

impl Kind {
    fn of_protocol(self) -> AlarmKind {
        match self {
            Self::Nospace => AlarmKind::NO_SPACE,
            Self::Corrupt => AlarmKind::CORRUPT,
        }
    }
}

fn row(alarm: &Alarm) -> String {
    let node = alarm.node_id.map_or_else(|| "no single node".to_owned(), |id| format!("node {id}"));
    format!("{node}  {}", name(alarm))
}

/// Name of the kind of an alarm, as in etcd's tools.
fn name(alarm: &Alarm) -> String {
    match alarm.kind {
        AlarmKind::NO_SPACE => "NOSPACE".to_owned(),
        AlarmKind::CORRUPT => "CORRUPT".to_owned(),
        AlarmKind(other) => format!("kind {other}"),
    }
}

pub(crate) fn value(alarm: &Alarm) -> Value {
    json!({ "node_id": alarm.node_id, "kind": name(alarm) })
}
