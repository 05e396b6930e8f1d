//! `kv-server --check-config`: says everything that is wrong at once, and changes nothing.

use crate::common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::common::certificates::Certificates;

/// Exit code, standard output and the lines of standard error of a check of a file with this text.
fn check(dir: &Path, text: &str, more: &[&str]) -> (i32, String, Vec<String>) {
    let file = dir.join("server.toml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.arg("--config").arg(&file).arg("--check-config").args(more).current_dir(dir);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap().lines().map(str::to_owned).collect();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), said)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn file_with_many_faults_is_told_all_of_them_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    let text = format!(
        "[deployment]\nnod_id = 1\ndata_dir = \"server.toml/data\"\n\
         [cluster]\nnode_timeout = \"5x\"\nheartbeat_interval = \"400ms\"\n\
         [log]\ncompact_after_size = 5\n\
         [tls]\ntls_cert_file = \"{}\"\ntls_key_file = \"{}\"\n\
         peer_tls_cert_file = \"none.crt\"\npeer_tls_key_file = \"none.key\"\npeer_tls_ca_file = \"{}\"\n",
        certificates.path("node.crt"),
        certificates.path("alice.key"),
        certificates.path("ca.crt"),
    );
    fs::write(dir.path().join("server.toml"), "").unwrap();
    let before = names(dir.path());
    let (code, out, said) = check(dir.path(), &text, &["--disk-reserve=much"]);
    assert_eq!((code, out.as_str()), (2, ""), "{said:?}");
    let expected: [&[&str]; 9] = [
        &["command line: --disk-reserve=much", "it must be a size"],
        &["server.toml, line 2: nod_id = 1", "did you mean node_id?"],
        &["server.toml, line 5: node_timeout = 5x", "it must be a duration"],
        &["server.toml, line 8: compact_after_size = 5", "a size needs a unit"],
        &["default: election_timeout = 500ms", "twice heartbeat_interval"],
        &["TLS of clients", "alice.key", "the key is not that of the certificate"],
        &["TLS of nodes", "none.crt", "cannot be read"],
        &["TLS of nodes", "none.key", "cannot be read"],
        &["data directory server.toml/data"],
    ];
    for words in expected {
        let is_told = |line: &String| words.iter().all(|word| line.contains(word));
        assert_eq!(said.iter().filter(|line| is_told(line)).count(), 1, "{words:?} in {said:#?}");
    }
    assert_eq!(said.len(), expected.len() + 1, "nothing else is told: {said:#?}");
    assert!(said[expected.len()].contains("9 errors; nothing was changed"), "{said:#?}");
    assert_eq!(names(dir.path()), before);
}

#[test]
fn settings_that_are_right_are_told_in_one_line_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    let tls: String = certificates.flags().iter().map(|flag| format!("{}\n", toml_line(flag))).collect();
    let text = format!("[deployment]\ndata_dir = \"new/data\"\n[tls]\n{tls}");
    let (code, out, said) = check(dir.path(), &text, &[]);
    assert_eq!((code, said.len(), out.lines().count()), (0, 0, 1), "{out} {said:#?}");
    for words in
        ["node 0", "standalone", "127.0.0.1:9090", "new/data, which is made at the start", "ports are free"]
    {
        assert!(out.contains(words), "{out}");
    }
    assert!(!dir.path().join("new").exists());
}

/// `--tls-cert-file=F` as `tls_cert_file = "F"`.
fn toml_line(flag: &str) -> String {
    let (name, value) = flag.trim_start_matches("--").split_once('=').unwrap();
    format!("{} = {value:?}", name.replace('-', "_"))
}

#[test]
fn directory_with_data_of_another_mode_or_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // It has its directory before it listens.
    common::Server::standalone(dir.path()).endpoint();
    let data = dir.path().join("data");
    let text = format!(
        "[deployment]\ndata_dir = {:?}\nreplica_endpoints = [\"localhost:9090\", \"localhost:9091\"]\n",
        data.display().to_string()
    );
    let (code, _, said) = check(dir.path(), &text, &[]);
    assert!(code == 2 && said[0].contains("holds the data of a standalone server"), "{said:#?}");
    let text = format!("[deployment]\nnode_id = 4\ndata_dir = {:?}\n", data.display().to_string());
    let (code, _, said) = check(dir.path(), &text, &[]);
    assert!(code == 2 && said[0].contains("belongs to node 0, not to node 4"), "{said:#?}");
}

#[test]
fn check_beside_another_task_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, said) = check(dir.path(), "", &["--force-new-cluster"]);
    assert!(code == 2 && said[0].contains("give one of --check-config, --force-new-cluster"), "{said:#?}");
}

#[test]
fn file_that_is_no_toml_is_told_once_beside_the_faults_of_the_flags() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, said) = check(dir.path(), "[deployment]\nnode_id = \n", &["--sessions-max=0"]);
    let said = said.join("\n");
    assert!(
        code == 2 && said.contains("--sessions-max=0") && said.contains("server.toml: TOML parse error"),
        "{said}"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command
        .args([
            "--config=missing.toml",
            "--check-config",
            "--tls-cert-file=missing.crt",
            "--tls-key-file=missing.key",
        ])
        .current_dir(dir.path());
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(said.contains("missing.toml: cannot be read") && said.contains("missing.crt"), "{said}");
}
