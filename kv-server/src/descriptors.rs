//! File descriptors: how many there may be, and who gets them.
//!
//! A node whose descriptors are used up by clients cannot open its own files any more, and ends. So each purpose has its
//! share, and clients get what is left.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::frontend;

/// The shares of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Connections of clients.
    pub(crate) clients: usize,
    /// Connections that other nodes make to this one, or strangers at their port.
    pub(crate) peers: usize,
}

/// Raises the limit of this process as far as it may by itself.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    // A limit that is infinite may be more than the system takes.
    let wanted = Some(maximum.unwrap_or(UNLIMITED).min(UNLIMITED))
        .filter(|wanted| current.is_some_and(|now| now < *wanted));
    if let Some(wanted) = wanted
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::warn!(%error, wanted, "cannot raise the limit of open files (ulimit -n)");
    }
}

/// How the descriptors that there may be are shared, with at most `clients_max` for clients and so many RocksDBs.
///
/// # Errors
/// There are too few for a node; in words.
pub(crate) fn share(clients_max: usize, databases: usize) -> Result<Shares, String> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED);
    let tables = consensus_storage_rocksdb::open_files_max().unsigned_abs() as usize;
    shares(usize::try_from(limit).unwrap_or(usize::MAX), databases * tables, clients_max)
}

fn shares(limit: usize, tables: usize, clients_max: usize) -> Result<Shares, String> {
    let peers = (limit / 16).clamp(PEERS_MIN, PEERS_MAX);
    // Each connection that a node makes is one that another takes.
    let reserve = OWN + tables + 2 * peers + frontend::BEYOND_MAX + frontend::PROBES_MAX;
    let clients = limit.saturating_sub(reserve).min(clients_max);
    if clients < CLIENTS_MIN {
        let needed = reserve + CLIENTS_MIN;
        return Err(format!(
            "the limit of open files is {limit}, and a node needs at least {needed}: raise it (ulimit -n, or LimitNOFILE of the service)"
        ));
    }
    Ok(Shares { clients, peers })
}

/// As many as anybody needs.
const UNLIMITED: u64 = 1 << 20;
/// Standard streams, the runtime, directories, segments of the log, files being sent, received, or recorded.
const OWN: usize = 32;
/// Two to each member of a small cluster.
const PEERS_MIN: usize = 8;
const PEERS_MAX: usize = 256;
/// Fewest clients that a node serves.
pub(crate) const CLIENTS_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_files_and_nodes_leave() {
        for limit in [200, 256, 1024, 65_536, 1 << 20] {
            let tables = consensus_storage_rocksdb::open_files_max_for(limit as u64).unsigned_abs() as usize;
            let shares = shares(limit, tables, 10_000).unwrap();
            let used = shares.clients
                + 2 * shares.peers
                + tables
                + OWN
                + frontend::BEYOND_MAX
                + frontend::PROBES_MAX;
            assert!(used <= limit, "{used} of {limit}");
            assert!(shares.clients >= limit / 8 || shares.clients == 10_000, "{shares:?} of {limit}");
        }
        assert_eq!(shares(1 << 20, 1000, 500).unwrap().clients, 500);
    }

    #[test]
    fn too_few_descriptors_are_refused_with_what_is_needed() {
        let why = shares(100, 40, 10_000).unwrap_err();
        assert!(why.contains("limit of open files is 100") && why.contains("ulimit -n"), "{why}");
    }
}
