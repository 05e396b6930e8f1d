//! The replicated key-value server.
//!
//! `config` reads what to start, `mode` keeps a data directory to standalone or replicated use, `node` composes engine,
//! transport, storage and state machine, `founding` decides whether a node may start a new cluster, `quota` watches the
//! size of the store, `frontend` serves clients over Thrift, `routing` decides which node executes an operation, `cluster` tracks members and their health, `members` changes them
//! for etcd's clients, and `dev` runs a cluster on one machine. Consensus and storage are in the other crates.
//!
//! The program is [`run`]; the other public items are for the crate `fuzz`.

mod answers;
mod between;
mod cluster;
mod config;
mod convert;
mod descriptors;
mod dev;
mod etcd;
mod founding;
mod frontend;
#[doc(hidden)]
pub mod fuzzing;
mod leaderless;
mod members;
mod mode;
mod node;
mod polls;
mod quota;
mod routing;

use std::{process::ExitCode, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{ConfigError, Settings, Task};

/// The program: reads the command line, serves until it is told to stop, and says how it ended.
pub fn run() -> ExitCode {
    let settings = match Settings::load(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(Task::Serve(settings)) => *settings,
        Ok(Task::Dev(dev)) => return run_to_end(dev.run()),
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => {
            eprintln!("kv-server: {error}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&settings.program.log))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    if settings.once.force_new_cluster {
        return match node::force_new_cluster(&settings) {
            Ok(said) => {
                println!("{said}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("kv-server: nothing was changed: {error}");
                ExitCode::FAILURE
            }
        };
    }
    run_to_end(serve(settings))
}

/// Runs the program's task on a runtime of its own.
fn run_to_end(task: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kv-server: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(task);
    // Reads of a large range may still run on their own threads; they are not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    code
}

async fn serve(settings: Settings) -> ExitCode {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        eprintln!("kv-server: cannot listen for signals");
        return ExitCode::FAILURE;
    };
    // A start may wait for other nodes.
    let started = tokio::select! {
        started = node::Node::start(settings) => started,
        _ = terminate.recv() => return ExitCode::SUCCESS,
        _ = interrupt.recv() => return ExitCode::SUCCESS,
    };
    let node = match started {
        Ok(node) => node,
        Err(error) => {
            eprintln!("kv-server: {error}");
            return ExitCode::FAILURE;
        }
    };
    let fatal = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        why = node.failed() => Some(why),
    };
    if let Some(why) = &fatal {
        eprintln!("kv-server: stopping: {why}");
    } else {
        tracing::info!("stopping");
    }
    if tokio::time::timeout(SHUTDOWN_MAX, node.shutdown()).await.is_err() {
        tracing::warn!("not everything ended in time; what is acknowledged is on disk");
    }
    if fatal.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// An orderly end takes no longer than this.
const SHUTDOWN_MAX: Duration = Duration::from_millis(4500);
