//! A server that a service manager has started: what it tells, and its exit codes.

use std::{
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::common::{free_port, kvctl};

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn new(dir: &Path) -> Self {
        let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(socket)
    }

    /// The next message.
    fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("the service tells something in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap().trim_end().to_owned()
    }
}

/// Starts a server as systemd does for `Type=notify` with `WatchdogSec=2`.
fn start(dir: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.args(["--data-dir", "data"]).args(arguments).current_dir(dir);
    command.env("NOTIFY_SOCKET", dir.join("notify")).env("WATCHDOG_USEC", "2000000");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn tells_of_its_progress(arguments: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let mut server = start(dir.path(), arguments);
    assert_eq!(manager.told(), "READY=1");
    for _ in 0..5 {
        assert_eq!(manager.told(), "WATCHDOG=1");
    }
    assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    let last = std::iter::repeat_with(|| manager.told()).find(|told| told != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert_eq!(kvctl::ended(&mut server), Some(0));
}

#[test]
fn standalone_server_tells_that_it_is_ready_lives_and_stops() {
    tells_of_its_progress(&["--port", &free_port().to_string()]);
}

#[test]
fn member_without_a_majority_tells_that_it_lives() {
    // The other member was never started, and had no data: there is no leader, and the engine responds all the same.
    let (own, other) = (free_port(), free_port());
    let nodes = format!("127.0.0.1:{own},127.0.0.1:{other}");
    tells_of_its_progress(&["--replica-endpoints", &nodes, "--founding-peers-missing", "1"]);
}

#[test]
fn exit_codes_tell_failures_that_no_restart_cures() {
    let dir = tempfile::tempdir().unwrap();
    let code = |arguments: &[&str]| {
        let mut server = start(dir.path(), arguments);
        kvctl::ended(&mut server)
    };
    let port = free_port().to_string();
    assert_eq!(code(&["--port", &port, "--tls-cert-file", "none", "--tls-key-file", "none"]), Some(2));
    assert_eq!(code(&["--node-timeout", "5x"]), Some(2));
    // Something else has the port for now.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(code(&["--port", &taken.local_addr().unwrap().port().to_string()]), Some(1));
    // That start has made the directory that of a standalone server, and of node 0.
    assert_eq!(code(&["--replica-endpoints", "127.0.0.1:1"]), Some(3));
    assert_eq!(code(&["--port", &port, "--node-id", "4"]), Some(3));
}

#[test]
fn unit_names_the_exit_codes_that_no_restart_cures() {
    let unit = include_str!("../../packaging/kv-server.service");
    for line in ["Type=notify", "WatchdogSec=60s", "Restart=on-failure", "RestartPreventExitStatus=2 3"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
