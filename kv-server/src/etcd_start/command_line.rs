//! The command line as etcd has it: one dash or two, and flags with truth values may stand alone.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Arg, ArgAction, Command, error::ErrorKind, parser::ValueSource};

use super::{
    flags::{self, Effect, Flag, Group},
    values::Given,
};
use crate::etcd::ETCD_VERSION;

/// The values of the flags, by name. A flag that is given twice has its last value.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<BTreeMap<&'static str, Given>, clap::Error> {
    let matches = command().try_get_matches_from(normalized(arguments)?)?;
    let given = |flag: &'static Flag| {
        if matches.value_source(flag.name) != Some(ValueSource::CommandLine) {
            return None;
        }
        let value = matches.get_one::<String>(flag.name)?.clone();
        let written = format!("--{}={value}", flag.name);
        Some((flag.name, Given { value, place: "command line".to_owned(), written }))
    };
    Ok(flags::all().filter_map(given).collect())
}

/// The same arguments in one form, `--name=value`.
fn normalized(arguments: Vec<OsString>) -> Result<Vec<String>, clap::Error> {
    let mut normalized = Vec::new();
    let mut arguments = arguments.into_iter().map(|argument| {
        argument.into_string().map_err(|argument| {
            clap::Error::raw(ErrorKind::InvalidUtf8, format!("{} is not UTF-8\n", argument.display()))
        })
    });
    while let Some(argument) = arguments.next().transpose()? {
        let body = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
        let Some(body) = body.filter(|body| !body.is_empty()) else {
            normalized.push(argument);
            continue;
        };
        if body == "h" || body == "help" {
            normalized.push("--help".to_owned());
            continue;
        }
        let has_value = body.contains('=');
        normalized.push(match Flag::find(body) {
            Some(flag) if flag.is_bool() && !has_value => format!("--{body}=true"),
            Some(_) if !has_value => match arguments.next().transpose()? {
                Some(value) => format!("--{body}={value}"),
                None => format!("--{body}"),
            },
            _ => format!("--{body}"),
        });
    }
    Ok(normalized)
}

/// Parser of the command line.
pub(super) fn command() -> Command {
    let headings = Group::ALL.map(|group| (group, group.heading()));
    let mut command = Command::new("kv-server etcd")
        .no_binary_name(true)
        .disable_version_flag(true)
        .about("Runs a member in place of etcd 3.7, with etcd's flags, ETCD_ variables and file")
        .after_help(AFTER_HELP)
        .max_term_width(120);
    let is_absent = |flag: &&Flag| flag.effect == Effect::Absent;
    for (group, heading) in headings {
        for flag in flags::all().filter(|flag| flag.group == group && !is_absent(flag)) {
            command = command.arg(argument(flag).help_heading(heading));
        }
    }
    for flag in flags::all().filter(is_absent) {
        command = command.arg(argument(flag).help_heading(NOT_SUPPORTED));
    }
    command
}

fn argument(flag: &'static Flag) -> Arg {
    let default = if flag.default.is_empty() { String::new() } else { format!(" [etcd: {}]", flag.default) };
    let help = match flag.effect {
        Effect::Sets(_) | Effect::SetsAlways(_) | Effect::Becomes(_) => format!("{}{default}", flag.note),
        Effect::Unneeded => format!("no effect: {}", flag.note),
        Effect::Absent => format!("refused: {}", flag.note),
    };
    let arg = Arg::new(flag.name).long(flag.name).value_name(flag.kind.value_name());
    let arg = arg.help(help.replace('`', "")).action(ArgAction::Set);
    arg.num_args(1).allow_hyphen_values(true).overrides_with(flag.name)
}

/// Text of `--version`. Its first line is etcd's.
pub(super) fn version() -> String {
    format!("etcd Version: {ETCD_VERSION}\nServed by: kv-server {}\n", env!("CARGO_PKG_VERSION"))
}

/// Heading of the flags that are refused.
const NOT_SUPPORTED: &str = "Not supported; refused unless the value is etcd's default";

const AFTER_HELP: &str = "A flag that is given counts, then its variable (ETCD_DATA_DIR for --data-dir), then the default; \
     both together are refused. With --config-file the file alone counts, YAML or JSON with etcd's keys. Settings of kv-server that etcd \
     has no flag for are KV_ variables, for example KV_DISK_RESERVE=1GiB.";
