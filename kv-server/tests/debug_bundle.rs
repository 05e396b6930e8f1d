//! `kvctl debug bundle`: an archive of what the servers say of themselves, without secrets.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use crate::common::{Cluster, Server, free_port, kvctl::Kvctl};

/// Unpacks an archive, and returns the names of its files with their contents.
fn unpack(archive: &Path, into: &Path) -> Vec<(String, Vec<u8>)> {
    fs::create_dir(into).unwrap();
    let tar = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into).status().unwrap();
    assert!(tar.success());
    let mut found = Vec::new();
    let mut folders = vec![into.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(into).unwrap().display().to_string();
                    found.push((name, fs::read(&path).unwrap()));
                }
            }
        }
    }
    found
}

#[test]
fn archive_of_a_cluster_has_what_each_server_says_and_no_secret() {
    let mut cluster = Cluster::prepare_with(2, "[log]\nflight_recorder_size = \"1MiB\"\n");
    cluster.servers.iter_mut().for_each(Server::start);
    let endpoints: Vec<String> = cluster.servers.iter().map(Server::endpoint).collect();
    let kvctl = Kvctl::new(endpoints.join(","));
    kvctl.insist("put secret-key secret-value");
    for command in [
        "user add root --password secret-password",
        "user grant root root",
        "user add alice --password secret-alice",
        "auth enable",
    ] {
        kvctl.insist(command);
    }
    let archive = cluster.dir.path().join("bundle.tar.gz");
    let file = archive.display().to_string();
    // Not without root, and then nothing is left.
    kvctl.says(&["debug", "bundle", &file], 3, "a user with the role root");
    kvctl.says(&["--user", "alice:secret-alice", "debug", "bundle", &file], 3, "a user with the role root");
    assert!(!archive.exists());
    let data = cluster.data(0).display().to_string();
    let root = ["--user", "root:secret-password", "debug", "bundle", &file, "--data-dir", &data];
    let (code, out, error) = kvctl.run(&root, "");
    assert!(code == 0 && out.starts_with("saved "), "{code} {out} {error}");
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);

    let files = unpack(&archive, &cluster.dir.path().join("unpacked"));
    let text = |name: &str| {
        let found = files.iter().find(|(found, _)| found == &format!("kv-debug/{name}"));
        let names: Vec<_> = files.iter().map(|(name, _)| name).collect();
        String::from_utf8_lossy(&found.unwrap_or_else(|| panic!("no {name} in {names:?}")).1).into_owned()
    };
    for (id, endpoint) in endpoints.iter().enumerate() {
        let folder = endpoint.replace(':', "_");
        for (name, words) in [
            ("settings.txt", format!("node_id = {id}  (command line)")),
            ("settings.txt", "health_check_interval = 200ms".to_owned()),
            ("settings.txt", "sessions_max = 10000  (default)".to_owned()),
            ("status.json", format!("\"node_id\": {id}")),
            ("hash.json", "\"hash\"".to_owned()),
            ("version.json", "etcdserver".to_owned()),
            ("metrics.txt", "# TYPE".to_owned()),
            ("livez.txt", "ok".to_owned()),
            ("readyz.txt", "ok".to_owned()),
        ] {
            let found = text(&format!("{folder}/{name}"));
            assert!(found.contains(&words), "{words:?} in {name}:\n{found}");
        }
    }
    assert!(text("members.json").contains("voter") && text("alarms.json").contains("[]"));
    assert!(text("README.txt").contains(&endpoints[0]));
    assert!(files.iter().any(|(name, _)| name.starts_with("kv-debug/flight/")));
    for (name, content) in &files {
        for secret in ["secret-", "$2b$", "$argon2", "PRIVATE KEY"] {
            let is_there = content.windows(secret.len()).any(|bytes| bytes == secret.as_bytes());
            assert!(!is_there, "{secret} in {name}");
        }
    }
    kvctl.says(&root, 7, "File exists");
}

#[test]
fn archive_says_which_server_did_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let silent = format!("127.0.0.1:{}", free_port());
    let kvctl = Kvctl::new(format!("{},{silent}", server.endpoint()));
    let archive = dir.path().join("bundle.tar.gz");
    let (code, _, error) = kvctl.run(&["debug", "bundle", &archive.display().to_string()], "");
    assert!(code == 4 && error.contains("not in the archive"), "{code} {error}");
    let files = unpack(&archive, &dir.path().join("unpacked"));
    let missing = files.iter().find(|(name, _)| name == "kv-debug/missing.txt").unwrap();
    let missing = String::from_utf8_lossy(&missing.1);
    assert!(missing.contains(&silent.replace(':', "_")), "{missing}");
    assert!(files.iter().any(|(name, _)| name.ends_with("/metrics.txt")));
}
