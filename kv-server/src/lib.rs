//! The replicated key-value server.
//!
//! `config` reads what to start, `preflight` checks it without a start, `mode` keeps a data directory to standalone or replicated use,
//! `node` composes engine, transport, storage and state machine, `founding` decides whether a node may start a new cluster, `removal`
//! finds out whether a member was removed, `restore` makes a data directory from a backup, `etcd_import` reads one of etcd, `quota` watches the size of the store,
//! `state_check` compares the nodes,
//! `frontend` serves clients over Thrift, `routing` decides which node executes an operation, `identity` says who a server is, `cluster`
//! tracks members and their health, `members` changes them for etcd's clients, `measure` counts and serves metrics, `logging`
//! writes the log, `call_log` records calls for the audit log, `tls` keeps certificates current, `serve` runs a node until it is stopped, `shell` prints completions and manual pages, `exit` says how it ends,
//! `watchdog` tells the service manager that it works, `etcd_start` starts one with etcd's flags, and `dev` runs a cluster on one
//! machine. Consensus and storage are in the other crates.
//!
//! The program is [`run`]; the other public items are for the crate `fuzz`.

mod answers;
mod auth;
mod between;
mod call_log;
mod cluster;
mod config;
mod convert;
mod descriptors;
mod dev;
mod etcd;
mod etcd_import;
mod etcd_start;
mod exit;
mod founding;
mod frontend;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod generated_tables;
mod identity;
mod leaderless;
mod logging;
mod measure;
mod members;
mod memory;
mod mode;
mod node;
mod polls;
mod preflight;
mod quota;
mod record;
mod removal;
mod restore;
mod routing;
mod serve;
mod shell;
mod state_check;
mod tls;
mod watchdog;

use std::{process::ExitCode, time::Duration};

use crate::{
    config::{ConfigError, Findings, Settings, Task},
    etcd_start::EtcdStart,
    exit::Exit,
    node::Node,
    restore::{RestoreError, Source},
    serve::{End, Ready},
};

/// The program: reads the command line, serves until it is told to stop, and says how it ended.
pub fn run() -> ExitCode {
    let settings = match Settings::load(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(Task::Serve(settings)) => *settings,
        Ok(Task::Check(findings)) => return say_findings(*findings),
        Ok(Task::Dev(dev)) => return run_to_end(dev.run()).unwrap_or_else(|code| code),
        Ok(Task::Etcd(Ok(start))) => return run_in_place_of_etcd(&start),
        Ok(Task::Etcd(Err(ConfigError::CommandLine(error)))) => error.exit(),
        Ok(Task::Etcd(Err(error))) => {
            eprintln!("kv-server etcd: {error}");
            return ExitCode::FAILURE;
        }
        Ok(Task::Say(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Task::WriteManual(dir)) => {
            let written = shell::write_manual(&dir);
            let error =
                written.err().map(|error| eprintln!("kv-server: manual pages in {}: {error}", dir.display()));
            return error.map_or(ExitCode::SUCCESS, |()| ExitCode::FAILURE);
        }
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => {
            eprintln!("kv-server: {error}");
            return Exit::Settings.code();
        }
    };
    if let Err(error) = logging::start(settings.program.log_format, &settings.program.log) {
        eprintln!("kv-server: {error}");
        return Exit::Settings.code();
    }
    if let Some(backup) = &settings.once.check_backup {
        return exit_with(restore::describe_backup(backup));
    }
    let once = &settings.once;
    let source = match (&once.restore, &once.import_etcd) {
        (Some(_), Some(_)) => {
            eprintln!("kv-server: use either --restore or --import-etcd");
            return ExitCode::from(2);
        }
        (Some(backup), None) => Some(Source::Backup(backup)),
        (None, snapshot) => snapshot.as_deref().map(Source::Etcd),
    };
    if let Some(source) = source {
        let restored = restore::restore(&settings, source);
        return exit_with(restored.map(|restored| restore::describe(&settings, &restored)));
    }
    if settings.once.force_new_cluster {
        return match node::force_new_cluster(&settings) {
            Ok(recovered) => {
                println!("{}", node::describe_recovery(settings.node, &recovered));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("kv-server: nothing was changed: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match run_to_end(serve::serve(Node::start(settings), Ready::Started)) {
        Ok(End::Signal(_)) => ExitCode::SUCCESS,
        Ok(End::Failed(failure)) => {
            eprintln!("kv-server: {failure}");
            failure.exit.code()
        }
        Err(code) => code,
    }
}

/// Prints the outcome of a check of the settings.
fn say_findings(findings: Findings) -> ExitCode {
    match preflight::report(findings) {
        Ok(line) => {
            println!("kv-server: {line}");
            ExitCode::SUCCESS
        }
        Err(errors) => {
            for error in &errors {
                eprintln!("kv-server: {error}");
            }
            let what =
                if errors.len() == 1 { "1 error".to_owned() } else { format!("{} errors", errors.len()) };
            eprintln!("kv-server: {what}; nothing was changed");
            Exit::Settings.code()
        }
    }
}

/// Prints the outcome of a start that serves nothing.
fn exit_with(outcome: Result<String, RestoreError>) -> ExitCode {
    match outcome {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kv-server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a member that was started with etcd's flags, and ends as etcd does: by the signal that ended it.
fn run_in_place_of_etcd(start: &EtcdStart) -> ExitCode {
    if let Err(error) = start.logging().start() {
        eprintln!("kv-server etcd: {error}");
        return ExitCode::FAILURE;
    }
    for note in start.notes() {
        tracing::warn!("{note}");
    }
    match run_to_end(serve::serve(start_in_place_of_etcd(start), Ready::Published)) {
        Ok(End::Signal(signal)) => {
            // The first process of a container cannot be ended by its own signal.
            if std::process::id() != 1 {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            ExitCode::SUCCESS
        }
        Ok(End::Failed(failure)) => {
            tracing::error!("{failure}");
            ExitCode::FAILURE
        }
        Err(code) => code,
    }
}

async fn start_in_place_of_etcd(start: &EtcdStart) -> Result<Node, String> {
    let settings = start.settings().await.map_err(|error| error.to_string())?;
    start.force_new_cluster(&settings).map_err(|error| error.to_string())?;
    let node = Node::start(settings.clone()).await.map_err(|error| error.to_string())?;
    start.record_start(&settings).map_err(|error| error.to_string())?;
    Ok(node)
}

/// Runs the program's task on a runtime of its own.
fn run_to_end<T>(task: impl Future<Output = T>) -> Result<T, ExitCode> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        eprintln!("kv-server: cannot start: {error}");
        ExitCode::FAILURE
    })?;
    let ended = runtime.block_on(task);
    // Reads of a large range may still run on their own threads; they are not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(ended)
}
