//! Runs a node until a signal or a failure ends it.

use std::{fmt::Display, time::Duration};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::node::Node;

/// How a node ended.
#[derive(Debug)]
pub(crate) enum End {
    /// A signal with this number stopped it, gracefully.
    Signal(i32),
    /// It did not start, or could not go on.
    Failed(String),
}

/// When a node counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// When it serves clients, whether or not there is a leader.
    Started,
    /// When the cluster knows where clients reach it, as in etcd.
    Published,
}

/// Starts a node and serves until a signal or a failure. A service manager that waits for it is told when the node is ready.
pub(crate) async fn serve<E: Display>(start: impl Future<Output = Result<Node, E>>, ready: Ready) -> End {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return End::Failed(format!("cannot listen for signals: {error}")),
    };
    // A start may wait for other nodes.
    let started = tokio::select! {
        started = start => started,
        number = signals.next() => return End::Signal(number),
    };
    let node = match started {
        Ok(node) => node,
        Err(error) => return End::Failed(error.to_string()),
    };
    if ready == Ready::Started {
        notify(NotifyState::Ready);
    }
    let announced = async {
        if ready == Ready::Published && node.published().await {
            // Harnesses and scripts wait for these words of etcd.
            tracing::info!("ready to serve client requests");
            notify(NotifyState::Ready);
        }
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        number = signals.next() => End::Signal(number),
        why = node.failed() => End::Failed(format!("stopping: {why}")),
        () = announced => End::Failed("stopping".to_owned()), // It does not end.
    };
    notify(NotifyState::Stopping);
    tracing::info!("stopping");
    if tokio::time::timeout(SHUTDOWN_MAX, node.shutdown()).await.is_err() {
        tracing::warn!("not everything ended in time; what is acknowledged is on disk");
    }
    end
}

/// The signals that stop the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    /// Number of the next signal.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

/// Tells the service manager, if there is one that wants to know.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// A graceful end takes no longer than this.
const SHUTDOWN_MAX: Duration = Duration::from_millis(4500);
