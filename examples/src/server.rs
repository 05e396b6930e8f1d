//! A server for the examples that are clients: the example's own program, started once more.

use std::{
    fmt, io,
    net::TcpListener,
    process::{Child, Command, ExitCode, Stdio},
};

use consensus_core::Endpoint;
use kv_store_client::{ClientConfig, KvClient};
use tempfile::TempDir;

/// A standalone server with its data in a temporary directory. It is killed when this is dropped.
pub struct Server {
    child: Child,
    dir: TempDir,
    endpoint: Endpoint,
}

/// The `main` of an example that is a client: runs the server if this process was started to be one, and else the example.
///
/// # Panics
/// No runtime can be started.
pub fn run<F, E>(example: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = Result<(), E>>,
    E: fmt::Display,
{
    if std::env::var_os(IS_SERVER).is_some() {
        return kv_server::run();
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    match runtime.block_on(example()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Server {
    /// Starts a server on a free port.
    ///
    /// # Errors
    /// The system refuses the process, the directory or the port.
    pub fn start() -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let endpoint = Endpoint::new("127.0.0.1", port).map_err(io::Error::other)?;
        Ok(Self { child: spawn(&dir, &endpoint)?, dir, endpoint })
    }

    /// Kills the server, as a power cut would, and starts it again with the data that it has.
    ///
    /// # Errors
    /// The system refuses the process.
    pub fn restart(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.dir, &self.endpoint)?;
        Ok(())
    }

    /// A client of this server. It waits for the server to start.
    #[must_use]
    pub fn client(&self) -> KvClient {
        KvClient::new(ClientConfig::new(vec![self.endpoint.clone()])).expect("there is an endpoint")
    }
}

fn spawn(dir: &TempDir, endpoint: &Endpoint) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(IS_SERVER, "1").args(["--port", &endpoint.port().to_string(), "--log", "error"]);
    command.arg("--data-dir").arg(dir.path().join("data")).stdin(Stdio::null()).spawn()
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Set in the environment of the process that is the server.
const IS_SERVER: &str = "EXAMPLE_IS_SERVER";
