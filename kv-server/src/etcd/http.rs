//! What is asked over HTTP without gRPC: version and health, and the calls of the gateway.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use kv_state_machine::{AlarmKind, KvOperation, Range};
use tonic::body::Body;

use super::{Etcd, gateway, maintenance::ETCD_VERSION};

/// Answers a request.
pub(super) async fn answer(etcd: Etcd, request: Request<Incoming>) -> Response<Body> {
    match gateway::method_of(request.uri().path()) {
        Some(method) => gateway::answer(etcd, method, request).await,
        None => answer_of_health(&etcd, &request).await,
    }
}

/// Answers a request for version or health.
pub(super) async fn answer_of_health(etcd: &Etcd, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET | &Method::HEAD, "/version") => json(StatusCode::OK, version()),
        (&Method::GET | &Method::HEAD, "/health" | "/livez" | "/readyz") => {
            let query = request.uri().query().unwrap_or_default();
            health(etcd, path, query).await
        }
        _ => json(StatusCode::NOT_FOUND, r#"{"code":5,"message":"Not Found"}"#.to_owned()),
    }
}

/// Clients take these for numbers.
fn version() -> String {
    format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_VERSION}","storage":"{ETCD_VERSION}"}}"#)
}

/// Whether no alarm is raised that matters to this path, and a read is answered, of this node or of the cluster.
async fn health(etcd: &Etcd, path: &str, query: &str) -> Response<Body> {
    if let Some(problem) = alarm(etcd, path, query) {
        return unhealthy_or_not(path, Some(problem));
    }
    let serializable = path == "/livez" || query.split('&').any(|pair| pair == "serializable=true");
    let range = Range { key: "health".into(), keys_only: true, ..Range::default() };
    let read = etcd.read(KvOperation::Range(range), serializable);
    let outcome = tokio::time::timeout(READ_TIMEOUT, read).await;
    let problem = match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(status)) => Some(status.message().to_owned()),
        Err(_) => Some("RAFT NO LEADER".to_owned()),
    };
    unhealthy_or_not(path, problem)
}

/// The alarm that makes `path` unhealthy, unless it is excluded: for `/health` any, for `/readyz` CORRUPT. Of two CORRUPT is told.
fn alarm(etcd: &Etcd, path: &str, query: &str) -> Option<String> {
    let excluded = |name: &str| query.split('&').any(|pair| pair.strip_prefix("exclude=") == Some(name));
    let alarms = etcd.database().alarms().into_iter().rev().map(|alarm| alarm.kind);
    match path {
        "/health" => {
            let mut told = alarms.map(|kind| kind.to_string()).filter(|name| !excluded(name));
            told.next().map(|name| format!("ALARM {name}"))
        }
        "/readyz" if !excluded("data_corruption") => {
            let corrupt = alarms.into_iter().find(|kind| *kind == AlarmKind::Corrupt);
            corrupt.map(|kind| format!("[-]data_corruption failed: alarm activated: {kind}\n"))
        }
        _ => None,
    }
}

fn unhealthy_or_not(path: &str, problem: Option<String>) -> Response<Body> {
    let status = if problem.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    if path == "/health" {
        let healthy = problem.is_none();
        let reason = serde_json::Value::from(problem.unwrap_or_default());
        return json(status, format!(r#"{{"health":"{healthy}","reason":{reason}}}"#));
    }
    respond(status, "text/plain; charset=utf-8", problem.unwrap_or_else(|| "ok\n".to_owned()))
}

pub(super) fn json(status: StatusCode, text: String) -> Response<Body> {
    respond(status, "application/json", text)
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

const READ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
