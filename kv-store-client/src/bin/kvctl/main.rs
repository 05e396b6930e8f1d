//! `kvctl`: use of the key-value store from a shell.

mod alarms;
mod bench;
mod cert;
mod debug;
mod health;
mod http;
mod job;
mod leases;
mod locks;
mod log_level;
mod members;
mod nodes;
mod security;
mod shell;
mod show;
mod signals;
mod snapshot;
mod transaction;
mod users;
mod watch;

use std::{
    fmt,
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use consensus_core::Endpoint;
use kv_store_client::{
    ClientConfig, ClientError, Credentials, KvClient,
    idl::{DeleteRequest, PutRequest, RangeRequest, RangeResponse},
    prefix_end,
};
use security::{Security, Server};
use serde_json::{Value, json};
use show::{Show, line, pair};

/// Talks to a kv-server or a cluster of them.
///
/// Exit codes: 0 done; 1 the key is not there, or a transaction's compares do not hold; 2 wrong usage; 3 refused by the
/// store (nothing was done); 4 unavailable (nothing was done); 5 the outcome is unknown; 6 nodes' states differ; 7 the
/// result could not be written to standard output (a write was done) or a file; 8 history that a watch needs was compacted; 120
/// a lock, leadership or a lease was lost; 126 a command could not be run, 127 it was not found; 130 and 143 ended by SIGINT or
/// SIGTERM before the lock was held. `lock` and `watch --exec` pass on the exit code of their command.
#[derive(Parser)]
#[command(name = "kvctl", version, about)]
struct Arguments {
    /// Servers, separated by commas: HOST:PORT, or with https:// before it for TLS.
    #[arg(
        long,
        env = "KVCTL_ENDPOINTS",
        default_value = "localhost:9090",
        value_delimiter = ',',
        value_parser = security::server,
        global = true
    )]
    endpoints: Vec<Server>,
    /// User and password, as NAME:PASSWORD. Other users of this machine can see arguments, so set the variable instead.
    #[arg(long, env = "KVCTL_USER", hide_env_values = true, global = true)]
    user: Option<Credentials>,
    #[command(flatten)]
    security: Security,
    /// How to print.
    #[arg(long, value_enum, default_value = "text", global = true)]
    output: Output,
    /// How long to try, in milliseconds. A server that is silent for 3 s, or for its share of this time if that is less, is
    /// given up for the next one.
    #[arg(long, default_value_t = 15_000, global = true)]
    timeout_ms: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON value, or one in each line where there are events; keys and values that are not UTF-8 as `key_hex`,
    /// `value_hex`.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Lease that the key goes with, in hexadecimal: the key is deleted when the lease ends.
        #[arg(long, value_parser = leases::parse_id)]
        lease: Option<i64>,
    },
    /// Reads a key and prints its value.
    Get {
        /// The key.
        key: String,
        /// Ask one server only, the first endpoint that answers, for what it has. It may be old.
        #[arg(long)]
        stale: bool,
        /// As of this revision.
        #[arg(long, default_value_t = 0)]
        revision: i64,
    },
    /// Removes a key, or the keys up to --to, all at one revision.
    Del {
        /// The key.
        key: String,
        /// All keys from `key` up to this one, exclusive.
        #[arg(long, conflicts_with = "prefix")]
        to: Option<String>,
        /// All keys that begin with `key`.
        #[arg(long)]
        prefix: bool,
    },
    /// Lists keys and values.
    Range {
        /// From here; "" for the beginning.
        from: String,
        /// Up to here, exclusive; left out for the end.
        to: Option<String>,
        /// All keys that begin with `from` instead.
        #[arg(long, conflicts_with = "to")]
        prefix: bool,
        /// At most so many.
        #[arg(long, default_value_t = 0)]
        limit: i64,
        /// As of this revision.
        #[arg(long, default_value_t = 0)]
        revision: i64,
        /// From the end.
        #[arg(long)]
        descending: bool,
        /// Without values.
        #[arg(long)]
        keys_only: bool,
        /// Only how many there are.
        #[arg(long)]
        count_only: bool,
    },
    /// Executes a transaction from a JSON file ("-": standard input), for example
    /// {"compare": [{"key": "a", "target": "value", "result": "=", "value": "1"}],
    /// "success": [{"put": {"key": "a", "value": "2"}}], "failure": [{"get": {"key": "a"}}]}.
    /// Targets: value, version, create, mod; results: =, !=, <, >; operations: put, get, del.
    #[command(verbatim_doc_comment)]
    Txn {
        /// The file.
        file: PathBuf,
    },
    /// Forgets history older than a revision.
    Compact {
        /// The oldest revision that can still be read.
        revision: i64,
    },
    /// Prints changes of keys as they are made: revision, put or delete, key and value, separated by tabs. It resumes by itself
    /// when servers fail, without gaps and repetitions, until it is interrupted.
    Watch(watch::Watch),
    /// Leases: keys that go with a lease are deleted when it ends.
    #[command(subcommand)]
    Lease(leases::Command),
    /// Waits for a lock, and runs a command while it is held. Requests for a lock are served in their order. The command has
    /// KV_LOCK_KEY and KV_LOCK_REVISION, which is greater for every later holder, in its environment. It is ended if the lock is
    /// lost. Without a command the key is printed, and the lock is held until this is interrupted.
    Lock(locks::LockCommand),
    /// Stands for election, prints key and value when it is won, and leads until it is interrupted.
    Elect(locks::Elect),
    /// Lists and changes the members of the cluster.
    #[command(subcommand)]
    Member(members::Command),
    /// Transfers leadership to another node.
    Transfer {
        /// The new leader's number; left out for the most up-to-date voter.
        #[arg(value_parser = clap::value_parser!(i64).range(0..))]
        node_id: Option<i64>,
    },
    /// Asks every endpoint how it is.
    Status,
    /// Checks the endpoints.
    #[command(subcommand)]
    Endpoint(health::Command),
    /// Saves, checks and restores backups of the store.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Lists and disarms alarms: conditions in which the store refuses requests.
    #[command(subcommand)]
    Alarm(alarms::Command),
    /// Whether users have to log in.
    #[command(subcommand)]
    Auth(users::Auth),
    /// Users, and their roles.
    #[command(subcommand)]
    User(users::User),
    /// Roles, and what they permit.
    #[command(subcommand)]
    Role(users::Role),
    /// Asks every endpoint for the checksum of its state, and compares those that have applied the same. A witness has no
    /// state.
    Hash,
    /// Changes what a node logs, until it restarts, and prints the directives that are in effect then. While users have to log in,
    /// the user needs the role root.
    LogLevel {
        /// Number of the node.
        #[arg(value_parser = clap::value_parser!(i64).range(0..))]
        node_id: i64,
        /// A level (off, error, warn, info, debug, trace), or directives such as info,kv_server=debug; left out for the
        /// node's setting.
        #[arg(default_value = "", hide_default_value = true)]
        directives: String,
    },
    /// Makes certificates for TLS: an authority, nodes and clients. No server is asked.
    #[command(subcommand)]
    Cert(cert::Command),
    /// Collects what is needed to find out why a cluster fails.
    #[command(subcommand)]
    Debug(debug::Command),
    /// Prints completions for a shell, for example for `source <(kvctl completions bash)`. No server is asked.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages into a directory. No server is asked.
    #[command(hide = true)]
    Man {
        /// The directory, which is made if it does not exist.
        dir: PathBuf,
    },
    /// Writes random keys for a while and prints writes per second and latencies. It leaves its keys (`bench/...`).
    Bench {
        /// Clients, each with one write in flight.
        #[arg(long, default_value_t = 1)]
        clients: usize,
        /// For how long.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Size of a value.
        #[arg(long, default_value_t = 128)]
        value_bytes: usize,
    },
}

/// Failure that ends the program with an exit code other than 0 and 1.
enum Failure {
    Usage(String),
    Client(ClientError),
    /// Standard output cannot be written.
    Output(io::Error),
    /// History that a watch needs was compacted away, so that events are missing.
    Compacted(String),
    /// A lock, leadership or a lease was lost.
    Lost(String),
    /// A server refuses: nothing was done.
    Refused(String),
    /// No server did it: nothing was done.
    Unavailable(String),
    /// A file cannot be written or read.
    File(String),
    /// A command of the user could not be run.
    NotRun {
        why: String,
        code: u8,
    },
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Client(ClientError::Rejected(_)) | Self::Refused(_) => 3,
            Self::Client(ClientError::Unknown(_)) => 5,
            Self::Client(_) | Self::Unavailable(_) => 4,
            Self::Output(_) | Self::File(_) => 7,
            Self::Compacted(_) => 8,
            Self::Lost(_) => 120,
            Self::NotRun { code, .. } => *code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why)
            | Self::Compacted(why)
            | Self::Lost(why)
            | Self::Refused(why)
            | Self::Unavailable(why)
            | Self::File(why)
            | Self::NotRun { why, .. } => f.write_str(why),
            Self::Client(error) => error.fmt(f),
            Self::Output(error) => write!(f, "the result could not be written to standard output: {error}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

fn main() {
    if let Some((parent, command)) = job::asked_to_become(std::env::args_os().skip(1)) {
        let failure = job::become_command(parent, &command);
        let _ = writeln!(io::stderr(), "kvctl: {failure}");
        exit(failure.code());
    }
    let arguments = Arguments::parse();
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(&arguments));
            // A thread may still wait until the reader of standard output reads.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Usage(format!("cannot start: {error}"))),
    };
    exit(outcome.unwrap_or_else(|failure| tell(&failure, Show(arguments.output))));
}

/// Prints a failure, and returns the exit code.
fn tell(failure: &Failure, show: Show) -> u8 {
    let (code, message) = (failure.code(), failure.to_string());
    if !matches!(failure, Failure::Output(_)) {
        // An error is ignored, because standard error gets the same message.
        let _ = show.whole(|| json!({ "error": message, "code": code }));
    }
    let _ = writeln!(io::stderr(), "kvctl: {message}");
    code
}

fn exit(code: u8) -> ! {
    std::process::exit(code.into())
}

async fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.command {
        Command::Cert(command) => return cert::execute(command, Show(arguments.output)),
        Command::Completions { shell } => return shell::complete(*shell),
        Command::Man { dir } => return shell::write_manual(dir),
        _ => {}
    }
    let endpoints: Vec<Endpoint> = arguments.endpoints.iter().map(|server| server.endpoint.clone()).collect();
    let mut config = ClientConfig::new(endpoints.clone());
    config.tls = arguments.security.load(&arguments.endpoints)?;
    config.credentials.clone_from(&arguments.user);
    config.timeout = Duration::from_millis(arguments.timeout_ms);
    config.wait_for_servers = false;
    let client = KvClient::new(config.clone())?;
    let show = Show(arguments.output);
    match &arguments.command {
        Command::Put { key, value, lease } => {
            let request = PutRequest { lease_id: *lease, ..PutRequest::of(key.as_str(), value.as_str()) };
            let response = client.put_with(request).await?;
            let revision = response.header.revision;
            show.either(&format!("revision {revision}"), || json!({ "revision": revision }))?;
            Ok(0)
        }
        Command::Get { key, stale, revision } => {
            let request = RangeRequest { revision: Some(*revision), ..RangeRequest::of(key.as_str(), None) };
            let found = if *stale {
                nodes::read_of_one(&client, &endpoints, request).await?
            } else {
                client.range(request).await?
            };
            match found.kvs.first() {
                Some(kv) => show.either(&String::from_utf8_lossy(&kv.value), || pair(kv))?,
                None => show.either("", || Value::Null)?,
            }
            Ok(u8::from(found.kvs.is_empty()))
        }
        Command::Del { key, to, prefix } => {
            let end = range_end(key, to.as_deref(), *prefix);
            let request = DeleteRequest::of(key.as_str(), end);
            let response = client.delete_range(request).await?;
            let (deleted, revision) = (response.deleted, response.header.revision);
            let value = || json!({ "deleted": deleted, "revision": revision });
            show.either(&format!("{deleted} deleted"), value)?;
            Ok(u8::from(deleted == 0))
        }
        Command::Range { from, to, prefix, limit, revision, descending, keys_only, count_only } => {
            let mut end = range_end(from, to.as_deref(), *prefix);
            if to.is_none() && !prefix {
                end = Some(vec![0]);
            }
            let start = if from.is_empty() { vec![0] } else { from.as_bytes().to_vec() };
            let request = RangeRequest {
                limit: Some(*limit),
                revision: Some(*revision),
                descending: Some(*descending),
                keys_only: Some(*keys_only),
                count_only: Some(*count_only),
                ..RangeRequest::of(start, end)
            };
            show_range(&client.range(request).await?, *keys_only, *count_only, show)?;
            Ok(0)
        }
        Command::Cert(command) => cert::execute(command, show),
        Command::Completions { shell } => shell::complete(*shell),
        Command::Man { dir } => shell::write_manual(dir),
        Command::Txn { file } => transaction::execute(&client, file, show).await,
        Command::Compact { revision } => {
            client.compact(*revision).await?;
            show.either(&format!("compacted to revision {revision}"), || json!({ "compacted": revision }))?;
            Ok(0)
        }
        Command::Watch(arguments) => told(&client, watch::run(&client, arguments, show)).await,
        Command::Lease(command) => leases::execute(&client, command, show).await,
        Command::Lock(arguments) => told(&client, locks::lock(&client, arguments, show)).await,
        Command::Elect(arguments) => told(&client, locks::elect(&client, arguments, show)).await,
        Command::Member(command) => members::execute(&client, &endpoints, command, show).await,
        Command::Transfer { node_id } => members::transfer(&client, *node_id, show).await,
        Command::Status => nodes::status(&client, &endpoints, show).await,
        Command::Endpoint(command) => health::execute(&client, &endpoints, command, show).await,
        Command::Alarm(command) => alarms::execute(&client, command, show).await,
        Command::Auth(command) => users::auth(&client, command, show).await,
        Command::User(command) => users::user(&client, command, show).await,
        Command::Role(command) => users::role(&client, command, show).await,
        Command::Snapshot(command) => snapshot::execute(&config, &endpoints, command, show).await,
        Command::Debug(command) => debug::execute(&client, &config, &endpoints, command, show).await,
        Command::LogLevel { node_id, directives } => {
            log_level::set(&client, &endpoints, *node_id, directives, show).await
        }
        Command::Hash => nodes::hash(&client, &endpoints, show).await,
        Command::Bench { clients, seconds, value_bytes } => {
            bench::run(&client, *clients, Duration::from_secs(*seconds), *value_bytes, show).await
        }
    }
}

fn show_range(found: &RangeResponse, keys_only: bool, count_only: bool, show: Show) -> Result<(), Failure> {
    let lines: Vec<String> = found.kvs.iter().map(|kv| line(kv, keys_only)).collect();
    let rest = if found.more { format!("({} of {})", found.kvs.len(), found.count) } else { String::new() };
    let text = if count_only { found.count.to_string() } else { [lines.join("\n"), rest].join("\n") };
    show.either(text.trim_end(), || {
        let kvs: Vec<Value> = found.kvs.iter().map(pair).collect();
        json!({ "kvs": kvs, "more": found.more, "count": found.count, "revision": found.header.revision })
    })
}

/// Returns the end of a range: none for a single key, `to`, or the end of all keys with the prefix `key`.
fn range_end(key: &str, to: Option<&str>, prefix: bool) -> Option<Vec<u8>> {
    if !prefix {
        return to.map(|to| to.as_bytes().to_vec());
    }
    Some(prefix_end(key))
}

/// Runs a command that may wait without a time limit, and says meanwhile when no server answers, and when one does again.
async fn told(client: &KvClient, command: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let mut outages = client.outages();
    let tell = async {
        let mut was_told = false;
        loop {
            let outage = outages.borrow_and_update().clone();
            let is_told = outage.is_some();
            match outage {
                Some(why) => eprintln!("kvctl: no server answers, waiting until one does: {why}"),
                None if was_told => eprintln!("kvctl: a server answers again"),
                None => {}
            }
            was_told = is_told;
            if outages.changed().await.is_err() {
                std::future::pending::<()>().await; // Not reached: the client has the sender.
            }
        }
    };
    tokio::select! {
        ended = command => ended,
        never = tell => never,
    }
}
