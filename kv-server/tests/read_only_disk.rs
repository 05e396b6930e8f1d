//! A store whose directory takes no new files any more: what RocksDB has open goes on.

use std::path::{Path, PathBuf};

use crate::common::{Cluster, Server, disk};

/// Mounted over itself, for reading only.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn mount(dir: &Path) -> Option<Self> {
        let is_mounted = disk::done(disk::mount().args(["--bind", "-o", "ro"]).args([dir, dir]));
        assert!(is_mounted || std::env::var_os("TEST_DISKS").is_none(), "this test needs root and mount");
        is_mounted.then(|| Self(dir.to_owned()))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        disk::unmount(&self.0);
    }
}

fn generation(cluster: &Cluster, id: usize) -> PathBuf {
    let entries = std::fs::read_dir(cluster.data(id).join("state")).unwrap();
    let mut dirs = entries.map(|entry| entry.unwrap().path());
    dirs.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("gen-")).unwrap()
}

/// The log grows meanwhile, because nothing of it may be purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_stores_cannot_be_flushed_serve_and_purge_the_log_later() {
    let settings = "[log]\ncompact_after_entries = 20\ncompact_keep_entries = 1\n";
    let mut cluster = Cluster::prepare_with(3, settings);
    cluster.servers.iter_mut().for_each(Server::start);
    let client = cluster.client();
    client.put("k", "before").await.unwrap();
    cluster.same_hash().await;
    let leader = cluster.leader().await;
    let term = cluster.status(leader).await.unwrap().header.term;
    let mut mounts = Vec::new();
    for id in 0..3 {
        let Some(mount) = ReadOnly::mount(&generation(&cluster, id)) else {
            return eprintln!("skipped: this test needs root and mount");
        };
        mounts.push(mount);
    }
    let first = cluster.status(leader).await.unwrap().first_log_index;
    for n in 0..200 {
        client.put("k", n.to_string()).await.unwrap();
    }
    cluster.same_hash().await;
    let status = cluster.status(leader).await.unwrap();
    assert_eq!((status.header.term, &status.role[..]), (term, "leader"), "nobody ended");
    assert!(status.first_log_index < first + 200, "what is not durable is not purged: {status:?}");
    assert!(cluster.servers.iter_mut().all(Server::is_running));
    let log = cluster.servers[leader].log();
    assert!(log.contains("no file can be written") && log.contains("Read-only file system"), "{log}");
    mounts.clear();
    let purged = async |cluster: &Cluster| {
        client.put("k", "after").await.unwrap();
        let status = cluster.status(leader).await?;
        (status.first_log_index > first + 200).then_some(())
    };
    cluster.eventually("the log is purged", purged).await;
    cluster.same_hash().await;
}
