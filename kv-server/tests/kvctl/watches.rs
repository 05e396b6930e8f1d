//! `kvctl watch`.

use std::{
    io::Read,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::common::{
    Cluster, Server,
    kvctl::{Kvctl, Running, ended},
};

#[test]
fn watch_prints_a_line_for_each_event() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["put", "a/1", "one"], 0, "revision 2");
    kvctl.says(&["put", "b", "other"], 0, "revision 3");
    kvctl.says(&["put", "a/1", "two\nlines"], 0, "revision 4");
    kvctl.says(&["del", "a/1"], 0, "1 deleted");
    let expected = ["2\tput\ta/1\tone", "4\tput\ta/1\ttwo\\nlines", "5\tdelete\ta/1", "6\tput\ta/2\tlater"];
    let mut watch = Running::start(&kvctl, &["watch", "--prefix", "a/", "--from-revision", "1"]);
    assert_eq!([watch.line(), watch.line(), watch.line()], expected[..3]);
    kvctl.says(&["put", "a/2", "later"], 0, "revision 6");
    assert_eq!(watch.line(), expected[3]);
    watch.signal("-TERM");
    assert!(watch.ended() == Some(0) && watch.is_silent());
    let previous = ["watch", "a/1", "--from-revision", "4", "--previous"];
    let watch = Running::start(&kvctl, &previous);
    let lines = ["4\tput\ta/1\ttwo\\nlines\tone", "5\tdelete\ta/1\t\ttwo\\nlines"];
    assert_eq!([watch.line(), watch.line()], lines);
    let json: Vec<&str> = ["--output", "json"].into_iter().chain(previous).collect();
    let watch = Running::start(&kvctl, &json);
    let value: serde_json::Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!((&value["event"], &value["kv"]["value"]), (&"put".into(), &"two\nlines".into()));
    assert_eq!(value["previous"]["value"], "one");
    let value: serde_json::Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(value["kv"], serde_json::json!({ "key": "a/1" }));
    // All keys, from now on.
    let mut watch = Running::start(&kvctl, &["watch", "", "--prefix"]);
    let start = Instant::now();
    let mut written = 7;
    while written < 9 || start.elapsed() < Duration::from_millis(500) {
        kvctl.says(&["put", "z", "1"], 0, &format!("revision {written}"));
        written += 1;
    }
    assert!(watch.line().ends_with("\tput\tz\t1"));
    watch.signal("-INT");
    assert_eq!(watch.ended(), Some(0));
}

#[tokio::test]
async fn watch_goes_on_when_the_leader_is_killed() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let endpoints = cluster.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>();
    let kvctl = Kvctl::new(endpoints.join(","));
    let client = cluster.client();
    let first = client.put("k", "0").await.unwrap().header.revision;
    let mut watch = Running::start(&kvctl, &["watch", "k", "--from-revision", &first.to_string()]);
    assert_eq!(watch.line(), format!("{first}\tput\tk\t0"));
    cluster.servers[leader].kill();
    for n in 1..20 {
        client.put("k", n.to_string()).await.unwrap();
    }
    for n in 1..20 {
        assert_eq!(watch.line(), format!("{}\tput\tk\t{n}", first + n));
    }
    watch.signal("-TERM");
    assert_eq!(watch.ended(), Some(0));
}

#[test]
fn watch_of_compacted_history_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    for n in 2..6 {
        kvctl.says(&["put", "k", "v"], 0, &format!("revision {n}"));
    }
    kvctl.says(&["compact", "4"], 0, "compacted to revision 4");
    kvctl.says(&["watch", "k", "--from-revision", "2"], 8, "revisions below 4 were compacted away");
    kvctl.says(&["watch", "k", "--from-revision", "0"], 2, "0 is not in 1..");
}

#[test]
fn watch_ends_with_its_reader_and_a_reader_that_hangs_does_not_hold_up_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    // More than a pipe holds.
    kvctl.says(&["put", "k", &"x".repeat(100_000)], 0, "revision 2");
    let arguments = ["watch", "k", "--from-revision", "1"];
    let mut hangs = kvctl.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut unread = hangs.stdout.take().unwrap();
    unread.read_exact(&mut [0; 1]).unwrap();
    let id = hangs.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(ended(&mut hangs), Some(0));
    let mut left = kvctl.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    drop(left.stdout.take());
    assert_eq!(ended(&mut left), Some(0));
}

#[test]
fn command_is_run_for_each_event_until_one_fails() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["put", "k", "one  two\nlines"], 0, "revision 2");
    kvctl.says(&["del", "k"], 0, "1 deleted");
    let script = r#"echo "$KV_WATCH_EVENT_TYPE $KV_WATCH_KEY $KV_WATCH_REVISION <$KV_WATCH_VALUE>"; cat;
        test $KV_WATCH_EVENT_TYPE = PUT || exit 9"#;
    let watch = ["watch", "k", "--from-revision", "1", "--exec", "--", "sh", "-c", script];
    let (code, out, error) = kvctl.run(&watch, "");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..2], ["PUT k 2 <one  two", "lines>"]);
    let event: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
    assert_eq!(event["kv"]["value"], "one  two\nlines");
    assert_eq!(lines[3], "DELETE k 3 <>");
    assert!(code == 9 && error.contains("--from-revision 3 begins with this event"), "{code} {error}");
    let nothing = ["watch", "k", "--from-revision", "1", "--exec", "--", "no-such-command"];
    kvctl.says(&nothing, 127, "no-such-command cannot be run");
    kvctl.says(&["watch", "k", "--exec"], 2, "COMMAND");
    // It does not read its input, which is longer than a pipe.
    kvctl.says(&["put", "k", &"x".repeat(100_000)], 0, "revision 4");
    let blind = [
        "watch",
        "k",
        "--from-revision",
        "4",
        "--exec",
        "--",
        "sh",
        "-c",
        "echo ${KV_WATCH_VALUE-unset}; exit 1",
    ];
    kvctl.says(&blind, 1, "unset");
}

#[test]
fn signal_ends_the_command_of_an_event_and_then_the_watch() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["put", "k", "1"], 0, "revision 2");
    kvctl.says(&["put", "k", "2"], 0, "revision 3");
    let script = "trap 'echo told; exit 0' TERM; echo runs; while :; do sleep 0.02; done";
    let mut watch =
        Running::start(&kvctl, &["watch", "k", "--from-revision", "1", "--exec", "--", "sh", "-c", script]);
    assert_eq!(watch.line(), "runs");
    watch.signal("-TERM");
    assert_eq!(watch.line(), "told");
    assert!(watch.ended() == Some(0) && watch.is_silent(), "the second event is left");
}
