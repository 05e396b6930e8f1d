//! One connection to a server, with many calls in flight.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use consensus_core::Endpoint;
use consensus_tls::Tls;
use consensus_transport_thrift::{connect_with, framing};
use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};

use crate::protocol::{self, Call, Fault, Reply};

/// A connection. Calls from any number of tasks share it; a reply belongs to the call with its sequence
/// number. The connection ends when it is dropped, or at its first error. It does not reconnect.
#[derive(Debug)]
pub struct Connection {
    endpoint: Endpoint,
    frames: mpsc::Sender<Bytes>,
    pending: Arc<Mutex<Pending>>,
    reader: tokio::task::JoinHandle<()>,
    /// Reason that the login failed.
    login_fault: Option<Fault>,
}

#[derive(Debug, Default)]
struct Pending {
    next: i32,
    waiting: HashMap<i32, oneshot::Sender<Result<Reply, Fault>>>,
    /// Reason that the connection ended; `None` while it is open.
    ended: Option<String>,
}

/// Reason that a call has no outcome.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The call was not sent.
    #[error("{endpoint}: not sent: {why}")]
    NotSent {
        /// Endpoint of the server.
        endpoint: Endpoint,
        /// Reason, in words.
        why: String,
    },
    /// The call was sent, and the connection ended before the reply arrived. The call may have been executed.
    #[error("{endpoint}: no answer: {why}")]
    NoAnswer {
        /// Endpoint of the server.
        endpoint: Endpoint,
        /// Reason, in words.
        why: String,
    },
}

impl Connection {
    /// Opens a connection within `timeout`.
    ///
    /// # Errors
    /// The connection cannot be opened in time. The error names the endpoint.
    pub async fn open(endpoint: &Endpoint, timeout: Duration) -> io::Result<Self> {
        Self::open_with(endpoint, timeout, None).await
    }

    /// Opens a connection within `timeout`, with TLS if there is any.
    ///
    /// # Errors
    /// The connection cannot be opened in time, or the server's certificate is not accepted. The error names the endpoint.
    pub async fn open_with(endpoint: &Endpoint, timeout: Duration, tls: Option<&Tls>) -> io::Result<Self> {
        let (reader, writer) = connect_with(endpoint, timeout, tls).await?.into_split();
        let (frames, queue) = mpsc::channel(QUEUE_FRAMES);
        let pending = Arc::new(Mutex::new(Pending::default()));
        let shared = pending.clone();
        // One task serves both directions. When either direction ends, the connection has ended.
        let reader = tokio::spawn(async move {
            let mut replies = framing::reader(reader, FRAME_BYTES_MAX);
            let receive = async {
                while let Some(frame) = replies.next().await {
                    let (sequence, outcome) = protocol::read_reply(&frame?).map_err(|error| {
                        io::Error::new(io::ErrorKind::InvalidData, framing::error_text(&error))
                    })?;
                    if let Some(waiting) = lock(&shared).waiting.remove(&sequence) {
                        let _ = waiting.send(outcome); // The caller may have been dropped.
                    }
                }
                Ok::<(), io::Error>(())
            };
            let result = tokio::select! {
                result = receive => result,
                result = framing::write_all(writer, queue, |_| (), || lock(&shared).waiting.len() > 1) => result,
            };
            let why = result
                .err()
                .map_or_else(|| "the connection was closed".to_owned(), |error| error.to_string());
            let mut pending = lock(&shared);
            pending.ended = Some(why);
            pending.waiting.clear();
        });
        Ok(Self { endpoint: endpoint.clone(), frames, pending, reader, login_fault: None })
    }

    pub(crate) fn with_login_fault(mut self, fault: Option<Fault>) -> Self {
        self.login_fault = fault;
        self
    }

    pub(crate) fn login_fault(&self) -> Option<&Fault> {
        self.login_fault.as_ref()
    }

    /// Returns the endpoint of the server.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether the connection is open, as far as is known.
    #[must_use]
    pub fn is_open(&self) -> bool {
        lock(&self.pending).ended.is_none()
    }

    /// Sends a call and waits for the outcome, without a time limit. The caller may drop the future at any
    /// time.
    ///
    /// # Errors
    /// There is no outcome. The error says whether the call may have been executed.
    pub async fn call(&self, call: Call) -> Result<Result<Reply, Fault>, CallError> {
        let not_sent = |why: String| CallError::NotSent { endpoint: self.endpoint.clone(), why };
        let (waiting, outcome) = oneshot::channel();
        let sequence = {
            let mut pending = lock(&self.pending);
            if let Some(why) = &pending.ended {
                return Err(not_sent(why.clone()));
            }
            pending.next = pending.next.wrapping_add(1);
            let sequence = pending.next;
            pending.waiting.insert(sequence, waiting);
            sequence
        };
        // Removes the pending call if the caller drops this future.
        let _forget = Forget { pending: &self.pending, sequence };
        let frame = call.encode(sequence).map_err(|error| not_sent(framing::error_text(&error)))?;
        if frame.len() - 4 > FRAME_BYTES_MAX {
            return Err(not_sent(format!(
                "a request of {} bytes; at most {FRAME_BYTES_MAX} are allowed",
                frame.len() - 4
            )));
        }
        self.frames.send(frame).await.map_err(|_| not_sent("the connection has ended".to_owned()))?;
        outcome.await.map_err(|_| {
            let why = lock(&self.pending).ended.clone().unwrap_or_default();
            CallError::NoAnswer { endpoint: self.endpoint.clone(), why }
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Forget<'a> {
    pending: &'a Mutex<Pending>,
    sequence: i32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.pending).waiting.remove(&self.sequence);
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maximum length of a request or reply, in bytes.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;
/// Maximum number of requests that wait to be written.
const QUEUE_FRAMES: usize = 1024;
