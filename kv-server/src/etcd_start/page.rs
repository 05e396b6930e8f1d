//! The tables of docs/etcd-flags.md, rendered from the flags.

use std::fmt::Write;

use super::flags::{self, Effect, Group};
use crate::generated_tables;

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

#[test]
fn etcd_flags_page_has_the_tables_of_the_flags() {
    generated_tables::check("etcd-flags.md", "flags", &tables(), "UPDATE_ETCD_FLAGS_PAGE", "etcd_flags_page");
}
