//! One HTTP connection: gRPC over HTTP/2, and other requests.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    sync::OnceLock,
    time::{Duration, Instant},
};

use consensus_tls::Stream;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use kv_etcd_api::{
    FILE_DESCRIPTOR_SET,
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
        lease_server::LeaseServer, maintenance_server::MaintenanceServer, watch_server::WatchServer,
    },
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use prost_reflect::DescriptorPool;
use tokio::sync::watch as channel;
use tonic::{Code, Status, body::Body, codegen::Service};
use tonic_health::pb::health_server::HealthServer;

use super::{
    Etcd,
    calls::{Calls, NewCalls},
    error,
    first_bytes::{self, LastWrite},
    gateway,
    health::reflection,
    held::until_written,
    http,
    peer_certificate::PeerCertificate,
    permissions::{certificate_name, in_words_of_locks, is_named},
    required_leader,
};
use crate::{
    answers::ConnectionBudget,
    call_log::Protocol,
    frontend::{refusal, stopped},
    measure::measured,
};

/// Requests that a connection serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The whole API.
    Api,
    /// Health and version only.
    Health,
    /// Health and version; other requests are refused, because there are as many clients as there may be.
    Refused {
        /// Maximum number of clients.
        clients_max: usize,
    },
}

/// Serves a connection until the client closes it or `stop` is set. Then streams end, and pending calls are finished.
pub(crate) async fn serve(
    stream: Stream,
    etcd: Etcd,
    scope: Scope,
    mut stop: channel::Receiver<bool>,
) -> io::Result<()> {
    let (streams_max, budget) = (etcd.limits.streams_max, etcd.budget.clone());
    let certificate = PeerCertificate::of(&stream);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let etcd = etcd.clone();
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        async move {
            Ok::<_, Infallible>(match scope {
                Scope::Api => answer(etcd, request).await,
                Scope::Health => http::answer_of_health(&etcd, &request).await,
                Scope::Refused { clients_max } => {
                    let mut response = refuse(&etcd, &request, clients_max).await;
                    if request.version() < hyper::Version::HTTP_2 {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    response
                }
            })
        }
    });
    let opened = tokio::select! {
        opened = first_bytes::read(stream) => opened?,
        () = stopped(&mut stop) => return Ok(()),
    };
    let (new_calls, last_write) = (NewCalls::default(), opened.last_write());
    let (builder, mut calls) = (builder(streams_max, new_calls.clone()), Calls::new(new_calls));
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(opened), service));
    let served = tokio::select! {
        served = poll_fn(|cx| calls.poll(cx, connection.as_mut())) => served,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            poll_fn(|cx| calls.poll(cx, connection.as_mut())).await
        }
        () = stalled(&budget, &last_write) => {
            let why = "the client reads no responses while others wait for the memory that they occupy";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    };
    served.map_err(io::Error::other)
}

/// Waits until the client has read no response for [`STALLED_MAX`], and others wait for the memory of its responses.
async fn stalled(budget: &ConnectionBudget, last_write: &LastWrite) {
    let mut unread_since = Instant::now();
    loop {
        tokio::time::sleep(STALLED_LOOK).await;
        if !budget.has_unread() {
            unread_since = Instant::now();
        }
        let stalled = last_write.elapsed().min(unread_since.elapsed());
        if stalled > STALLED_MAX && budget.is_contended() {
            return;
        }
    }
}

fn builder(streams_max: u32, calls: NewCalls) -> Builder<NewCalls> {
    let mut builder = Builder::new(calls);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams_max)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// Responds to a client without a place. Its connection ends soon.
async fn refuse(etcd: &Etcd, request: &Request<Incoming>, clients_max: usize) -> Response<Body> {
    let path = request.uri().path();
    let status = || Status::unavailable(refusal::reason(clients_max));
    if is_grpc(request) {
        status().into_http()
    } else if gateway::method_of(path).is_some() || ["/snapshot", "/debug/settings"].contains(&path) {
        gateway::failed(&status())
    } else {
        http::answer_of_health(etcd, request).await
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    content_type.starts_with(b"application/grpc")
}

async fn answer(etcd: Etcd, request: Request<Incoming>) -> Response<Body> {
    if !is_grpc(&request) {
        return http::answer(etcd, request).await;
    }
    let message_bytes_max = etcd.limits.message_bytes();
    let response = call(etcd, request.map(Body::new), Protocol::Grpc).await;
    in_words_of_etcd(until_written(response), message_bytes_max)
}

/// Calls the service of the request's path.
pub(super) async fn call(etcd: Etcd, request: Request<Body>, protocol: Protocol) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let record = etcd.record(protocol, &path);
    let timeout = request.headers().get("grpc-timeout").and_then(|value| timeout_of(value.to_str().ok()?));
    let call = dispatch(etcd, request, &path);
    // The timeout is inside, so that a call that takes too long is counted as such.
    let call = async {
        match timeout {
            None => call.await,
            Some(timeout) => {
                let in_time = tokio::time::timeout(timeout, call).await;
                in_time.unwrap_or_else(|_| error::deadline_exceeded().into_http())
            }
        }
    };
    measured(&path, record, call).await
}

async fn dispatch(etcd: Etcd, request: Request<Body>, path: &str) -> Response<Body> {
    let message_bytes_max = etcd.limits.message_bytes();
    macro_rules! served_by {
        ($server:ident, $etcd:expr) => {
            $server::new($etcd).max_decoding_message_size(message_bytes_max).call(request).await
        };
    }
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    if let Some(status) = unknown(service, method) {
        return status.into_http();
    }
    let requires_leader = required_leader::is_required_by(request.headers()).then(|| etcd.clone());
    if requires_leader.as_ref().is_some_and(Etcd::has_no_leader) {
        return error::no_leader().into_http();
    }
    let name = certificate_name(request.extensions());
    let etcd = if etcd.database().is_auth_enabled() || is_named(request.headers(), name.as_ref()) {
        // On the heap, so that calls without authentication take no room for it.
        match Box::pin(etcd.admit(service, method, request.headers(), name)).await {
            Ok(etcd) => etcd,
            Err(status) => return in_words_of_locks(service, status.into_http()),
        }
    } else {
        etcd
    };
    let response = match service {
        "etcdserverpb.KV" => served_by!(KvServer, etcd),
        "etcdserverpb.Watch" => served_by!(WatchServer, etcd),
        "etcdserverpb.Lease" => served_by!(LeaseServer, etcd),
        "etcdserverpb.Cluster" => served_by!(ClusterServer, etcd),
        "etcdserverpb.Maintenance" => served_by!(MaintenanceServer, etcd),
        "etcdserverpb.Auth" => served_by!(AuthServer, etcd),
        "v3lockpb.Lock" => served_by!(LockServer, etcd),
        "v3electionpb.Election" => served_by!(ElectionServer, etcd),
        "grpc.health.v1.Health" => served_by!(HealthServer, etcd),
        "grpc.reflection.v1.ServerReflection" => reflection::of_v1().call(request).await,
        "grpc.reflection.v1alpha.ServerReflection" => reflection::of_v1alpha().call(request).await,
        _ => return Status::unimplemented(format!("unknown service {service}")).into_http(),
    };
    let response = match response {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let response = in_words_of_locks(service, response);
    match requires_leader {
        Some(etcd) => required_leader::end_without_leader(&etcd, response),
        None => response,
    }
}

/// Status for a service or method that does not exist.
fn unknown(service: &str, method: &str) -> Option<Status> {
    if service.starts_with("grpc.") {
        return None; // Their own code knows their methods.
    }
    let Some(found) = descriptors().get_service_by_name(service) else {
        return Some(Status::unimplemented(format!("unknown service {service}")));
    };
    let is_known = found.methods().any(|known| known.name() == method);
    (!is_known).then(|| Status::unimplemented(format!("unknown method {method} for service {service}")))
}

/// Descriptors of the API.
pub(crate) fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default())
}

/// Replaces an error of the gRPC library by etcd's.
fn in_words_of_etcd(mut response: Response<Body>, message_bytes_max: usize) -> Response<Body> {
    let code = response.headers().get("grpc-status").map(HeaderValue::as_bytes);
    let message = response.headers().get("grpc-message").map(HeaderValue::as_bytes).unwrap_or_default();
    let too_large = message.windows(b"too%20large".len()).any(|part| part == b"too%20large");
    if code == Some(b"11") && message.starts_with(b"Error") && too_large {
        response.headers_mut().insert("grpc-status", HeaderValue::from(Code::ResourceExhausted as i32));
        let text = format!("grpc: received message larger than max ({message_bytes_max})");
        if let Ok(text) = HeaderValue::try_from(text.replace(' ', "%20")) {
            response.headers_mut().insert("grpc-message", text);
        }
    }
    response
}

/// Parses a number of at most eight digits with a unit.
fn timeout_of(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Time after which a client that reads nothing is disconnected if others wait, and the time between two looks.
const STALLED_MAX: Duration = Duration::from_secs(3);
const STALLED_LOOK: Duration = Duration::from_secs(1);
/// As in etcd: time without a whole header after which a connection of HTTP/1 is closed, whether it is idle or slow.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes that a client may send ahead: of one call, and of all calls.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// As in etcd: a connection that is silent for this time is pinged, and closed if there is no response.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_each_unit_and_others_are_ignored() {
        assert_eq!(timeout_of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout_of("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout_of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "999999999S", "-1S", "1x", "1", "+5S"] {
            assert_eq!(timeout_of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn unknown_services_and_methods_are_named_as_etcd_names_them() {
        let message = |service, method| unknown(service, method).map(|status| status.message().to_owned());
        assert_eq!(message("etcdserverpb.KV", "Range"), None);
        assert_eq!(message("a.B", "C"), Some("unknown service a.B".to_owned()));
        assert_eq!(
            message("etcdserverpb.KV", "Get"),
            Some("unknown method Get for service etcdserverpb.KV".to_owned())
        );
    }
}
