//! The file: sections of settings, and the nodes.

use std::ffi::OsString;

use consensus_core::Endpoint;
use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    ConfigError,
    definitions::{Definitions, Given},
    faults::Faults,
    layers::Layer,
};

/// Content of a file.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) settings: Layer,
    pub(crate) nodes: Vec<NodeEntry>,
}

/// One of the `[[nodes]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeEntry {
    /// Node id.
    pub(crate) id: u64,
    /// Where clients reach the node; `None`: it says so itself when it starts.
    pub(crate) client_endpoint: Option<Endpoint>,
    /// Where other nodes reach the node; `None`: at the client port + 1000.
    pub(crate) consensus_endpoint: Option<Endpoint>,
    /// Name for people; `None`: its id.
    pub(crate) name: Option<String>,
}

impl File {
    /// Parses the text of the file `path`.
    pub(crate) fn parse(definitions: &Definitions, path: &str, text: &str, faults: &mut Faults) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let is_complete = errors.is_empty();
        for error in errors.into_iter().take(SYNTAX_ERRORS_MAX) {
            faults.refuse_file(ConfigError::File { path: path.to_owned(), why: error.to_string() });
        }
        if !is_complete {
            return Self::default();
        }
        let mut parser =
            Parser { definitions, path, text, settings: Layer::default(), nodes: Vec::new(), faults };
        for (name, value) in table.get_ref() {
            match name.get_ref().as_ref() {
                NODES => parser.nodes(name, value),
                _ => parser.section(name, value),
            }
        }
        Self { settings: parser.settings, nodes: parser.nodes }
    }
}

struct Parser<'a> {
    definitions: &'a Definitions,
    path: &'a str,
    text: &'a str,
    settings: Layer,
    nodes: Vec<NodeEntry>,
    faults: &'a mut Faults,
}

type Name<'a> = Spanned<toml::de::DeString<'a>>;

impl Parser<'_> {
    fn place<T>(&self, at: &Spanned<T>) -> String {
        self.place_of(at.span().start)
    }

    fn place_of(&self, byte: usize) -> String {
        let before = &self.text.as_bytes()[..byte.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        format!("{}, line {line}", self.path)
    }

    fn nodes(&mut self, name: &Name<'_>, value: &Spanned<DeValue<'_>>) {
        let setting = "[[nodes]]".to_owned();
        let DeValue::Array(entries) = value.get_ref() else {
            let why =
                "it is a list: [[nodes]] and the keys of a node below it, once for each node".to_owned();
            let place = self.place(name);
            return self.faults.refuse(NODES, ConfigError::Setting { place, setting, why });
        };
        for entry in entries {
            match NodeEntry::deserialize(ValueDeserializer::from(entry.clone())) {
                Ok(node) => self.nodes.push(node),
                Err(error) => {
                    let place = self.place_of(error.span().unwrap_or(entry.span()).start);
                    let (setting, why) = (setting.clone(), error.message().to_owned());
                    self.faults.refuse(NODES, ConfigError::Setting { place, setting, why });
                }
            }
        }
    }

    fn section(&mut self, name: &Name<'_>, value: &Spanned<DeValue<'_>>) {
        let mut sections: Vec<&str> = self.definitions.of_the_file().map(|(section, _)| section).collect();
        sections.dedup();
        sections.push(NODES);
        let section = name.get_ref().as_ref();
        let place = self.place(name);
        if !sections.contains(&section) {
            let (setting, why) = (format!("[{section}]"), unknown("section", section, &sections));
            return self.faults.add(ConfigError::Setting { place, setting, why });
        }
        let DeValue::Table(table) = value.get_ref() else {
            let why = format!("it is a section: [{section}] and its keys below it");
            return self.faults.add(ConfigError::Setting { place, setting: section.to_owned(), why });
        };
        for (key, value) in table {
            self.key(section, key, value);
        }
    }

    fn key(&mut self, section: &str, key: &Name<'_>, value: &Spanned<DeValue<'_>>) {
        let (place, name) = (self.place(key), key.get_ref().as_ref());
        let texts = texts(value.get_ref());
        let shown = match value.get_ref() {
            DeValue::Array(_) => format!("[{}]", texts.clone().unwrap_or_default().join(", ")),
            _ => texts.clone().unwrap_or_default().concat(),
        };
        let values = texts.clone().unwrap_or_default().into_iter().map(OsString::from).collect();
        let given = Given { place, written: format!("{name} = {shown}"), values };
        let known = self.definitions.name(name);
        let belongs_to = known.and_then(|name| name.section.as_deref());
        if belongs_to != Some(section) && !MOVED.contains(&(section, name)) {
            let why = match belongs_to {
                Some(other) => format!("this key belongs to [{other}]"),
                None => unknown("key", name, &self.keys(section)),
            };
            // The operator meant to set it.
            return self.faults.refuse(known.map_or(name, |name| &name.setting), given.error(why));
        }
        if texts.is_none() {
            let error = given.error("it must be a value, or a list of values");
            return self.faults.refuse(known.map_or(name, |name| &name.setting), error);
        }
        self.settings.add(self.definitions, name, given, self.faults);
    }

    /// The keys of a section, as they are documented.
    fn keys(&self, section: &str) -> Vec<&str> {
        let of_the_file = self.definitions.of_the_file();
        of_the_file.filter(|(of, _)| *of == section).map(|(_, arg)| arg.get_id().as_str()).collect()
    }
}

/// Message about an unknown name: the nearest known name, and all.
fn unknown(kind: &str, name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|known| (strsim::jaro_winkler(name, known), known));
    let nearest = nearest.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(nearness, _)| *nearness > NEAR);
    let advice = nearest.map_or_else(String::new, |(_, known)| format!("; did you mean {known}?"));
    format!("unknown {kind}{advice} (expected one of {})", known.join(", "))
}

/// A value in the words of a flag; `None` if no flag can have it.
fn texts(value: &DeValue<'_>) -> Option<Vec<String>> {
    let text = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    };
    match value {
        DeValue::Array(values) => values.iter().map(|value| text(value.get_ref())).collect(),
        value => Some(vec![text(value)?]),
    }
}

/// Name of the list of nodes.
pub(crate) const NODES: &str = "nodes";
/// Greatest number of syntax errors that are shown. One mistake may cause many.
const SYNTAX_ERRORS_MAX: usize = 10;
/// Names less alike than this are not offered in place of each other. As in clap.
const NEAR: f64 = 0.7;
/// Keys that are accepted in another section than their own.
const MOVED: [(&str, &str); 3] =
    [("deployment", "sessions_max"), ("deployment", "disk_reserve"), ("deployment", "disk_reserve_mib")];
