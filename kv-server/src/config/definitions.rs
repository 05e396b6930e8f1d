//! The settings as the structs of the sections define them, found by every name that they have.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Arg, ArgAction, Command, CommandFactory, builder::ValueParser, error::ContextKind, value_parser};

use super::{Arguments, ConfigError, once::ONCE};

/// All settings.
pub(crate) struct Definitions {
    /// Parser of the command line: the settings, and a hidden flag for each name with a unit.
    command: Command,
    /// By name, with underscores.
    names: BTreeMap<String, Name>,
}

/// One of the names of a setting.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    /// Name of the field, under which the setting is known here.
    pub(crate) setting: String,
    /// Section of the file; `None` for settings that the file cannot have.
    pub(crate) section: Option<String>,
    /// Unit of the numbers given under this name: `election_timeout_ms = 500` is `election_timeout = "500ms"`.
    pub(crate) unit: Option<&'static str>,
}

/// A value as written by an operator.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// Where it was written, for example `cluster.toml, line 3`.
    pub(crate) place: String,
    /// How it was written, for example `node_id = 3` or `--node-id=3`.
    pub(crate) written: String,
    /// Values for the flag of the setting; a list has any number.
    pub(crate) values: Vec<OsString>,
}

impl Given {
    pub(crate) fn error(&self, why: impl Into<String>) -> ConfigError {
        ConfigError::Setting { place: self.place.clone(), setting: self.written.clone(), why: why.into() }
    }
}

impl Definitions {
    pub(crate) fn new() -> Self {
        let mut command = Arguments::command();
        let mut names = BTreeMap::new();
        let mut old_flags = Vec::new();
        for arg in command.get_arguments().filter(|arg| arg.get_help_heading() != Some(ONCE)) {
            let setting = arg.get_id().to_string();
            let section = section_of(arg).map(str::to_owned);
            let name = |unit| Name { setting: setting.clone(), section: section.clone(), unit };
            names.insert(setting.clone(), name(None));
            for alias in arg.get_all_aliases().unwrap_or_default() {
                let unit = unit_of(alias);
                names.insert(alias.replace('-', "_"), name(unit));
                if unit.is_some() {
                    old_flags.push(old_flag(alias, &setting));
                }
            }
        }
        command = command.mut_args(|arg| {
            let has_unit =
                arg.get_all_aliases().is_some_and(|all| all.iter().any(|alias| unit_of(alias).is_some()));
            // The hidden flag has this name now.
            let arg = if has_unit { arg.alias(None) } else { arg };
            with_range(arg)
        });
        Self { command: command.args(old_flags), names }
    }

    /// Parser of the command line.
    pub(crate) fn command(&self) -> Command {
        self.command.clone()
    }

    /// The same parser, which takes every value of a setting: [`check`](Self::check) says what is wrong with each of them.
    pub(crate) fn command_of_any_values(&self) -> Command {
        let any = |arg: Arg| {
            let is_setting = arg.get_help_heading() != Some(ONCE) && arg.get_action().takes_values();
            if is_setting { arg.value_parser(ValueParser::os_string()) } else { arg }
        };
        self.command.clone().mut_args(any)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, &Name)> {
        self.names.iter().map(|(name, of)| (name.as_str(), of))
    }

    pub(crate) fn name(&self, name: &str) -> Option<&Name> {
        self.names.get(name)
    }

    /// The settings of the file with their sections, in the order in which the structs define them.
    pub(crate) fn of_the_file(&self) -> impl Iterator<Item = (&str, &Arg)> {
        self.shown().filter_map(|arg| Some((section_of(arg)?, arg)))
    }

    /// All flags that are documented, in the order in which the structs define them.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &Arg> {
        self.command.get_arguments().filter(|arg| !arg.is_hide_set())
    }

    /// The flag of a setting.
    ///
    /// # Panics
    /// There is no such setting.
    pub(crate) fn arg(&self, setting: &str) -> &Arg {
        let mut args = self.command.get_arguments();
        args.find(|arg| arg.get_id() == setting).unwrap_or_else(|| panic!("{setting} is no setting"))
    }

    /// Checks that `given` is a value of the setting with this name, and gives its numbers the unit that the name stands
    /// for.
    pub(crate) fn check(&self, name: &Name, given: &mut Given) -> Result<(), ConfigError> {
        if let Some(unit) = name.unit {
            for value in &mut given.values {
                if value.to_str().is_none_or(|text| text.parse::<u64>().is_err()) {
                    return Err(given.error(format!("it must be a whole number ({unit})")));
                }
                value.push(unit);
            }
        }
        let arg = self.arg(&name.setting);
        if given.values.len() > 1 && !matches!(arg.get_action(), ArgAction::Append) {
            return Err(given.error("it takes one value, not a list"));
        }
        parse(arg, given).map_err(|error| given.error(reason(&error)))
    }
}

fn parse(arg: &Arg, given: &Given) -> Result<(), clap::Error> {
    let command = Command::new("setting").no_binary_name(true).arg(arg.clone());
    command.try_get_matches_from(flags(arg, given)).map(drop)
}

/// The flag with its range at the end of its text, if it has one.
fn with_range(arg: Arg) -> Arg {
    let Some(range) = range(&arg) else { return arg };
    let range = format!("{RANGE}{range}.");
    let (short, long) =
        (arg.get_help().map(ToString::to_string), arg.get_long_help().map(ToString::to_string));
    let arg = short.into_iter().fold(arg, |arg, text| arg.help(format!("{text}.{range}")));
    long.into_iter().fold(arg, |arg, text| arg.long_help(format!("{text}{range}")))
}

/// The values that are allowed, as the parser says them when it is given one that is too small and one that is too large.
fn range(arg: &Arg) -> Option<String> {
    let probes: &[&str] = match arg.get_value_names()?.first()?.as_str() {
        "DURATION" => &["0", "36500days"],
        "SIZE" => &["0", "1024PiB"],
        _ => &["0", "4294967295", "18446744073709551615"],
    };
    let mut bounds = Vec::new();
    for probe in probes {
        let given = Given { place: String::new(), written: String::new(), values: vec![probe.into()] };
        let why = parse(arg, &given).err().map(|error| reason(&error)).unwrap_or_default();
        bounds.extend(
            why.strip_prefix("it must be ").filter(|bound| bound.starts_with("at ")).map(str::to_owned),
        );
    }
    bounds.dedup();
    (!bounds.is_empty()).then(|| bounds.join(", "))
}

/// Begins the sentence that says the range.
pub(crate) const RANGE: &str = " Allowed: ";

/// The flags that set the setting to the values.
pub(crate) fn flags(arg: &Arg, given: &Given) -> Vec<OsString> {
    let long = arg.get_long().unwrap_or_default();
    if !arg.get_action().takes_values() {
        return vec![format!("--{long}").into()];
    }
    let flag = |value: &OsString| {
        let mut flag = OsString::from(format!("--{long}="));
        flag.push(value);
        flag
    };
    given.values.iter().map(flag).collect()
}

/// Section of the file that has the setting: its heading in `--help` without the brackets.
fn section_of(arg: &Arg) -> Option<&str> {
    arg.get_help_heading()?.strip_prefix('[')?.strip_suffix(']')
}

/// Unit of the numbers under a name that ends with one.
fn unit_of(name: &str) -> Option<&'static str> {
    let suffixes = [("-ms", "ms"), ("-mib", "MiB"), ("-mib-per-second", "MiB/s")];
    suffixes.iter().find(|(suffix, _)| name.ends_with(suffix)).map(|(_, unit)| *unit)
}

fn old_flag(name: &str, setting: &str) -> Arg {
    let flag = Arg::new(name.replace('-', "_")).long(name.to_owned()).hide(true);
    flag.conflicts_with(setting.to_owned()).value_parser(value_parser!(u64))
}

/// Allowed values, as the parser of the value describes them.
fn reason(error: &clap::Error) -> String {
    use clap::error::ContextValue::Strings;
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(Strings(valid)) => format!("it must be one of {}", valid.join(", ")),
        _ => error.kind().to_string(),
    }
}
