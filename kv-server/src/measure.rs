//! Metrics of the server, as text for Prometheus.
//!
//! The libraries count through the facade of the `metrics` crate. [`install`] installs the recorder that collects these
//! counts; it also gives some of them the names of etcd's metrics, by which dashboards and alerts find them. Other
//! metrics, such as the role of a node, are read when they are asked for. docs/metrics.md lists all metrics; a test
//! keeps it complete.

mod calls;
mod names;
mod node;
#[cfg(test)]
mod page;
mod recorder;
mod thrift;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use clap::ValueEnum;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

pub(crate) use self::{
    calls::{code_name, measured, received_bytes, sent_bytes},
    thrift::{ThriftMeasures, thrift_calls},
};
use crate::{frontend::stopped, routing::RoutingManager};

/// Extent of the metrics of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Nothing: there is no `/metrics`.
    Off,
    /// Counters, and durations of disk writes and of round trips between nodes.
    Basic,
    /// In addition the duration of every call, and of every stage of a write.
    Extensive,
}

/// The installed recorder.
struct Installed {
    handle: PrometheusHandle,
    data_dir: PathBuf,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Installs the recorder of this process, once. It must precede the start of the node: the libraries look up their metrics
/// when they start.
pub(crate) fn install(level: Level, data_dir: &Path) {
    if level == Level::Off {
        return;
    }
    INSTALLED.get_or_init(|| {
        let handle = recorder::install(level);
        calls::register(level);
        thrift::register(level);
        Installed { handle, data_dir: data_dir.to_owned() }
    });
}

/// Moves recorded durations into their histograms every few seconds. Without this they are kept one by one until the next request for
/// the metrics.
pub(crate) async fn maintain(mut stop: watch::Receiver<bool>) {
    let Some(installed) = INSTALLED.get() else { return };
    while tokio::time::timeout(UPKEEP_INTERVAL, stopped(&mut stop)).await.is_err() {
        installed.handle.run_upkeep();
    }
}

/// All metrics of this process and of the node, in Prometheus' text format; `None` if nothing is measured.
pub(crate) fn text(router: &RoutingManager) -> Option<String> {
    let installed = INSTALLED.get()?;
    let mut text = installed.handle.render();
    text.push_str(&node::text(router, &installed.data_dir));
    Some(text)
}

/// A connection of a client, as long as it is open.
pub(crate) struct OpenConnection(());

impl OpenConnection {
    pub(crate) fn new() -> Self {
        gauge!("kv_client_connections").increment(1);
        Self(())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        gauge!("kv_client_connections").decrement(1);
    }
}

/// Counts a check of health.
pub(crate) fn health_checked(is_healthy: bool) {
    let name = if is_healthy { "etcd_server_health_success" } else { "etcd_server_health_failures" };
    metrics::counter!(name).increment(1);
}

const UPKEEP_INTERVAL: Duration = Duration::from_secs(2);
