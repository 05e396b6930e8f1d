//! Collects errors, so that an operator sees all of them at once.

use std::collections::BTreeSet;

use super::ConfigError;

/// The errors of all layers of settings, in the order in which they were found.
///
/// A value that is refused has no value to compare with others: what depends on it is not checked, as it would only repeat the error.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    found: Vec<ConfigError>,
    /// Settings of which a value was refused.
    refused: BTreeSet<String>,
    /// Whether the file could not be read to its end, so that it is not known what it sets.
    is_file_unread: bool,
}

impl Faults {
    /// Adds an error.
    pub(crate) fn add(&mut self, error: ConfigError) {
        self.found.push(error);
    }

    /// Adds the error of a value of `setting`.
    pub(crate) fn refuse(&mut self, setting: &str, error: ConfigError) {
        self.refused.insert(setting.to_owned());
        self.add(error);
    }

    /// Adds an error of the file as a whole.
    pub(crate) fn refuse_file(&mut self, error: ConfigError) {
        self.is_file_unread = true;
        self.add(error);
    }

    /// The value, or `None` after its error was added.
    pub(crate) fn note<T>(&mut self, outcome: Result<T, ConfigError>) -> Option<T> {
        outcome.map_err(|error| self.add(error)).ok()
    }

    /// Whether the values of these settings are known, so that they can be compared.
    pub(crate) fn are_known(&self, settings: &[&str]) -> bool {
        !self.is_file_unread && !settings.iter().any(|setting| self.refused.contains(*setting))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn into_errors(self) -> Vec<ConfigError> {
        self.found
    }

    /// The value if nothing was found, which there is then; otherwise the one error, or all of them.
    pub(crate) fn outcome<T>(mut self, value: Option<T>) -> Result<T, ConfigError> {
        match (value, self.found.len()) {
            (Some(value), 0) => Ok(value),
            (_, 1) => Err(self.found.remove(0)),
            _ => Err(ConfigError::Several(self.found)),
        }
    }
}
