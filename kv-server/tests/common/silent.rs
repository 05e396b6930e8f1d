//! A name with two addresses, of which the first one drops all packets.

use std::{path::Path, process::Command, time::Duration};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Whether this process may have a file `/etc/hosts` of its own.
pub fn can_name_hosts() -> bool {
    let can = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    assert!(can || std::env::var_os("TEST_DISKS").is_none(), "this test needs root and unshare");
    if !can {
        eprintln!("skipped: this test needs root and unshare");
    }
    can
}

/// A command of the shell that runs "$0" with "$@", where the name `two.test` has the addresses 127.0.0.1 and 127.0.0.2.
pub fn with_two_addresses(dir: &Path) -> String {
    let hosts = dir.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 two.test\n127.0.0.2 two.test\n").unwrap();
    let inside = format!("mount --bind {} /etc/hosts && exec \\\"\\$0\\\" \\\"\\$@\\\"", hosts.display());
    format!("exec unshare --mount sh -c \"{inside}\" \"$0\" \"$@\"")
}

/// A listener at 127.0.0.1 that takes no more connections: the system drops the packets of further ones.
pub async fn silent_listener(port: u16) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("127.0.0.1:{port}").parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    let limit = Duration::from_millis(500);
    while let Ok(stream) = tokio::time::timeout(limit, TcpStream::connect(("127.0.0.1", port))).await {
        waiting.push(stream.unwrap());
        assert!(waiting.len() < 100, "every connection is taken");
    }
    (listener, waiting)
}
