//! Backups of running servers, and servers that start from them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use crate::common::{
    Cluster, Server,
    kvctl::Kvctl,
    page::Page,
    writers::{Writers, check},
};
use kv_store_client::KvClient;

/// Head and body of the response to `GET /snapshot`, with more header lines; at most `bytes_max` bytes of the body.
fn download(server: &Server, more: &str, bytes_max: u64) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(server.endpoint()).unwrap();
    let request = format!("GET /snapshot HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let mut body = Vec::new();
    stream.take(bytes_max).read_to_end(&mut body).unwrap();
    (String::from_utf8(head).unwrap(), body)
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).unwrap_or_else(|| panic!("{name}: {head}")).1
}

fn backup(server: &Server, file: &Path) {
    let (head, body) = download(server, "", u64::MAX);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(header(&head, "content-length"), body.len().to_string());
    fs::write(file, body).unwrap();
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kv-server")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn page_saves_and_restores_a_backup() {
    Page("backup.md").run("Saving and restoring");
}

#[test]
fn page_makes_a_cluster_from_a_backup() {
    Page("backup.md").run("A new cluster from a backup");
}

async fn value(client: &KvClient, key: &str) -> Option<Vec<u8>> {
    client.get(key).await.unwrap().map(|pair| pair.value)
}

#[tokio::test]
async fn standalone_server_starts_from_its_backup_with_raised_revision() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    server.endpoint();
    let client = server.client();
    for count in 0..100 {
        client.put(format!("key{count}"), "value").await.unwrap();
    }
    let file = dir.path().join("backup");
    backup(&server, &file);
    client.put("key0", "later").await.unwrap();
    let path = file.display().to_string();
    let checked = run(&["--check-backup", &path]);
    assert!(checked.status.success(), "{}", text(&checked));
    for words in ["complete", "revision 101", "100 keys"] {
        assert!(text(&checked).contains(words), "{}", text(&checked));
    }
    let new = dir.path().join("new");
    fs::create_dir_all(new.join("data")).unwrap();
    // An empty directory, with a separator at its end.
    let restored = run(&["--restore", &path, "--data-dir", &format!("{}/", new.join("data").display())]);
    assert!(restored.status.success(), "{}", text(&restored));
    assert!(text(&restored).contains("100 keys"), "{}", text(&restored));
    let server = Server::standalone(&new);
    server.endpoint();
    let client = server.client();
    assert_eq!(value(&client, "key0").await.as_deref(), Some(&b"value"[..]));
    let put = client.put("key0", "new").await.unwrap();
    assert!(put.header.revision > 1_000_000_000, "{put:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn new_cluster_starts_from_a_backup_that_was_taken_under_load() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let client = cluster.client();
    let before: BTreeMap<String, String> =
        (0..100).map(|count| (format!("writer-before-{count}"), count.to_string())).collect();
    for (key, value) in &before {
        client.put(key.clone(), value.clone()).await.unwrap();
    }
    let writers = Writers::start(&client, 4);
    writers.acknowledged_again(std::time::Instant::now()).await;
    let follower = (leader + 1) % 3;
    let (dir, file) = (tempfile::tempdir().unwrap(), cluster.dir.path().join("backup"));
    // A follower may be behind for a moment; its read waits until it is not.
    cluster.servers[follower].client().get("nothing").await.unwrap();
    tokio::task::block_in_place(|| backup(&cluster.servers[follower], &file));
    writers.stop().await;
    for server in &mut cluster.servers {
        server.terminate();
    }
    for id in 0..3 {
        fs::rename(cluster.data(id), dir.path().join(format!("old-{id}"))).unwrap();
    }
    let config = cluster.dir.path().join("cluster.toml").display().to_string();
    let data = cluster.data(0).display().to_string();
    let arguments = ["--restore", &file.display().to_string(), "--config", &config, "--node-id", "0"];
    let restored = run(&[&arguments[..], &["--data-dir", &data]].concat());
    assert!(restored.status.success(), "{}", text(&restored));
    assert!(text(&restored).contains("only member of the new cluster"), "{}", text(&restored));
    cluster.servers[0].start();
    cluster.servers[0].endpoint();
    for id in [1, 2] {
        cluster.servers[id].argue("--join");
        cluster.servers[id].start();
        let port = cluster.servers[id].port;
        let operator = Kvctl::new(cluster.servers[0].endpoint());
        let add = format!("member add {id} --consensus 127.0.0.1:{} --client 127.0.0.1:{port}", port + 1000);
        tokio::task::block_in_place(|| operator.insist(&add));
    }
    cluster
        .eventually("all nodes are voters", async |cluster| {
            let members = cluster.status(2).await?.members;
            (members.len() == 3 && members.iter().all(|member| member.kind == "voter")).then_some(())
        })
        .await;
    check(&cluster.client(), &before).await;
    check(&cluster.servers[2].client(), &before).await;

    // A node of the old cluster is refused.
    cluster.servers[1].terminate();
    fs::remove_dir_all(cluster.data(1)).unwrap();
    fs::rename(dir.path().join("old-1"), cluster.data(1)).unwrap();
    cluster.servers[1].start();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !cluster.servers[0].log().contains("refused the connection of a node") {
        assert!(std::time::Instant::now() < deadline, "{}", cluster.servers[0].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn download_that_broke_off_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    server.endpoint();
    let client = server.client();
    for count in 0..20 {
        client.put(format!("key{count}"), vec![count as u8; 100_000]).await.unwrap();
    }
    let (head, part) = download(&server, "", 100_001);
    assert_eq!(part.len(), 100_001);
    let (tag, length) = (header(&head, "etag").to_owned(), header(&head, "content-length").to_owned());
    client.put("key0", "later").await.unwrap();
    let more = format!("range: bytes=100001-\r\nif-range: {tag}\r\n");
    let (head, rest) = download(&server, &more, u64::MAX);
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    assert_eq!(header(&head, "etag"), tag);
    let whole = [part, rest].concat();
    assert_eq!(whole.len().to_string(), length);
    let file = dir.path().join("backup");
    fs::write(&file, &whole).unwrap();
    let checked = run(&["--check-backup", &file.display().to_string()]);
    assert!(checked.status.success() && text(&checked).contains("20 keys"), "{}", text(&checked));

    let (head, _) = download(&server, "range: bytes=5-\r\nif-range: \"other\"\r\n", 10);
    assert!(head.starts_with("HTTP/1.1 200"), "another copy is sent whole: {head}");
}

#[tokio::test]
async fn damaged_backup_and_directory_in_use_are_refused_without_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    server.endpoint();
    server.client().put("a", "1").await.unwrap();
    let file = dir.path().join("backup");
    backup(&server, &file);
    let mut bytes = fs::read(&file).unwrap();
    let path = file.display().to_string();
    let used = run(&["--restore", &path, "--data-dir", &dir.path().join("data").display().to_string()]);
    assert!(!used.status.success() && text(&used).contains("is not empty"), "{}", text(&used));

    bytes.truncate(bytes.len() - 512);
    fs::write(&file, &bytes).unwrap();
    let new = dir.path().join("new");
    for arguments in
        [vec!["--restore", &path, "--data-dir", new.to_str().unwrap()], vec!["--check-backup", &path]]
    {
        let refused = run(&arguments);
        assert!(!refused.status.success(), "{}", text(&refused));
        assert!(text(&refused).contains(&path), "{}", text(&refused));
    }
    assert!(!new.exists() && !dir.path().join("new.restoring").exists());
}
