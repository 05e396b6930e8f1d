//! Counts of the calls over Thrift.

use std::{collections::HashMap, sync::OnceLock, time::Instant};

use kv_store_client::protocol::{Fault, Reply};
use metrics::{Counter, Histogram, counter, histogram};

use super::Level;

/// Metrics of one method.
pub(crate) struct ThriftMeasures {
    ok: Counter,
    /// Faults of the store: the request is wrong, or its precondition does not hold.
    refused: Counter,
    /// Faults of the cluster: no leader, no majority in time, overload.
    unavailable: Counter,
    seconds: Option<Histogram>,
}

static METHODS: OnceLock<HashMap<&'static str, ThriftMeasures>> = OnceLock::new();

pub(super) fn register(level: Level) {
    METHODS.get_or_init(|| {
        let measures = |method: &'static str| {
            let outcome =
                |outcome| counter!("kv_thrift_calls_total", "method" => method, "outcome" => outcome);
            ThriftMeasures {
                ok: outcome("ok"),
                refused: outcome("refused"),
                unavailable: outcome("unavailable"),
                seconds: (level == Level::Extensive)
                    .then(|| histogram!("kv_thrift_call_seconds", "method" => method)),
            }
        };
        NAMES.iter().map(|name| (*name, measures(name))).collect()
    });
}

/// Metrics of a method; `None` if nothing is measured, or if the method is not one of the clients' methods.
pub(crate) fn thrift_calls(method: &str) -> Option<&'static ThriftMeasures> {
    METHODS.get()?.get(method)
}

impl ThriftMeasures {
    /// The time at which a call started, if durations are recorded.
    pub(crate) fn start_time(&self) -> Option<Instant> {
        self.seconds.as_ref().map(|_| Instant::now())
    }

    pub(crate) fn done(&self, start: Option<Instant>, outcome: &Result<Reply, Fault>) {
        match outcome {
            Ok(_) => &self.ok,
            Err(Fault::NotLeader(_) | Fault::Unavailable(_)) => &self.unavailable,
            Err(_) => &self.refused,
        }
        .increment(1);
        if let (Some(seconds), Some(start)) = (&self.seconds, start) {
            seconds.record(start.elapsed());
        }
    }
}

/// Methods for clients and operators.
const NAMES: [&str; 19] = [
    "put",
    "delete_range",
    "range",
    "txn",
    "compact",
    "open_session",
    "lease_grant",
    "lease_revoke",
    "lease_keep_alive",
    "lease_time_to_live",
    "lease_list",
    "watch",
    "status",
    "hash",
    "change_members",
    "transfer_leader",
    "alarms",
    "disarm_alarm",
    "set_log_level",
];
