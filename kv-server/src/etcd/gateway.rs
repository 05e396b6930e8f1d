//! The JSON gateway: every call of the API as a POST, with messages as JSON.
//!
//! Paths come from the descriptors (option `google.api.http`). A call takes the path of gRPC: its message is
//! converted from JSON, and the messages of the response to JSON.

use std::{collections::HashMap, sync::OnceLock};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use prost::Message;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage,
    SerializeOptions, Value,
};
use serde::Deserialize;
use tokio::sync::mpsc;
use tonic::{Code, Status, body::Body};

use super::{
    Etcd,
    documents::Documents,
    held::take_room,
    http,
    peer_certificate::PeerCertificate,
    permissions::TOKEN,
    required_leader::HAS_LEADER,
    serve::{call, descriptors},
};
use crate::call_log::Protocol;

/// Returns the method of a path.
pub(super) fn method_of(path: &str) -> Option<&'static MethodDescriptor> {
    static ROUTES: OnceLock<HashMap<String, MethodDescriptor>> = OnceLock::new();
    let routes = ROUTES.get_or_init(routes);
    match path.strip_prefix("/v3beta/") {
        Some(rest) => routes.get(&format!("/v3/{rest}")),
        None => routes.get(path),
    }
}

fn routes() -> HashMap<String, MethodDescriptor> {
    let Some(option) = descriptors().get_extension_by_name("google.api.http") else { return HashMap::new() };
    let mut routes = HashMap::new();
    for method in descriptors().services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let options = method.options();
        if let Value::Message(rule) = &*options.get_extension(&option) {
            let more = rule.get_field_by_name("additional_bindings");
            let more = more.as_ref().and_then(|more| more.as_list()).unwrap_or_default();
            for rule in more.iter().filter_map(Value::as_message).chain([rule]) {
                if let Some(Value::String(path)) = rule.get_field_by_name("post").as_deref() {
                    routes.insert(path.clone(), method.clone());
                }
            }
        }
    }
    routes
}

/// Serves a request to the path of a method.
pub(super) async fn answer(
    etcd: Etcd,
    method: &'static MethodDescriptor,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != Method::POST {
        return failed(&Status::unimplemented("Method Not Allowed"));
    }
    let token = request.headers().get(AUTHORIZATION).cloned();
    let has_leader = request.headers().get(HAS_LEADER_HEADER).cloned();
    let certificate = request.extensions().get::<PeerCertificate>().cloned();
    // base64 is a third longer.
    let json_bytes_max = etcd.limits.message_bytes() * 3 / 2;
    let body = if method.is_client_streaming() {
        streamed(method.input(), request.into_body(), json_bytes_max)
    } else {
        match whole(&method.input(), request.into_body(), json_bytes_max).await {
            Ok(message) => Body::new(http_body_util::Full::new(framed(&message))),
            Err(status) => return failed(&status),
        }
    };
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut inner = Request::new(body);
    *inner.method_mut() = Method::POST;
    if let Ok(path) = path.parse() {
        *inner.uri_mut() = path;
    }
    inner.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(token) = token {
        inner.headers_mut().insert(TOKEN, token);
    }
    if let Some(value) = has_leader {
        inner.headers_mut().insert(HAS_LEADER, value);
    }
    if let Some(certificate) = certificate {
        inner.extensions_mut().insert(certificate);
    }
    let mut answered = call(etcd, inner, Protocol::Http).await;
    let with_room = take_room(&mut answered);
    let mut answers = Answers::new(answered);
    if method.is_server_streaming() {
        return match answers.status.take_if(|status| status.code() != Code::Ok) {
            // The call was refused before its first message.
            Some(status) => {
                http::json(http_status(status.code()), format!("{{\"error\":{}}}", described(&status)))
            }
            None => stream(answers, method.output()),
        };
    }
    match answers.next().await {
        Ok(Some(message)) => match text(&method.output(), &message) {
            Ok(text) => with_room(http::json(StatusCode::OK, text)),
            Err(status) => failed(&status),
        },
        Ok(None) => failed(&Status::internal("no answer")),
        Err(status) => failed(&status),
    }
}

/// Reads the only message of a request.
async fn whole(kind: &MessageDescriptor, body: Incoming, bytes_max: usize) -> Result<Bytes, Status> {
    let limited = http_body_util::Limited::new(body, bytes_max);
    let body = limited.collect().await.map_err(|_| too_large(bytes_max))?.to_bytes();
    // No body means an empty message.
    let json = if body.iter().all(u8::is_ascii_whitespace) { Bytes::from_static(b"{}") } else { body };
    let mut reader = serde_json::Deserializer::from_slice(&json);
    let message = message(kind, &mut reader)?;
    reader.end().map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(message)
}

fn message<'de, R: serde_json::de::Read<'de>>(
    kind: &MessageDescriptor,
    reader: &mut serde_json::Deserializer<R>,
) -> Result<Bytes, Status> {
    let invalid = |error: serde_json::Error| Status::invalid_argument(format!("json: {error}"));
    let json = serde_json::Value::deserialize(reader).map_err(invalid)?;
    check_enums(kind, &json)?;
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(kind.clone(), json, &options).map_err(invalid)?;
    Ok(message.encode_to_vec().into())
}

/// Refuses names that an enum does not have. They would be ignored like unknown fields, and the call would do something
/// else than the client requested.
fn check_enums(kind: &MessageDescriptor, json: &serde_json::Value) -> Result<(), Status> {
    let Some(fields) = json.as_object() else { return Ok(()) };
    for (name, value) in fields {
        let found = kind.get_field_by_name(name).or_else(|| kind.get_field_by_json_name(name));
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        match found.map(|field| field.kind()) {
            Some(Kind::Message(kind)) => values.iter().try_for_each(|value| check_enums(&kind, value))?,
            Some(Kind::Enum(known)) => {
                let unknown = values.iter().filter_map(|value| value.as_str());
                if let Some(value) =
                    unknown.into_iter().find(|value| known.get_value_by_name(value).is_none())
                {
                    return Err(Status::invalid_argument(format!("json: {name} has no value {value:?}")));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Converts the messages of a request to the frames of a stream, which ends with the request.
fn streamed(kind: MessageDescriptor, body: Incoming, bytes_max: usize) -> Body {
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Status>>(4);
    tokio::spawn(async move {
        if let Err(status) = feed(&kind, body, bytes_max, &sender).await {
            let _ = sender.send(Err(status)).await;
        }
    });
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((frame, receiver))
    });
    Body::new(StreamBody::new(frames))
}

async fn feed(
    kind: &MessageDescriptor,
    mut body: Incoming,
    bytes_max: usize,
    sender: &mpsc::Sender<Result<Frame<Bytes>, Status>>,
) -> Result<(), Status> {
    let mut documents = Documents::default();
    loop {
        let is_end = match body.frame().await {
            None => true,
            Some(frame) => {
                if let Ok(data) = frame.map_err(|error| Status::cancelled(error.to_string()))?.into_data() {
                    documents.add(&data);
                }
                body.is_end_stream()
            }
        };
        while let Some(message) = next_message(kind, &mut documents)? {
            let frame = Frame::data(framed(&message));
            if sender.send(Ok(frame)).await.is_err() {
                return Ok(());
            }
        }
        if documents.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        if is_end {
            return documents.end();
        }
    }
}

/// Takes the first whole document, and returns its message.
fn next_message(kind: &MessageDescriptor, documents: &mut Documents) -> Result<Option<Bytes>, Status> {
    let Some(document) = documents.next()? else { return Ok(None) };
    message(kind, &mut serde_json::Deserializer::from_slice(&document)).map(Some)
}

/// Returns the messages of a whole body.
pub(super) fn messages(kind: &MessageDescriptor, body: &[u8]) -> Result<Vec<Bytes>, Status> {
    let mut documents = Documents::default();
    documents.add(body);
    let messages: Result<_, _> =
        std::iter::from_fn(|| next_message(kind, &mut documents).transpose()).collect();
    let messages: Vec<_> = messages?;
    documents.end()?;
    Ok(messages)
}

fn too_large(bytes_max: usize) -> Status {
    Status::resource_exhausted(format!("the request has more than {bytes_max} bytes"))
}

/// Frames a message for gRPC.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Messages of a response.
struct Answers {
    body: Body,
    left: BytesMut,
    /// Status in the headers of a response without messages.
    status: Option<Status>,
}

impl Answers {
    fn new(answered: Response<Body>) -> Self {
        let (parts, body) = answered.into_parts();
        Self { body, left: BytesMut::new(), status: Status::from_header_map(&parts.headers) }
    }

    /// Returns the next message; `None` after the last one.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(length) = self.left.get(1..5).and_then(|mut bytes| bytes.try_get_u32().ok()) {
                let length = 5 + length as usize;
                if self.left.len() >= length {
                    let mut frame = self.left.split_to(length).freeze();
                    frame.advance(5);
                    return Ok(Some(frame));
                }
            }
            match self.body.frame().await {
                None => {
                    let status = self.status.take();
                    return status.filter(|status| status.code() != Code::Ok).map_or(Ok(None), Err);
                }
                Some(Err(status)) => return Err(status),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.left.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.status = Status::from_header_map(&trailers);
                    }
                },
            }
        }
    }
}

/// Sends each message as a line in a chunk of its own, because some clients treat chunks as messages.
fn stream(answers: Answers, kind: MessageDescriptor) -> Response<Body> {
    let lines = futures::stream::unfold(Some((answers, kind)), |state| async move {
        let (mut answers, kind) = state?;
        let next = answers.next().await;
        let (line, state) =
            match next.and_then(|message| message.map(|message| text(&kind, &message)).transpose()) {
                Ok(Some(text)) => (format!("{{\"result\":{text}}}\n"), Some((answers, kind))),
                Ok(None) => return None,
                Err(status) => (format!("{{\"error\":{}}}\n", described(&status)), None),
            };
        Some((Ok::<_, Status>(Frame::data(Bytes::from(line))), state))
    });
    let mut response = Response::new(Body::new(StreamBody::new(lines)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Converts a message to JSON: bytes in base64, long numbers as strings, names as in the descriptors, no defaults.
pub(super) fn text(kind: &MessageDescriptor, message: &[u8]) -> Result<String, Status> {
    let wrong = |error: String| Status::internal(error);
    let message = DynamicMessage::decode(kind.clone(), message).map_err(|error| wrong(error.to_string()))?;
    debug_assert_eq!(message.descriptor(), *kind);
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = Vec::new();
    let mut writer = serde_json::Serializer::new(&mut text);
    message.serialize_with_options(&mut writer, &options).map_err(|error| wrong(error.to_string()))?;
    String::from_utf8(text).map_err(|error| wrong(error.to_string()))
}

pub(super) fn failed(status: &Status) -> Response<Body> {
    http::json(http_status(status.code()), described(status))
}

fn described(status: &Status) -> String {
    let message = serde_json::Value::from(status.message());
    format!(r#"{{"code":{},"message":{message}}}"#, status.code() as i32)
}

fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Header of a request over HTTP that requires a leader.
const HAS_LEADER_HEADER: &str = "grpc-metadata-hasleader";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_path() {
        let paths = |path: &str| method_of(path).map(|method| method.full_name().to_owned());
        assert_eq!(paths("/v3/kv/range").as_deref(), Some("etcdserverpb.KV.Range"));
        assert_eq!(paths("/v3beta/kv/put").as_deref(), Some("etcdserverpb.KV.Put"));
        assert_eq!(paths("/v3/kv/lease/revoke").as_deref(), Some("etcdserverpb.Lease.LeaseRevoke"));
        assert_eq!(paths("/v3/lock/lock").as_deref(), Some("v3lockpb.Lock.Lock"));
        assert_eq!(paths("/v3/nothing"), None);
        let methods =
            descriptors().services().flat_map(|service| service.methods().collect::<Vec<_>>()).count();
        let routed: std::collections::HashSet<_> =
            routes().into_values().map(|method| method.full_name().to_owned()).collect();
        assert_eq!(routed.len(), methods);
    }

    #[test]
    fn messages_are_rewritten_both_ways() {
        let method = method_of("/v3/kv/put").unwrap();
        let json = br#"{"key":"Zm9v","value":"YmFy","lease":"7","prevKv":true,"unknown":{"x":[1]}}"#;
        let message = message(&method.input(), &mut serde_json::Deserializer::from_slice(json)).unwrap();
        let put = kv_etcd_api::etcdserverpb::PutRequest::decode(&message[..]).unwrap();
        assert_eq!(
            (&put.key[..], &put.value[..], put.lease, put.prev_kv),
            (&b"foo"[..], &b"bar"[..], 7, true)
        );
        assert_eq!(
            text(&method.input(), &message).unwrap(),
            r#"{"key":"Zm9v","value":"YmFy","lease":"7","prev_kv":true}"#
        );
    }
}
