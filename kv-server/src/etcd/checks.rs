//! Checks of health over HTTP: /health, /livez and /readyz, and a path for each check of the latter two.

use consensus_core::ReadConsistency;
use hyper::StatusCode;
use kv_state_machine::{AlarmKind, Caller, KvOperation, Range};
use tonic::{Status, body::Body};

use super::{Etcd, error, http};
use crate::measure;

/// A check of health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// One outcome for all alarms and a read, as JSON.
    Health,
    /// The checks of a path, as text; the last part of the path may name one of them.
    Checks { checks: &'static [Check], is_one: bool },
}

/// A check of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
    Storage,
}

impl Probe {
    /// Returns the check of a path; `None` if it is no path of a check.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (root, name) = match path.strip_prefix('/')?.split_once('/') {
            None => (path, None),
            Some((root, name)) => (&path[..=root.len()], Some(name)),
        };
        let checks: &'static [Check] = match root {
            "/health" if name.is_none() => return Some(Self::Health),
            "/livez" => &LIVE,
            "/readyz" => &READY,
            _ => return None,
        };
        let Some(name) = name else { return Some(Self::Checks { checks, is_one: false }) };
        let at = checks.iter().position(|check| check.name() == name)?;
        Some(Self::Checks { checks: &checks[at..=at], is_one: true })
    }

    pub(super) async fn answer(self, etcd: &Etcd, query: &str) -> hyper::Response<Body> {
        match self {
            Self::Health => health(etcd, query).await,
            Self::Checks { checks, is_one } => {
                // A path of one check passes `exclude` over, as in etcd.
                let is_wanted = |check: &&Check| is_one || !has(query, "exclude", check.name());
                run(etcd, checks.iter().filter(is_wanted), names(query, "verbose")).await
            }
        }
    }
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
            Self::Storage => "storage",
        }
    }

    async fn run(self, etcd: &Etcd) -> Result<(), String> {
        match self {
            Self::DataCorruption => {
                let is_corrupt =
                    etcd.database().alarms().iter().any(|alarm| alarm.kind == AlarmKind::Corrupt);
                if is_corrupt { Err(format!("alarm activated: {}", AlarmKind::Corrupt)) } else { Ok(()) }
            }
            Self::SerializableRead => read(etcd, true).await,
            Self::LinearizableRead => read(etcd, false).await,
            Self::NonLearner if etcd.is_learner() => Err("not supported for learner".to_owned()),
            Self::NonLearner => Ok(()),
            Self::Storage => etcd.storage_problem().map_or(Ok(()), Err),
        }
    }
}

/// Runs checks. The answer tells of each one if one failed, or if the client wants to know.
async fn run(etcd: &Etcd, checks: impl Iterator<Item = &Check>, is_verbose: bool) -> hyper::Response<Body> {
    let (mut text, mut status) = (String::new(), StatusCode::OK);
    for check in checks {
        let name = check.name();
        match check.run(etcd).await {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            Err(why) => {
                status = StatusCode::SERVICE_UNAVAILABLE;
                text.push_str(&format!("[-]{name} failed: {why}\n"));
            }
        }
    }
    if status == StatusCode::OK {
        text = if is_verbose { text + "ok\n" } else { "ok\n".to_owned() };
    }
    http::respond(status, "text/plain; charset=utf-8", text)
}

/// Whether no alarm is raised that is not excluded, there is a leader, the node has its disk and room on it, and a read is answered.
/// With `serializable=true` only alarms and a read of this node count: a restart would not help against the rest.
async fn health(etcd: &Etcd, query: &str) -> hyper::Response<Body> {
    let is_serializable = has(query, "serializable", "true");
    let is_excluded = |alarm: &str| has(query, "exclude", alarm);
    // Of two alarms CORRUPT is told.
    let alarms = etcd.database().alarms().into_iter().rev().map(|alarm| alarm.kind.to_string());
    let alarm = alarms.into_iter().find(|name| !is_excluded(name)).map(|name| format!("ALARM {name}"));
    let of_node = || {
        let leaderless = etcd.has_no_leader().then(|| "RAFT NO LEADER".to_owned());
        let no_room =
            || etcd.status().no_room.clone().filter(|_| !is_excluded(&AlarmKind::NoSpace.to_string()));
        etcd.storage_problem().or(leaderless).or_else(no_room)
    };
    let problem = match alarm.or_else(|| if is_serializable { None } else { of_node() }) {
        None => read(etcd, is_serializable).await.err().map(|why| format!("RANGE ERROR:{why}")),
        problem => problem,
    };
    let status = if problem.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let is_healthy = problem.is_none();
    measure::health_checked(is_healthy);
    let reason = serde_json::Value::from(problem.unwrap_or_default());
    http::json(status, format!(r#"{{"health":"{is_healthy}","reason":{reason}}}"#))
}

async fn read(etcd: &Etcd, is_serializable: bool) -> Result<(), String> {
    match tokio::time::timeout(READ_TIMEOUT, etcd.try_read(is_serializable)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("context deadline exceeded".to_owned()),
    }
}

impl Etcd {
    /// Reads, or, on a witness, finds out whether the cluster would serve a read.
    async fn try_read(&self, is_serializable: bool) -> Result<(), Status> {
        if !self.database().is_witness() {
            let range = Range { key: "health".into(), keys_only: true, ..Range::default() };
            // Probes have no user, and learn nothing about keys.
            let own = Self { caller: Caller::Server, ..self.clone() };
            return own.read(KvOperation::Range(range), is_serializable).await.map(|_| ());
        }
        if !is_serializable {
            let barrier = self.database().engine().read_barrier(ReadConsistency::Linearizable);
            barrier.await.map_err(|_| error::no_leader())?;
        }
        Ok(())
    }
}

/// Whether a query has a parameter with this value.
fn has(query: &str, name: &str, value: &str) -> bool {
    query.split('&').any(|pair| pair.split_once('=') == Some((name, value)))
}

/// Whether a query has a parameter, whatever its value is.
fn names(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some(name))
}

const LIVE: [Check; 1] = [Check::SerializableRead];
const READY: [Check; 5] = [
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
    Check::Storage,
];
const READ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_path_below_its_root() {
        let checks = |path: &str| match Probe::of(path) {
            Some(Probe::Checks { checks, .. }) => checks.to_vec(),
            _ => Vec::new(),
        };
        assert_eq!(Probe::of("/health"), Some(Probe::Health));
        assert_eq!(checks("/livez"), LIVE);
        assert_eq!(checks("/readyz"), READY);
        assert_eq!(checks("/livez/serializable_read"), LIVE);
        for check in READY {
            assert_eq!(checks(&format!("/readyz/{}", check.name())), [check]);
        }
        for path in ["/", "", "health", "/health/", "/livez/linearizable_read", "/readyz/", "/readyz/x", "/x"]
        {
            assert_eq!(Probe::of(path), None, "{path}");
        }
    }

    #[test]
    fn parameters_are_found_by_name_and_value() {
        let query = "exclude=a&exclude=b&verbose";
        assert!(has(query, "exclude", "a") && has(query, "exclude", "b") && !has(query, "exclude", "c"));
        assert!(names(query, "verbose") && names("verbose=", "verbose") && !names("x=verbose", "verbose"));
    }
}
