//! Settings of the server. The first of these that has a value counts: flag, environment variable, file, default.
//!
//! A setting is defined in one place, a field of the struct of its section: [`Deployment`], [`Cluster`], [`Log`],
//! [`Limits`], [`Metrics`], [`Audit`] or [`TlsSection`] ([`Program`] for what the file cannot have, [`Once`] for flags alone). Flag, environment variable, key of the file, `--help` and the
//! table of docs/configuration.md follow from the field:
//!
//! | of the field | is |
//! |---|---|
//! | name `node_timeout` | `--node-timeout`, `KV_NODE_TIMEOUT`, `node_timeout = ".."` |
//! | `default_value` | the default; an `Option` has none, and the last sentence of its text is "Default: ..." |
//! | `value_name` | the kind of the value, for example DURATION, SIZE or COUNT |
//! | `value_parser` | what is allowed; [`values`] has parsers for durations, sizes, and numbers within a range, which is added to the text |
//! | `alias` | another name; numbers under a name that ends with `-ms` or `-mib` have that unit |
//! | doc comment | the text; the first paragraph is a summary |
//!
//! To add a setting: add the field, use it (`settings.limits.sessions_max`), and renew the page with
//! `UPDATE_CONFIGURATION_PAGE=1 cargo test -p kv-server --lib configuration_page`. Conditions on several settings are
//! checked in [`check`].

mod audit;
mod cluster;
mod definitions;
mod deployment;
mod faults;
mod file;
mod layers;
mod limits;
mod log;
mod metrics;
mod once;
#[cfg(test)]
mod page;
mod program;
#[cfg(test)]
mod tests;
mod tls;
mod topology;
mod values;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use consensus_core::{Endpoint, NodeId};

pub(crate) use self::{
    audit::Audit,
    cluster::Cluster,
    definitions::Given,
    deployment::{Deployment, Mode, Routing},
    file::NodeEntry,
    limits::Limits,
    log::{Log, LogKind},
    metrics::Metrics,
    once::Once,
    program::Program,
    tls::{CertificateUse, TlsMode, TlsSection},
    topology::{NodeEndpoints, Topology},
    values::log_filter,
};
use self::{
    definitions::Definitions,
    faults::Faults,
    file::File,
    layers::{Layer, Merged},
    topology::Resolver,
};
use crate::{dev::Dev, etcd_start::EtcdStart, shell};

/// A replicated key-value server. Without a list of nodes it runs standalone.
///
/// Each setting is also an environment variable: KV_NODE_TIMEOUT for --node-timeout. The headings are the sections of the
/// file, where the same setting is node_timeout.
#[derive(Clone, Debug, Parser)]
#[command(name = "kv-server", version, about, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) program: Program,
    #[command(flatten)]
    pub(crate) once: Once,
    #[command(flatten)]
    pub(crate) deployment: Deployment,
    #[command(flatten)]
    pub(crate) cluster: Cluster,
    #[command(flatten)]
    pub(crate) log: Log,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) metrics: Metrics,
    #[command(flatten)]
    pub(crate) audit: Audit,
    #[command(flatten)]
    pub(crate) tls: TlsSection,
}

/// Actions instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    Dev(Dev),
    Etcd(EtcdArguments),
    /// Prints completions for a shell, for example for `source <(kv-server completions bash)`.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Writes the manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory, which is made if it does not exist.
        dir: PathBuf,
    },
}

/// Runs a member in place of etcd, with etcd's flags, `ETCD_` variables and configuration file.
#[derive(Clone, Debug, clap::Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(crate) struct EtcdArguments {
    /// etcd's flags; `kv-server etcd --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Action of the program.
#[derive(Debug)]
pub(crate) enum Task {
    /// Runs a node with these settings.
    Serve(Box<Settings>),
    /// Says what is wrong with the settings.
    Check(Box<Findings>),
    /// Runs a cluster on this machine.
    Dev(Dev),
    /// Runs a member in place of etcd, unless its flags are wrong.
    Etcd(Result<Box<EtcdStart>, ConfigError>),
    /// Prints this.
    Say(String),
    /// Writes the manual pages into this directory.
    WriteManual(PathBuf),
}

/// Checked settings of a server to start.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Id of this node.
    pub(crate) node: NodeId,
    /// Directory of the node's log and state.
    pub(crate) data_dir: PathBuf,
    /// Where the server listens for clients.
    pub(crate) client_listen: Endpoint,
    /// Where else it listens for clients.
    pub(crate) client_listen_also: Vec<Endpoint>,
    /// Where it tells of its health alone.
    pub(crate) health_listen: Vec<Endpoint>,
    /// How the node makes itself known to the other members when it starts.
    pub(crate) publication: Publication,
    /// The nodes of the cluster; `None` for a standalone server.
    pub(crate) topology: Option<Topology>,
    pub(crate) program: Program,
    pub(crate) once: Once,
    pub(crate) deployment: Deployment,
    pub(crate) cluster: Cluster,
    pub(crate) log: Log,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Audit,
    pub(crate) tls: TlsSection,
    /// Listeners for clients that speak no TLS although there is TLS.
    pub(crate) plain_listeners: Vec<Endpoint>,
    /// All settings with their places, for people.
    pub(crate) listing: String,
    /// Whether the endpoint for clients that the other members know speaks no TLS although there is TLS.
    pub(crate) advertises_plain: bool,
}

/// Result of reading the settings to check them.
#[derive(Debug)]
pub(crate) struct Findings {
    /// The settings, if nothing is wrong with them.
    pub(crate) settings: Result<Settings, Vec<ConfigError>>,
    /// The data directory, as far as it is known.
    pub(crate) data_dir: PathBuf,
    /// The files of TLS, as far as they are known.
    pub(crate) tls: TlsSection,
}

/// Description of itself that a node sends to the cluster when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publication {
    /// Where clients reach it, and its name, if the cluster does not know where clients reach it.
    IfUnknown,
    /// The same at every start, as etcd does.
    Always,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The command line is wrong, or asks for help.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The command line asks for the version, which is this text.
    #[error("{0}")]
    Version(String),
    /// The file cannot be read, or is no TOML.
    #[error("{path}: {why}")]
    File { path: String, why: String },
    /// A setting is wrong.
    #[error("{place}: {setting}: {why}")]
    Setting {
        /// Where it was given.
        place: String,
        /// The setting with its value, as it was given.
        setting: String,
        /// Allowed values.
        why: String,
    },
    /// The command line has several tasks.
    #[error(
        "give one of --check-config, --force-new-cluster, --restore and --check-backup: each is a task of its own"
    )]
    Tasks,
    /// Several settings are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Self>),
}

impl Settings {
    /// Reads the task from the command line; its settings also from the environment, and the file that one of them names.
    pub(crate) fn load(
        command_line: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Task, ConfigError> {
        let command_line: Vec<OsString> = command_line.into_iter().collect();
        // A link of this name takes the place of the program.
        let is_etcd = command_line.first().and_then(|program| Path::new(program).file_name());
        if is_etcd.is_some_and(|name| name == "etcd") {
            return Ok(etcd(command_line.into_iter().skip(1).collect()));
        }
        Self::load_with(command_line, environment, read_file)
    }

    /// The settings of a node that are given one by one, by the names of the file, for nodes that are given too. A setting that is not
    /// given has the value of its variable, if there is one.
    pub(crate) fn of_node(
        given: Vec<(&str, Given)>,
        environment: impl Fn(&str) -> Option<OsString>,
        nodes: Vec<NodeEntry>,
    ) -> Result<Self, ConfigError> {
        let definitions = Definitions::new();
        let mut settings = Layer::default();
        let mut faults = Faults::default();
        for (name, given) in given {
            settings.add(&definitions, name, given, &mut faults);
        }
        let environment = layers::environment(&definitions, environment, &mut faults);
        let once = definitions.command().try_get_matches_from(["kv-server"])?;
        let merged = Merged::new(&definitions, [settings, environment, Layer::default()]);
        let mut arguments = merged.arguments()?;
        arguments.once = Once::from_arg_matches(&once)?;
        let resolver =
            Resolver { arguments: &arguments, merged: &merged, entries: &nodes, place: "the members" };
        let settings = resolve(&resolver, &mut faults);
        faults.outcome(settings)
    }

    fn load_with(
        command_line: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
        read: impl Fn(&str) -> Result<String, ConfigError>,
    ) -> Result<Task, ConfigError> {
        let definitions = Definitions::new();
        let matches = parse(&definitions, command_line.into_iter().collect())?;
        if matches.subcommand().is_some() {
            return Ok(match Command::from_arg_matches(&matches)? {
                Command::Dev(dev) => Task::Dev(dev),
                Command::Etcd(arguments) => etcd(arguments.flags),
                Command::Completions { shell } => Task::Say(shell::completions(shell)),
                Command::Man { dir } => Task::WriteManual(dir),
            });
        }
        let mut faults = Faults::default();
        let flags = layers::command_line(&definitions, &matches, &mut faults);
        let environment = layers::environment(&definitions, environment, &mut faults);
        let path = [&flags, &environment]
            .into_iter()
            .find_map(|layer| Some(layer.0.get("config")?.values[0].clone()));
        let path = path.map(|path| path.to_string_lossy().into_owned());
        let File { settings, nodes } = match path.as_ref().map(|path| (path, read(path))) {
            Some((path, Ok(text))) => File::parse(&definitions, path, &text, &mut faults),
            Some((_, Err(error))) => {
                faults.refuse_file(error);
                File::default()
            }
            None => File::default(),
        };
        let merged = Merged::new(&definitions, [flags, environment, settings]);
        let mut arguments = merged.arguments()?;
        arguments.once = Once::from_arg_matches(&matches)?;
        let place = path.as_deref().unwrap_or("settings");
        let resolver = Resolver { arguments: &arguments, merged: &merged, entries: &nodes, place };
        let settings = resolve(&resolver, &mut faults);
        if arguments.once.check_config {
            let settings = settings.filter(|_| faults.is_empty()).ok_or_else(|| faults.into_errors());
            let (data_dir, tls) = (data_dir(&arguments.deployment), arguments.tls);
            return Ok(Task::Check(Box::new(Findings { settings, data_dir, tls })));
        }
        faults.outcome(settings).map(|settings| Task::Serve(Box::new(settings)))
    }
}

/// Parses the command line. If only values of settings are wrong, they are left to the layer of the flags, which says all of them.
fn parse(definitions: &Definitions, command_line: Vec<OsString>) -> Result<ArgMatches, ConfigError> {
    use clap::error::ErrorKind::{InvalidValue, ValueValidation};
    let parsed = definitions.command().try_get_matches_from(&command_line);
    Ok(parsed.or_else(|error| match error.kind() {
        InvalidValue | ValueValidation => {
            definitions.command_of_any_values().try_get_matches_from(command_line).map_err(|_| error)
        }
        _ => Err(error),
    })?)
}

/// The definition of the command line.
pub(crate) fn command() -> clap::Command {
    Definitions::new().command()
}

/// The start of a member with etcd's flags and the variables of this process.
fn etcd(flags: Vec<OsString>) -> Task {
    match EtcdStart::load(flags, std::env::vars_os(), read_file) {
        Err(ConfigError::Version(text)) => Task::Say(text),
        loaded => Task::Etcd(loaded.map(Box::new)),
    }
}

fn read_file(path: &str) -> Result<String, ConfigError> {
    let error = |error| ConfigError::File { path: path.to_owned(), why: format!("cannot be read: {error}") };
    std::fs::read_to_string(path).map_err(error)
}

/// Checks settings against each other, as far as their values are known.
fn check(arguments: &Arguments, merged: &Merged<'_>, faults: &mut Faults) {
    let Cluster { health_check_interval, node_timeout, election_timeout, heartbeat_interval, .. } =
        arguments.cluster;
    let at_least = |setting, words, bound| {
        let bound = humantime::format_duration(bound);
        merged.error(setting, format!("it must be at least {words} ({bound})"))
    };
    if node_timeout < health_check_interval && faults.are_known(&["node_timeout", "health_check_interval"]) {
        faults.add(at_least("node_timeout", "health_check_interval", health_check_interval));
    }
    if election_timeout < heartbeat_interval * 2
        && faults.are_known(&["election_timeout", "heartbeat_interval"])
    {
        faults.add(at_least("election_timeout", "twice heartbeat_interval", heartbeat_interval));
    }
    if faults.are_known(&["auto_compaction_mode", "auto_compaction_retention"]) {
        let retention = arguments.limits.auto_compaction();
        faults.note(retention.map_err(|why| merged.error("auto_compaction_retention", why)));
    }
    if faults.are_known(&TLS_CHOICES) {
        for (setting, why) in arguments.tls.conflicts() {
            faults.add(merged.error(setting, why));
        }
    }
    let Once { check_config, force_new_cluster, restore, check_backup, .. } = &arguments.once;
    let tasks = [*check_config, *force_new_cluster, restore.is_some(), check_backup.is_some()];
    if tasks.iter().filter(|is_set| **is_set).count() > 1 {
        faults.add(ConfigError::Tasks);
    }
}

/// Settings on whose values the conditions of TLS depend.
const TLS_CHOICES: [&str; 7] = [
    "tls_client_certificates",
    "tls_auto",
    "tls_mode",
    "peer_tls_auto",
    "peer_tls_mode",
    "tls_min_version",
    "tls_max_version",
];

fn data_dir(deployment: &Deployment) -> PathBuf {
    let by_default = || PathBuf::from(format!("./data/node-{}", deployment.node_id));
    deployment.data_dir.clone().unwrap_or_else(by_default)
}

/// The settings of a server; `None` after the errors were added.
fn resolve(resolver: &Resolver<'_>, faults: &mut Faults) -> Option<Settings> {
    check(resolver.arguments, resolver.merged, faults);
    let Arguments { command: _, program, once, deployment, cluster, log, limits, metrics, audit, tls } =
        resolver.arguments.clone();
    if !faults.are_known(&["mode"]) {
        return None;
    }
    let has_nodes = !deployment.replica_endpoints.is_empty() || !resolver.entries.is_empty();
    let by_default = if has_nodes { Mode::Replicated } else { Mode::Standalone };
    let (client_listen, topology) = match deployment.mode.unwrap_or(by_default) {
        Mode::Standalone => (faults.note(resolver.listen("127.0.0.1", program.port.unwrap_or(9090)))?, None),
        Mode::Replicated => {
            let (listen, topology) = resolver.topology(faults)?;
            (listen, Some(topology))
        }
    };
    Some(Settings {
        node: NodeId(deployment.node_id),
        data_dir: data_dir(&deployment),
        client_listen,
        client_listen_also: Vec::new(),
        health_listen: metrics.metrics_listen.clone(),
        publication: Publication::IfUnknown,
        topology,
        program,
        once,
        deployment,
        cluster,
        log,
        limits,
        plain_listeners: metrics.metrics_listen.clone(),
        metrics,
        audit,
        tls,
        listing: resolver.merged.listing(),
        advertises_plain: false,
    })
}

/// Settings of these flags and a file with this text, without an environment: for tests, and for the crate `fuzz`.
pub(crate) fn from_text(flags: &[&str], file: &str) -> Result<Settings, ConfigError> {
    let flags = ["kv-server", "--config", "cluster.toml"].into_iter().chain(flags.iter().copied());
    from_layers(flags.map(OsString::from), |_| None, file)
}

/// The settings of these layers, in place of a file that is read.
fn from_layers(
    command_line: impl Iterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
    file: &str,
) -> Result<Settings, ConfigError> {
    match Settings::load_with(command_line, environment, |_| Ok(file.to_owned()))? {
        Task::Serve(settings) => Ok(*settings),
        Task::Check(_) | Task::Dev(_) | Task::Etcd(_) | Task::Say(_) | Task::WriteManual(_) => {
            Err(clap::Error::raw(clap::error::ErrorKind::InvalidSubcommand, "it has no settings").into())
        }
    }
}
