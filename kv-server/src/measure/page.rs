//! The tables of docs/metrics.md, rendered from the definitions.

use super::{
    names::{COUNTED, EtcdName, Kind},
    node::NODE,
};
use crate::generated_tables;

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

fn table() -> String {
    let mut table = String::from("| name | type | |\n|---|---|---|\n");
    for metric in COUNTED {
        let labels =
            if metric.labels.is_empty() { String::new() } else { format!("{{{}}}", metric.labels.join(",")) };
        table.push_str(&format!("| `{}{labels}` | {} | {} |\n", metric.name, kind(metric.kind), metric.help));
    }
    for metric in NODE {
        table.push_str(&format!("| `{}` | {} | {} |\n", metric.name, kind(metric.kind), metric.help));
    }
    table.push_str("\n| etcd's name | is |\n|---|---|\n");
    for metric in COUNTED {
        if let Some(EtcdName { name, peer }) = metric.etcd {
            let labels = peer.map(|label| format!("{{{label}}}")).unwrap_or_default();
            table.push_str(&format!("| `{name}{labels}` | `{}` |\n", metric.name));
        }
    }
    table
}

#[test]
fn metrics_page_has_the_tables_of_the_definitions() {
    generated_tables::check("metrics.md", "metrics", &table(), "UPDATE_METRICS_PAGE", "metrics_page");
}
