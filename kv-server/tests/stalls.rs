//! A disk that stops completing writes: a file system of its own, frozen by the kernel.

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use common::{Cluster, Server, kvctl::Kvctl};
use tempfile::TempDir;

/// A file system in a file, mounted.
struct Disk {
    dir: TempDir,
    is_frozen: bool,
}

impl Disk {
    /// `None` where this process may not mount one.
    fn mount() -> Option<Self> {
        let disk = Self { dir: tempfile::tempdir().unwrap(), is_frozen: false };
        std::fs::create_dir(disk.path()).unwrap();
        let image = disk.dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let is_mounted = done(Command::new("mkfs.ext4").arg("-q").arg(&image))
            && done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()));
        is_mounted.then_some(disk)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Writes to the disk wait from now on.
    fn freeze(&mut self) {
        self.is_frozen = true;
        assert!(done(Command::new("fsfreeze").arg("--freeze").arg(self.path())));
    }

    fn thaw(&mut self) {
        if std::mem::take(&mut self.is_frozen) {
            assert!(done(Command::new("fsfreeze").arg("--unfreeze").arg(self.path())));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        // This includes a disk that was not mounted, without an effect.
        done(Command::new("umount").arg("--lazy").arg(self.path()));
    }
}

fn done(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Has node `id`, which does not run, keep its data on the disk.
fn place(cluster: &Cluster, id: usize, disk: &Path) {
    let data = disk.join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(data, cluster.data(id)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_with_stalled_disk_is_replaced_and_says_so_until_the_disk_goes_on() {
    let Some(disk) = Disk::mount() else {
        eprintln!("skipped: a stalled disk needs root, loop devices, mkfs.ext4 and fsfreeze");
        return;
    };
    let mut cluster = Cluster::prepare_with(3, "storage_stall_limit = \"700ms\"\n");
    place(&cluster, 0, &disk.path());
    // Dropped before the cluster: a server that waits for a frozen disk cannot be ended.
    let mut disk = disk;
    cluster.servers.iter_mut().for_each(Server::start);
    cluster.leader().await;
    let client = cluster.client();
    client.put("k", "before").await.unwrap();
    let leads = async |cluster: &Cluster| {
        // Refused while the node catches up.
        let _ = client.transfer_leader(Some(0)).await;
        (cluster.leader().await == 0).then_some(())
    };
    cluster.eventually("node 0 leads", leads).await;

    disk.freeze();
    client.put("k", "meanwhile").await.expect("another leader takes it");
    let kvctl = Kvctl::new(format!("127.0.0.1:{}", cluster.servers[0].port));
    let status = || kvctl.run(&["status"], "").1;
    let words = "has not completed a write of the log for";
    let said = async |_: &Cluster| Some(status()).filter(|said| said.contains(words));
    let said = cluster.eventually("the node says what it waits for", said).await;
    assert!(said.contains("storage_stall_limit"), "{said}");
    assert_ne!(cluster.leader().await, 0);
    // The others know it from the node's own word.
    let told = async |cluster: &Cluster| {
        let status = cluster.status(cluster.leader().await).await?;
        status
            .members
            .into_iter()
            .find(|member| member.node_id == 0)?
            .problem
            .filter(|why| why.contains(words))
    };
    cluster.eventually("the others tell, too", told).await;

    disk.thaw();
    let well = async |_: &Cluster| Some(status()).filter(|said| !said.is_empty() && !said.contains(words));
    cluster.eventually("nothing is left of it", well).await;
    client.put("k", "after").await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), cluster.same_hash()).await.unwrap();
    cluster.servers.iter_mut().for_each(Server::kill);
}
