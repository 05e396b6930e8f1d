//! Where values come from. The first layer that has a value for a setting counts: flags, environment, file, defaults.

use std::{collections::BTreeMap, ffi::OsString, fmt::Write};

use clap::{ArgMatches, FromArgMatches, parser::ValueSource};

use super::{
    Arguments, ConfigError,
    definitions::{Definitions, Given, flags},
    faults::Faults,
};

/// Values of one layer, by setting.
#[derive(Debug, Default)]
pub(crate) struct Layer(pub(crate) BTreeMap<String, Given>);

impl Layer {
    /// Adds a value, or refuses it.
    pub(crate) fn add(
        &mut self,
        definitions: &Definitions,
        name: &str,
        mut given: Given,
        faults: &mut Faults,
    ) {
        let Some(name) = definitions.name(name) else {
            return faults.add(given.error("there is no such setting"));
        };
        if let Err(error) = definitions.check(name, &mut given) {
            return faults.refuse(&name.setting, error);
        }
        let Some(other) = self.0.insert(name.setting.clone(), given) else { return };
        let why =
            format!("{} ({}) gives the same setting another value; remove one", other.written, other.place);
        faults.refuse(&name.setting, self.0[&name.setting].error(why));
    }
}

/// Values of the flags.
pub(crate) fn command_line(definitions: &Definitions, matches: &ArgMatches, faults: &mut Faults) -> Layer {
    let mut layer = Layer::default();
    for (name, _) in definitions.names() {
        let is_flag = matches.try_contains_id(name).unwrap_or(false)
            && matches.value_source(name) == Some(ValueSource::CommandLine);
        if !is_flag {
            continue;
        }
        let values: Vec<OsString> = matches.get_raw(name).into_iter().flatten().map(OsString::from).collect();
        let written = format!("--{}={}", name.replace('_', "-"), shown(&values));
        layer.add(definitions, name, Given { place: "command line".to_owned(), written, values }, faults);
    }
    layer
}

/// Values of the environment. An empty variable counts as not set.
pub(crate) fn environment(
    definitions: &Definitions,
    variable: impl Fn(&str) -> Option<OsString>,
    faults: &mut Faults,
) -> Layer {
    let mut layer = Layer::default();
    for (name, _) in definitions.names() {
        let key = variable_name(name);
        if let Some(value) = variable(&key).filter(|value| !value.is_empty()) {
            let values = vec![value];
            let written = format!("{key}={}", shown(&values));
            layer.add(definitions, name, Given { place: "environment".to_owned(), written, values }, faults);
        }
    }
    layer
}

/// The environment variable of a setting.
fn variable_name(name: &str) -> String {
    format!("KV_{}", name.to_uppercase())
}

fn shown(values: &[OsString]) -> String {
    values.iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
}

/// The layers, merged.
pub(crate) struct Merged<'a> {
    definitions: &'a Definitions,
    given: Layer,
}

impl<'a> Merged<'a> {
    /// Of the given layers, the first that has a value counts.
    pub(crate) fn new(definitions: &'a Definitions, layers: [Layer; 3]) -> Self {
        let mut given = Layer::default();
        for layer in layers.into_iter().rev() {
            given.0.extend(layer.0);
        }
        Self { definitions, given }
    }

    /// The settings: what was given, and defaults for the rest.
    pub(crate) fn arguments(&self) -> Result<Arguments, ConfigError> {
        let given =
            self.given.0.iter().flat_map(|(setting, given)| flags(self.definitions.arg(setting), given));
        let line = std::iter::once(OsString::from("kv-server")).chain(given);
        let matches = self.definitions.command().try_get_matches_from(line)?;
        Ok(Arguments::from_arg_matches(&matches)?)
    }

    /// All settings in force, one on each line, with the place where each was given. They have paths of keys, and no secrets.
    pub(crate) fn listing(&self) -> String {
        let mut text = String::new();
        for arg in
            self.definitions.shown().filter(|arg| self.definitions.name(arg.get_id().as_str()).is_some())
        {
            let setting = arg.get_id().as_str();
            let (place, values) = match self.given.0.get(setting) {
                Some(given) => (given.place.as_str(), given.values.clone()),
                None => ("default", arg.get_default_values().iter().map(OsString::from).collect()),
            };
            // One without a value has a default that depends on other settings.
            let value = if values.is_empty() { "-".to_owned() } else { shown(&values) };
            let _ = writeln!(text, "{setting} = {value}  ({place})");
        }
        text
    }

    /// Why the value of a setting is wrong, with the place where it was given.
    pub(crate) fn error(&self, setting: &str, why: impl Into<String>) -> ConfigError {
        let by_default = || {
            let values = self.definitions.arg(setting).get_default_values();
            let values: Vec<OsString> = values.iter().map(OsString::from).collect();
            let written = format!("{setting} = {}", shown(&values));
            Given { place: "default".to_owned(), written, values }
        };
        self.given.0.get(setting).cloned().unwrap_or_else(by_default).error(why)
    }
}
