//! What the log says of the connection to one other node.

use std::{
    future::Future,
    io,
    pin::pin,
    time::{Duration, Instant},
};

use consensus_core::{Endpoint, NodeId, TransportError};

use crate::repeats::{OVER_AFTER, Repeats, Times};

/// Tells of connections made, lost and not made: each cause once per outage, and how often when it is over.
#[derive(Debug)]
pub(crate) struct Chronicle {
    node: NodeId,
    endpoint: Endpoint,
    /// Attempts that failed, by their error.
    failures: Repeats<String>,
    /// Connections made and lost, by the error. Each is said for some that follow each other: a node may be restarted.
    changes: Repeats<String>,
}

impl Chronicle {
    pub(crate) fn new(node: NodeId, endpoint: Endpoint) -> Self {
        Self { node, endpoint, failures: Repeats::new(1), changes: Repeats::new(CHANGES_SAID_EACH) }
    }

    pub(crate) fn cannot_connect(&mut self, error: &TransportError) {
        match self.failures.note(error.to_string(), Instant::now()) {
            Some(so_far) => {
                tracing::warn!(node = %self.node, %error, %so_far, "cannot connect; trying again until it succeeds");
            }
            None => tracing::debug!(node = %self.node, %error, "cannot connect"),
        }
    }

    /// Tells of a connection and, when `end` is ready, of its end.
    pub(crate) async fn connected_until(&mut self, end: impl Future<Output = io::Error>) {
        let (node, endpoint) = (self.node, self.endpoint.clone());
        match self.changes.note("connected".to_owned(), Instant::now()) {
            Some(_) => tracing::info!(%node, %endpoint, "connected"),
            None => tracing::debug!(%node, %endpoint, "connected"),
        }
        let (mut end, mut settled, mut quiet) =
            (pin!(end), pin!(tokio::time::sleep(SETTLED_AFTER)), pin!(tokio::time::sleep(OVER_AFTER)));
        let error = loop {
            tokio::select! {
                error = &mut end => break error,
                () = &mut settled, if !self.failures.is_empty() => {
                    let over = self.failures.end(Instant::now(), |_| true);
                    self.tell(over, "connected again after attempts that failed");
                }
                () = &mut quiet, if !self.changes.is_empty() => {
                    let over = self.changes.end(Instant::now(), |_| true);
                    self.tell(over, "the connection stands again after changes that were not all logged");
                }
            }
        };
        match self.changes.note(format!("disconnected: {error}"), Instant::now()) {
            Some(so_far) => tracing::info!(%node, %error, %so_far, "disconnected"),
            None => tracing::debug!(%node, %error, "disconnected"),
        }
    }

    fn tell(&self, over: Vec<(String, Times)>, what: &str) {
        for (cause, times) in over {
            tracing::info!(node = %self.node, cause, %times, "{what}");
        }
    }
}

/// A connection that stood for so long ends an outage.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Connections made, and connections lost of one cause, that are said each.
const CHANGES_SAID_EACH: u64 = 5;
