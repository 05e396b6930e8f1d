//! Counts of the calls over gRPC, under the names that etcd's dashboards know.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Response,
    body::{Body as HttpBody, Frame, SizeHint},
};
use metrics::{Counter, Histogram, counter, histogram};
use tonic::{Code, Status, body::Body};

use super::Level;
use crate::{
    call_log::{self, CallRecord},
    etcd::descriptors,
};

/// Metrics of one method.
struct Method {
    started: Counter,
    handled: Vec<Counter>,
    received: Counter,
    sent: Counter,
    seconds: Option<Histogram>,
    is_unary: bool,
}

struct Registered {
    /// By path: `/service/method`.
    methods: HashMap<String, Method>,
    received_bytes: Counter,
    sent_bytes: Counter,
}

static REGISTERED: OnceLock<Registered> = OnceLock::new();

/// Registers the metrics of all methods, so that they are 0 from the start.
pub(super) fn register(level: Level) {
    REGISTERED.get_or_init(|| {
        let methods = descriptors().services().flat_map(|service| {
            let of = |method| (path(&method), Method::new(&method, level));
            service.methods().map(of).collect::<Vec<_>>()
        });
        Registered {
            methods: methods.collect(),
            received_bytes: counter!("etcd_network_client_grpc_received_bytes_total"),
            sent_bytes: counter!("etcd_network_client_grpc_sent_bytes_total"),
        }
    });
}

fn path(method: &prost_reflect::MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// Counter of the bytes received over HTTP.
pub(crate) fn received_bytes() -> Counter {
    REGISTERED.get().map_or_else(Counter::noop, |registered| registered.received_bytes.clone())
}

/// Counter of the bytes sent over HTTP.
pub(crate) fn sent_bytes() -> Counter {
    REGISTERED.get().map_or_else(Counter::noop, |registered| registered.sent_bytes.clone())
}

impl Method {
    fn new(method: &prost_reflect::MethodDescriptor, level: Level) -> Self {
        let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        };
        let labels = || {
            [
                ("grpc_type", kind.to_owned()),
                ("grpc_service", method.parent_service().full_name().to_owned()),
                ("grpc_method", method.name().to_owned()),
            ]
        };
        let handled = |code: &&str| {
            let labels = labels().into_iter().chain([("grpc_code", (*code).to_owned())]);
            counter!("grpc_server_handled_total", &labels.collect::<Vec<_>>())
        };
        Self {
            started: counter!("grpc_server_started_total", &labels()),
            handled: CODES.iter().map(handled).collect(),
            received: counter!("grpc_server_msg_received_total", &labels()),
            sent: counter!("grpc_server_msg_sent_total", &labels()),
            seconds: (level == Level::Extensive)
                .then(|| histogram!("grpc_server_handling_seconds", &labels())),
            is_unary: kind == "unary",
        }
    }
}

/// Measures a call of a path until its response, or the last message of its stream, is there. A call that is dropped before counts
/// as cancelled. `record` ends with the call.
pub(crate) async fn measured(
    path: &str,
    record: Option<Box<CallRecord>>,
    call: impl Future<Output = Response<Body>>,
) -> Response<Body> {
    let method = REGISTERED.get().and_then(|registered| registered.methods.get(path));
    if method.is_none() && record.is_none() {
        return call.await;
    }
    let mut running = Call::start(method);
    let (response, record) = call_log::recorded(record, call).await;
    let is_unary = method
        .map_or_else(|| record.as_ref().is_none_or(|record| record.is_unary()), |method| method.is_unary);
    running.record = record;
    if let Some(code) = code_of(response.headers()) {
        running.end(code);
        return response;
    }
    if is_unary {
        // An error of a unary call is in the headers.
        running.count_sent();
        running.end(Code::Ok);
        return response;
    }
    response.map(|body| Body::new(Measured { body, call: Some(running) }))
}

/// A call that has not ended.
struct Call {
    /// `None` if nothing is measured.
    method: Option<&'static Method>,
    start: Option<Instant>,
    code: Code,
    record: Option<Box<CallRecord>>,
}

impl Call {
    fn start(method: Option<&'static Method>) -> Self {
        if let Some(method) = method {
            method.started.increment(1);
            if method.is_unary {
                method.received.increment(1);
            }
        }
        let start = method.and_then(|method| method.seconds.as_ref()).map(|_| Instant::now());
        Self { method, start, code: Code::Cancelled, record: None }
    }

    fn count_sent(&self) {
        if let Some(method) = self.method {
            method.sent.increment(1);
        }
    }

    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            record.end(if self.code == Code::Ok { call_log::OK } else { code_name(self.code) });
        }
        let Some(method) = self.method else { return };
        if let Some(handled) = method.handled.get(self.code as usize) {
            handled.increment(1);
        }
        if let (Some(seconds), Some(start)) = (&method.seconds, self.start) {
            seconds.record(start.elapsed());
        }
    }
}

/// Body of a response with a stream of messages.
struct Measured {
    body: Body,
    call: Option<Call>,
}

impl HttpBody for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => match (frame.trailers_ref(), &self.call) {
                (Some(trailers), _) => self.end(code_of(trailers).unwrap_or(Code::Ok)),
                (None, Some(call)) => call.count_sent(),
                (None, None) => {}
            },
            Some(Err(status)) => self.end(status.code()),
            None => self.end(Code::Ok),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Measured {
    fn end(&mut self, code: Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
        }
    }
}

/// Name of a code.
pub(crate) fn code_name(code: Code) -> &'static str {
    CODES.get(code as usize).copied().unwrap_or("Unknown")
}

/// Code of a call in headers or trailers.
fn code_of(headers: &HeaderMap) -> Option<Code> {
    Some(Code::from_bytes(headers.get("grpc-status")?.as_bytes()))
}

/// Names of the codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
