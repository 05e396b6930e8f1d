//! `--restore FILE` and `--import-etcd FILE`: a new data directory from a backup, for a standalone server or for the first node of a new cluster.
//!
//! The directory is made beside its place and renamed at the end, so that a restore that fails leaves nothing that a server would start
//! from. The node is the only member of the new cluster. The other nodes join it with empty disks: a node that started with an
//! empty log as a founding member would lack the restored data, which no log has.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use consensus_core::{ClusterId, LogId, Member, MemberKind, NodeId, StorageError};
use consensus_engine_raft::recover::{found_cluster_on_state, new_cluster_id};
use consensus_storage_dir::sync_parent_dirs;
use kv_state_machine::{Durability, KvStateMachine, Restore, StoreStatistics};

use crate::{
    config::{Mode, Settings, Topology},
    etcd_import,
    mode::{self, ModeError},
    node::{self, LOG, STATE},
};

/// Why a backup is not restored. The data directory was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("cannot read the backup {path}: {error}")]
    Backup { path: String, error: io::Error },
    #[error(
        "{path} is not empty: a backup is restored into a new data directory only; choose another --data-dir, or move the old one away"
    )]
    InUse { path: String },
    #[error(
        "node {node} is not among the listed nodes, or it is a witness: restore on a node that keeps data"
    )]
    NoSuchNode { node: u64 },
    #[error(
        "{path} cannot be replaced: it is a mount point or a link; name a directory within it that does not exist yet as --data-dir"
    )]
    Fixed { path: String },
    #[error("{backup} is not restored: {why}")]
    Refused { backup: String, why: String },
    #[error("{doing} {path}: {error}")]
    Io { doing: &'static str, path: String, error: io::Error },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Mode(#[from] ModeError),
}

/// File from which a node is restored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    Backup(&'a Path),
    /// A snapshot of etcd.
    Etcd(&'a Path),
}

impl Source<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::Backup(path) | Self::Etcd(path) => path,
        }
    }
}

/// A restored node.
pub(crate) struct Restored {
    data_dir: PathBuf,
    /// `None` for a standalone server.
    cluster: Option<ClusterId>,
    statistics: StoreStatistics,
}

/// Restores a file into the data directory of the settings.
pub(crate) fn restore(settings: &Settings, source: Source<'_>) -> Result<Restored, RestoreError> {
    let unnamed =
        |error| RestoreError::Io { doing: "finding", path: settings.data_dir.display().to_string(), error };
    // Without a separator at the end, to which the end of the name could not be added.
    let data_dir = std::path::absolute(&settings.data_dir).map_err(unnamed)?;
    let data_dir: &Path = &data_dir.components().collect::<PathBuf>();
    let is_there = require_unused(data_dir)?;
    let own = settings.topology.as_ref().map(|topology| own_member(settings, topology)).transpose()?;
    let mut aside = data_dir.as_os_str().to_owned();
    aside.push(ASIDE);
    let aside = PathBuf::from(aside);
    let io = |doing, path: &Path| {
        let path = path.display().to_string();
        move |error| RestoreError::Io { doing, path, error }
    };
    if aside.exists() {
        // An earlier restore failed, or was killed.
        fs::remove_dir_all(&aside).map_err(io("removing", &aside))?;
    }
    if is_there {
        // It is found out now, and not after the work, that it is a mount point or a link.
        let fixed = |_| RestoreError::Fixed { path: data_dir.display().to_string() };
        fs::remove_dir(data_dir).map_err(fixed)?;
    }
    let restored = restore_aside(settings, own, source, &aside).and_then(|restored| {
        fs::rename(&aside, data_dir).map_err(io("renaming the restored directory to", data_dir))?;
        Ok(restored)
    });
    let restored = restored.inspect_err(|_| {
        let _ = fs::remove_dir_all(&aside); // If this fails, the next restore removes it.
        if is_there {
            let _ = fs::create_dir(data_dir); // An empty one was there.
        }
    })?;
    sync_parent_dirs(data_dir).map_err(io("syncing the parent of", data_dir))?;
    Ok(restored)
}

/// Makes a data directory at `aside`.
fn restore_aside(
    settings: &Settings,
    own: Option<Member>,
    source: Source<'_>,
    aside: &Path,
) -> Result<Restored, RestoreError> {
    let file = open(source.path())?;
    let (mode, durability) = match own {
        Some(_) => (Mode::Replicated, Durability::FromLog),
        None => (Mode::Standalone, Durability::EachBatch),
    };
    mode::claim(aside, mode, LOG, STATE)?;
    let cluster = own.as_ref().map(|_| new_cluster_id());
    let machine = KvStateMachine::open(&aside.join(STATE), settings.node, durability)?;
    let machine = machine.with_reserve(settings.limits.disk_reserve);
    let wanted =
        Restore { cluster: cluster.unwrap_or(ClusterId::NONE), bump_revision: settings.once.bump_revision };
    let (applied, statistics) = read_into(machine, file, source, wanted)?;
    if let (Some(own), Some(cluster)) = (own, cluster) {
        let log = node::open_log_in(settings, aside)?;
        found_cluster_on_state(&*log, settings.node, own, applied, cluster)?;
    }
    Ok(Restored { data_dir: settings.data_dir.clone(), cluster, statistics })
}

fn open(backup: &Path) -> Result<File, RestoreError> {
    File::open(backup).map_err(|error| RestoreError::Backup { path: backup.display().to_string(), error })
}

/// Reads a file into a new store, and closes it. Returns the last entry that the store reflects, and what it has.
fn read_into(
    mut machine: KvStateMachine,
    file: File,
    source: Source<'_>,
    wanted: Restore,
) -> Result<(LogId, StoreStatistics), RestoreError> {
    let applied = match source {
        Source::Backup(_) => {
            let mut file = BufReader::with_capacity(READ_BYTES, file);
            machine.restore_backup(&mut file, wanted).map_err(|error| error.to_string())
        }
        Source::Etcd(_) => etcd_import::import(&mut machine, file, wanted).map_err(|error| error.to_string()),
    };
    let refused = |why| RestoreError::Refused { backup: source.path().display().to_string(), why };
    let applied = applied.map_err(refused)?;
    let statistics = machine.executor().statistics().map_err(|error| refused(error.to_string()))?;
    Ok((applied, statistics))
}

/// Refuses a directory with content. Returns whether there is one.
fn require_unused(data_dir: &Path) -> Result<bool, RestoreError> {
    let path = data_dir.display().to_string();
    match fs::read_dir(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(RestoreError::Io { doing: "reading", path, error }),
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(_) => Err(RestoreError::InUse { path }),
        },
    }
}

/// This node as the only member of the new cluster.
fn own_member(settings: &Settings, topology: &Topology) -> Result<Member, RestoreError> {
    let node = settings.node;
    let own = topology.nodes.get(&node).filter(|_| !topology.witnesses.contains(&node));
    let own = own.cloned().ok_or(RestoreError::NoSuchNode { node: node.0 })?;
    Ok(Member {
        endpoint: Some(own.consensus),
        client_endpoint: own.client,
        name: own.name,
        ..Member::new(MemberKind::Voter)
    })
}

/// Message about a restored node.
pub(crate) fn describe(settings: &Settings, restored: &Restored) -> String {
    let Restored { data_dir, cluster, statistics: StoreStatistics { revision, keys, leases, .. } } = restored;
    let restored =
        format!("{} has {keys} keys and {leases} leases, at revision {revision}", data_dir.display());
    match cluster {
        None => format!("{restored}\n- start the server as before"),
        Some(cluster) => format!(
            "{restored}\n\
             - node {} is the only member of the new cluster {cluster}: start it as before; a file that lists the others does no harm\n\
             - add the others with empty data directories: kv-server --join, then kvctl member add; they receive the data from this node\n\
             - nodes of the old cluster are refused: they must not be started with their old data beside this cluster",
            settings.node
        ),
    }
}

/// Describes a backup without restoring it: it is read into a scratch directory, which needs as much room as the backup.
pub(crate) fn describe_backup(backup: &Path) -> Result<String, RestoreError> {
    let unreadable = |error| RestoreError::Backup { path: backup.display().to_string(), error };
    let file = open(backup)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let scratch = tempfile::tempdir().map_err(unreadable)?;
    let machine = KvStateMachine::open(&scratch.path().join(STATE), NodeId(0), Durability::FromLog)?;
    let (_, StoreStatistics { revision, compacted, keys, leases, .. }) =
        read_into(machine, file, Source::Backup(backup), Restore::default())?;
    Ok(format!(
        "{}: complete, {bytes} bytes\nrevision {revision}, compacted {compacted}, {keys} keys, {leases} leases",
        backup.display()
    ))
}

/// End of the name of the directory in which a restore works.
const ASIDE: &str = ".restoring";
const READ_BYTES: usize = 1 << 20;
