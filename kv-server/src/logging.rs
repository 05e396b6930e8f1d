//! The log of the program: its format, its outputs, and its level, which operators change while the program runs.
//!
//! `json` renders lines, `level` keeps the filter. The log of a process is started once, by [`start`].

mod json;
mod level;

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::Subscriber;
use tracing_subscriber::{
    Layer, Registry, fmt, fmt::writer::BoxMakeWriter, layer::SubscriberExt, registry::LookupSpan, reload,
    util::SubscriberInitExt,
};

use self::json::ZapFormat;
pub(crate) use self::level::set_level;

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// A JSON object in each line, with the keys of etcd's logger.
    Json,
    /// Entries of the systemd journal, with fields.
    Journald,
}

/// Why the program does not log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(
        "log_format is journald, and the journal cannot be reached at /run/systemd/journal/socket: {0}; start the server on a machine \
         with systemd, with that socket in its container, or set log_format to text or json"
    )]
    NoJournal(#[source] io::Error),
}

/// Starts to log to standard error, or to the journal. `directives` are the setting `log`, which was checked before.
///
/// # Errors
/// There is no journal.
pub(crate) fn start(format: Format, directives: &str) -> Result<(), LogError> {
    let layer = match format {
        Format::Journald => journal()?,
        Format::Text | Format::Json => {
            let is_terminal = io::stderr().is_terminal();
            lines(format == Format::Json, BoxMakeWriter::new(io::stderr), is_terminal)
        }
    };
    start_with(layer, directives);
    Ok(())
}

/// Starts to log lines to these outputs, in color if `is_terminal`.
pub(crate) fn start_lines(is_json: bool, writer: BoxMakeWriter, is_terminal: bool, directives: &str) {
    start_with(lines(is_json, writer, is_terminal), directives);
}

/// The layer behind the filter.
type Output = Box<dyn Layer<Filtered> + Send + Sync>;
type Filtered =
    tracing_subscriber::layer::Layered<reload::Layer<tracing_subscriber::EnvFilter, Registry>, Registry>;

fn start_with(output: Output, directives: &str) {
    let (filter, handle) = reload::Layer::new(level::filter(directives));
    level::install(handle, directives);
    tracing_subscriber::registry().with(filter).with(output).init();
}

fn lines<S>(is_json: bool, writer: BoxMakeWriter, is_terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = fmt::layer().with_writer(writer);
    if is_json { layer.event_format(ZapFormat).boxed() } else { layer.with_ansi(is_terminal).boxed() }
}

fn journal() -> Result<Output, LogError> {
    let layer = tracing_journald::layer().map_err(LogError::NoJournal)?;
    Ok(layer.with_syslog_identifier("kv-server".to_owned()).with_field_prefix(Some("KV".to_owned())).boxed())
}
