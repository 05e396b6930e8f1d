//! Section `[metrics]`: what is measured, and where it is told.

use std::time::Duration;

use clap::Args;
use consensus_core::Endpoint;

use super::values::{DAY, duration};

use crate::measure::Level;

/// Settings of `[metrics]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[metrics]")]
pub(crate) struct Metrics {
    /// Metrics that /metrics serves: `off` for none, `basic`, or `extensive` for the duration of every call and of every stage
    /// of a write as well (docs/metrics.md).
    #[arg(long, default_value = "basic", value_name = "LEVEL")]
    pub(crate) metrics: Level,
    /// Endpoints (`host:port`) at which /metrics and the checks of health are served besides the port for clients, and nothing
    /// else. Default: none.
    #[arg(long, value_delimiter = ',', value_name = "ENDPOINTS")]
    pub(crate) metrics_listen: Vec<Endpoint>,
    /// Duration from which on a request is logged as slow, with its keys and the stages in which the time went. 0: none is.
    ///
    /// Watches, other streams, and requests that wait for a lock or an election are not slow.
    #[arg(long, default_value = "500ms", value_name = "DURATION", value_parser = duration(Duration::ZERO..=DAY))]
    pub(crate) slow_request_limit: Duration,
}
