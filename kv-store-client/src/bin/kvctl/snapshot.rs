//! Backups: saves one from a server, and has kv-server check or restore it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Subcommand;
use consensus_core::Endpoint;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use kv_store_client::ClientConfig;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::{
    Failure,
    http::{Interruption, SILENCE_MAX, answer, exchange, refusal, token, within},
    show::Show,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Saves a backup of the store, at one revision, from the first endpoint that answers. Writes go on meanwhile. A connection that
    /// breaks off is replaced, and the download goes on where it was.
    Save {
        /// The file, which must not exist. Until it is complete it has `.part` at the end of its name.
        file: PathBuf,
    },
    /// Checks a backup and prints its revision and number of keys. Runs `kv-server --check-backup`.
    Status {
        /// The file.
        file: PathBuf,
    },
    /// Makes a new data directory from a backup. Runs `kv-server --restore`.
    Restore {
        /// The file.
        file: PathBuf,
        /// Flags of kv-server, for example `--config cluster.toml --node-id 0 --data-dir data`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
        flags: Vec<OsString>,
    },
}

pub(crate) async fn execute(
    config: &ClientConfig,
    endpoints: &[Endpoint],
    command: &Command,
    show: Show,
) -> Result<u8, Failure> {
    match command {
        Command::Save { file } => {
            let bytes = save(config, endpoints, file).await?;
            if io::stderr().is_terminal() {
                let _ = write!(io::stderr(), "\r\x1b[K"); // The line of the progress.
            }
            let path = file.display().to_string();
            show.either(
                &format!("saved {bytes} bytes to {path}"),
                || json!({ "file": path, "bytes": bytes }),
            )?;
            Ok(0)
        }
        Command::Status { file } => run_server(&[OsString::from("--check-backup"), file.into()]),
        Command::Restore { file, flags } => {
            run_server(&[&[OsString::from("--restore"), file.into()], &flags[..]].concat())
        }
    }
}

/// Runs kv-server, which has the code of the store. Returns its exit code.
fn run_server(arguments: &[OsString]) -> Result<u8, Failure> {
    let beside = std::env::current_exe().map(|own| own.with_file_name("kv-server"));
    let program = beside.ok().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("kv-server"));
    let status = process::Command::new(&program).args(arguments).status().map_err(|error| {
        let why =
            format!("cannot run {}: {error}; install kv-server beside kvctl or in PATH", program.display());
        Failure::NotRun { why, code: if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 } }
    })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(126))
}

/// Saves a backup. Returns its number of bytes.
async fn save(config: &ClientConfig, endpoints: &[Endpoint], file: &Path) -> Result<u64, Failure> {
    if file.exists() {
        return Err(Failure::Usage(format!("{} exists already: choose another file", file.display())));
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let local =
        |doing: &str, error: &io::Error| Failure::File(format!("{doing} {}: {error}", part.display()));
    if part.exists() {
        // An earlier one was interrupted. It is of no use without the server's copy.
        fs::remove_file(&part).map_err(|error| local("cannot remove", &error))?;
    }
    // It has the hashes of passwords, and the key that signs tokens.
    let opened = File::options().read(true).write(true).create_new(true).mode(0o600).open(&part);
    let _unfinished = Unfinished(part.clone());
    let mut download = Download {
        file: opened.map_err(|error| local("cannot create", &error))?,
        tag: String::new(),
        bytes: 0,
        total: 0,
        shown: Instant::now(),
    };
    let mut failures = Vec::new();
    for endpoint in endpoints {
        match download_from(config, endpoint, &mut download).await {
            Ok(()) => {
                let complete = download.check().and_then(|()| download.file.sync_all());
                complete.map_err(|error| local("cannot verify", &error))?;
                fs::rename(&part, file).map_err(|error| local("cannot rename", &error))?;
                let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
                let synced = File::open(parent.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all());
                synced.map_err(|error| local("cannot sync the directory of", &error))?;
                return Ok(download.total);
            }
            Err(Interruption::Local(error)) => return Err(local("cannot write", &error)),
            Err(Interruption::Refused(why)) => return Err(Failure::Refused(format!("{endpoint}: {why}"))),
            Err(Interruption::Connection(why)) => failures.push(format!("{endpoint}: {why}")),
        }
    }
    Err(Failure::Unavailable(format!("no server sent a whole backup: {}", failures.join("; "))))
}

/// A file that is removed, unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Downloads from one server, with a new connection as long as each one brings more.
async fn download_from(
    config: &ClientConfig,
    endpoint: &Endpoint,
    download: &mut Download,
) -> Result<(), Interruption> {
    download.tag.clear(); // Other servers do not have this copy.
    let mut restarts = 0;
    loop {
        let before = (download.bytes, download.tag.clone());
        match attempt(config, endpoint, download).await {
            Err(Interruption::Connection(why)) => {
                let is_same = download.tag == before.1;
                restarts += u32::from(!is_same);
                // A copy that the server has given up is downloaded from its start again, but not for ever.
                let goes_on = if is_same { download.bytes > before.0 } else { restarts <= RESTARTS_MAX };
                if download.tag.is_empty() || !goes_on {
                    return Err(Interruption::Connection(why));
                }
                tokio::time::sleep(RETRY).await;
            }
            outcome => return outcome,
        }
    }
}

async fn attempt(
    config: &ClientConfig,
    endpoint: &Endpoint,
    download: &mut Download,
) -> Result<(), Interruption> {
    let broken = |error: &dyn std::fmt::Display| Interruption::Connection(error.to_string());
    let token = token(config, endpoint).await?;
    let mut request = Request::get("/snapshot").header(header::HOST, endpoint.to_string());
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token);
    }
    if !download.tag.is_empty() {
        request = request.header(header::RANGE, format!("bytes={}-", download.bytes));
        request = request.header(header::IF_RANGE, download.tag.clone());
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| broken(&error))?;
    let response = within(config, async {
        let response = exchange(config, endpoint, request).await?; // The server makes the copy first.
        let status = response.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_FOUND) {
            return Ok(response);
        }
        Err(refusal(status, &answer(response).await?))
    })
    .await?;
    download.begin(&response)?;
    let mut body = response.into_body();
    while download.bytes < download.total {
        let frame = timeout(SILENCE_MAX, body.frame()).await.map_err(|_| broken(&"the server is silent"))?;
        let frame = frame.ok_or_else(|| broken(&"the connection ended"))?.map_err(|error| broken(&error))?;
        if let Ok(data) = frame.into_data() {
            download.write(&data).map_err(Interruption::Local)?;
        }
    }
    Ok(())
}

/// A backup that is being saved.
struct Download {
    file: File,
    /// Entity tag of the server's copy; empty before there is one.
    tag: String,
    /// Bytes that were written.
    bytes: u64,
    total: u64,
    /// Time of the last line about progress.
    shown: Instant,
}

impl Download {
    /// Takes the head of a response: the whole copy, or the rest of the one that was begun.
    fn begin(&mut self, response: &Response<Incoming>) -> Result<(), Interruption> {
        let text =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match response.status() {
            StatusCode::PARTIAL_CONTENT if text(header::ETAG) == self.tag => return Ok(()),
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                return Err(Interruption::Connection("it serves no backups over HTTP".to_owned()));
            }
            status => return Err(Interruption::Connection(format!("its answer is {status}"))),
        }
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(Interruption::Local)?;
        (self.bytes, self.tag) = (0, text(header::ETAG).to_owned());
        self.total = text(header::CONTENT_LENGTH).parse().map_err(|_| {
            Interruption::Connection("the response has no length: this is no kv-server".to_owned())
        })?;
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)?;
        self.bytes += data.len() as u64;
        if self.shown.elapsed() > PROGRESS_INTERVAL && io::stderr().is_terminal() {
            self.shown = Instant::now();
            let percent = self.bytes * 100 / self.total.max(1);
            let mebibytes = self.bytes >> 20;
            // Progress that cannot be shown is not missed.
            let _ = write!(io::stderr(), "\r{percent} %, {mebibytes} MiB ");
        }
        Ok(())
    }

    /// Compares the checksum at the end of the file.
    fn check(&mut self) -> io::Result<()> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let content = self.total.checked_sub(DIGEST_BYTES).ok_or_else(|| invalid("it is too short"))?;
        self.file.seek(SeekFrom::Start(0))?;
        let (mut digest, mut left) = (Sha256::new(), content);
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.file.read_exact(&mut buffer[..part])?;
            digest.update(&buffer[..part]);
            left -= part as u64;
        }
        let mut expected = [0; DIGEST_BYTES as usize];
        self.file.read_exact(&mut expected)?;
        if digest.finalize()[..] != expected { Err(invalid("its checksum is wrong")) } else { Ok(()) }
    }
}

const RETRY: Duration = Duration::from_millis(500);
/// Copies of one server that are begun, besides the first.
const RESTARTS_MAX: u32 = 3;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
const DIGEST_BYTES: u64 = 32;
