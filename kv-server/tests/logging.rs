//! The log of a server: formats, and a level that changes while the server runs.

use crate::common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::common::{Cluster, Server, kvctl::Kvctl, page::Page};

const PAGE: Page = Page("logging.md");

#[test]
fn commands_of_the_page_print_what_it_says() {
    for title in PAGE.titles() {
        PAGE.run(&title);
    }
}

/// Makes the server end a connection, which it logs at the level `debug` with the address that is returned.
fn send_what_is_no_frame(server: &Server) -> String {
    let mut stream = TcpStream::connect(server.endpoint()).unwrap();
    stream.write_all(&[0, 0, 0, 4, 9, 9, 9, 9]).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    stream.local_addr().unwrap().to_string()
}

#[test]
fn lines_are_json_and_the_level_changes_while_the_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone_with(dir.path(), &["--log-format", "json"]);
    let kvctl = Kvctl::new(server.endpoint());
    server.says("\"msg\":\"ready\"");
    assert!(!server.log().contains("\"level\":\"debug\""), "{}", server.log());
    kvctl.says(&["log-level", "0", "warn,kv_server=debug"], 0, "node 0  warn,kv_server=debug");
    let from = send_what_is_no_frame(&server);
    server.says(&from);
    kvctl.says(&["--output", "json", "log-level", "0"], 0, r#"{"directives":"info","node_id":0}"#);
    let log = server.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let line = lines.iter().find(|line| line["from"] == from.as_str()).unwrap();
    assert_eq!(
        (line["level"].as_str(), line["logger"].as_str()),
        (Some("debug"), Some("kv_server::frontend"))
    );
    let change = lines.iter().find(|line| line["directives"] == "warn,kv_server=debug").unwrap();
    assert_eq!(change["msg"], "the level of the log changes");
}

#[test]
fn wrong_directives_and_nodes_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["log-level", "0", "info,kv_server=loud"], 3, "`kv_server=loud` is neither a level");
    kvctl.says(&["log-level", "7", "info"], 2, "there is no node 7");
    kvctl.says(&["log-level", "0"], 0, "node 0  info");
}

#[test]
fn level_is_changed_by_users_with_the_role_root_only() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    let add = |user: &str| {
        let (code, _, error) = kvctl.run(&["user", "add", user], &format!("{user}-password\n"));
        assert_eq!(code, 0, "{error}");
    };
    add("root");
    add("reader");
    kvctl.insist("user grant root root");
    kvctl.insist("auth enable");
    kvctl.says(&["log-level", "0", "debug"], 3, "");
    kvctl.says(&["--user", "reader:reader-password", "log-level", "0", "debug"], 3, "");
    kvctl.says(&["--user", "root:root-password", "log-level", "0", "debug"], 0, "node 0  debug");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn level_of_another_node_is_changed_through_any_node() {
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (asked, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let kvctl = Kvctl::new(cluster.servers[asked].endpoint());
    let changed = kvctl.insist(&format!("log-level {other} warn,kv_server=debug"));
    assert_eq!(changed, format!("node {other}  warn,kv_server=debug"));
    let from = send_what_is_no_frame(&cluster.servers[other]);
    cluster.servers[other].says(&from);
    assert!(!cluster.servers[asked].log().contains("the level of the log changes"));
}

#[test]
fn journal_that_is_not_there_is_told_at_the_start() {
    if Path::new("/run/systemd/journal/socket").exists() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.args(["--log-format", "journald", "--port", "0", "--data-dir"]).arg(dir.path().join("data"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("/run/systemd/journal/socket") && error.contains("text or json"), "{error}");
}

/// A process that is killed when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The journal of the test is a socket that a mount namespace has in the place of journald's.
#[test]
fn entries_of_the_journal_have_fields() {
    const MOUNT: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && touch /run/systemd/journal/socket && \
                         mount --bind \"$1\" /run/systemd/journal/socket && shift && exec \"$@\"";
    let has_namespaces = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    if !has_namespaces.is_ok_and(|status| status.success()) {
        eprintln!("not run: this user cannot make mount namespaces");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", MOUNT, "sh"]).arg(&path).arg(env!("CARGO_BIN_EXE_kv-server"));
    command.args(["--log-format", "journald", "--port", &common::free_port().to_string(), "--data-dir"]);
    command.arg(dir.path().join("data")).stdin(Stdio::null());
    let _server = Killed(command.spawn().unwrap());
    let mut bytes = vec![0; 64 << 10];
    loop {
        let length = socket.recv(&mut bytes).expect("an entry in time");
        let entry = String::from_utf8_lossy(&bytes[..length]).into_owned();
        // A field is its name, the length of its value in eight bytes, and the value; or name=value.
        if entry.contains("ready") && entry.contains("standalone") {
            for part in ["MESSAGE\n", "PRIORITY\n", "KV_NODE\n", "SYSLOG_IDENTIFIER", "kv-server"] {
                assert!(entry.contains(part), "{part} is missing in {entry:?}");
            }
            return;
        }
    }
}
