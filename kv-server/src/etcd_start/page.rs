//! The tables of docs/etcd-flags.md, rendered from the flags.

use std::fmt::Write;

use super::flags::{self, Effect, Group};

/// One table for each group of flags.
fn tables() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        let _ = write!(text, "\n## {}\n\n| etcd | kv-server | |\n|---|---|---|\n", group.heading());
        for flag in flags::all().filter(|flag| flag.group == group) {
            let counterpart = match flag.effect {
                Effect::Sets(name) | Effect::SetsAlways(name) => format!("`{name}`"),
                Effect::Becomes(words) => words.to_owned(),
                Effect::Unneeded => "none".to_owned(),
                Effect::Absent => "absent".to_owned(),
            };
            let _ = writeln!(text, "| `--{}` | {counterpart} | {} |", flag.name, flag.note);
        }
    }
    text.push('\n');
    text
}

const UPDATE: &str = "UPDATE_ETCD_FLAGS_PAGE";
const BEGIN: &str = "<!-- flags: begin -->\n";
const END: &str = "<!-- flags: end -->\n";

#[test]
fn etcd_flags_page_has_the_tables_of_the_flags() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/etcd-flags.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the tables begin");
    let (found, after) = rest.split_once(END).expect("the mark where the tables end");
    let tables = tables();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{tables}{END}{after}")).unwrap();
        return;
    }
    assert!(
        found == tables,
        "the tables of docs/etcd-flags.md are not those of the flags; renew them with\n\
         {UPDATE}=1 cargo test -p kv-server --lib etcd_flags_page\n\n{tables}"
    );
}
