//! The configurations in use, and handshakes.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    Error,
    pki_types::{ServerName, UnixTime},
    server::Acceptor,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use crate::{
    configs::{Configs, handshake_error},
    failures::Failures,
    files::{Findings, Sources, TlsError, seconds},
    settings::{PlainConnections, TlsSettings},
    stream::Stream,
};

/// TLS with the settings of one port. Clones share the configurations.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    settings: TlsSettings,
    configs: ArcSwap<Configs>,
    failures: Failures,
    /// What the last look at the files found.
    looked: Mutex<Looked>,
}

#[derive(Default)]
struct Looked {
    /// Reason that the files are bad, as it was logged last.
    refused: Option<String>,
    /// The files that were refused last.
    refused_files: Option<Findings>,
    /// When the log said last that the certificate expires soon.
    warned: Option<std::time::Instant>,
}

/// Result of a look at the files.
#[derive(Debug)]
pub enum Checked {
    /// They are the ones in use.
    Unchanged,
    /// They were replaced, and are in use for new connections.
    Reloaded,
    /// They are bad. What was in use before is used further.
    Refused(TlsError),
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// A file cannot be read, or is wrong, or does not fit another one. The error names the file.
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        let configs = Configs::build(&settings, &Sources::read(&settings)?)?;
        Ok(Self(Arc::new(Shared {
            settings,
            configs: ArcSwap::from_pointee(configs),
            failures: Failures::default(),
            looked: Mutex::default(),
        })))
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &TlsSettings {
        &self.0.settings
    }

    /// Whether connections without TLS are accepted, and made where a server speaks no TLS.
    #[must_use]
    pub fn accepts_plain(&self) -> bool {
        self.0.settings.plain == PlainConnections::Accepted
    }

    /// Performs the handshake of a connection that was accepted, on the caller's task, within [`HANDSHAKE_TIMEOUT`]. Where plain
    /// connections are accepted, a silent client may take longer, as it may be one of those. `None`: the client closed the connection
    /// before it sent anything, as probes of a port do.
    ///
    /// # Errors
    /// The handshake failed. It was logged.
    pub async fn accept(&self, stream: TcpStream, from: SocketAddr) -> io::Result<Option<Stream>> {
        let first_within = (!self.accepts_plain()).then_some(HANDSHAKE_TIMEOUT);
        self.accept_within(stream, from, first_within, HANDSHAKE_TIMEOUT).await
    }

    /// As [`accept`](Self::accept), where a client must finish the handshake within `time_limit`, and one that may connect without
    /// TLS must send something in that time.
    ///
    /// # Errors
    /// The handshake failed. It was logged.
    pub async fn accept_soon(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        time_limit: Duration,
    ) -> io::Result<Option<Stream>> {
        self.accept_within(stream, from, Some(time_limit), time_limit).await
    }

    async fn accept_within(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        first_within: Option<Duration>,
        time_limit: Duration,
    ) -> io::Result<Option<Stream>> {
        let accepted = self.accept_silently(stream, first_within, time_limit).await;
        if let Err(error) = &accepted {
            self.0.failures.failed(self.0.settings.peers, from, &handshake_error(error));
        }
        accepted
    }

    async fn accept_silently(
        &self,
        mut stream: TcpStream,
        first_within: Option<Duration>,
        time_limit: Duration,
    ) -> io::Result<Option<Stream>> {
        let start = Instant::now();
        let mut first = [0];
        let peeked = match first_within {
            None => stream.peek(&mut first).await,
            Some(limit) => timeout(limit, stream.peek(&mut first)).await.map_err(|_| silent(limit))?,
        };
        let deadline = if first_within.is_some() { start } else { Instant::now() } + time_limit;
        match peeked {
            Ok(0) | Err(_) => return Ok(None), // Nobody was there yet.
            Ok(_) if first == [HANDSHAKE] => {}
            Ok(_) if self.accepts_plain() => return Ok(Some(Stream::Plain(stream))),
            Ok(_) => {
                if first[0].is_ascii_uppercase() {
                    let _ = timeout(PLAIN_RESPONSE_TIMEOUT, tell_to_use_https(&mut stream)).await;
                }
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the client speaks no TLS, which is required",
                ));
            }
        }
        // No number bounds the handshakes: clients that stop in the middle of them would keep out the others. Only as many are
        // computed at a time as the runtime has threads.
        let handshake = async {
            let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
            let config = self.0.configs.load().server.clone();
            let config = config.ok_or_else(|| io::Error::other("there is no certificate to accept with"))?;
            start.into_stream(config).await
        };
        let stream = timeout_at(deadline, handshake).await.map_err(|_| silent(time_limit))??;
        Ok(Some(Stream::Tls(Box::new(stream.into()))))
    }

    /// Performs the handshake with the server at the other end of `stream`, which must be `host`.
    ///
    /// # Errors
    /// The handshake failed, or the server's certificate is not accepted. The reason is in words for an operator.
    /// [`io::ErrorKind::Unsupported`]: the server speaks no TLS, as far as can be told.
    pub async fn connect(&self, stream: TcpStream, host: &str, time_limit: Duration) -> io::Result<Stream> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{host} cannot be the name of a server: {error}"),
            )
        })?;
        let connector = TlsConnector::from(self.0.configs.load().client.clone());
        let deadline = Instant::now() + time_limit;
        let connected = timeout_at(deadline, connector.connect(name, stream)).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the server did not finish the handshake in time"))
        });
        match connected {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream.into()))),
            Err(error) => {
                let kind = if speaks_no_tls(&error) { io::ErrorKind::Unsupported } else { error.kind() };
                Err(io::Error::new(kind, format!("TLS: {}", handshake_error(&error))))
            }
        }
    }

    /// Reads all files again. If they have changed and are good, new connections use them. With `always` unchanged ones are read
    /// again too, and those that were refused are refused again with a line in the log.
    pub async fn check_files(&self, always: bool) -> Checked {
        let own = self.clone();
        // Files may be on a slow network.
        let checked = tokio::task::spawn_blocking(move || own.check_files_now(always)).await;
        checked.unwrap_or(Checked::Unchanged) // The runtime ends.
    }

    fn check_files_now(&self, always: bool) -> Checked {
        let settings = &self.0.settings;
        self.warn_before_expiry();
        let (current, mut found) = (self.0.configs.load().findings, None);
        let built = Sources::read(settings).and_then(|sources| {
            let findings = found.insert(sources.findings());
            let mut looked = self.looked();
            let is_refused = looked.refused_files.is_some_and(|refused| findings.is_still(refused));
            if !is_refused && findings.is_still(current) {
                // What was bad has gone. If it comes again, the log says so again.
                (looked.refused, looked.refused_files) = (None, None);
            }
            drop(looked);
            match (is_refused || findings.is_still(current)) && !always {
                true => Ok(None),
                false => Configs::build(settings, &sources).map(Some),
            }
        });
        match built {
            Ok(None) => Checked::Unchanged,
            Ok(Some(configs)) => {
                let certificate = configs.certificate.as_ref();
                tracing::info!(
                    peers = settings.peers,
                    certificate = certificate.map(|of| of.subject.as_str()),
                    valid_until = certificate.map(|of| of.not_after_text.as_str()),
                    "certificates, keys, CAs and revocation lists were read again; new connections use them"
                );
                self.0.configs.store(Arc::new(configs));
                *self.looked() = Looked::default();
                Checked::Reloaded
            }
            Err(error) => {
                let (mut looked, why) = (self.looked(), error.to_string());
                if always || looked.refused.as_ref() != Some(&why) {
                    tracing::error!(
                        peers = settings.peers,
                        "the new certificates are not used, those from before stay in use: {why}"
                    );
                }
                looked.refused = Some(why);
                looked.refused_files = found;
                Checked::Refused(error)
            }
        }
    }

    fn warn_before_expiry(&self) {
        let configs = self.0.configs.load();
        let own = configs.certificate.iter().chain(&configs.outgoing_certificate);
        let Some(certificate) = own.min_by_key(|certificate| certificate.not_after) else { return };
        let left = certificate.not_after - seconds(UnixTime::now());
        let mut looked = self.looked();
        if left > EXPIRY_WARNING_SECONDS
            || looked.warned.is_some_and(|at| at.elapsed() < EXPIRY_WARNING_EVERY)
        {
            return;
        }
        looked.warned = Some(std::time::Instant::now());
        let (peers, valid_until) = (self.0.settings.peers, &certificate.not_after_text);
        tracing::warn!(
            peers,
            certificate = certificate.subject,
            valid_until,
            "the certificate expires soon, or has expired: replace it"
        );
    }

    fn looked(&self) -> std::sync::MutexGuard<'_, Looked> {
        self.0.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// Tells a client of HTTP without TLS why it is not served. Its request is read, or the system would reset the connection, and the
/// client might not see the response.
async fn tell_to_use_https(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(HTTPS_EXPECTED).await?;
    stream.shutdown().await?;
    let (mut read, mut buffer) = (0, [0; 1024]);
    while read < PLAIN_REQUEST_BYTES_MAX {
        match stream.read(&mut buffer).await? {
            0 => break,
            bytes => read += bytes,
        }
    }
    Ok(())
}

fn silent(time_limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no handshake within {time_limit:?}"))
}

/// Whether a failed handshake means that the server speaks no TLS: it takes the first message for something else, and answers
/// in its own protocol or closes the connection.
fn speaks_no_tls(error: &io::Error) -> bool {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => true,
        _ => matches!(of_tls, Some(Error::InvalidMessage(_))),
    }
}

/// Time for the handshake of a client.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// First byte of a connection with TLS: a record of the type `handshake`.
const HANDSHAKE: u8 = 22;
const HTTPS_EXPECTED: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nThis port speaks TLS: use https.\n";
/// Time, and bytes of its request, that a client of HTTP without TLS is given.
const PLAIN_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
const PLAIN_REQUEST_BYTES_MAX: usize = 64 << 10;
/// A certificate that expires within this time is warned of.
const EXPIRY_WARNING_SECONDS: i64 = 7 * 24 * 60 * 60;
const EXPIRY_WARNING_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
