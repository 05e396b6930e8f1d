//! Requests over HTTP, which the clients' port serves beside Thrift.

use std::{io, time::Duration};

use bytes::Bytes;
use consensus_core::Endpoint;
use consensus_transport_thrift::connect_with;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use kv_store_client::ClientConfig;
use serde_json::json;
use tokio::time::timeout;

/// Why a request has no whole response.
pub(crate) enum Interruption {
    /// The file cannot be written.
    Local(io::Error),
    /// The server refuses; another server would, too.
    Refused(String),
    /// The connection broke off, or there was none.
    Connection(String),
}

/// Runs a request for as long as one request is tried.
pub(crate) async fn within<T>(
    config: &ClientConfig,
    request: impl Future<Output = Result<T, Interruption>>,
) -> Result<T, Interruption> {
    let silent = || Interruption::Connection("no answer in time".to_owned());
    timeout(config.timeout, request).await.map_err(|_| silent())?
}

/// Sends a request over a connection of its own, and waits for the head of the response.
pub(crate) async fn exchange(
    config: &ClientConfig,
    endpoint: &Endpoint,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Interruption> {
    let broken = |error: &dyn std::fmt::Display| Interruption::Connection(error.to_string());
    let stream = connect_with(endpoint, config.timeout.min(CONNECT_MAX), config.tls.as_ref()).await;
    let stream = stream.map_err(|error| broken(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| broken(&error))
}

/// Text at a path of a server. It has at most [`TEXT_BYTES_MAX`] bytes.
pub(crate) async fn text(
    config: &ClientConfig,
    endpoint: &Endpoint,
    token: Option<&str>,
    path: &str,
) -> Result<String, Interruption> {
    let broken = |error: &dyn std::fmt::Display| Interruption::Connection(error.to_string());
    let mut request = Request::get(path).header(header::HOST, endpoint.to_string());
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token);
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| broken(&error))?;
    let (status, body) = within(config, async {
        let response = exchange(config, endpoint, request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), TEXT_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    })
    .await?;
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
        return Err(refusal(status, &serde_json::from_slice(&body).unwrap_or_default()));
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Token of the user, if there is one.
pub(crate) async fn token(
    config: &ClientConfig,
    endpoint: &Endpoint,
) -> Result<Option<String>, Interruption> {
    let Some(credentials) = &config.credentials else { return Ok(None) };
    let broken = |error: &dyn std::fmt::Display| Interruption::Connection(error.to_string());
    let body = json!({ "name": credentials.user, "password": credentials.password }).to_string();
    let request = Request::post("/v3/auth/authenticate").header(header::HOST, endpoint.to_string());
    let request = request.body(Full::new(Bytes::from(body))).map_err(|error| broken(&error))?;
    let (status, answer) = within(config, async {
        let response = exchange(config, endpoint, request).await?;
        Ok((response.status(), answer(response).await?))
    })
    .await?;
    match answer["token"].as_str() {
        Some(token) => Ok(Some(token.to_owned())),
        None => Err(refusal(status, &answer)),
    }
}

/// The short answer of a server, as JSON; a text that is no JSON as its `message`.
pub(crate) async fn answer(response: Response<Incoming>) -> Result<serde_json::Value, Interruption> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| Interruption::Connection(error.to_string()))?.to_bytes();
    let text = || json!({ "message": String::from_utf8_lossy(&body).trim() });
    Ok(serde_json::from_slice(&body).unwrap_or_else(|_| text()))
}

pub(crate) fn refusal(status: StatusCode, answer: &serde_json::Value) -> Interruption {
    let why = answer["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Interruption::Connection(why),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
            Interruption::Refused(why)
        }
        _ => Interruption::Connection(why),
    }
}

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Maximum time without a byte.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Greatest size of a short answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Greatest size of a text.
const TEXT_BYTES_MAX: usize = 16 << 20;
