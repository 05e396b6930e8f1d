//! Counters and histograms, through the facade of the `metrics` crate. They reach the recorder that the program installs
//! before the store is opened.
//!
//! | name | |
//! |---|---|
//! | `kv_store_batch_seconds` | duration of each write of a batch of commands to RocksDB |
//! | `kv_store_batch_commands` | commands in each batch |
//! | `kv_store_puts_total`, `kv_store_deletes_total` | keys written and deleted one by one |
//! | `kv_store_range_deletions_total` | deletions of ranges with too many keys for one batch |
//! | `kv_store_ranges_total` | ranges and transactions that were only read |
//! | `kv_store_transactions_total` | transactions that were executed as commands |
//! | `kv_store_leases_granted_total`, `kv_store_leases_ended_total`, `kv_store_leases_expired_total` | leases; ended ones were revoked or have expired |
//! | `kv_store_leases_renewed_total` | renewals on this node as leader |

use std::{fmt, time::Duration};

use metrics::{Counter, Histogram, counter, histogram};

use crate::pending_writes::PendingWrites;

/// Metrics of commands and reads, looked up once.
#[derive(Clone)]
pub(crate) struct Measures {
    batch_seconds: Histogram,
    batch_commands: Histogram,
    puts: Counter,
    deletes: Counter,
    range_deletions: Counter,
    pub(crate) ranges: Counter,
    transactions: Counter,
    leases_granted: Counter,
    leases_ended: Counter,
    leases_expired: Counter,
    pub(crate) leases_renewed: Counter,
}

impl Measures {
    pub(crate) fn new() -> Self {
        Self {
            batch_seconds: histogram!("kv_store_batch_seconds"),
            batch_commands: histogram!("kv_store_batch_commands"),
            puts: counter!("kv_store_puts_total"),
            deletes: counter!("kv_store_deletes_total"),
            range_deletions: counter!("kv_store_range_deletions_total"),
            ranges: counter!("kv_store_ranges_total"),
            transactions: counter!("kv_store_transactions_total"),
            leases_granted: counter!("kv_store_leases_granted_total"),
            leases_ended: counter!("kv_store_leases_ended_total"),
            leases_expired: counter!("kv_store_leases_expired_total"),
            leases_renewed: counter!("kv_store_leases_renewed_total"),
        }
    }

    /// Records a batch of commands that was written in `time`.
    pub(crate) fn batch_written(&self, written: &PendingWrites, commands: usize, time: Duration) {
        self.batch_seconds.record(time);
        self.batch_commands.record(commands as f64);
        let deletes = written.changes.iter().filter(|change| change.deleted).count();
        self.puts.increment((written.changes.len() - deletes) as u64);
        self.deletes.increment(deletes as u64);
        self.range_deletions.increment(u64::from(written.range_deletion.is_some()));
        self.leases_granted.increment(written.granted.len() as u64);
        let ended = written.leases.values().filter(|lease| lease.is_none()).count();
        self.leases_ended.increment(ended as u64);
        self.transactions.increment(written.transactions);
        self.leases_expired.increment(written.expired);
    }
}

impl fmt::Debug for Measures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measures").finish_non_exhaustive()
    }
}
