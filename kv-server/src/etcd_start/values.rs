//! The values of etcd's flags, from where etcd takes them: its file alone, or flags and variables.

use std::{collections::BTreeMap, ffi::OsString};

use super::{
    command_line, file,
    flags::{self, Effect, Flag},
};
use crate::config::ConfigError;

/// A value that was given for a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) value: String,
    /// Where it was given, for example `command line`.
    pub(super) place: String,
    /// How it was given, for example `--name=a` or `ETCD_NAME=a`.
    pub(super) written: String,
}

impl Given {
    /// How the flag was named. Its value, which may be a password, is left out.
    pub(super) fn name(&self) -> &str {
        self.written.split(['=', ':']).next().unwrap_or_default()
    }

    pub(super) fn error(&self, why: impl Into<String>) -> ConfigError {
        ConfigError::Setting { place: self.place.clone(), setting: self.written.clone(), why: why.into() }
    }

    /// An error that leaves the value out, which may be a password.
    fn error_without_value(&self, why: impl Into<String>) -> ConfigError {
        ConfigError::Setting { place: self.place.clone(), setting: self.name().to_owned(), why: why.into() }
    }
}

/// The values that were given, by the name of the flag, and what the log should say of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    given: BTreeMap<&'static str, Given>,
    /// Lines for the log.
    pub(super) notes: Vec<String>,
}

impl Values {
    /// Reads and checks the values. `environment` has the variables whose names start with `ETCD_`.
    pub(super) fn load(
        arguments: Vec<OsString>,
        environment: &BTreeMap<String, String>,
        read: impl Fn(&str) -> Result<String, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let mut values = Self { given: command_line::parse(arguments)?, notes: Vec::new() };
        if values.is_set("version") {
            return Err(ConfigError::Version(command_line::version()));
        }
        let path = values.given.get("config-file").map(|given| given.value.clone());
        let path = path.or_else(|| environment.get("ETCD_CONFIG_FILE").cloned());
        match path.filter(|path| !path.is_empty()) {
            Some(path) => {
                let file = file::parse(&path, &read(&path)?)?;
                let ignored = values.given.keys().filter(|name| **name != "config-file");
                let ignored: Vec<String> = ignored.map(|name| format!("--{name}")).collect();
                values = Self { given: file.given, notes: file.notes };
                values.notes.push(format!("settings are those of {path}; flags and variables are ignored"));
                if !ignored.is_empty() {
                    values.notes.push(format!("ignored, as there is a file: {}", ignored.join(", ")));
                }
            }
            None => values.add_environment(environment)?,
        }
        values.check()?;
        Ok(values)
    }

    /// Adds the values of variables. One beside the flag is an error, as it is in etcd.
    fn add_environment(&mut self, environment: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let flags: BTreeMap<String, &'static Flag> =
            flags::all().map(|flag| (flag.variable(), flag)).collect();
        for (variable, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
            let Some(flag) = flags.get(variable) else {
                self.notes.push(format!("the variable {variable} is not one of etcd's"));
                continue;
            };
            let written = format!("{variable}={value}");
            let given = Given { value: value.clone(), place: "environment".to_owned(), written };
            if let Some(beside) = self.given.get(flag.name) {
                let why = format!(
                    "{} gives the same setting, and etcd refuses both together; remove one",
                    beside.name()
                );
                return Err(given.error_without_value(why));
            }
            self.given.insert(flag.name, given);
        }
        Ok(())
    }

    /// Checks each value, and refuses those of flags that are not there, all of them together.
    fn check(&mut self) -> Result<(), ConfigError> {
        let mut refused = Vec::new();
        for (name, given) in &self.given {
            let Some(flag) = Flag::find(name) else { continue };
            let is_default = flag.is_default(&given.value);
            let has_effect = !matches!(flag.effect, Effect::Absent | Effect::Unneeded);
            if !given.value.is_empty() {
                flag.check(&given.value).map_err(|why| match has_effect {
                    true => given.error(why),
                    false => given.error_without_value(why),
                })?;
            }
            match flag.effect {
                Effect::Absent if !is_default => {
                    let why = format!("kv-server does not have this; {}", flag.note);
                    refused.push(given.error_without_value(why));
                }
                Effect::Unneeded if !is_default => {
                    self.notes.push(format!("{} has no effect: {}", given.name(), flag.note));
                }
                _ => {}
            }
        }
        match refused.len() {
            0 => Ok(()),
            1 => Err(refused.remove(0)),
            _ => Err(ConfigError::Several(refused)),
        }
    }

    /// The value that was given for a flag, unless it is empty.
    pub(super) fn given(&self, name: &str) -> Option<&Given> {
        self.given.get(name).filter(|given| !given.value.trim().is_empty())
    }

    /// The value of a flag: the one that was given, or etcd's default.
    ///
    /// # Panics
    /// There is no such flag.
    pub(super) fn text(&self, name: &str) -> &str {
        self.given(name).map_or_else(|| flag(name).default, |given| &given.value)
    }

    /// Whether a flag with truth values is set.
    pub(super) fn is_set(&self, name: &str) -> bool {
        flags::boolean(self.text(name)) == Some(true)
    }

    /// Why the value of a flag is wrong, with the place where it was given.
    pub(super) fn error(&self, name: &str, why: impl Into<String>) -> ConfigError {
        let by_default = || Given {
            value: flag(name).default.to_owned(),
            place: "default".to_owned(),
            written: format!("--{name}={}", flag(name).default),
        };
        self.given(name).cloned().unwrap_or_else(by_default).error(why)
    }
}

fn flag(name: &str) -> &'static Flag {
    Flag::find(name).unwrap_or_else(|| panic!("--{name} is no flag of etcd"))
}
