//! A snapshot of etcd, imported into kv-server: the same keys at every revision, the same changes, the same leases.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use futures::StreamExt;
use kv_etcd_api::{
    etcdserverpb::{
        AlarmRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, RangeRequest, SnapshotRequest,
        WatchCreateRequest, WatchRequest, alarm_request::AlarmAction, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};
use tempfile::TempDir;
use tonic::Code;

use crate::server::{Clients, Server};

/// Imports what an etcd has, and compares. Returns the number of revisions that were compared.
pub(crate) async fn check(kv_server: &Path, theirs: &mut Clients) -> Result<usize, String> {
    disarm_alarms(theirs).await?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let snapshot = save(theirs, dir.path()).await?;
    let (_server, mut ours) = start_imported(kv_server, dir, &snapshot).await?;
    let newest = range(&mut ours, 0).await?.map_err(|code| format!("the imported keys: {code:?}"))?.0;
    let mut compared = 0;
    for revision in 1..=newest {
        let (imported, original) = (range(&mut ours, revision).await?, range(theirs, revision).await?);
        let keys = |found: Result<(i64, Vec<KeyValue>), Code>| found.map(|(_, keys)| keys);
        let (imported, original) = (keys(imported), keys(original));
        if imported != original {
            return Err(format!(
                "keys at revision {revision}:\n  etcd:     {original:?}\n  imported: {imported:?}"
            ));
        }
        compared += usize::from(original.is_ok());
        if original.is_ok() && compared == 1 {
            let (imported, original) =
                (changes(&mut ours, revision, newest).await?, changes(theirs, revision, newest).await?);
            if imported != original {
                return Err(format!(
                    "changes since {revision}:\n  etcd:     {original:?}\n  imported: {imported:?}"
                ));
            }
        }
    }
    if compared == 0 {
        return Err("nothing was compared: no revision could be read".to_owned());
    }
    compare_leases(theirs, &mut ours).await?;
    Ok(compared)
}

async fn disarm_alarms(clients: &mut Clients) -> Result<(), String> {
    let request =
        |action: AlarmAction, member_id, alarm| AlarmRequest { action: action.into(), member_id, alarm };
    let alarms = clients.maintenance.alarm(request(AlarmAction::Get, 0, 0)).await.map_err(failed)?;
    for alarm in alarms.into_inner().alarms {
        let disarm = request(AlarmAction::Deactivate, alarm.member_id, alarm.alarm);
        clients.maintenance.alarm(disarm).await.map_err(failed)?;
    }
    Ok(())
}

async fn save(clients: &mut Clients, dir: &Path) -> Result<PathBuf, String> {
    let mut parts = clients.maintenance.snapshot(SnapshotRequest {}).await.map_err(failed)?.into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.map_err(failed)? {
        bytes.extend_from_slice(&part.blob);
    }
    let path = dir.join("snapshot.db");
    std::fs::write(&path, bytes).map_err(|error| error.to_string())?;
    Ok(path)
}

async fn start_imported(
    kv_server: &Path,
    dir: TempDir,
    snapshot: &Path,
) -> Result<(Server, Clients), String> {
    let import = |data: String, endpoint: String| {
        let mut command = Command::new(kv_server);
        command.args([
            "--data-dir",
            &data,
            "--replica-endpoints",
            &endpoint,
            "--bump-revision",
            "0",
            "--import-etcd",
        ]);
        let output =
            command.arg(snapshot).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("the import failed: {}", String::from_utf8_lossy(&output.stderr)))
    };
    let server = Server::kv_after(kv_server, dir, import)?;
    let clients = Clients::connect(server.port).await?;
    Ok((server, clients))
}

/// All keys at a revision; 0: at the newest one, with its number.
async fn range(clients: &mut Clients, revision: i64) -> Result<Result<(i64, Vec<KeyValue>), Code>, String> {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
    Ok(match clients.kv.range(all).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            Ok((answer.header.unwrap_or_default().revision, answer.kvs))
        }
        Err(status) if status.code() == Code::OutOfRange => Err(status.code()),
        Err(status) => return Err(failed(status)),
    })
}

/// All changes from one revision to another.
async fn changes(clients: &mut Clients, from: i64, to: i64) -> Result<Vec<Event>, String> {
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: from,
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::stream::iter([create]).chain(futures::stream::pending());
    let mut answers = clients.watch.watch(requests).await.map_err(failed)?.into_inner();
    let mut changes: Vec<Event> = Vec::new();
    let revision_of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    // A probe after the last change ends the wait.
    let probe = kv_etcd_api::etcdserverpb::PutRequest { key: PROBE.into(), ..Default::default() };
    clients.kv.put(probe).await.map_err(failed)?;
    while let Some(answer) = answers.message().await.map_err(failed)? {
        for event in answer.events {
            if revision_of(&event) > to {
                return Ok(changes);
            }
            changes.push(event);
        }
        if answer.canceled {
            return Err(format!("the watch from {from} was ended: {}", answer.cancel_reason));
        }
    }
    Err(format!("the watch from {from} has ended"))
}

/// Leases that etcd still has are imported with their time to live and keys.
async fn compare_leases(theirs: &mut Clients, ours: &mut Clients) -> Result<(), String> {
    let ids = async |clients: &mut Clients| -> Result<BTreeSet<i64>, String> {
        let leases =
            clients.lease.lease_leases(LeaseLeasesRequest {}).await.map_err(failed)?.into_inner().leases;
        Ok(leases.into_iter().map(|lease| lease.id).collect())
    };
    let imported = ids(ours).await?;
    for id in ids(theirs).await? {
        if !imported.contains(&id) {
            return Err(format!("lease {id} was not imported"));
        }
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let of = async |clients: &mut Clients| -> Result<_, String> {
            let lease = clients.lease.lease_time_to_live(request).await.map_err(failed)?.into_inner();
            let mut keys = lease.keys;
            keys.sort();
            Ok((lease.ttl < 0, lease.granted_ttl, keys))
        };
        let (imported, original) = (of(ours).await?, of(theirs).await?);
        let has_expired = imported.0 || original.0;
        if !has_expired && imported != original {
            return Err(format!("lease {id}:\n  etcd:     {original:?}\n  imported: {imported:?}"));
        }
    }
    Ok(())
}

fn failed(status: tonic::Status) -> String {
    status.to_string()
}

/// A key that no request has.
const PROBE: &str = "\u{10FFFF}probe";
