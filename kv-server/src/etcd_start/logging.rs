//! etcd's flags of the log: its level, format and outputs.

use std::{
    fs::File,
    io::{self, IsTerminal},
    sync::Arc,
};

use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};

use super::values::Values;
use crate::{config::ConfigError, logging};

/// Level, format and output of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logging {
    /// Directives, as of the setting `log`.
    pub(crate) filter: String,
    is_json: bool,
    outputs: Vec<Output>,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Output {
    Stderr,
    Stdout,
    /// A file, at whose end lines are added.
    File(String),
}

impl Logging {
    pub(super) fn of(values: &Values) -> Result<Self, ConfigError> {
        let filter = match values.text("log-level") {
            // At this level libraries log their internals.
            "debug" => "debug,h2=info,hyper=info,hyper_util=info,tower=info,tonic=info".to_owned(),
            level @ ("info" | "warn") => level.to_owned(),
            _ => "error".to_owned(),
        };
        let is_json = match values.text("log-format") {
            "json" => true,
            "console" => false,
            _ => return Err(values.error("log-format", "it must be json or console")),
        };
        let output = |name: &str| match name {
            "default" | "stderr" | "systemd/journal" => Output::Stderr,
            "stdout" => Output::Stdout,
            path => Output::File(path.to_owned()),
        };
        let names = values.text("log-outputs").split(',').map(str::trim).filter(|name| !name.is_empty());
        let mut outputs: Vec<Output> = names.map(output).collect();
        outputs.dedup();
        Ok(Self { filter, is_json, outputs })
    }

    /// Begins to log.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub(crate) fn start(&self) -> io::Result<()> {
        let is_terminal = self.outputs == [Output::Stderr] && io::stderr().is_terminal();
        logging::start_lines(self.is_json, self.writer()?, is_terminal, &self.filter);
        Ok(())
    }

    fn writer(&self) -> io::Result<BoxMakeWriter> {
        let mut all: Option<BoxMakeWriter> = None;
        for output in &self.outputs {
            let writer = match output {
                Output::Stderr => BoxMakeWriter::new(io::stderr),
                Output::Stdout => BoxMakeWriter::new(io::stdout),
                Output::File(path) => {
                    let named = |error: io::Error| {
                        io::Error::new(error.kind(), format!("--log-outputs={path}: {error}"))
                    };
                    let file = File::options().create(true).append(true).open(path).map_err(named)?;
                    BoxMakeWriter::new(Arc::new(file))
                }
            };
            all = Some(match all {
                None => writer,
                Some(others) => BoxMakeWriter::new(others.and(writer)),
            });
        }
        Ok(all.unwrap_or_else(|| BoxMakeWriter::new(io::stderr)))
    }
}
