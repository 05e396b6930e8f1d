//! `kv-server dev`: a cluster on this machine, for development. Each node is a process of its own.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Runs a cluster on this machine, for development: one process per node, and the output of all of them.
///
/// Ctrl-C stops all nodes. The next start with the same directory continues with the data.
#[derive(Clone, Debug, Args)]
pub(crate) struct Dev {
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    nodes: u16,
    /// Port of node 0 for clients; the other nodes have the next ports. The nodes' own ports are 1000 higher.
    #[arg(long, default_value_t = 9090, value_parser = clap::value_parser!(u16).range(1..=64_000))]
    first_port: u16,
    /// Directory of the cluster; node N has its data in `node-N` below it.
    #[arg(long, default_value = "./data/dev", value_name = "DIR")]
    dir: PathBuf,
    /// Flags for every node, after `--`; for example `-- --log debug`.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

impl Dev {
    /// Client endpoints of the nodes, separated by commas.
    fn endpoints(&self) -> String {
        let ports = (0..self.nodes).map(|id| self.first_port + id);
        ports.map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    }

    fn start_node(&self, id: u16) -> io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        // They would contradict the flags below.
        for variable in ["KV_CONFIG", "KV_PORT", "KV_MODE", "KV_LISTEN_HOST", "KV_WITNESSES", "KV_JOIN"] {
            command.env_remove(variable);
        }
        command.arg("--replica-endpoints").arg(self.endpoints()).arg("--node-id").arg(id.to_string());
        command.arg("--data-dir").arg(self.dir.join(format!("node-{id}"))).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }

    /// Runs the cluster until a signal stops it or no node is left.
    pub(crate) async fn run(self) -> ExitCode {
        let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
            eprintln!("kv-server dev: cannot listen for signals");
            return ExitCode::FAILURE;
        };
        let (sender, ended) = mpsc::unbounded_channel();
        let mut nodes = Nodes { running: Vec::new(), ended, failed: false };
        for id in 0..self.nodes {
            match self.start_node(id) {
                Ok(child) => {
                    nodes.running.push((id, child.id()));
                    let sender = sender.clone();
                    thread::spawn(move || sender.send((id, supervise(id, child))));
                }
                Err(error) => {
                    say(&format!("node {id} cannot be started: {error}"));
                    nodes.failed = true;
                    break;
                }
            }
        }
        if !nodes.failed {
            say(&format!(
                "{} nodes, data in {}; Ctrl-C stops them. To use them:",
                self.nodes,
                self.dir.display()
            ));
            say(&format!("kvctl --endpoints {} status", self.endpoints()));
            tokio::select! {
                () = nodes.all_end() => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        }
        nodes.stop().await;
        if nodes.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// The processes of the nodes.
struct Nodes {
    /// Node id and process id of those that have not ended.
    running: Vec<(u16, u32)>,
    /// Sends a node id when the node has ended.
    ended: mpsc::UnboundedReceiver<(u16, io::Result<ExitStatus>)>,
    /// Whether a node could not be started, or ended with an error.
    failed: bool,
}

impl Nodes {
    /// Waits until no node is left.
    async fn all_end(&mut self) {
        while !self.running.is_empty() {
            let Some((id, status)) = self.ended.recv().await else { return };
            self.running.retain(|(running, _)| *running != id);
            self.failed |= !status.as_ref().is_ok_and(ExitStatus::success);
            match status {
                Ok(status) => say(&format!("node {id} ended: {status}")),
                Err(error) => say(&format!("node {id} ended, it is not known how: {error}")),
            }
        }
    }

    /// Stops the nodes that are left, gracefully if they do so in time.
    async fn stop(&mut self) {
        for (signal, wait) in [("-TERM", STOP_MAX), ("-KILL", STOP_MAX)] {
            for (_, process) in &self.running {
                // It may have ended by itself meanwhile.
                let _ =
                    Command::new("kill").args([signal, &process.to_string()]).stderr(Stdio::null()).status();
            }
            if tokio::time::timeout(wait, self.all_end()).await.is_ok() {
                return;
            }
        }
    }
}

/// Copies the output of a node until it ends; how it ended.
fn supervise(id: u16, mut child: Child) -> io::Result<ExitStatus> {
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| copy(id, output));
        copy(id, errors);
    });
    child.wait()
}

/// Prints each line with the node before it.
fn copy(id: u16, output: Option<impl Read>) {
    let Some(output) = output else { return };
    for line in BufReader::new(output).split(b'\n') {
        let Ok(line) = line else { return };
        print_line(&format!("node {id} | {}", String::from_utf8_lossy(&line)));
    }
}

fn say(text: &str) {
    print_line(&format!("dev    | {text}"));
}

/// Prints a line. A reader that has gone does not stop the cluster.
fn print_line(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// A node that takes longer to stop is killed.
const STOP_MAX: Duration = Duration::from_secs(10);
