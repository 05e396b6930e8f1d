//! Renders a run as one self-contained HTML page with the time-space diagram of its nodes and messages.

use serde::Serialize;

use crate::{run::Outcome, trace::Moment};

#[derive(Serialize)]
struct Run<'a> {
    title: String,
    failure: Option<&'a str>,
    nodes: u64,
    moments: &'a [Moment],
}

/// Renders the page of a run whose [trace was kept](crate::Options::keeps_trace).
///
/// # Errors
/// The trace has a number that JSON cannot represent, which no run produces.
pub fn page(seed: u64, outcome: &Outcome) -> Result<String, serde_json::Error> {
    let nodes = outcome.plan.voters + outcome.plan.spares;
    let result = if outcome.failure.is_some() { "failed" } else { "passed" };
    let title = format!("Seed {seed}, {nodes} nodes, {} ms: {result}", outcome.simulated_us / 1000);
    let run = Run { title, failure: outcome.failure.as_deref(), nodes, moments: &outcome.trace.moments };
    // Text in the trace must not end the script element.
    let json = serde_json::to_string(&run)?.replace('<', "\\u003c");
    Ok(PAGE.replacen("/*RUN*/null", &json, 1))
}

const PAGE: &str = include_str!("page.html");
