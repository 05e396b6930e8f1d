//! Locks and elections.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, pin::pin, time::Duration};

use clap::Args;
use futures::StreamExt;
use kv_store_client::{KvClient, Lease, Lock, LockError};
use serde_json::json;

use crate::{
    Failure,
    job::Job,
    leases::TTL_SECONDS_MAX,
    show::{Show, escaped, pair},
    signals::{self, Signals},
};

#[derive(Args)]
pub(crate) struct LockCommand {
    /// Name of the lock. Locks that clients of etcd take by this name are the same.
    name: String,
    /// Seconds after which others get the lock, should this holder vanish.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i64).range(1..=TTL_SECONDS_MAX))]
    ttl: i64,
    /// Seconds from SIGTERM to SIGKILL, for a command that runs when the lock is lost.
    #[arg(long, default_value_t = 5)]
    grace: u64,
    /// The command that is run while the lock is held, after `--`. Left out: the lock is held until this is interrupted.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct Elect {
    /// Name of the election. Candidates of etcd's clients take part.
    name: String,
    /// What the leader tells the others about itself.
    #[arg(required_unless_present = "listen")]
    value: Option<String>,
    /// Seconds after which others are elected, should this leader vanish.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i64).range(1..=TTL_SECONDS_MAX))]
    ttl: i64,
    /// Print who leads, now and whenever that changes, instead of standing for election.
    #[arg(long, conflicts_with_all = ["value", "ttl"])]
    listen: bool,
}

/// Waits for a lock, and runs a command while it is held.
pub(crate) async fn lock(client: &KvClient, arguments: &LockCommand, show: Show) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let lease = tokio::select! {
        lease = hold_lease(client, arguments.ttl) => lease?,
        signal = signals.next() => return Ok(signals::exit_code(signal.as_raw())),
    };
    let held = tokio::select! {
        held = client.lock(arguments.name.as_str(), &lease) => held.map_err(|error| not_held(error, "lock")),
        signal = signals.next() => {
            release(lease, "the place in the queue").await;
            return Ok(signals::exit_code(signal.as_raw()));
        }
    };
    let outcome = match &held {
        Ok(lock) if arguments.command.is_empty() => {
            match show.either(&escaped(lock.key()), || held_value(lock.key(), lock.revision())) {
                Ok(()) => until_lost(lock.lost(), &mut signals, "lock").await,
                Err(failure) => Err(failure),
            }
        }
        Ok(lock) => run(lock, arguments, &mut signals).await,
        Err(_) => Ok(0),
    };
    finish(lease, "the lock", held.and(outcome)).await
}

/// Runs the command while the lock is held.
async fn run(lock: &Lock, arguments: &LockCommand, signals: &mut Signals) -> Result<u8, Failure> {
    let environment = [
        ("KV_LOCK_KEY", Some(OsString::from_vec(lock.key().to_vec()))),
        ("KV_LOCK_REVISION", Some(lock.revision().to_string().into())),
    ];
    let mut job = Job::start(&arguments.command, environment, None)?;
    let mut lost = pin!(lock.lost());
    let ended = loop {
        tokio::select! {
            code = job.ended() => break Some(code?),
            () = &mut lost => break None,
            signal = signals.next() => job.pass_on(signal),
        }
    };
    let why = "the lock was lost: its lease has ended, could not be renewed in time, or its key was deleted";
    match ended {
        Some(code) if lock.is_held() => Ok(code),
        // The command may have run while another client held the lock.
        Some(code) => Err(Failure::Lost(format!("{why}; the command ended with {code}, perhaps too late"))),
        None => {
            eprintln!("kvctl: {why}; the command is ended");
            job.end(Duration::from_secs(arguments.grace)).await?;
            Err(Failure::Lost(format!("{why}; the command was ended")))
        }
    }
}

/// Campaigns and is leader until it is interrupted, or prints the leaders of an election.
pub(crate) async fn elect(client: &KvClient, arguments: &Elect, show: Show) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let Some(value) = &arguments.value else {
        return listen(client, &arguments.name, &mut signals, show).await;
    };
    let lease = tokio::select! {
        lease = hold_lease(client, arguments.ttl) => lease?,
        signal = signals.next() => return Ok(signals::exit_code(signal.as_raw())),
    };
    let won = tokio::select! {
        won = client.campaign(arguments.name.as_str(), value.as_str(), &lease) => {
            won.map_err(|error| not_held(error, "election"))
        }
        signal = signals.next() => {
            release(lease, "the candidacy").await;
            return Ok(signals::exit_code(signal.as_raw()));
        }
    };
    let outcome = match &won {
        Ok(leadership) => {
            let (key, revision) = (leadership.key(), leadership.revision());
            match show.either(&format!("{}\t{value}", escaped(key)), || held_value(key, revision)) {
                Ok(()) => until_lost(leadership.lost(), &mut signals, "leadership").await,
                Err(failure) => Err(failure),
            }
        }
        Err(_) => Ok(0),
    };
    finish(lease, "leadership", won.and(outcome)).await
}

async fn listen(client: &KvClient, name: &str, signals: &mut Signals, show: Show) -> Result<u8, Failure> {
    let mut leaders = client.observe(name);
    loop {
        let leader = tokio::select! {
            leader = leaders.next() => leader,
            _ = signals.next() => return Ok(0),
        };
        let Some(leader) = leader.transpose()? else { return Ok(0) };
        let text = format!("{}\t{}", escaped(&leader.key), escaped(&leader.value));
        tokio::select! {
            is_read = show.event(text, || pair(&leader)) => if !is_read? { return Ok(0) },
            _ = signals.next() => return Ok(0),
        }
    }
}

/// Grants a lease that renews itself. If the caller drops this future, a lease that was granted ends after
/// its time to live.
async fn hold_lease(client: &KvClient, ttl_seconds: i64) -> Result<Lease, Failure> {
    Ok(client.hold_lease(Duration::from_secs(ttl_seconds.unsigned_abs())).await?)
}

/// Waits for a signal, which is a success, or for the loss of what is held, which is a failure.
async fn until_lost(
    lost: impl Future<Output = ()>,
    signals: &mut Signals,
    what: &str,
) -> Result<u8, Failure> {
    tokio::select! {
        () = lost => Err(Failure::Lost(format!(
            "the {what} was lost: its lease has ended, could not be renewed in time, or its key was deleted"
        ))),
        _ = signals.next() => Ok(0),
    }
}

/// Releases what is held, unless it was lost.
async fn finish(lease: Lease, what: &str, outcome: Result<u8, Failure>) -> Result<u8, Failure> {
    if !matches!(outcome, Err(Failure::Lost(_))) {
        release(lease, what).await;
    }
    outcome
}

/// Revokes the lease, which releases what it holds. If no server responds, the lease ends after its time to
/// live.
async fn release(lease: Lease, what: &str) {
    let ttl = lease.ttl().as_secs();
    if let Err(error) = lease.revoke().await {
        eprintln!("kvctl: {what} was not given up: {error}; it ends with its lease, within {ttl} s");
    }
}

fn not_held(error: LockError, what: &str) -> Failure {
    match error {
        LockError::Client(error) => error.into(),
        LockError::Lost => Failure::Lost(format!(
            "the lease of the {what} was lost while it was waited for: it has ended, or could not be renewed in time"
        )),
        error => Failure::Lost(error.to_string()),
    }
}

fn held_value(key: &[u8], revision: i64) -> serde_json::Value {
    json!({ "key": escaped(key), "revision": revision })
}
