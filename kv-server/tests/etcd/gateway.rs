//! The JSON gateway, and what else is asked over HTTP.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::clients::{Alone, PATIENCE, put};

async fn send(port: u16, method: &str, path: &str, body: &str) -> BufReader<TcpStream> {
    send_with(port, method, path, "", body).await
}

/// Sends a request with more header lines, each with its end.
async fn send_with(port: u16, method: &str, path: &str, more: &str, body: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    BufReader::new(stream)
}

/// Status and body.
pub(crate) async fn ask(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    ask_with(port, method, path, "", body).await
}

/// The same of a request with more header lines.
pub(crate) async fn ask_with(port: u16, method: &str, path: &str, more: &str, body: &str) -> (u16, String) {
    let mut answer = String::new();
    let mut stream = send_with(port, method, path, more, body).await;
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn post(port: u16, path: &str, body: Value) -> (u16, Value) {
    let (status, answer) = ask(port, "POST", path, &body.to_string()).await;
    // Of a stream each message is a chunk, whose length stands before it.
    let json = answer.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    (status, serde_json::from_str(json).unwrap_or_else(|_| panic!("{answer}")))
}

fn base64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

#[tokio::test]
async fn calls_are_made_with_json() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let (status, answer) = post(port, "/v3/kv/put", json!({"key": base64("a"), "value": base64("1")})).await;
    assert_eq!((status, &answer["header"]["revision"]), (200, &json!("2")));
    let (_, answer) = post(port, "/v3/kv/range", json!({"key": base64("a"), "unknown": 1})).await;
    assert_eq!(answer["kvs"][0]["value"], base64("1"));
    assert_eq!((&answer["count"], answer.get("more")), (&json!("1"), None));
    let txn = json!({
        "compare": [{"target": "VALUE", "key": base64("a"), "value": base64("1")}],
        "success": [{"request_put": {"key": base64("a"), "value": base64("2")}}],
    });
    let (_, answer) = post(port, "/v3beta/kv/txn", txn).await;
    assert_eq!(answer["succeeded"], true);
    assert_eq!(answer["responses"][0]["response_put"]["header"]["revision"], "3");
    let (status, answer) = post(port, "/v3/kv/range", json!({})).await;
    assert_eq!((status, answer), (400, json!({"code": 3, "message": "etcdserver: key is not provided"})));
    let (status, _) = ask(port, "POST", "/v3/kv/range", "{").await;
    assert_eq!(status, 400);
    let (status, _) = ask(port, "GET", "/v3/kv/range", "").await;
    assert_eq!(status, 501);
    let (status, _) = ask(port, "POST", "/v3/nothing", "{}").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn unknown_names_of_enums_are_refused() {
    let alone = Alone::start().await;
    let request = json!({"key": base64("a"), "range_end": base64("b"), "sort_order": "DESCENDING"});
    let (status, answer) = post(alone.server.port, "/v3/kv/range", request).await;
    assert_eq!(status, 400, "{answer}");
}

#[tokio::test]
async fn renewal_of_a_lease_ends_with_its_request() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let (_, granted) = post(port, "/v3/lease/grant", json!({"TTL": 60})).await;
    let (status, renewed) = post(port, "/v3/lease/keepalive", json!({"ID": granted["ID"]})).await;
    assert_eq!((status, &renewed["result"]["TTL"]), (200, &json!("60")));
    assert_eq!(renewed["result"]["ID"], granted["ID"]);
}

#[tokio::test]
async fn watch_goes_on_with_a_line_for_each_answer() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let request = json!({"create_request": {"key": base64("a")}}).to_string();
    let mut stream = send(alone.server.port, "POST", "/v3/watch", &request).await;
    let mut result = async || loop {
        let mut line = String::new();
        timeout(PATIENCE, stream.read_line(&mut line)).await.unwrap().unwrap();
        if line.starts_with('{') {
            break serde_json::from_str::<Value>(&line).unwrap()["result"].clone();
        }
    };
    assert_eq!(result().await["created"], true);
    kv.put(put("a", "1")).await.unwrap();
    assert_eq!(result().await["events"][0]["kv"]["value"], base64("1"));
}

#[tokio::test]
async fn version_and_health_are_told_in_the_words_of_etcd() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let (status, version) = ask(port, "GET", "/version", "").await;
    let version: Value = serde_json::from_str(&version).unwrap();
    for part in ["etcdserver", "etcdcluster", "storage"] {
        let numbers: Vec<u32> =
            version[part].as_str().unwrap().split('.').map(|n| n.parse().unwrap()).collect();
        assert_eq!((status, numbers.len()), (200, 3), "clients take each part for a number");
    }
    assert_eq!(ask(port, "GET", "/health", "").await, (200, r#"{"health":"true","reason":""}"#.to_owned()));
    assert_eq!(ask(port, "GET", "/readyz", "").await.0, 200);
}

#[tokio::test]
async fn each_check_of_health_has_a_path_and_is_told_to_who_wants_to_know() {
    let alone = Alone::start().await;
    let get = async |path: &str| ask(alone.server.port, "GET", path, "").await;
    let ok = (200, "ok\n".to_owned());
    for path in [
        "/livez/serializable_read",
        "/readyz/serializable_read",
        "/readyz/linearizable_read",
        "/readyz/non_learner",
        "/readyz/data_corruption",
        "/readyz/storage",
    ] {
        assert_eq!(get(path).await, ok, "{path}");
    }
    for path in ["/livez/linearizable_read", "/readyz/other", "/health/serializable_read"] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
    let verbose = get("/livez?verbose").await;
    assert_eq!(verbose, (200, "[+]serializable_read ok\nok\n".to_owned()));
    let some = get("/readyz?verbose&exclude=serializable_read&exclude=data_corruption&exclude=other").await;
    assert_eq!(some, (200, "[+]linearizable_read ok\n[+]non_learner ok\n[+]storage ok\nok\n".to_owned()));
    // A check that fails is told of although nobody asked.
    let corrupt = json!({"action": "ACTIVATE", "memberID": "7", "alarm": "CORRUPT"});
    post(alone.server.port, "/v3/maintenance/alarm", corrupt).await;
    let failed = "[-]data_corruption failed: alarm activated: CORRUPT\n";
    let all = format!(
        "{failed}[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\n[+]storage ok\n"
    );
    assert_eq!(get("/readyz").await, (503, all));
    assert_eq!(get("/readyz/data_corruption?exclude=data_corruption").await, (503, failed.to_owned()));
    assert_eq!(get("/livez").await, ok);
}

/// A byte that may be the first of HTTP/2 or of HTTP/1.
#[tokio::test]
async fn client_that_sends_one_letter_and_waits_is_closed() {
    let alone = Alone::start().await;
    let mut stream = TcpStream::connect(("127.0.0.1", alone.server.port)).await.unwrap();
    stream.write_all(b"P").await.unwrap();
    let closed = timeout(PATIENCE, stream.read(&mut [0])).await.expect("it is closed in time");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}

/// Probes and pools of connections wait longer between two requests than a client may take for its first bytes.
#[tokio::test]
async fn connection_that_was_idle_for_seconds_serves_another_request() {
    let alone = Alone::start().await;
    let stream = TcpStream::connect(("127.0.0.1", alone.server.port)).await.unwrap();
    let mut stream = BufReader::new(stream);
    for wait in [0, 11] {
        tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut line = String::new();
        while line != "ok\n" {
            line.clear();
            let read = timeout(PATIENCE, stream.read_line(&mut line)).await.unwrap().unwrap();
            assert!(read > 0, "the connection was closed after {wait} s");
        }
    }
}

#[tokio::test]
async fn messages_of_a_stream_arrive_in_parts() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    kv.put(put("a", "1")).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", alone.server.port)).await.unwrap();
    let head = "POST /v3/watch HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let create = |key: &str| json!({"create_request": {"key": base64(key), "start_revision": 2}}).to_string();
    for part in format!("{}{}", create("a"), create("b")).as_bytes().chunks(7) {
        let chunk = format!("{:x}\r\n{}\r\n", part.len(), std::str::from_utf8(part).unwrap());
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    let (mut stream, mut created, mut events) = (BufReader::new(stream), 0, 0);
    while (created, events) != (2, 1) {
        let mut line = String::new();
        timeout(PATIENCE, stream.read_line(&mut line)).await.unwrap().unwrap();
        created += usize::from(line.contains("\"created\":true"));
        events += usize::from(line.contains("\"events\""));
    }
}

#[tokio::test]
async fn health_tells_of_an_alarm_unless_it_is_excluded() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let change = async |action: &str, alarm: &str| {
        let request = json!({"action": action, "memberID": "7", "alarm": alarm});
        post(port, "/v3/maintenance/alarm", request).await
    };
    let get = async |path: &str| ask(port, "GET", path, "").await;
    let (healthy, ready) = (r#"{"health":"true","reason":""}"#.to_owned(), "ok\n".to_owned());
    let unhealthy = |alarm: &str| (503, format!(r#"{{"health":"false","reason":"ALARM {alarm}"}}"#));
    change("ACTIVATE", "NOSPACE").await;
    assert_eq!(get("/health").await, unhealthy("NOSPACE"));
    assert_eq!(get("/health?exclude=NOSPACE").await, (200, healthy.clone()));
    assert_eq!(get("/readyz").await, (200, ready.clone()));
    change("ACTIVATE", "CORRUPT").await;
    assert_eq!(get("/health?exclude=NOSPACE").await, unhealthy("CORRUPT"));
    assert_eq!(get("/readyz").await.0, 503);
    assert_eq!(get("/readyz?exclude=data_corruption").await, (200, ready.clone()));
    assert_eq!(get("/livez").await, (200, ready));
    for alarm in ["NOSPACE", "CORRUPT"] {
        change("DEACTIVATE", alarm).await;
    }
    assert_eq!(get("/health").await, (200, healthy));
    let (status, _) = change("ACTIVATE", "BREAK").await;
    assert_eq!(status, 400);
}
