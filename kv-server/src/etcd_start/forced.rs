//! `--force-new-cluster`: the start that makes a member the only one of its cluster, and the mark that keeps later starts from doing it
//! again.
//!
//! The flag may stay in a unit file. If members were added after it was carried out, another start with it would remove them, and lose
//! what they acknowledged. So a file in the data directory records that it was carried out. A start without the flag removes the file.

use std::{fs, io, path::Path};

use consensus_core::{Endpoint, Member, Membership, NodeId, StorageError};
use consensus_engine_raft::recover::{RecoverError, Recovered};
use consensus_storage_dir::read_with_checksum;

use crate::{
    config::Settings,
    node::{self, NodeError},
    record::record,
};

/// Why `--force-new-cluster` is refused. The log was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForceError {
    /// There is nothing to recover.
    #[error("--force-new-cluster: {path} is not there; check --data-dir and whether the disk is mounted")]
    NoLog { path: String },
    /// It was carried out before, and the cluster has members again.
    #[error(
        "remove {flag}: it was carried out at an earlier start, and the cluster has other members now: {members}. Nothing was changed; \
         to carry it out again would remove them and lose what they acknowledged. If a majority of them is lost too, start this member \
         once without the flag, and then with it"
    )]
    Again {
        /// The flag, with the place where it was given.
        flag: String,
        /// The other members.
        members: String,
    },
    /// The log cannot be recovered, or not read.
    #[error("{flag}: nothing was changed: {error}")]
    Refused { flag: String, error: Box<NodeError> },
    /// The file of the mark cannot be read or written.
    #[error(transparent)]
    Mark(#[from] StorageError),
}

/// Refuses a data directory without a log, in which there is nothing to recover.
pub(super) fn require_log(data_dir: &Path) -> Result<(), ForceError> {
    let path = node::log_dir(data_dir);
    if path.exists() { Ok(()) } else { Err(ForceError::NoLog { path: path.display().to_string() }) }
}

/// Makes the node the only member of its cluster, unless it is the only voter already. Refuses to do so again when members were added.
/// `flag` names the flag and its place.
pub(super) fn force_new_cluster(settings: &Settings, flag: &str) -> Result<(), ForceError> {
    let refused = |error| ForceError::Refused { flag: flag.to_owned(), error: Box::new(error) };
    let (node, data_dir) = (settings.node, &settings.data_dir);
    if is_marked(data_dir)? {
        let membership = node::recorded_membership(settings).map_err(refused)?;
        let members = describe_members(&membership, Some(node));
        if !members.is_empty() {
            return Err(ForceError::Again { flag: flag.to_owned(), members });
        }
    }
    match node::force_new_cluster(settings) {
        // At this level it is seen with any --log-level.
        Ok(recovered) => tracing::error!("{}", describe_recovery(node, flag, &recovered)),
        Err(NodeError::Recover(RecoverError::Alone(_))) => tracing::warn!(
            "{flag} changes nothing, as this member is the only voter of its cluster. Remove the flag: when the cluster has other \
             members, a start with it is refused"
        ),
        Err(error) => return Err(refused(error)),
    }
    // A start that ends before this finds the only voter next time, and sets the mark then.
    Ok(set_mark(data_dir)?)
}

/// Removes the mark, at a start without the flag.
pub(super) fn clear_mark(data_dir: &Path) -> Result<(), StorageError> {
    let path = data_dir.join(FORCED);
    let clear = || match fs::remove_file(&path) {
        Ok(()) => fs::File::open(data_dir)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    clear().map_err(|source| StorageError::Io { context: format!("removing {}", path.display()), source })
}

fn is_marked(data_dir: &Path) -> Result<bool, StorageError> {
    Ok(read_with_checksum(&data_dir.join(FORCED))?.is_some())
}

fn set_mark(data_dir: &Path) -> Result<(), StorageError> {
    record(data_dir, FORCED, "a start with --force-new-cluster was carried out\n", "writing")
}

/// Message about a cluster that was forced.
fn describe_recovery(node: NodeId, flag: &str, recovered: &Recovered) -> String {
    let Recovered { before, last, .. } = recovered;
    let name = before.get(node).map_or_else(|| node.to_string(), describe_member);
    format!(
        "{flag} was carried out: member {name} is the only member of its cluster now. Before, the members were {members}. \
         The log of this member ended with entry {last}: what the cluster acknowledged beyond it is lost. \
         Remove the flag before the next start: when the cluster has other members, a start with it is refused. \
         Do not start the former members with their old data, as they would go on as the old cluster: empty their data directories, \
         add them with etcdctl member add, and start them with --initial-cluster-state=existing",
        members = describe_members(before, None),
    )
}

/// The members without one, as `a (http://10.0.0.1:2380), b (http://10.0.0.2:2380)`.
fn describe_members(membership: &Membership, without: Option<NodeId>) -> String {
    let members = membership.all_members().filter(|(id, _)| Some(*id) != without);
    members.map(|(_, member)| describe_member(member)).collect::<Vec<_>>().join(", ")
}

fn describe_member(member: &Member) -> String {
    let url = |endpoint: &Endpoint| format!("http://{endpoint}");
    match (member.name.as_deref().filter(|name| !name.is_empty()), member.endpoint.as_ref().map(url)) {
        (Some(name), Some(url)) => format!("{name} ({url})"),
        (Some(name), None) => name.to_owned(),
        (None, url) => url.unwrap_or_else(|| "a member without a name".to_owned()),
    }
}

/// Name of the file of the mark.
const FORCED: &str = "FORCED";

#[cfg(test)]
mod tests {
    use consensus_core::{Entry, LogBatch, LogId, LogIndex, LogStorage, MemberKind, Payload, Term};
    use consensus_storage_wal::WalLogStorage;

    use super::*;

    const FLAG: &str = "--force-new-cluster (command line)";

    fn settings_in(data_dir: &Path) -> Settings {
        let data_dir = format!("--data-dir={}", data_dir.display());
        crate::etcd_start::tests::settings(&["--name=a", &data_dir])
    }

    fn members(count: u64) -> Membership {
        let member = |id: u64| {
            let name = ["a", "b", "c"].get(usize::try_from(id).unwrap()).map(ToString::to_string);
            let endpoint = Some(format!("10.0.0.{id}:2380").parse().unwrap());
            (NodeId(id), Member { name, endpoint, ..Member::new(MemberKind::Voter) })
        };
        Membership::new((0..count).map(member).collect())
    }

    /// Appends a configuration to the log of node 0.
    fn append(settings: &Settings, membership: Membership) {
        let log = WalLogStorage::open(&node::log_dir(&settings.data_dir), settings.node).unwrap();
        let last = log.load().unwrap().last();
        let id = LogId { term: last.term.max(Term(1)), index: last.index.next() };
        let entries = vec![Entry { id, payload: Payload::Membership(membership) }];
        log.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
    }

    fn last_index(settings: &Settings) -> LogIndex {
        let log = WalLogStorage::open(&node::log_dir(&settings.data_dir), settings.node).unwrap();
        log.load().unwrap().last().index
    }

    #[test]
    fn forced_member_is_forced_again_only_after_a_start_without_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings_in(dir.path());
        append(&settings, members(2));
        force_new_cluster(&settings, FLAG).unwrap();
        let membership = node::recorded_membership(&settings).unwrap();
        assert!(membership.is_only_voter(NodeId(0)));
        // The only voter starts as often as it likes.
        force_new_cluster(&settings, FLAG).unwrap();
        append(&settings, members(3));
        let before = last_index(&settings);
        let error = force_new_cluster(&settings, FLAG).unwrap_err().to_string();
        for words in [
            "remove --force-new-cluster (command line)",
            "b (http://10.0.0.1:2380), c (http://10.0.0.2:2380)",
            "Nothing was changed",
        ] {
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(last_index(&settings), before);
        clear_mark(dir.path()).unwrap();
        clear_mark(dir.path()).unwrap();
        force_new_cluster(&settings, FLAG).unwrap();
        assert!(node::recorded_membership(&settings).unwrap().is_only_voter(NodeId(0)));
    }

    #[test]
    fn only_voter_that_was_never_forced_gets_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings_in(dir.path());
        append(&settings, members(1));
        force_new_cluster(&settings, FLAG).unwrap();
        append(&settings, members(2));
        let error = force_new_cluster(&settings, FLAG).unwrap_err();
        assert!(matches!(error, ForceError::Again { .. }), "{error}");
    }

    #[test]
    fn data_directory_without_a_log_is_not_forced() {
        let dir = tempfile::tempdir().unwrap();
        let error = require_log(dir.path()).unwrap_err().to_string();
        let path = dir.path().join("log").display().to_string();
        assert!(error.contains(&format!("--force-new-cluster: {path} is not there")), "{error}");
    }

    #[test]
    fn recovery_is_described_by_names_and_peer_urls() {
        let id = LogId { term: Term(3), index: LogIndex(7) };
        let recovered = Recovered { before: members(2), last: id, by: id };
        let text = describe_recovery(NodeId(0), FLAG, &recovered);
        for words in [
            "member a (http://10.0.0.0:2380) is the only member",
            "the members were a (http://10.0.0.0:2380), b (http://10.0.0.1:2380)",
            "Remove the flag",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }
}
