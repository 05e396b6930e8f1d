//! Section `[metrics]`: what is measured, and where it is told.

use clap::Args;
use consensus_core::Endpoint;

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
}
