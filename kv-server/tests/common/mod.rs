//! Real servers for tests: processes of their own, on free ports, killed when the test ends.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

pub mod certificates;
pub mod disk;
pub mod etcd_member;
pub mod history;
pub mod kvctl;
pub mod lease_holders;
pub mod lock_holders;
pub mod page;
pub mod proxy;
pub mod silent;
pub mod timeline;
pub mod watchers;
pub mod writers;

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kv_store_client::{ClientConfig, KvClient, idl::StatusResponse};
use tempfile::TempDir;

/// One server process and its place.
pub struct Server {
    child: Option<Child>,
    arguments: Vec<String>,
    /// A command of the shell that sets its limits, if they are not the test's own.
    pub limits: Option<String>,
    pub port: u16,
    log: PathBuf,
}

impl Server {
    fn new(dir: &Path, name: &str, port: u16, arguments: Vec<String>) -> Self {
        Self { child: None, arguments, limits: None, port, log: dir.join(format!("{name}.log")) }
    }

    /// A standalone server with its data in `dir`, running.
    pub fn standalone(dir: &Path) -> Self {
        Self::standalone_with(dir, &[])
    }

    /// The same with more arguments.
    pub fn standalone_with(dir: &Path, more: &[&str]) -> Self {
        let port = free_port();
        let data = dir.join("data").display().to_string();
        let mut server = Self::new(dir, "standalone", port, vec!["--data-dir".into(), data]);
        server.arguments.extend(["--port".into(), port.to_string()]);
        server.arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        server.start();
        server
    }

    /// A member that is started with etcd's flags.
    pub fn in_place_of_etcd(dir: &Path, name: &str, port: u16, flags: Vec<String>) -> Self {
        let arguments = std::iter::once("etcd".to_owned()).chain(flags).collect();
        let mut server = Self::new(dir, name, port, arguments);
        server.start();
        server
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let program = env!("CARGO_BIN_EXE_kv-server");
        let mut command = Command::new(if self.limits.is_some() { "sh" } else { program });
        if let Some(limits) = &self.limits {
            command.args(["-c", &format!("{limits} && exec \"$0\" \"$@\""), program]);
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// One more argument, from its next start on.
    pub fn argue(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    /// Without the argument, from its next start on.
    pub fn argue_no_more(&mut self, argument: &str) {
        self.arguments.retain(|given| given != argument);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; the exit code, and how long it took.
    pub fn terminate(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        self.signal("-TERM");
        let mut child = self.child.take().unwrap();
        let code = child.wait().unwrap().code();
        (code, start.elapsed())
    }

    /// Waits until it has ended by itself; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let (mut child, start) = (self.child.take().unwrap(), Instant::now());
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if start.elapsed() > Duration::from_secs(60) {
                self.child = Some(child);
                panic!("it has not ended after 60 s");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its log has these words.
    pub fn says(&self, words: &str) {
        let start = Instant::now();
        while !self.log().contains(words) {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not say {words:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Changes the value of an argument, or adds the argument.
    pub fn set_argument(&mut self, name: &str, value: &str) {
        match self.arguments.iter().position(|argument| argument == name) {
            Some(at) => value.clone_into(&mut self.arguments[at + 1]),
            None => self.arguments.extend([name.to_owned(), value.to_owned()]),
        }
    }

    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success());
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn client(&self) -> KvClient {
        client(&[self.port])
    }

    /// The answer to a GET over HTTP, with its head.
    pub fn http(&self, path: &str) -> String {
        self.request("GET", path, "")
    }

    /// The response to a request over HTTP, with its head.
    pub fn request(&self, method: &str, path: &str, body: &str) -> String {
        request(&self.endpoint(), method, path, body)
    }

    /// Where it serves clients, as soon as it listens: `kvctl` does not wait for a server that has just been started.
    pub fn endpoint(&self) -> String {
        let (endpoint, start) = (format!("127.0.0.1:{}", self.port), Instant::now());
        while std::net::TcpStream::connect(&endpoint).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "nobody listens at {endpoint}");
            std::thread::sleep(Duration::from_millis(20));
        }
        endpoint
    }
}

/// The response to a GET over HTTP at a port, with its head.
pub fn get(port: u16, path: &str) -> String {
    request(&format!("127.0.0.1:{port}"), "GET", path, "")
}

fn request(endpoint: &str, method: &str, path: &str, body: &str) -> String {
    let mut stream = std::net::TcpStream::connect(endpoint).unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

pub fn client(ports: &[u16]) -> KvClient {
    let endpoints = ports.iter().map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect();
    KvClient::new(ClientConfig::new(endpoints)).unwrap()
}

/// A cluster of processes.
pub struct Cluster {
    pub servers: Vec<Server>,
    pub dir: TempDir,
}

impl Cluster {
    /// `size` nodes, running; `more` is added to the file.
    pub fn start(size: usize, deployment: &str, more: &str) -> Self {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        Self::start_at(&ports, deployment, more)
    }

    /// Nodes with limits that a command of the shell sets.
    pub fn start_with_limits(size: usize, limits: &str) -> Self {
        let mut cluster = Self::start(size, "", "");
        for server in &mut cluster.servers {
            server.kill();
            server.limits = Some(limits.to_owned());
            server.start();
        }
        cluster
    }

    /// Nodes whose messages to each other go through a proxy that can hold, cut and delay them. Requests of clients,
    /// and requests that one node forwards to another, do not.
    pub async fn start_behind_proxy(size: usize) -> (Self, proxy::Proxy) {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let proxy = proxy::Proxy::start(&ports.iter().map(|port| port + 1000).collect::<Vec<_>>()).await;
        let node = |(id, port): (usize, &u16)| {
            let consensus = proxy::endpoint(port + 1000);
            format!(
                "[[nodes]]\nid = {id}\nclient_endpoint = \"127.0.0.1:{port}\"\nconsensus_endpoint = \"{consensus}\"\n"
            )
        };
        let nodes: String = ports.iter().enumerate().map(node).collect();
        (Self::start_at(&ports, "listen_host = \"127.0.0.1\"", &nodes), proxy)
    }

    /// Nodes that know each other's ports for clients at a proxy: requests that they forward go through it.
    pub async fn start_with_proxy_of_clients(size: usize) -> (Self, proxy::Proxy) {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let proxy = proxy::Proxy::of_clients(&ports).await;
        let node = |(id, port): (usize, &u16)| {
            let (client, consensus) = (proxy::endpoint(*port), port + 1000);
            format!(
                "[[nodes]]\nid = {id}\nclient_endpoint = \"{client}\"\nconsensus_endpoint = \"127.0.0.1:{consensus}\"\n"
            )
        };
        let nodes: String = ports.iter().enumerate().map(node).collect();
        (Self::start_at(&ports, "listen_host = \"127.0.0.1\"", &nodes), proxy)
    }

    fn start_at(ports: &[u16], deployment: &str, more: &str) -> Self {
        let mut cluster = Self::prepare_at(ports, deployment, more);
        cluster.servers.iter_mut().for_each(Server::start);
        cluster
    }

    /// As many nodes as are wanted, none of them running yet.
    pub fn prepare(size: usize) -> Self {
        Self::prepare_with(size, "")
    }

    /// The same with `more` in the file.
    pub fn prepare_with(size: usize, more: &str) -> Self {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        Self::prepare_at(&ports, "", more)
    }

    /// Where node `id` keeps its data.
    pub fn data(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    /// A server that does not run loses its disk.
    pub fn wipe(&self, id: usize) {
        assert!(self.servers[id].child.is_none(), "it runs");
        std::fs::remove_dir_all(self.data(id)).unwrap();
    }

    /// The same at 127.0.0.2, where the nodes find each other as `two.test`.
    pub fn prepare_at_two_addresses(size: usize) -> Self {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let node = |(id, port): (usize, &u16)| {
            let consensus = port + 1000;
            format!(
                "[[nodes]]\nid = {id}\nclient_endpoint = \"127.0.0.2:{port}\"\nconsensus_endpoint = \"two.test:{consensus}\"\n"
            )
        };
        let nodes: String = ports.iter().enumerate().map(node).collect();
        Self::prepare_at(&ports, "listen_host = \"127.0.0.2\"", &nodes)
    }

    fn prepare_at(ports: &[u16], deployment: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoints: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let config = dir.path().join("cluster.toml");
        let text = format!(
            "[deployment]\nmode = \"replicated\"\nreplica_endpoints = [{}]\n{deployment}\n[cluster]\n\
             health_check_interval_ms = 200\nnode_timeout_ms = 1000\n{more}",
            endpoints.join(", ")
        );
        std::fs::write(&config, text).unwrap();
        let mut servers = Vec::new();
        for (id, port) in ports.iter().enumerate() {
            let data = dir.path().join(format!("node-{id}")).display().to_string();
            let (config, id) = (config.display().to_string(), id.to_string());
            let name = format!("node-{id}");
            let arguments =
                ["--config", &config, "--node-id", &id, "--data-dir", &data].map(str::to_owned).to_vec();
            servers.push(Server::new(dir.path(), &name, *port, arguments));
        }
        Self { servers, dir }
    }

    /// Starts a server that does not run on other ports, with the data that it has.
    pub fn start_elsewhere(&mut self, id: usize) {
        let (port, config) = (free_port(), self.dir.path().join(format!("node-{id}.toml")));
        let node = format!("[[nodes]]\nid = {id}\nclient_endpoint = \"127.0.0.1:{port}\"\n");
        std::fs::write(&config, node).unwrap();
        let server = &mut self.servers[id];
        let at = server.arguments.iter().position(|argument| argument == "--config").unwrap();
        server.arguments[at + 1] = config.display().to_string();
        server.port = port;
        server.start();
    }

    /// Gives all servers, of which none runs, other ports, in the file that they share.
    pub fn move_all(&mut self) {
        let config = self.dir.path().join("cluster.toml");
        let mut text = std::fs::read_to_string(&config).unwrap();
        for server in &mut self.servers {
            let port = free_port();
            text = text.replace(&format!("\"127.0.0.1:{}\"", server.port), &format!("\"127.0.0.1:{port}\""));
            server.port = port;
        }
        std::fs::write(&config, text).unwrap();
    }

    /// A port for one more server, which [`join_at`](Self::join_at) starts.
    pub fn port_to_join() -> u16 {
        free_port()
    }

    /// One more server, which waits to be made a member; its id.
    pub fn join(&mut self) -> usize {
        self.join_with(&[])
    }

    /// The same with more arguments.
    pub fn join_with(&mut self, more: &[&str]) -> usize {
        self.join_at(self.servers.len(), free_port(), more)
    }

    /// The same with this id and port, which may not be the next ones.
    pub fn join_at(&mut self, id: usize, port: u16, more: &[&str]) -> usize {
        let config = self.dir.path().join(format!("node-{id}.toml"));
        let node = format!("[[nodes]]\nid = {id}\nclient_endpoint = \"127.0.0.1:{port}\"\n");
        std::fs::write(&config, node).unwrap();
        let data = self.dir.path().join(format!("node-{id}")).display().to_string();
        let (config, node_id) = (config.display().to_string(), id.to_string());
        let arguments =
            ["--join", "--config", &config, "--node-id", &node_id, "--data-dir", &data].into_iter();
        let arguments = arguments.chain(more.iter().copied()).map(str::to_owned).collect();
        let mut server = Server::new(self.dir.path(), &format!("node-{id}"), port, arguments);
        server.start();
        self.servers.push(server);
        id
    }

    pub fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(|server| server.port).collect()
    }

    pub fn client(&self) -> KvClient {
        client(&self.ports())
    }

    /// Status of node `id`, if it responds.
    pub async fn status(&self, id: usize) -> Option<StatusResponse> {
        let endpoint = format!("127.0.0.1:{}", self.servers[id].port).parse().unwrap();
        self.client().status_of(&endpoint).await.ok()
    }

    pub async fn leader(&self) -> usize {
        self.eventually("there is a leader", async |cluster| {
            for id in 0..cluster.servers.len() {
                if cluster.status(id).await.is_some_and(|status| status.role == "leader") {
                    return Some(id);
                }
            }
            None
        })
        .await
    }

    pub async fn eventually<T>(&self, what: &str, mut condition: impl AsyncFnMut(&Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = condition(self).await {
                return value;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{what}: not within 60 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all nodes have the same hash at the same place; returns it.
    pub async fn same_hash(&self) -> i64 {
        self.eventually("all hashes agree", async |cluster| {
            let mut hashes = Vec::new();
            for server in &cluster.servers {
                let endpoint = format!("127.0.0.1:{}", server.port).parse().unwrap();
                let hash = cluster.client().hash_of(&endpoint).await.ok()?;
                hashes.push((hash.hash, hash.header.revision, hash.header.applied_index));
            }
            hashes.iter().all(|hash| *hash == hashes[0]).then_some(hashes[0].0)
        })
        .await
    }
}

/// Copies a directory with all that is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A port that is free, the port 1000 above it too. Each test process looks in a part of its own, so that those that run
/// at once do not find the same.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 180) as u16 * 100;
    for _ in 0..2000 {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (start + offset) % 18_000;
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 1000) {
            return port;
        }
    }
    panic!("no free port");
}
