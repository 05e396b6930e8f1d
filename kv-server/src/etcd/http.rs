//! Requests over HTTP without gRPC: version, health, metrics, settings, backups, and calls of the gateway.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use tonic::body::Body;

use super::{
    Etcd, checks::Probe, download, gateway, maintenance::ETCD_VERSION, permissions::certificate_name,
};
use crate::measure;

/// Serves a request.
pub(super) async fn answer(etcd: Etcd, request: Request<Incoming>) -> Response<Body> {
    match gateway::method_of(request.uri().path()) {
        Some(method) => gateway::answer(etcd, method, request).await,
        None if request.uri().path() == "/snapshot" && request.method() == Method::GET => {
            download::answer(etcd, &request).await
        }
        None if request.uri().path() == "/debug/settings" && request.method() == Method::GET => {
            settings(etcd, &request).await
        }
        None => answer_of_health(&etcd, &request).await,
    }
}

/// Settings of the node, for a client that has the role `root`, if users are checked.
async fn settings(etcd: Etcd, request: &Request<Incoming>) -> Response<Body> {
    let name = certificate_name(request.extensions());
    // It needs what a copy of the store needs.
    match etcd.admit("etcdserverpb.Maintenance", "Snapshot", request.headers(), name).await {
        Ok(etcd) => respond(StatusCode::OK, "text/plain; charset=utf-8", etcd.router().settings().to_owned()),
        Err(status) => gateway::failed(&status),
    }
}

/// Serves a request for version, health or metrics.
pub(super) async fn answer_of_health(etcd: &Etcd, request: &Request<Incoming>) -> Response<Body> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    match request.method() {
        &Method::GET | &Method::HEAD if path == "/metrics" => {
            if let Some(text) = measure::text(etcd.router()) {
                return respond(StatusCode::OK, PROMETHEUS, text);
            }
        }
        &Method::GET | &Method::HEAD if path == "/version" => return json(StatusCode::OK, version()),
        &Method::GET | &Method::HEAD => {
            if let Some(probe) = Probe::of(path) {
                return probe.answer(etcd, query).await;
            }
        }
        _ => {}
    }
    json(StatusCode::NOT_FOUND, r#"{"code":5,"message":"Not Found"}"#.to_owned())
}

/// Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Clients parse these as numbers.
fn version() -> String {
    format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_VERSION}","storage":"{ETCD_VERSION}"}}"#)
}

pub(super) fn json(status: StatusCode, text: String) -> Response<Body> {
    respond(status, "application/json", text)
}

pub(super) fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
