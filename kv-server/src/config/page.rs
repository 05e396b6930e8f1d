//! The table of docs/configuration.md, rendered from the definitions.

use clap::Arg;

use super::{
    definitions::{Definitions, RANGE},
    once::ONCE,
};

/// One row for each setting, below its section.
pub(crate) fn table() -> String {
    let definitions = Definitions::new();
    let mut table = String::from("| key in the file | default | |\n|---|---|---|\n");
    let mut current = None;
    // Those that the file cannot have come last.
    let (in_file, others): (Vec<&Arg>, Vec<&Arg>) =
        definitions.shown().partition(|arg| arg.get_help_heading().is_some_and(|text| text.starts_with('[')));
    for arg in in_file.into_iter().chain(others) {
        let heading = match arg.get_help_heading() {
            Some(ONCE) => "flags for one start, neither variables nor keys",
            Some(section) => &format!("`{section}`"),
            None => "flags and environment variables, no keys",
        };
        if current.as_deref() != Some(heading) {
            table.push_str(&format!("| **{heading}** | | |\n"));
            current = Some(heading.to_owned());
        }
        table.push_str(&row(arg));
    }
    table.push_str(&format!("\nNames with a unit, as flags: {}.\n", names_with_units(&definitions)));
    table
}

fn names_with_units(definitions: &Definitions) -> String {
    let names = definitions.names().filter(|(_, name)| name.unit.is_some());
    let flags = names.map(|(name, _)| format!("`--{}`", name.replace('_', "-")));
    flags.collect::<Vec<_>>().join(", ")
}

fn row(arg: &Arg) -> String {
    let is_key = arg.get_help_heading().is_some_and(|text| text.starts_with('['));
    let mut key = match is_key {
        true => format!("`{}`", arg.get_id()),
        false => format!("`--{}`", arg.get_long().unwrap_or_default()),
    };
    for alias in arg.get_visible_aliases().unwrap_or_default() {
        key.push_str(&format!(" or `{}`", alias.replace('-', "_")));
    }
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let (help, range) = match help.split_once(RANGE) {
        Some((help, range)) => (help.to_owned(), format!("{RANGE}{range}")),
        None => (help, String::new()),
    };
    // A default that depends on other settings is the last sentence of the text.
    let (text, default) = match help.split_once(" Default: ") {
        Some((text, default)) => (text, default.trim_end_matches('.').to_owned()),
        None if !arg.get_action().takes_values() => (help.as_str(), "not set".to_owned()),
        None => (help.as_str(), format!("`{}`", defaults.join(","))),
    };
    // clap takes the full stop from a text of one sentence.
    format!("| {key} | {default} | {}.{range} |\n", text.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generated_tables;

    #[test]
    fn configuration_page_has_the_table_of_the_definitions() {
        let update = "UPDATE_CONFIGURATION_PAGE";
        generated_tables::check("configuration.md", "settings", &table(), update, "configuration_page");
    }

    #[test]
    fn every_setting_has_a_default_and_a_text() {
        for line in table().lines().skip(2).filter(|line| line.starts_with('|') && !line.contains("**")) {
            let cells: Vec<&str> = line.split(" | ").collect();
            assert!(
                cells.len() == 3 && !cells[1].is_empty() && cells[1] != "``" && cells[2].len() > 10,
                "{line}"
            );
        }
    }
}
