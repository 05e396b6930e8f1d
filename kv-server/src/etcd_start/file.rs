//! etcd's configuration file, YAML or JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    flags::{Flag, Kind},
    values::Given,
};
use crate::config::ConfigError;

/// Content of a file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) given: BTreeMap<&'static str, Given>,
    /// Lines for the log.
    pub(super) notes: Vec<String>,
}

/// Parses the text of the file `path`. Keys that etcd does not know are ignored, as etcd does, and noted;
/// those of TLS are refused.
pub(super) fn parse(path: &str, text: &str) -> Result<File, ConfigError> {
    let wrong = |why: String| ConfigError::File { path: path.to_owned(), why };
    let value: Value =
        // The lines around the error may have passwords.
        serde_saphyr::from_str(text).map_err(|error| wrong(error.without_snippet().to_string()))?;
    let keys = match value {
        Value::Object(keys) => keys,
        Value::Null => Map::new(),
        _ => return Err(wrong("it must be a list of keys and values".to_owned())),
    };
    let mut file = File::default();
    for (key, value) in &keys {
        match (SECTIONS.iter().find(|section| section.name == key), value) {
            (Some(section), Value::Object(keys)) => {
                for (inner, value) in keys {
                    let (key, flag) = (format!("{key}.{inner}"), section.flag(inner));
                    if section.is_security && Flag::find(&flag).is_none() && has_effect(value) {
                        return Err(wrong(ignored_restriction(&key)));
                    }
                    file.add(path, &key, &flag, value)?;
                }
            }
            (Some(_), Value::Null) => {}
            (Some(_), _) => return Err(wrong(format!("{key} must have keys and values"))),
            (None, _) => file.add(path, key, key, value)?,
        }
    }
    Ok(file)
}

impl File {
    fn add(&mut self, path: &str, key: &str, name: &str, value: &Value) -> Result<(), ConfigError> {
        let Some(flag) = Flag::find(name) else {
            self.notes.push(format!("{path}: the key {key} is not one of etcd's, and is ignored"));
            return Ok(());
        };
        let Some(value) = text(flag.kind, value) else {
            let why = format!("{key} must be a value, or a list of values");
            return Err(ConfigError::File { path: path.to_owned(), why });
        };
        let written = format!("{key}: {value}");
        self.given.insert(flag.name, Given { value, place: path.to_owned(), written });
        Ok(())
    }
}

/// Whether a value is other than that of a key which is absent.
fn has_effect(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => values.iter().any(has_effect),
        Value::Object(keys) => !keys.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// Error for a key of TLS that would be ignored.
fn ignored_restriction(key: &str) -> String {
    let why = if key == CLIENT_NAMES {
        "no flag has its meaning: remove it here, and set the variable KV_TLS_ALLOWED_NAMES to the names, separated by commas"
    } else {
        "the key is unknown. In this section it is refused, as ignoring it could let in clients or members that it is to keep out"
    };
    format!("{key}: {why}")
}

/// A value as a flag has it; `None` if no flag can have it.
fn text(kind: Kind, value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if kind == Kind::Duration => Some(format!("{number}ns")),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(values) => {
            let values: Option<Vec<String>> = values.iter().map(|value| text(kind, value)).collect();
            Some(values?.join(","))
        }
        Value::Object(_) => None,
    }
}

/// A key whose value has keys that are flags under other names.
struct Section {
    name: &'static str,
    /// Begins the name of the flag.
    prefix: &'static str,
    /// Keys that are named otherwise, with their flags.
    others: &'static [(&'static str, &'static str)],
    /// Whether the keys say who may connect. A key that would be ignored could let in others, so it is refused.
    is_security: bool,
}

impl Section {
    fn flag(&self, key: &str) -> String {
        let other = self.others.iter().find(|(other, _)| *other == key);
        other.map_or_else(|| format!("{}{key}", self.prefix), |(_, flag)| (*flag).to_owned())
    }
}

/// Common names that certificates of clients may have: etcd has them in its file alone.
const CLIENT_NAMES: &str = "client-transport-security.allowed-cn";
const SECTIONS: [Section; 4] = [
    Section {
        name: "client-transport-security",
        prefix: "",
        others: &[("allowed-hostname", "client-cert-allowed-hostname")],
        is_security: true,
    },
    Section {
        name: "peer-transport-security",
        prefix: "peer-",
        others: &[("allowed-cn", "peer-cert-allowed-cn"), ("allowed-hostname", "peer-cert-allowed-hostname")],
        is_security: true,
    },
    Section { name: "discovery-config", prefix: "discovery-", others: &[], is_security: false },
    Section {
        name: "socket-options",
        prefix: "socket-",
        others: &[("reuse-port", "socket-reuse-port"), ("reuse-address", "socket-reuse-address")],
        is_security: false,
    },
];
