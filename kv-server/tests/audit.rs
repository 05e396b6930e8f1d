//! The audit log, and the warnings about slow requests.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::common::{Cluster, Server, disk::Disk, kvctl::Kvctl};
use kv_etcd_api::etcdserverpb::{
    PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
    kv_client::KvClient as EtcdKvClient, request_op::Request as Part, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use kv_store_client::{
    Connection,
    idl::{self, LoginRequest},
    protocol::Call,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

/// A standalone server with an audit log.
fn server_with_log(dir: &Path, more: &[&str]) -> (Server, PathBuf) {
    let path = dir.join("audit.log");
    let flag = format!("--audit-log={}", path.display());
    let more: Vec<&str> = [flag.as_str()].into_iter().chain(more.iter().copied()).collect();
    (Server::standalone_with(dir, &more), path)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be incomplete while it is written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// Waits for a line; returns it.
fn line(path: &Path, what: &str, is_meant: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let all = lines(path);
        if let Some(line) = all.iter().find(|line| is_meant(line)) {
            return line.clone();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what} is not among {all:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn channel(server: &Server) -> Channel {
    Channel::from_shared(format!("http://{}", server.endpoint())).unwrap().connect().await.unwrap()
}

fn post(server: &Server, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(server.endpoint()).unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn put(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "secret-value".into(), ..PutRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_of_each_protocol_has_a_line_without_values() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, path) = server_with_log(dir.path(), &[]);
    Kvctl::new(server.endpoint()).says(&["put", "by-thrift", "secret-value"], 0, "revision 2");
    let mut etcd = EtcdKvClient::new(channel(&server).await);
    etcd.put(put("by-grpc")).await.unwrap();
    // {"key":"by-http","value":"secret-value"}
    let answer = post(&server, "/v3/kv/put", r#"{"key":"YnktaHR0cA==","value":"c2VjcmV0LXZhbHVl"}"#);
    assert!(answer.contains("200 OK"), "{answer}");
    let range =
        RangeRequest { key: vec![b'a', 0xff].into(), range_end: vec![0].into(), ..Default::default() };
    etcd.range(range).await.unwrap();
    let part = |key: &str| RequestOp { request: Some(Part::RequestPut(put(key))) };
    let txn = TxnRequest { success: vec![part("t1")], failure: vec![part("t2")], ..TxnRequest::default() };
    etcd.txn(txn).await.unwrap();
    etcd.put(PutRequest { lease: 7, ..put("no-lease") }).await.unwrap_err();
    drop(etcd);
    line(&path, "the last call", |line| line["keys"][0]["key"] == "no-lease");
    server.terminate();
    let all = lines(&path);
    let of = |method: &str, key: &str| {
        let is_meant = |line: &&Value| line["method"] == method && line["keys"][0]["key"] == key;
        all.iter().find(is_meant).unwrap_or_else(|| panic!("{method} {key} is not among {all:#?}"))
    };
    for (method, key, protocol, revision) in [
        ("put", "by-thrift", "thrift", 2),
        ("etcdserverpb.KV/Put", "by-grpc", "grpc", 3),
        ("etcdserverpb.KV/Put", "by-http", "http", 4),
        ("etcdserverpb.KV/Txn", "t1", "grpc", 5),
    ] {
        let line = of(method, key);
        assert_eq!((&line["protocol"], &line["revision"]), (&json!(protocol), &json!(revision)), "{line}");
        assert_eq!((&line["result"], &line["user"]), (&json!("ok"), &Value::Null), "{line}");
        let (peer, time) = (line["peer"].as_str().unwrap(), line["time"].as_str().unwrap());
        assert!(peer.starts_with("127.0.0.1:") && time.len() == 24 && time.ends_with('Z'), "{line}");
        assert!(line["duration_us"].as_u64().unwrap() > 0, "{line}");
    }
    assert_eq!(of("etcdserverpb.KV/Range", "a\\xff")["keys"][0]["range_end"], "\0");
    assert_eq!(of("etcdserverpb.KV/Txn", "t1")["keys"][1]["key"], "t2");
    assert_eq!(of("etcdserverpb.KV/Put", "no-lease")["result"], "NotFound");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("secret-value") && !text.contains("c2VjcmV0"), "{text}");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn refused_calls_and_logins_have_lines_with_the_user_and_no_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, path) = server_with_log(dir.path(), &["--audit-log-reads=false"]);
    let kvctl = Kvctl::new(server.endpoint());
    for command in [
        "user add root --password root-secret",
        "user grant root root",
        "user add ann --password ann-secret",
        "auth enable",
    ] {
        kvctl.insist(command);
    }
    kvctl.says(&["--user", "ann:ann-secret", "put", "k", "v"], 3, "permission denied");
    kvctl.says(&["--user", "ann:ann-secret", "get", "private"], 3, "permission denied");
    kvctl.says(&["--user", "ann:wrong-secret", "put", "k", "v"], 3, "authentication failed");
    kvctl.says(&["--user", "root:root-secret", "put", "k", "v"], 0, "revision 2");
    kvctl.says(&["--user", "root:root-secret", "get", "k"], 0, "v");
    let answer = post(&server, "/v3/auth/authenticate", r#"{"name":"ann","password":"ann-secret"}"#);
    let token = answer.rsplit_once("\"token\":\"").unwrap().1.split('"').next().unwrap().to_owned();
    post(&server, "/v3/auth/authenticate", r#"{"name":"eve","password":"eve-secret"}"#);
    line(&path, "the last login", |line| line["login"] == "eve");
    server.terminate();
    let all = lines(&path);
    let count = |expected: &Value| {
        let has =
            |line: &&Value| expected.as_object().unwrap().iter().all(|(name, value)| line[name] == *value);
        all.iter().filter(has).count()
    };
    for expected in [
        json!({ "user": null, "method": "change_auth", "subject": { "user": "ann" }, "result": "ok" }),
        json!({ "user": null, "method": "change_auth", "subject": { "user": "root", "role": "root" }, "result": "ok" }),
        json!({ "user": "ann", "method": "put", "result": "Denied", "keys": [{ "key": "k" }] }),
        json!({ "user": "ann", "method": "range", "result": "Denied", "keys": [{ "key": "private" }] }),
        json!({ "user": "ann", "login": "ann", "method": "login", "result": "ok" }),
        json!({ "user": null, "login": "ann", "method": "login", "result": "Denied" }),
        json!({ "user": "root", "method": "put", "result": "ok", "revision": 2 }),
        json!({ "user": "ann", "method": "etcdserverpb.Auth/Authenticate", "protocol": "http", "result": "ok" }),
        json!({ "user": null, "login": "eve", "method": "etcdserverpb.Auth/Authenticate", "result": "InvalidArgument" }),
    ] {
        assert!(count(&expected) > 0, "{expected} is not among {all:#?}");
    }
    assert_eq!(count(&json!({ "method": "range", "result": "ok" })), 0, "reads that succeed are left out");
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["-secret", "argon2", token.as_str()] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_records_the_call_and_the_leader_marks_it_as_forwarded() {
    let mut cluster = Cluster::prepare(3);
    let paths: Vec<PathBuf> = (0..3).map(|id| cluster.dir.path().join(format!("audit-{id}.log"))).collect();
    for (server, path) in cluster.servers.iter_mut().zip(&paths) {
        server.argue(&format!("--audit-log={}", path.display()));
        server.start();
    }
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let kvctl = Kvctl::new(cluster.servers[follower].endpoint());
    for command in ["user add root --password secret", "user grant root root", "auth enable"] {
        kvctl.insist(command);
    }
    // `kvctl` would ask the leader itself.
    let endpoint = cluster.servers[follower].endpoint().parse().unwrap();
    let connection = Connection::open(&endpoint, Duration::from_secs(60)).await.unwrap();
    let login = LoginRequest::new("root".to_owned(), "secret".to_owned(), None);
    connection.call(Call::Login(login)).await.unwrap().unwrap();
    let by_thrift = idl::PutRequest::of("by-thrift", "secret-value");
    connection.call(Call::Put(by_thrift)).await.unwrap().unwrap();
    let mut etcd = EtcdKvClient::new(channel(&cluster.servers[follower]).await);
    let refused = etcd.put(put("by-grpc")).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: user name is empty");
    let has_key = |line: &Value, key: &str| line["keys"][0]["key"] == key;
    let received = line(&paths[follower], "the call", |line| has_key(line, "by-thrift"));
    assert_eq!((&received["user"], &received["forwarded"]), (&json!("root"), &Value::Null), "{received}");
    let executed = line(&paths[leader], "the forwarded call", |line| has_key(line, "by-thrift"));
    assert_eq!((&executed["user"], &executed["forwarded"]), (&json!("root"), &json!(true)), "{executed}");
    assert_eq!((&executed["method"], &executed["result"]), (&json!("put"), &json!("ok")), "{executed}");
    line(&paths[follower], "the refused call", |line| {
        line["method"] == "etcdserverpb.KV/Put"
            && line["result"] == "InvalidArgument"
            && line["user"].is_null()
    });
    let own = |line: &&Value| has_key(line, "by-thrift") && line["forwarded"].is_null();
    let count: usize = paths.iter().map(|path| lines(path).iter().filter(own).count()).sum();
    assert_eq!(count, 1, "one line is that of the client");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_has_a_line_when_it_is_created_and_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (server, path) = server_with_log(dir.path(), &[]);
    let mut watches = WatchClient::new(channel(&server).await);
    let create = |key: &str| WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: key.to_owned().into(),
            ..Default::default()
        })),
    };
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    requests.send(create("watched")).await.unwrap();
    let stream =
        futures::stream::unfold(receiver, |mut receiver: tokio::sync::mpsc::Receiver<_>| async move {
            receiver.recv().await.map(|request| (request, receiver))
        });
    let mut responses = watches.watch(stream).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().unwrap().created);
    let is_event = |line: &Value, event: &str| {
        line["method"] == "etcdserverpb.Watch/Watch" && line["watch"]["event"] == event
    };
    let created = line(&path, "the start", |line| is_event(line, "created"));
    assert_eq!(created["keys"], json!([{ "key": "watched" }]), "{created}");
    assert!(lines(&path).iter().all(|line| !is_event(line, "ended")));
    drop((responses, requests));
    let ended = line(&path, "the end", |line| is_event(line, "ended"));
    assert_eq!((&ended["keys"], &ended["result"]), (&created["keys"], &json!("ok")), "{ended}");
    assert_eq!(ended["watch"]["id"], created["watch"]["id"], "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_file_is_replaced_and_the_newest_ones_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, path) =
        server_with_log(dir.path(), &["--audit-log-size", "4KiB", "--audit-log-files", "2"]);
    let mut etcd = EtcdKvClient::new(channel(&server).await);
    // A line has more than 150 bytes, so that these fill more than three files.
    for n in 0..120 {
        etcd.put(put(&format!("k{n}"))).await.unwrap();
    }
    line(&path, "the last call", |line| line["keys"][0]["key"] == "k119");
    server.terminate();
    let names = ["audit.log.2", "audit.log.1", "audit.log"].map(|name| dir.path().join(name));
    let mut kept = Vec::new();
    for name in &names {
        let size = std::fs::metadata(name).unwrap().len();
        assert!(size <= 4096 && size > 0, "{} has {size} bytes", name.display());
        kept.extend(lines(name));
    }
    assert!(!dir.path().join("audit.log.3").exists());
    let keys: Vec<String> =
        kept.iter().map(|line| line["keys"][0]["key"].as_str().unwrap().to_owned()).collect();
    let newest: Vec<String> = (120 - keys.len()..120).map(|n| format!("k{n}")).collect();
    assert_eq!((keys, path.exists()), (newest, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_while_the_disk_of_the_audit_log_is_full() {
    let Some(disk) = Disk::small(1) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = disk.path().join("audit.log");
    let server = Server::standalone_with(dir.path(), &["--audit-log", &path.display().to_string()]);
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["put", "before", "v"], 0, "revision 2");
    line(&path, "the line before", |line| line["keys"][0]["key"] == "before");
    let filler = disk.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 1024]).is_ok() {}
    // The rest of the log's last block takes some lines.
    let mut puts = 0;
    while !server.log().contains("the audit log cannot be written") {
        assert!(puts < 1000, "{}", server.log());
        kvctl.says(&["put", "during", "v"], 0, &format!("revision {}", 3 + puts));
        puts += 1;
    }
    kvctl.says(&["put", "during", "v"], 0, &format!("revision {}", 3 + puts));
    assert!(metric(&server, "kv_audit_dropped_total") > 0);
    drop(file);
    std::fs::remove_file(filler).unwrap();
    let missing = line(&path, "the number of missing lines", |line| line["dropped"].as_u64() > Some(0));
    assert!(missing["since"].is_string() && missing["time"].is_string(), "{missing}");
    server.says("the audit log is written again");
    assert_eq!(server.log().matches("the audit log cannot be written").count(), 1);
    kvctl.says(&["put", "after", "v"], 0, &format!("revision {}", 4 + puts));
    line(&path, "the line after", |line| line["keys"][0]["key"] == "after");
}

fn metric(server: &Server, name: &str) -> u64 {
    let metrics = server.http("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).parse().unwrap()
}

#[test]
fn file_that_cannot_be_opened_is_told_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere/audit.log");
    let mut server = Server::standalone_with(dir.path(), &["--audit-log", &path.display().to_string()]);
    assert_eq!(server.ended(), Some(2));
    assert!(
        server.log().contains("audit_log: ") && server.log().contains("nowhere/audit.log"),
        "{}",
        server.log()
    );
}

#[test]
fn slow_request_is_logged_with_its_stages_and_without_its_value() {
    let dir = tempfile::tempdir().unwrap();
    // Every request takes longer than this.
    let server =
        Server::standalone_with(dir.path(), &["--slow-request-limit", "1us", "--log-format", "json"]);
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["put", "slow-key", "secret-value"], 0, "revision 2");
    server.says("slow-key");
    let log = server.log();
    let warning = log.lines().find(|line| line.contains("slow-key")).unwrap();
    let warning: Value = serde_json::from_str(warning).unwrap();
    assert_eq!((&warning["msg"], &warning["level"]), (&json!("a request was slow"), &json!("warn")));
    assert_eq!((&warning["method"], &warning["protocol"]), (&json!("put"), &json!("thrift")), "{warning}");
    assert_eq!(warning["keys"], r#"[{"key":"slow-key"}]"#, "{warning}");
    assert!(warning["stages"].as_str().unwrap().contains("commit "), "{warning}");
    assert!(warning["request_bytes"].as_u64() > Some(20) && warning["peer"].is_string(), "{warning}");
    let (code, _, error) = kvctl.run(&["bench", "--seconds", "1", "--clients", "16"], "");
    assert_eq!(code, 0, "{error}");
    server.says("more requests were slow");
    assert!(metric(&server, "kv_slow_requests_total") > 10);
    let log = server.log();
    assert!(!log.contains("secret-value"));
    let warnings = log.matches("a request was slow").count();
    assert!(warnings < 1000, "{warnings} warnings, although 10 a second are the most");
}

#[test]
fn no_request_is_slow_with_a_limit_of_0() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone_with(dir.path(), &["--slow-request-limit", "0"]);
    // The password is hashed, which takes tens of milliseconds.
    Kvctl::new(server.endpoint()).insist("user add ann --password secret");
    assert_eq!(metric(&server, "kv_slow_requests_total"), 0);
}
