//! Archive for the analysis of a failure: what the servers say of themselves, without secrets.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Subcommand;
use consensus_core::Endpoint;
use flate2::{Compression, write::GzEncoder};
use futures::future::join_all;
use kv_store_client::{ClientConfig, KvClient};
use serde_json::{Value, json};

use crate::{
    Failure, alarms,
    http::{self, Interruption},
    members, nodes,
    show::Show,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Collects from every endpoint its settings, status, metrics, health and checksum, and the members and alarms of the cluster, in a
    /// gzipped tar archive. It has no passwords, keys, tokens or data of the store. If users are checked, it needs one with the role root.
    ///
    /// The exit code is 4 if a server does not answer; the archive has the rest, and a file that says what is missing.
    Bundle {
        /// The archive, which must not exist.
        file: PathBuf,
        /// Data directory of a node on this machine, whose flight recording is added.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

pub(crate) async fn execute(
    client: &KvClient,
    config: &ClientConfig,
    endpoints: &[Endpoint],
    Command::Bundle { file, data_dir }: &Command,
    show: Show,
) -> Result<u8, Failure> {
    let endpoints: BTreeSet<&Endpoint> = endpoints.iter().collect();
    let mut bundle = Bundle::default();
    for parts in join_all(endpoints.iter().map(|endpoint| of_endpoint(client, config, endpoint))).await {
        for Part { name, content } in parts? {
            bundle.add(&name, content);
        }
    }
    let all: Vec<Endpoint> = endpoints.into_iter().cloned().collect();
    let status = nodes::best_status(client, &all).await;
    let list =
        |status: kv_store_client::idl::StatusResponse| status.members.iter().map(members::value).collect();
    bundle.add(
        "members.json",
        status.map(|status| pretty(&list(status))).map_err(|failure| failure.to_string()),
    );
    let alarms = client.alarms().await.map(|alarms| alarms.iter().map(alarms::value).collect());
    bundle.add("alarms.json", alarms.map(|alarms| pretty(&alarms)).map_err(|error| error.to_string()));
    let is_whole = bundle.missing.is_empty();
    if let Some(dir) = data_dir {
        bundle.add_flight(&dir.join("flight"));
    }
    bundle.add("README.txt", Ok(readme(&all)));
    let path = file.display().to_string();
    let written = bundle.write(file);
    let bytes = written.map_err(|error| Failure::File(format!("cannot write {path}: {error}")))?;
    for missing in &bundle.missing {
        eprintln!("kvctl: not in the archive: {missing}");
    }
    show.either(
        &format!("saved {bytes} bytes to {path}"),
        || json!({ "file": path, "bytes": bytes, "missing": bundle.missing }),
    )?;
    Ok(if is_whole { 0 } else { 4 })
}

/// A file of the archive, or why it is not there.
struct Part {
    name: String,
    content: Result<String, String>,
}

/// The files of one server.
///
/// # Errors
/// The server refuses the user, so that there is no archive at all.
async fn of_endpoint(
    client: &KvClient,
    config: &ClientConfig,
    endpoint: &Endpoint,
) -> Result<Vec<Part>, Failure> {
    let folder: String = endpoint.to_string().chars().map(path_character).collect();
    let part = |name: &str, content| Part { name: format!("{folder}/{name}"), content };
    let token = match http::token(config, endpoint).await {
        Ok(token) => token,
        Err(interruption) => {
            let why = connection_error(endpoint, interruption)?;
            return Ok(vec![part("status.json", Err(why))]);
        }
    };
    let mut parts = Vec::new();
    for (path, name) in PATHS {
        let text = match http::text(config, endpoint, token.as_deref(), path).await {
            Ok(text) => Ok(text),
            Err(interruption) => Err(connection_error(endpoint, interruption)?),
        };
        let is_there = text.is_ok();
        parts.push(part(name, text));
        if !is_there {
            // Another request would wait as long.
            return Ok(parts);
        }
    }
    let status = client.status_of(endpoint).await.map(|status| pretty(&nodes::status_value(&status)));
    parts.push(part("status.json", status.map_err(|error| error.to_string())));
    let hash = nodes::hash_of(client, endpoint).await.map(|hash| pretty(&nodes::hash_value(&hash)));
    parts.push(part("hash.json", hash.map_err(|error| error.to_string())));
    Ok(parts)
}

/// Paths of the clients' port, and the files for their texts. The first one needs the role root.
const PATHS: [(&str, &str); 5] = [
    ("/debug/settings", "settings.txt"),
    ("/version", "version.json"),
    ("/metrics", "metrics.txt"),
    ("/livez?verbose", "livez.txt"),
    ("/readyz?verbose", "readyz.txt"),
];

/// Why a server does not answer; the failure of the whole if it refuses.
fn connection_error(endpoint: &Endpoint, interruption: Interruption) -> Result<String, Failure> {
    match interruption {
        Interruption::Refused(why) => Err(Failure::Refused(format!(
            "{endpoint}: {why}; a bundle needs a user with the role root (--user)"
        ))),
        Interruption::Connection(why) => Ok(why),
        Interruption::Local(error) => Ok(error.to_string()),
    }
}

fn path_character(c: char) -> char {
    if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn readme(endpoints: &[Endpoint]) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let list: String = endpoints.iter().map(|endpoint| format!("  {endpoint}\n")).collect();
    format!(
        "Made by kvctl {} at {seconds} s after 1970 (UTC), of these servers:\n\n{list}\n{README}",
        env!("CARGO_PKG_VERSION")
    )
}

const README: &str = "\
members.json, alarms.json   of the cluster, as its leader or the best informed server says
HOST_PORT/settings.txt      settings in force, and where each was given; the paths of keys, not the keys
HOST_PORT/status.json       role, term, log, members, problems (kvctl status)
HOST_PORT/hash.json         checksum of the state (kvctl hash): nodes that have applied the same must have the same
HOST_PORT/metrics.txt       for Prometheus (docs/metrics.md)
HOST_PORT/livez.txt, readyz.txt, version.json
flight/                     flight recording of one node, if --data-dir was given and it has one (raft-replay prints it)
missing.txt                 what could not be collected, and why

Not in it: keys and values of the store, users, passwords, private keys, tokens, and the servers' logs, which the servers only write to
their standard error (with systemd: journalctl -u kv-server on each machine).
";

/// The files of an archive.
#[derive(Default)]
struct Bundle {
    files: Vec<(String, Vec<u8>)>,
    /// Names of files that are missing, with the reasons.
    missing: Vec<String>,
}

impl Bundle {
    fn add(&mut self, name: &str, content: Result<String, String>) {
        match content {
            Ok(content) => self.files.push((name.to_owned(), content.into_bytes())),
            Err(why) => self.missing.push(format!("{name}: {why}")),
        }
    }

    /// Adds the files of a flight recording, up to [`FLIGHT_BYTES_MAX`].
    fn add_flight(&mut self, dir: &Path) {
        match flight(dir) {
            Ok(files) => self.files.extend(files),
            Err(error) => self.missing.push(format!("flight: {}: {error}", dir.display())),
        }
    }

    /// Writes the archive, which only its owner can read. Returns its size in bytes.
    fn write(&mut self, path: &Path) -> io::Result<u64> {
        if !self.missing.is_empty() {
            let text = self.missing.join("\n") + "\n";
            self.files.push(("missing.txt".to_owned(), text.into_bytes()));
        }
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        let written = self.write_to(&file).and_then(|()| file.sync_all()).and_then(|()| file.metadata());
        if written.is_err() {
            let _ = fs::remove_file(path);
        }
        Ok(written?.len())
    }

    fn write_to(&self, file: &File) -> io::Result<()> {
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        for (name, content) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(seconds);
            archive.append_data(&mut header, Path::new(FOLDER).join(name), &content[..])?;
        }
        archive.into_inner()?.finish().map(drop)
    }
}

/// The newest files of a recording, up to [`FLIGHT_BYTES_MAX`].
fn flight(dir: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_file() {
            found.push((about.modified()?, entry.path()));
        }
    }
    found.sort();
    let (mut left, mut files) = (FLIGHT_BYTES_MAX, Vec::new());
    for (_, path) in found.into_iter().rev() {
        let mut content = Vec::new();
        File::open(&path)?.take(left).read_to_end(&mut content)?;
        left -= content.len() as u64;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((format!("flight/{name}"), content));
        if left == 0 {
            break;
        }
    }
    Ok(files)
}

/// Folder in the archive.
const FOLDER: &str = "kv-debug";
/// Greatest size of a flight recording in the archive.
const FLIGHT_BYTES_MAX: u64 = 64 << 20;
