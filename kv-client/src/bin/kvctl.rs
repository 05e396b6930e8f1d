//! `kvctl`: the key-value store from a shell.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand, ValueEnum};
use consensus_core::Endpoint;
use kv_client::{
    ClientConfig, ClientError, KvClient,
    idl::{
        Compare, CompareResult, CompareTarget, Consistency, DeleteRequest, KeyValue, Operation,
        OperationResponse, PutRequest, RangeRequest, TxnRequest,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Talks to a kv-server or a cluster of them.
///
/// Exit codes: 0 done; 1 the key is not there, or a transaction's compares do not hold; 2 wrong usage; 3 refused by the
/// store (nothing was done); 4 unavailable (nothing was done); 5 the outcome is unknown.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Servers, separated by commas.
    #[arg(
        long,
        env = "KVCTL_ENDPOINTS",
        default_value = "localhost:9090",
        value_delimiter = ',',
        global = true
    )]
    endpoints: Vec<Endpoint>,
    /// How to print.
    #[arg(long, value_enum, default_value = "text", global = true)]
    output: Output,
    /// How long to try, in milliseconds.
    #[arg(long, default_value_t = 15_000, global = true)]
    timeout_ms: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON value; keys and values that are not UTF-8 as `key_hex`, `value_hex`.
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
    },
    /// Reads a key and prints its value.
    Get {
        /// The key.
        key: String,
        /// What the server asked has, at once, perhaps old.
        #[arg(long)]
        stale: bool,
        /// As of this revision.
        #[arg(long, default_value_t = 0)]
        revision: i64,
    },
    /// Removes a key, or the keys up to --to.
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
    /// Asks every endpoint how it is.
    Status,
    /// Asks every endpoint for the checksum of its state.
    Hash,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TxnFile {
    #[serde(default)]
    compare: Vec<CompareLine>,
    #[serde(default)]
    success: Vec<OperationLine>,
    #[serde(default)]
    failure: Vec<OperationLine>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompareLine {
    key: String,
    target: Target,
    result: Relation,
    /// A text for `value`, a number for the others.
    value: Value,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Target {
    Value,
    Version,
    Create,
    Mod,
}

#[derive(Clone, Copy, Deserialize)]
enum Relation {
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = ">")]
    Greater,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum OperationLine {
    Put { key: String, value: String },
    Get { key: String },
    Del { key: String },
}

/// What ends the program otherwise than well.
enum Failure {
    Usage(String),
    Client(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let (code, message) = match &failure {
                Failure::Usage(why) => (2, why.clone()),
                Failure::Client(error @ ClientError::Rejected(_)) => (3, error.to_string()),
                Failure::Client(error @ ClientError::Unknown(_)) => (5, error.to_string()),
                Failure::Client(error) => (4, error.to_string()),
            };
            if arguments.output == Output::Json {
                println!("{}", json!({ "error": message, "code": code }));
            }
            eprintln!("kvctl: {message}");
            ExitCode::from(code)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut config = ClientConfig::new(arguments.endpoints.clone());
    config.timeout = Duration::from_millis(arguments.timeout_ms);
    let client = KvClient::new(config)?;
    let show = Show(arguments.output);
    match &arguments.command {
        Command::Put { key, value } => {
            let response = client.put(key.as_str(), value.as_str()).await?;
            let revision = response.header.revision;
            show.either(&format!("revision {revision}"), || json!({ "revision": revision }));
            Ok(0)
        }
        Command::Get { key, stale, revision } => {
            let consistency = if *stale { Consistency::STALE } else { Consistency::LINEARIZABLE };
            let request = RangeRequest::new(
                key.as_bytes().to_vec(),
                None,
                None,
                *revision,
                None,
                None,
                None,
                consistency,
            );
            match client.range(request).await?.kvs.first() {
                Some(kv) => show.either(&String::from_utf8_lossy(&kv.value), || pair(kv)),
                None => {
                    show.either("", || Value::Null);
                    return Ok(1);
                }
            }
            Ok(0)
        }
        Command::Del { key, to, prefix } => {
            let end = range_end(key, to.as_deref(), *prefix);
            let response =
                client.delete_range(DeleteRequest::new(key.as_bytes().to_vec(), end, None, None)).await?;
            let deleted = response.deleted;
            show.either(
                &format!("{deleted} deleted"),
                || json!({ "deleted": deleted, "revision": response.header.revision }),
            );
            Ok(u8::from(deleted == 0))
        }
        Command::Range { from, to, prefix, limit, revision, descending, keys_only, count_only } => {
            let mut end = range_end(from, to.as_deref(), *prefix);
            if to.is_none() && !prefix {
                end = Some(vec![0]);
            }
            let start = if from.is_empty() { vec![0] } else { from.as_bytes().to_vec() };
            let request =
                RangeRequest::new(start, end, *limit, *revision, *descending, *keys_only, *count_only, None);
            let found = client.range(request).await?;
            let lines: Vec<String> = found.kvs.iter().map(|kv| line(kv, *keys_only)).collect();
            let rest =
                if found.more { format!("({} of {})", found.kvs.len(), found.count) } else { String::new() };
            let text =
                if *count_only { found.count.to_string() } else { [lines.join("\n"), rest].join("\n") };
            show.either(text.trim_end(), || {
                let kvs: Vec<Value> = found.kvs.iter().map(pair).collect();
                json!({ "kvs": kvs, "more": found.more, "count": found.count, "revision": found.header.revision })
            });
            Ok(0)
        }
        Command::Txn { file } => txn(&client, file, &show).await,
        Command::Compact { revision } => {
            client.compact(*revision).await?;
            show.either(&format!("compacted to revision {revision}"), || json!({ "compacted": revision }));
            Ok(0)
        }
        Command::Status => status(&client, &arguments.endpoints, &show).await,
        Command::Hash => hash(&client, &arguments.endpoints, &show).await,
        Command::Bench { clients, seconds, value_bytes } => {
            bench(&client, *clients, Duration::from_secs(*seconds), *value_bytes, &show).await
        }
    }
}

async fn bench(
    client: &KvClient,
    clients: usize,
    time: Duration,
    value_bytes: usize,
    show: &Show,
) -> Result<u8, Failure> {
    // Sessions and connection first: they are made once in the life of a client.
    let warm_up = (0..clients).map(|id| client.put(format!("bench/warm-up/{id}"), "x"));
    futures::future::try_join_all(warm_up).await?;
    let (start, value) = (Instant::now(), vec![b'x'; value_bytes]);
    let writer = || {
        let (client, value) = (client.clone(), value.clone());
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let key = format!("bench/{:016x}", rand::random::<u64>());
                let began = Instant::now();
                client.put(key, value.clone()).await?;
                latencies.push(began.elapsed());
            }
            Ok::<_, ClientError>(latencies)
        })
    };
    let writers: Vec<_> = (0..clients).map(|_| writer()).collect();
    let mut latencies = Vec::new();
    for writer in writers {
        latencies.extend(writer.await.map_err(|error| Failure::Usage(error.to_string()))??);
    }
    let rate = latencies.len() as f64 / start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |part: f64| latencies.get((latencies.len() as f64 * part) as usize).copied().unwrap_or_default();
    let ms = |latency: Duration| (latency.as_secs_f64() * 1e5).round() / 100.0;
    let (p50, p99, worst) = (ms(at(0.5)), ms(at(0.99)), ms(latencies.last().copied().unwrap_or_default()));
    show.either(&format!("{clients} clients: {rate:.0} writes/s, p50 {p50} ms, p99 {p99} ms, worst {worst} ms"), || {
        json!({ "clients": clients, "writes_per_s": rate, "p50_ms": p50, "p99_ms": p99, "worst_ms": worst })
    });
    Ok(0)
}

async fn txn(client: &KvClient, file: &PathBuf, show: &Show) -> Result<u8, Failure> {
    let bad = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| bad(error.to_string()))?;
    let file: TxnFile = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let compare = file.compare.into_iter().map(compare).collect::<Result<_, _>>().map_err(bad)?;
    let operations = |lines: Vec<OperationLine>| lines.into_iter().map(operation).collect();
    let request =
        TxnRequest::new(compare, operations(file.success), operations(file.failure), None, None, None);
    let response = client.txn(request).await?;
    let results: Vec<Value> = response.responses.iter().map(outcome).collect();
    let lines: Vec<String> = results.iter().map(Value::to_string).collect();
    let succeeded = response.succeeded;
    let verdict = if succeeded { "succeeded" } else { "compares do not hold" };
    show.either(
        [verdict.to_owned(), lines.join("\n")].join("\n").trim_end(),
        || json!({ "succeeded": succeeded, "responses": results, "revision": response.header.revision }),
    );
    Ok(u8::from(!succeeded))
}

fn compare(line: CompareLine) -> Result<Compare, String> {
    let (target, is_text) = match line.target {
        Target::Value => (CompareTarget::VALUE, true),
        Target::Version => (CompareTarget::VERSION, false),
        Target::Create => (CompareTarget::CREATE_REVISION, false),
        Target::Mod => (CompareTarget::MOD_REVISION, false),
    };
    let result = match line.result {
        Relation::Equal => CompareResult::EQUAL,
        Relation::NotEqual => CompareResult::NOT_EQUAL,
        Relation::Less => CompareResult::LESS,
        Relation::Greater => CompareResult::GREATER,
    };
    let text = line.value.as_str().filter(|_| is_text).map(|text| text.as_bytes().to_vec());
    let number = line.value.as_i64().filter(|_| !is_text);
    if text.is_none() && number.is_none() {
        let wanted = if is_text { "a text" } else { "a number" };
        return Err(format!("the compare of {:?} needs {wanted} as its value, not {}", line.key, line.value));
    }
    Ok(Compare::new(line.key.into_bytes(), target, result, number, text, None))
}

fn operation(line: OperationLine) -> Operation {
    match line {
        OperationLine::Put { key, value } => {
            Operation::Put(PutRequest::new(key.into_bytes(), value.into_bytes(), None, None, None, None))
        }
        OperationLine::Get { key } => {
            Operation::Range(RangeRequest::new(key.into_bytes(), None, None, None, None, None, None, None))
        }
        OperationLine::Del { key } => {
            Operation::DeleteRange(DeleteRequest::new(key.into_bytes(), None, None, None))
        }
    }
}

fn outcome(response: &OperationResponse) -> Value {
    match response {
        OperationResponse::Put(_) => json!({ "put": {} }),
        OperationResponse::DeleteRange(response) => json!({ "del": response.deleted }),
        OperationResponse::Range(response) => json!({ "get": response.kvs.first().map(pair) }),
    }
}

async fn status(client: &KvClient, endpoints: &[Endpoint], show: &Show) -> Result<u8, Failure> {
    let mut code = 0;
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for endpoint in endpoints {
        match client.status_of(endpoint).await {
            Ok(status) => {
                let header = &status.header;
                let leader = status.leader_id.map_or("-".to_owned(), |id| id.to_string());
                let unwell: Vec<String> =
                    status.members.iter().filter(|m| !m.healthy).map(|m| m.node_id.to_string()).collect();
                let unwell = if unwell.is_empty() {
                    String::new()
                } else {
                    format!("  not seen: {}", unwell.join(", "))
                };
                rows.push(format!(
                    "{endpoint}  node {}  {}  term {}  leader {leader}  commit {}  applied {}  log {}..{}  revision {}{unwell}",
                    header.node_id, status.role, header.term, status.commit_index, header.applied_index,
                    status.first_log_index, status.last_log_index, header.revision,
                ));
                let members: Vec<Value> = status.members.iter().map(|member| json!({
                    "node_id": member.node_id, "kind": member.kind, "healthy": member.healthy,
                    "client_endpoint": member.client_endpoint, "consensus_endpoint": member.consensus_endpoint,
                })).collect();
                values.push(json!({
                    "endpoint": endpoint.to_string(), "node_id": header.node_id, "role": status.role, "term": header.term,
                    "leader_id": status.leader_id, "commit_index": status.commit_index,
                    "applied_index": header.applied_index, "first_log_index": status.first_log_index,
                    "last_log_index": status.last_log_index, "revision": header.revision, "version": status.version,
                    "members": members,
                }));
            }
            Err(error) => {
                code = 4;
                rows.push(format!("{endpoint}  {error}"));
                values.push(json!({ "endpoint": endpoint.to_string(), "error": error.to_string() }));
            }
        }
    }
    show.either(&rows.join("\n"), || json!(values));
    Ok(code)
}

async fn hash(client: &KvClient, endpoints: &[Endpoint], show: &Show) -> Result<u8, Failure> {
    let mut code = 0;
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for endpoint in endpoints {
        match client.hash_of(endpoint).await {
            Ok(response) => {
                let (node, revision, applied) =
                    (response.header.node_id, response.header.revision, response.header.applied_index);
                rows.push(format!(
                    "{endpoint}  node {node}  hash {:08x}  revision {revision}  applied {applied}",
                    response.hash
                ));
                values.push(json!({
                    "endpoint": endpoint.to_string(), "node_id": node, "hash": response.hash, "revision": revision,
                    "applied_index": applied,
                }));
            }
            Err(error) => {
                code = 4;
                rows.push(format!("{endpoint}  {error}"));
                values.push(json!({ "endpoint": endpoint.to_string(), "error": error.to_string() }));
            }
        }
    }
    show.either(&rows.join("\n"), || json!(values));
    Ok(code)
}

struct Show(Output);

impl Show {
    fn either(&self, text: &str, value: impl FnOnce() -> Value) {
        match self.0 {
            Output::Json => println!("{}", value()),
            Output::Text if text.is_empty() => {}
            Output::Text => println!("{text}"),
        }
    }
}

/// One key, up to another, or all that begin so.
fn range_end(key: &str, to: Option<&str>, prefix: bool) -> Option<Vec<u8>> {
    if !prefix {
        return to.map(|to| to.as_bytes().to_vec());
    }
    // The first text after all that begin with `key`: its last byte, if there is one that can be, goes up by one.
    let mut end = key.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    Some(vec![0])
}

fn line(kv: &KeyValue, keys_only: bool) -> String {
    let key = String::from_utf8_lossy(&kv.key);
    if keys_only { key.into_owned() } else { format!("{key}\t{}", String::from_utf8_lossy(&kv.value)) }
}

fn pair(kv: &KeyValue) -> Value {
    let mut value = json!({
        "create_revision": kv.create_revision, "mod_revision": kv.mod_revision, "version": kv.version,
    });
    for (name, bytes) in [("key", &kv.key), ("value", &kv.value)] {
        match std::str::from_utf8(bytes) {
            Ok(text) => value[name] = json!(text),
            Err(_) => {
                value[format!("{name}_hex")] =
                    json!(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
            }
        }
    }
    value
}
