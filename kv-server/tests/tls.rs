//! TLS on real processes: who is served, on all protocols of the port, and what the log says of those who are not.

use crate::common;

use std::{
    io::{Read, Write},
    net::TcpStream as StdStream,
    path::Path,
    pin::Pin,
    process::{Command, Stdio},
    task::{Context, Poll},
    time::Duration,
};

use crate::common::{
    Server,
    certificates::Certificates,
    etcd_member::{Place, READY},
    kvctl::Kvctl,
};
use consensus_tls::{Stream, Tls};
use hyper_util::rt::TokioIo;
use kv_etcd_api::{
    authpb::UserAddOptions,
    etcdserverpb::{
        AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest,
        MemberAddRequest, MemberListRequest, PutRequest, RangeRequest, auth_client::AuthClient,
        cluster_client::ClusterClient, kv_client::KvClient,
    },
};
use kv_store_client::ClientError;
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpStream};
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

const TIME: Duration = Duration::from_secs(10);

/// Connects gRPC with TLS.
#[derive(Clone)]
struct Connector(Tls, u16);

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self(tls, port) = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            Ok(TokioIo::new(tls.connect(stream, "127.0.0.1", TIME).await?))
        })
    }
}

async fn channel(tls: Tls, port: u16) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_static("http://server").connect_with_connector(Connector(tls, port)).await
}

/// Users and roles, as the user in the certificate makes them.
async fn enable_users(tls: Tls, port: u16) {
    let mut auth = AuthClient::new(channel(tls, port).await.unwrap());
    auth.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
    for name in ["root", "alice"] {
        let options = Some(UserAddOptions { no_password: true });
        auth.user_add(AuthUserAddRequest { name: name.into(), options, ..Default::default() }).await.unwrap();
    }
    auth.user_grant_role(AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() })
        .await
        .unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

/// A standalone server that wants certificates of clients, listening.
fn start(dir: &Path, certificates: &Certificates, more: &[&str]) -> Server {
    let flags = certificates.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).take(3).chain(more.iter().copied()).collect();
    let server = Server::standalone_with(dir, &flags);
    server.endpoint();
    server
}

/// The response to a request of HTTP/1.1 over TLS.
async fn https(tls: &Tls, port: u16, path: &str) -> String {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut stream = tls.connect(stream, "localhost", TIME).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_with_certificate_is_served_on_each_protocol_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, others) =
        (Certificates::make(dir.path().join("ours")), Certificates::make(dir.path().join("others")));
    let server = start(dir.path(), &ours, &[]);
    let port = server.port;

    let alice = ours.client(&[port], Some("alice"));
    let large = vec![b'x'; 1 << 20];
    alice.put("thrift", large.clone()).await.unwrap();
    assert_eq!(alice.get("thrift").await.unwrap().unwrap().value, large);

    let mut grpc = KvClient::new(channel(ours.tls(Some("alice")), port).await.unwrap());
    let put = PutRequest { key: "grpc".into(), value: large.clone().into(), ..Default::default() };
    grpc.put(put).await.unwrap();
    let range = RangeRequest { key: "grpc".into(), ..Default::default() };
    assert_eq!(grpc.range(range).await.unwrap().into_inner().kvs[0].value, large);
    let health = https(&ours.tls(Some("alice")), port, "/health").await;
    assert!(health.contains(r#""health":"true""#), "{health}");

    for (tls, words) in [
        (ours.tls(None), "the client shows no certificate"),
        (others.tls(Some("alice")), "does not accept the certificate of this one"),
    ] {
        let refused = common::certificates::client(&[port], Some(tls.clone())).get("thrift").await;
        assert!(matches!(refused, Err(ClientError::Unavailable(_))), "{refused:?}");
        let refused = match channel(tls, port).await {
            Ok(channel) => KvClient::new(channel).range(RangeRequest::default()).await.map(drop).is_err(),
            Err(_) => true,
        };
        assert!(refused);
        server.says(words);
    }
    let forged = others.tls(Some("alice")).settings().identity.clone();
    let mut settings = ours.tls(None).settings().clone();
    settings.identity = forged;
    let forged = common::certificates::client(&[port], Some(Tls::load(settings).unwrap()));
    assert!(forged.get("thrift").await.is_err());
    server.says("another key");
    // Clients without TLS hear it if they speak HTTP, and the log says it of all.
    let mut plain = StdStream::connect(("127.0.0.1", port)).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\n\r\n").unwrap();
    let mut response = String::new();
    plain.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.0 400"), "{response}");
    assert!(common::client(&[port]).get("thrift").await.is_err());
    server.says("the client speaks no TLS");
    alice.get("thrift").await.unwrap();
}

#[test]
fn kvctl_cert_replaces_no_files_unless_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    let cert = |arguments: &[&str]| {
        let mut command = Command::new(common::kvctl::program());
        let output = command.arg("cert").args(arguments).arg("--dir").arg(dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let read = |name: &str| std::fs::read(certificates.path(name)).unwrap();
    let files = ["ca.crt", "node.crt", "node.key", "alice.crt"];
    let before = files.map(read);
    for arguments in [&["client", "ca"][..], &["client", "CA"], &["node", "ca", "--host=a"], &["init"]] {
        let (code, error) = cert(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
    }
    let (code, error) = cert(&["client", "node"]);
    assert!(code == Some(2) && error.contains("--renew"), "{error}");
    assert_eq!(cert(&["client", "alice"]).0, Some(2));
    // The key of the authority is kept elsewhere.
    std::fs::rename(certificates.path("ca.key"), certificates.path("away")).unwrap();
    let (code, error) = cert(&["init"]);
    assert!(code == Some(2) && error.contains("ca.crt is there already"), "{error}");
    std::fs::rename(certificates.path("away"), certificates.path("ca.key")).unwrap();
    assert!(before == files.map(read));
    assert_eq!(cert(&["client", "alice", "--renew"]).0, Some(0));
    assert!(before[3] != read("alice.crt"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn common_name_of_a_certificate_is_the_user_of_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    certificates.kvctl(&["client", "root"]);
    let server = start(dir.path(), &certificates, &[]);
    enable_users(certificates.tls(Some("root")), server.port).await;
    let put = || PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let user = async |name| KvClient::new(channel(certificates.tls(Some(name)), server.port).await.unwrap());
    user("root").await.put(put()).await.unwrap();
    let refused = user("alice").await.put(put()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    certificates.client(&[server.port], Some("root")).put("k", "w").await.unwrap();
    let refused = certificates.client(&[server.port], Some("alice")).put("k", "w").await.unwrap_err();
    assert!(
        matches!(&refused, ClientError::Rejected(fault) if fault.to_string().contains("permission")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_of_operators_use_tls() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    let server = start(dir.path(), &certificates, &[]);
    let endpoint = format!("https://127.0.0.1:{}", server.port);
    let kvctl = Kvctl::new(endpoint.clone());
    let files = certificates.arguments("alice");
    let with = |more: &[&'static str]| -> Vec<String> {
        files.iter().cloned().chain(more.iter().map(|word| (*word).to_owned())).collect()
    };
    let words = with(&["put", "k", "v"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(kvctl.run(&words, "").0, 0, "{:?}", kvctl.run(&words, ""));
    let ca = certificates.path("ca.crt");
    kvctl.says(&["--timeout-ms", "3000", "--cacert", &ca, "get", "k"], 4, "");
    kvctl.says(&["--cacert", &certificates.path("absent"), "get", "k"], 2, "cannot be read");
    kvctl.says(&["--cert", &ca, "get", "k"], 2, "belong together");
    let mut variables = kvctl.command(&["get", "k"]);
    let names = ["KVCTL_CACERT", "KVCTL_CERT", "KVCTL_KEY"];
    variables.envs(names.into_iter().zip(files.iter().skip(1).step_by(2)));
    assert_eq!(variables.output().unwrap().stdout, b"v\n");

    if Command::new("etcdctl").arg("version").output().is_err() {
        eprintln!("skipped: there is no etcdctl");
        return;
    }
    let etcdctl = |arguments: &[String]| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args([
            "--endpoints",
            &endpoint,
            "--dial-timeout=2s",
            "--command-timeout=5s",
        ]);
        command.args(arguments).output().unwrap()
    };
    let output = etcdctl(&with(&["get", "k"]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "k\nv\n", "{output:?}");
    assert!(
        etcdctl(&with(&["endpoint", "health", "--cluster"])).status.success(),
        "the member's URL is https"
    );
    assert!(!etcdctl(&["--cacert".to_owned(), ca, "get".to_owned(), "k".to_owned()]).status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_thrift_client_uses_tls() {
    let python = std::env::var("KV_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import thriftpy2"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI needs thriftpy2, and KV_TEST_PYTHON to say which Python has it"
        );
        eprintln!("skipped: {python} has no thriftpy2");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    let server = start(dir.path(), &certificates, &[]);
    let output = Command::new(python)
        .arg("tests/python_tls_client.py")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../kv-store-client/idl/kv.thrift"))
        .arg(server.port.to_string())
        .args(["ca.crt", "alice.crt", "alice.key"].map(|name| certificates.path(name)))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    // It closes connections without a word of TLS, which is no failure of a handshake.
    server.client().get("k").await.unwrap_err();
    server.says("the client speaks no TLS");
    assert!(
        !server.log().contains("UnexpectedEof") && !server.log().contains("close_notify"),
        "{}",
        server.log()
    );
}

#[test]
fn server_with_wrong_files_does_not_start_and_names_the_file_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    let path = |name: &str| certificates.path(name);
    for (flags, words) in [
        (vec![("tls-cert-file", "node.crt")], "its key file must be given, too"),
        (vec![("tls-cert-file", "absent.crt"), ("tls-key-file", "node.key")], "absent.crt: cannot be read"),
        (
            vec![("tls-cert-file", "node.crt"), ("tls-key-file", "alice.key")],
            "alice.key: the key is not that",
        ),
        (vec![("peer-tls-cert-file", "node.crt"), ("peer-tls-key-file", "node.key")], "the CA that signs"),
    ] {
        let flags: Vec<String> =
            flags.iter().map(|(flag, name)| format!("--{flag}={}", path(name))).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
        command.args(["--port", "0", "--data-dir"]).arg(dir.path().join("data")).args(flags);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words), "{words}: {text}");
    }
}

/// Flags of etcd for a member with TLS on both ports.
fn etcd_flags(
    place: &Place,
    dir: &Path,
    cluster: &[&Place],
    state: &str,
    certificates: &Certificates,
) -> Vec<String> {
    let mut flags: Vec<String> = place.flags(dir, cluster, state);
    flags.iter_mut().for_each(|flag| *flag = flag.replace("http://", "https://"));
    for (flag, name) in [
        ("cert-file", "node.crt"),
        ("key-file", "node.key"),
        ("trusted-ca-file", "ca.crt"),
        ("peer-cert-file", "node.crt"),
        ("peer-key-file", "node.key"),
        ("peer-trusted-ca-file", "ca.crt"),
    ] {
        flags.push(format!("--{flag}={}", certificates.path(name)));
    }
    flags.push("--client-cert-auth".to_owned());
    flags
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_flags_of_etcd_form_a_cluster_over_tls_and_list_https_urls() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    let places = [Place::new("m1"), Place::new("m2")];
    let flags = etcd_flags(&places[0], dir.path(), &[&places[0]], "new", &certificates);
    let first = Server::in_place_of_etcd(dir.path(), "m1", places[0].client, flags);
    first.says(READY);
    let channel = channel(certificates.tls(Some("alice")), places[0].client).await.unwrap();
    let mut cluster = ClusterClient::new(channel);
    let url = format!("https://127.0.0.1:{}", places[1].client + 1000);
    let added = MemberAddRequest { peer_ur_ls: vec![url], is_learner: false };
    cluster.member_add(added).await.unwrap();
    let all: Vec<&Place> = places.iter().collect();
    let flags = etcd_flags(&places[1], dir.path(), &all, "existing", &certificates);
    let second = Server::in_place_of_etcd(dir.path(), "m2", places[1].client, flags);
    second.says(READY);
    let list = cluster.member_list(MemberListRequest { linearizable: true }).await.unwrap();
    let mut found: Vec<_> = list
        .into_inner()
        .members
        .into_iter()
        .flat_map(|member| [member.client_ur_ls, member.peer_ur_ls].concat())
        .collect();
    let url = |port: u16| format!("https://127.0.0.1:{port}");
    let mut expected: Vec<_> =
        all.iter().flat_map(|place| [url(place.client), url(place.client + 1000)]).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn member_that_makes_its_certificates_serves_tls() {
    let (dir, place) = (tempfile::tempdir().unwrap(), Place::new("m"));
    let mut flags: Vec<String> = place.flags(dir.path(), &[&place], "new");
    flags.iter_mut().for_each(|flag| *flag = flag.replace("http://", "https://"));
    flags.extend(["--auto-tls".to_owned(), "--peer-auto-tls".to_owned()]);
    let server = Server::in_place_of_etcd(dir.path(), "m", place.client, flags);
    server.says(READY);
    let kvctl = Kvctl::new(format!("https://127.0.0.1:{}", place.client));
    kvctl.says(&["--insecure-skip-tls-verify", "get", "absent"], 1, "");
}

#[test]
fn scanner_finds_no_weak_setting() {
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI needs openssl");
        eprintln!("skipped: there is no openssl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    let server = start(dir.path(), &certificates, &[]);
    let accepts = |options: &str| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &format!("127.0.0.1:{}", server.port)]);
        command.args(["-CAfile", &certificates.path("ca.crt"), "-verify_return_error"]);
        command.args(["-cert", &certificates.path("alice.crt"), "-key", &certificates.path("alice.key")]);
        let output = command.args(options.split(' ')).stdin(Stdio::null()).output().unwrap();
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("Verify return code: 0")
    };
    for options in [
        "-tls1_3",
        "-tls1_2",
        "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256",
        "-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305",
        "-alpn h2",
    ] {
        assert!(accepts(options), "{options}");
    }
    for options in [
        "-tls1 -cipher ALL:@SECLEVEL=0",
        "-tls1_1 -cipher ALL:@SECLEVEL=0",
        "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384",
        "-tls1_2 -cipher AES128-SHA:AES256-GCM-SHA384:@SECLEVEL=0",
        "-tls1_2 -cipher NULL:aNULL:@SECLEVEL=0",
        "-alpn spdy/3",
    ] {
        assert!(!accepts(options), "{options}");
    }
}
