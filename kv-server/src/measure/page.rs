//! The tables of docs/metrics.md, rendered from the definitions.

use super::{
    names::{COUNTED, EtcdName, Kind},
    node::NODE,
};

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

const UPDATE: &str = "UPDATE_METRICS_PAGE";
const BEGIN: &str = "<!-- metrics: begin -->\n";
const END: &str = "<!-- metrics: end -->\n";

#[test]
fn metrics_page_has_the_tables_of_the_definitions() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the tables begin");
    let (found, after) = rest.split_once(END).expect("the mark where the tables end");
    let table = table();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert!(
        found == table,
        "the tables of docs/metrics.md are not those of the definitions; renew them with\n\
         {UPDATE}=1 cargo test -p kv-server --lib metrics_page\n\n{table}"
    );
}
