//! A snapshot of etcd 3.7.3, imported. `kv-etcd-compat` compares imports with the etcd that they came from.

use std::{path::Path, process::Output};

use crate::common::Server;
use kv_store_client::{ClientConfig, Credentials, KvClient};

/// Made with etcdctl: keys, a deletion, a compaction, a lease, and users `root` (password `secret`) and `reader` (password `words`).
const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/etcd-3.7.3.snapshot");

fn import(snapshot: &Path, data: &Path, more: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.arg("--import-etcd").arg(snapshot).arg("--data-dir").arg(data).args(more);
    command.output().unwrap()
}

#[tokio::test]
async fn keys_leases_and_users_of_etcd_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let output = import(Path::new(SNAPSHOT), &dir.path().join("data"), &["--bump-revision", "0"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("has 3 keys and 1 leases, at revision 8"), "{said}");
    let server = Server::standalone(dir.path());
    let log_in = |user: &str, password: &str| {
        let endpoint = format!("127.0.0.1:{}", server.port).parse().unwrap();
        let credentials = Credentials { user: user.to_owned(), password: password.to_owned() };
        KvClient::new(ClientConfig { credentials: Some(credentials), ..ClientConfig::new(vec![endpoint]) })
            .unwrap()
    };
    assert!(server.client().get("a").await.is_err(), "authentication is enabled");
    let root = log_in("root", "secret");
    let kv = root.get("a").await.unwrap().unwrap();
    assert_eq!((&kv.value[..], kv.create_revision, kv.mod_revision, kv.version), (&b"3"[..], 2, 6, 3));
    assert!(root.get("gone").await.unwrap().is_none());
    let leased = root.get("leased").await.unwrap().unwrap();
    assert_ne!(leased.lease_id, 0);
    let reader = log_in("reader", "words");
    assert!(reader.get("a").await.unwrap().is_some());
    assert!(reader.put("a", "4").await.is_err(), "it may only read");
    root.put("a", "4").await.unwrap();
}

/// A damaged file is refused with a reason, and leaves no data directory.
#[test]
fn damaged_snapshot_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("snapshot"));
    let bytes = std::fs::read(SNAPSHOT).unwrap();
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    let bare = &bytes[..bytes.len() - 32];
    let none = [0_u8; 4096 + 32];
    for (wrong, why) in [
        (&changed[..], "its checksum is wrong"),
        (bare, "it has no checksum"),
        (b"", "it has no checksum"),
        (&none[..], "its checksum is wrong"),
    ] {
        std::fs::write(&file, wrong).unwrap();
        let output = import(&file, &data, &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(why), "{error}");
        assert!(!data.exists());
    }
    let output = import(&dir.path().join("none"), &data, &[]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("No such file"));
}
