//! `kv-server etcd` with real processes, which are used by etcd's API.

use std::{os::unix::net::UnixDatagram, path::Path, process::Command, time::Duration};

use crate::common::{
    Server,
    etcd_member::{PATIENCE, Place, READY, channel, count, eventually, members, put, run},
    free_port, get,
    page::Page,
};
use futures::StreamExt;
use kv_etcd_api::etcdserverpb::{
    MemberAddRequest, PutRequest, WatchCreateRequest, WatchRequest, cluster_client::ClusterClient,
    kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
};

#[tokio::test]
async fn single_member_says_that_it_is_ready_and_ends_by_the_signal() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new("solo");
    let mut server = place.start(dir.path(), &[&place], "new");
    server.says(READY);
    put(place.client, "a").await;
    let all = members(place.client).await;
    assert_eq!((all.len(), all[0].name.as_str()), (1, "solo"));
    assert_eq!(
        (&all[0].client_ur_ls, &all[0].peer_ur_ls),
        (&vec![place.client_url()], &vec![place.peer_url()])
    );
    let (code, took) = server.terminate();
    assert_eq!(code, None, "the signal ended it, as it ends etcd");
    assert!(took < Duration::from_secs(10), "{took:?}");
    for line in server.log().lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(["level", "ts", "caller", "msg"].iter().all(|key| line[key].is_string()), "{line}");
    }
    // Flags for the first start are ignored if there is data; the name is published again.
    server.set_argument("--initial-cluster", "nobody=http://127.0.0.1:1");
    server.set_argument("--initial-cluster-state", "existing");
    server.set_argument("--initial-cluster-token", "another");
    server.set_argument("--name", "renamed");
    server.start();
    eventually("it is ready again", async || server.log().matches(READY).count() == 2).await;
    assert_eq!(count(place.client).await.unwrap(), 1);
    assert_eq!(members(place.client).await[0].name, "renamed");
}

#[tokio::test]
async fn three_members_are_bootstrapped_and_one_is_killed_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["infra0", "infra1", "infra2"].map(Place::new);
    let cluster: Vec<&Place> = places.iter().rev().collect();
    let mut servers: Vec<Server> =
        places.iter().map(|place| place.start(dir.path(), &cluster, "new")).collect();
    servers.iter().for_each(|server| server.says(READY));
    let all = members(places[1].client).await;
    let names: Vec<&str> = all.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["infra0", "infra1", "infra2"]);
    for (member, place) in all.iter().zip(&places) {
        assert_eq!(member.peer_ur_ls, [place.peer_url()]);
    }
    eventually("every member tells where its clients go", async || {
        let all = members(places[1].client).await;
        all.iter().zip(&places).all(|(member, place)| member.client_ur_ls == [place.client_url()])
    })
    .await;
    for place in &places {
        put(place.client, &place.name).await;
    }
    servers[1].kill();
    put(places[0].client, "while one is away").await;
    servers[1].start();
    eventually("it has what was written", async || {
        // It may not listen yet.
        std::net::TcpStream::connect(("127.0.0.1", places[1].client)).is_ok()
            && count(places[1].client).await.is_ok_and(|count| count == 4)
    })
    .await;
}

#[tokio::test]
async fn added_member_finds_its_id_by_its_peer_url() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Place::new("first"), Place::new("second"));
    let server = first.start(dir.path(), &[&first], "new");
    server.says(READY);
    put(first.client, "a").await;
    let add = MemberAddRequest { peer_ur_ls: vec![second.peer_url()], is_learner: false };
    let mut client = ClusterClient::new(channel(first.client).await);
    let added = client.member_add(add).await.unwrap().into_inner().member.unwrap();
    assert_eq!(added.name, "", "it has not started");
    let mut joined = second.start(dir.path(), &[&first, &second], "existing");
    joined.says(READY);
    let all = members(first.client).await;
    let shown: Vec<_> =
        all.iter().map(|member| (member.name.as_str(), member.client_ur_ls.clone())).collect();
    assert_eq!(shown, [("first", vec![first.client_url()]), ("second", vec![second.client_url()])]);
    assert_eq!(all[1].id, added.id);
    put(second.client, "b").await;
    assert_eq!(count(second.client).await.unwrap(), 2);
    // The same command starts it again.
    joined.kill();
    joined.start();
    eventually("it is ready again", async || joined.log().matches(READY).count() == 2).await;
    assert_eq!(count(second.client).await.unwrap(), 2);
}

#[tokio::test]
async fn bounds_of_requests_and_interval_of_progress_are_those_of_the_flags() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new("solo");
    let mut flags = place.flags(dir.path(), &[&place], "new");
    flags.extend(["--max-request-bytes=4096", "--watch-progress-notify-interval=100ms"].map(str::to_owned));
    let server = Server::in_place_of_etcd(dir.path(), "solo", place.client, flags);
    server.says(READY);
    let mut client = KvClient::new(channel(place.client).await);
    let put =
        |bytes: usize| PutRequest { key: "a".into(), value: vec![7; bytes].into(), ..Default::default() };
    client.put(put(4000)).await.unwrap();
    let refused = client.put(put(5000)).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: request is too large");
    let watch = WatchCreateRequest { key: "b".into(), progress_notify: true, ..Default::default() };
    let watch = WatchRequest { request_union: Some(RequestUnion::CreateRequest(watch)) };
    let requests = futures::stream::iter([watch]).chain(futures::stream::pending());
    let mut answers =
        WatchClient::new(channel(place.client).await).watch(requests).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    let progress = tokio::time::timeout(PATIENCE, answers.message()).await.expect("progress in time");
    let progress = progress.unwrap().unwrap();
    assert_eq!((progress.events.len(), progress.header.unwrap().revision), (0, 2));
}

#[test]
fn wrong_flags_end_the_program_and_name_what_to_do() {
    let unknown = run(&["--nam", "x"]);
    let text = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text.contains("unexpected argument '--nam'") && text.contains("--name"), "{text}");
    let refused = run(&["--cors=a", "--wal-dir=/b"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    for words in ["--cors: ", "put a proxy", "--wal-dir: ", "folders of the data directory"] {
        assert!(text.contains(words), "{text}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("Not supported"));
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("etcd Version: 3.7."));
}

#[test]
fn data_of_etcd_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("member/wal")).unwrap();
    let output = run(&["--data-dir", &dir.path().display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("data of etcd"), "{text}");
}

/// Flags by a file, and the answers of a member that only tells of its health.
#[tokio::test]
async fn file_and_a_link_named_etcd_start_a_member_whose_health_has_a_port_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (place, health) = (Place::new("by-file"), free_port());
    let data = dir.path().join("data");
    let file = format!(
        "name: by-file\ndata-dir: {}\nlisten-client-urls: {url}\nadvertise-client-urls: {url}\n\
         listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\nlisten-metrics-urls: http://127.0.0.1:{health}\n\
         log-outputs: [{log}]\n",
        data.display(),
        url = place.client_url(),
        peer = place.peer_url(),
        log = dir.path().join("member.log").display(),
    );
    std::fs::write(dir.path().join("etcd.yaml"), file).unwrap();
    let link = dir.path().join("etcd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kv-server"), &link).unwrap();
    let mut child =
        Child(Command::new(link).arg("--config-file").arg(dir.path().join("etcd.yaml")).spawn().unwrap());
    let log = || std::fs::read_to_string(dir.path().join("member.log")).unwrap_or_default();
    eventually("it is ready", async || log().contains(READY)).await;
    put(place.client, "a").await;
    assert!(get(health, "/health").contains(r#"{"health":"true""#));
    assert!(get(health, "/readyz").contains("200 OK"));
    assert!(get(health, "/v3/kv/range").contains("404"), "nothing else is served there");
    child.0.kill().unwrap();
}

#[tokio::test]
async fn service_manager_is_told_when_the_member_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new("a");
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.arg("etcd").args(place.flags(dir.path(), &[&place], "new"));
    let _child = Child(command.env("NOTIFY_SOCKET", dir.path().join("notify")).spawn().unwrap());
    let mut text = [0; 64];
    let length = socket.recv(&mut text).unwrap();
    assert_eq!(std::str::from_utf8(&text[..length]).unwrap().trim(), "READY=1");
    assert_eq!(members(place.client).await.len(), 1);
}

#[test]
fn commands_of_the_page_do_as_it_says() {
    let page = Page("etcd-start.md");
    assert_eq!(page.titles(), ["A new cluster"]);
    page.run("A new cluster");
}

#[test]
fn manifest_of_the_page_has_only_flags_that_are_accepted() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/etcd-start.md");
    let page = std::fs::read_to_string(page).unwrap();
    let flags: Vec<&str> = page
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .filter(|flag| flag.starts_with("--"))
        .collect();
    assert!(flags.len() > 8, "{flags:?}");
    // With the version the flags are only parsed.
    let output = run(&[&flags[..], &["--version"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A process that ends with the test.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
