//! Which member a data directory is of. It is noted when the member has its first place in a cluster, and from then on counts in place
//! of the flags for the first start.

use std::path::Path;

use consensus_core::{NodeId, StorageError};
use consensus_storage_dir::read_with_checksum;

use super::data_of_etcd;
use crate::{node::log_dir, record::record};

/// The member of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    pub(super) cluster_name: String,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file says something else.
    #[error(
        "{path}: {text:?} names no member; restore the file or the directory, or choose another --data-dir"
    )]
    Unknown { path: String, text: String },
    /// The directory is etcd's.
    #[error(
        "{path} is data of etcd, which kv-server cannot read, and nothing was changed; choose an empty --data-dir, and copy the \
         keys from a running etcd (`etcdctl make-mirror`)"
    )]
    OfEtcd { path: String },
    /// The directory has data of kv-server, and of etcd.
    #[error(
        "{data_dir}: this directory has data of both kv-server and etcd, and nothing was changed; if etcd was started here by mistake, \
         move {path} away"
    )]
    OfBoth { data_dir: String, path: String },
}

impl Identity {
    /// The member of the directory; `None` if it is new.
    pub(super) fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(MEMBER);
        if let Some(of_etcd) = data_of_etcd(data_dir) {
            let of_etcd = of_etcd.display().to_string();
            if path.exists() || log_dir(data_dir).exists() {
                return Err(IdentityError::OfBoth {
                    data_dir: data_dir.display().to_string(),
                    path: of_etcd,
                });
            }
            return Err(IdentityError::OfEtcd { path: of_etcd });
        }
        let Some(text) = read_with_checksum(&path)? else { return Ok(None) };
        match Self::parse(&text) {
            Some(identity) => Ok(Some(identity)),
            None => Err(IdentityError::Unknown { path: path.display().to_string(), text }),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, rest) = text.split_once('\n')?;
        let node = first.strip_prefix("node = ")?.parse().ok()?;
        let cluster_name = rest.strip_prefix("cluster_name = ")?.strip_suffix('\n')?;
        Some(Self { node: NodeId(node), cluster_name: cluster_name.to_owned() })
    }

    /// Notes the member in the directory, which is made if it is not there.
    pub(super) fn store(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let text = format!("node = {}\ncluster_name = {}\n", self.node, self.cluster_name);
        Ok(record(data_dir, MEMBER, &text, "recording the member in")?)
    }
}

/// Name of the file.
const MEMBER: &str = "MEMBER";

#[cfg(test)]
mod tests {
    use std::fs;

    use consensus_storage_dir::replace_with_checksum;

    use super::*;

    #[test]
    fn identity_is_found_again_and_another_text_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        assert_eq!(Identity::load(&data).unwrap(), None);
        let identity = Identity { node: NodeId(7), cluster_name: "etcd = cluster ".to_owned() };
        identity.store(&data).unwrap();
        assert_eq!(Identity::load(&data).unwrap(), Some(identity));
        for wrong in ["", "node = x\ncluster_name = a\n", "node = 1\n", "node = 1\ncluster_name = a"] {
            replace_with_checksum(&data.join(MEMBER), wrong).unwrap();
            let error = Identity::load(&data).unwrap_err();
            assert!(matches!(error, IdentityError::Unknown { .. }), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn data_of_etcd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("member/wal")).unwrap();
        let error = Identity::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("data of etcd") && error.contains("make-mirror"), "{error}");
    }

    #[test]
    fn data_of_etcd_beside_data_of_kv_server_is_to_be_moved_away() {
        for own in [MEMBER, "log"] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("member/wal")).unwrap();
            fs::create_dir(dir.path().join(own)).unwrap();
            let error = Identity::load(dir.path()).unwrap_err().to_string();
            let advice = format!("move {} away", dir.path().join("member").display());
            assert!(error.contains("data of both") && error.contains(&advice), "{error}");
            assert!(!error.contains("empty --data-dir"), "{error}");
        }
    }
}
