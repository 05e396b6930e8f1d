//! Certificates of tests, made by `kvctl cert`, and clients that use them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use consensus_tls::{Identity, Tls, TlsSettings};
use kv_store_client::{ClientConfig, KvClient};

use super::{Server, kvctl};

/// A folder with an authority.
pub struct Certificates {
    pub dir: PathBuf,
}

impl Certificates {
    /// Makes an authority in a folder, and the certificates of a node and of the client `alice`.
    pub fn make(dir: impl Into<PathBuf>) -> Self {
        let own = Self { dir: dir.into() };
        // Authorities of one name, so that only the key tells them apart.
        own.kvctl(&["init", "--name", "authority"]);
        own.kvctl(&["node", "node", "--host", "127.0.0.1,localhost"]);
        own.kvctl(&["client", "alice"]);
        own
    }

    /// Runs `kvctl cert` in the folder.
    pub fn kvctl(&self, arguments: &[&str]) {
        let mut command = Command::new(kvctl::program());
        let output = command.arg("cert").args(arguments).arg("--dir").arg(&self.dir).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Flags of a node that has TLS for clients, of which it wants certificates, and for nodes.
    pub fn flags(&self) -> Vec<String> {
        [
            ("tls-cert-file", "node.crt"),
            ("tls-key-file", "node.key"),
            ("tls-ca-file", "ca.crt"),
            ("peer-tls-cert-file", "node.crt"),
            ("peer-tls-key-file", "node.key"),
            ("peer-tls-ca-file", "ca.crt"),
        ]
        .map(|(flag, name)| format!("--{flag}={}", self.path(name)))
        .to_vec()
    }

    /// TLS of a client that trusts the authority; with the certificate of `name`, if there is one.
    pub fn tls(&self, name: Option<&str>) -> Tls {
        let mut settings = TlsSettings::new("servers");
        settings.ca_file = Some(self.dir.join("ca.crt"));
        settings.identity = name.map(|name| {
            Identity::new(self.dir.join(format!("{name}.crt")), self.dir.join(format!("{name}.key")))
        });
        Tls::load(settings).unwrap()
    }

    pub fn client(&self, ports: &[u16], name: Option<&str>) -> KvClient {
        client(ports, Some(self.tls(name)))
    }

    /// Arguments of `kvctl` and `etcdctl`.
    pub fn arguments(&self, name: &str) -> Vec<String> {
        let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        [
            "--cacert".to_owned(),
            self.path("ca.crt"),
            "--cert".to_owned(),
            certificate,
            "--key".to_owned(),
            key,
        ]
        .to_vec()
    }

    /// Copies the files of this folder over those of another one.
    pub fn copy_to(&self, names: &[&str], folder: &Path) {
        for name in names {
            let beside = folder.join("copied");
            std::fs::copy(self.dir.join(name), &beside).unwrap();
            std::fs::rename(beside, folder.join(name)).unwrap();
        }
    }
}

pub fn client(ports: &[u16], tls: Option<Tls>) -> KvClient {
    let endpoints = ports.iter().map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect();
    // One that is refused tries for this time.
    let timeout = Duration::from_secs(5);
    KvClient::new(ClientConfig { tls, timeout, ..ClientConfig::new(endpoints) }).unwrap()
}

/// Waits until the server's log has the words more often than `before`.
pub fn says_again(server: &Server, words: &str, before: usize) {
    let start = Instant::now();
    while server.log().matches(words).count() <= before {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not say {words:?} again");
        std::thread::sleep(Duration::from_millis(20));
    }
}
