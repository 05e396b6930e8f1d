//! The two servers, each a process of its own, and the clients of one.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kv_etcd_api::etcdserverpb::{
    cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// A server that began empty; ends with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _dir: TempDir,
}

impl Server {
    pub(crate) fn etcd(program: &Path) -> Result<Self, String> {
        Self::start(program, |dir, port| {
            let peer = free_port();
            let client = format!("http://127.0.0.1:{port}");
            let peer = format!("http://127.0.0.1:{peer}");
            [
                ("--data-dir", dir),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer.clone()),
                ("--initial-cluster", format!("default={peer}")),
                ("--log-level", "error".to_owned()),
            ]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
        })
    }

    pub(crate) fn kv(program: &Path) -> Result<Self, String> {
        Self::start(program, |dir, port| {
            // A cluster of one, as that has members.
            let endpoint = format!("127.0.0.1:{port}");
            ["--data-dir".to_owned(), dir, "--replica-endpoints".to_owned(), endpoint].into()
        })
    }

    /// A cluster of one whose data directory, in `dir`, something else makes first; it is given the directory and the endpoint.
    pub(crate) fn kv_after(
        program: &Path,
        dir: TempDir,
        prepare: impl FnOnce(String, String) -> Result<(), String>,
    ) -> Result<Self, String> {
        let (data, port) = (dir.path().join("data").display().to_string(), free_port());
        let endpoint = format!("127.0.0.1:{port}");
        prepare(data.clone(), endpoint.clone())?;
        Self::start_in(
            program,
            dir,
            port,
            ["--data-dir".to_owned(), data, "--replica-endpoints".to_owned(), endpoint].into(),
        )
    }

    fn start(program: &Path, arguments: impl FnOnce(String, u16) -> Vec<String>) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let port = free_port();
        let arguments = arguments(dir.path().join("data").display().to_string(), port);
        Self::start_in(program, dir, port, arguments)
    }

    fn start_in(program: &Path, dir: TempDir, port: u16, arguments: Vec<String>) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", program.display());
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, port, _dir: dir })
    }
}

impl Server {
    /// Whether the process has ended by itself, if it is asked when a connection was lost.
    pub(crate) fn has_ended(&mut self) -> bool {
        for _ in 0..ENDED_LOOKS {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return true;
            }
            std::thread::sleep(ENDED_LOOK);
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free, and the one 1000 above it, which kv-server takes for other nodes.
fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let port = listener.local_addr().expect("a bound port has an address").port();
        if port.checked_add(1000).is_some_and(|above| TcpListener::bind(("127.0.0.1", above)).is_ok()) {
            return port;
        }
    }
}

/// Clients of a server.
pub(crate) struct Clients {
    pub(crate) kv: KvClient<Channel>,
    pub(crate) lease: LeaseClient<Channel>,
    pub(crate) watch: WatchClient<Channel>,
    pub(crate) maintenance: MaintenanceClient<Channel>,
    pub(crate) cluster: ClusterClient<Channel>,
    /// Id of the member that was added last.
    pub(crate) added: Option<u64>,
}

impl Clients {
    /// Waits until the server answers.
    pub(crate) async fn connect(port: u16) -> Result<Self, String> {
        let endpoint =
            Channel::from_shared(format!("http://127.0.0.1:{port}")).map_err(|error| error.to_string())?;
        let begun = Instant::now();
        loop {
            let error = match endpoint.connect().await {
                Ok(channel) => {
                    let mut kv = KvClient::new(channel.clone());
                    let probe =
                        kv_etcd_api::etcdserverpb::RangeRequest { key: "probe".into(), ..Default::default() };
                    match kv.range(probe).await {
                        Ok(_) => {
                            return Ok(Self {
                                kv,
                                lease: LeaseClient::new(channel.clone()),
                                watch: WatchClient::new(channel.clone()),
                                maintenance: MaintenanceClient::new(channel.clone()),
                                cluster: ClusterClient::new(channel),
                                added: None,
                            });
                        }
                        Err(status) => status.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > START_MAX {
                return Err(format!("the server at port {port} does not answer: {error}"));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

/// How often, and how long each time, an end is looked for.
const ENDED_LOOKS: u32 = 50;
const ENDED_LOOK: Duration = Duration::from_millis(20);
const START_MAX: Duration = Duration::from_secs(20);
