//! `kvctl lock` and `kvctl elect`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::common::{
    Server,
    kvctl::{Kvctl, Running},
};

/// Runs until it is told to end, and says so.
const WORK: &str =
    "trap 'echo told; exit 7' INT TERM; echo works $KV_LOCK_REVISION; while :; do sleep 0.02; done";

fn start() -> (tempfile::TempDir, Server, Kvctl) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    (dir, server, kvctl)
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many hold a lock or wait for it.
fn places(kvctl: &Kvctl, name: &str) -> usize {
    kvctl.run(&["range", &format!("{name}/"), "--prefix", "--keys-only"], "").1.lines().count()
}

/// The number after the word that a worker prints.
fn revision(line: &str) -> i64 {
    line.strip_prefix("works ").unwrap_or_else(|| panic!("{line}")).parse().unwrap()
}

#[test]
fn command_runs_while_the_lock_is_held_and_its_exit_code_is_passed_on() {
    let (_dir, _server, kvctl) = start();
    let (code, out, error) = kvctl.run(&["lock", "l", "--", "sh", "-c", "echo $KV_LOCK_KEY; exit 5"], "");
    assert!(code == 5 && out.starts_with("l/") && error.is_empty(), "{code} {out} {error}");
    assert_eq!(places(&kvctl, "l"), 0);
    assert_eq!(kvctl.run(&["lock", "l", "--", "cat"], "input of the command").1, "input of the command");
    kvctl.says(&["lock", "l", "--", "sh", "-c", "kill -9 $$"], 137, "");
    kvctl.says(&["lock", "l", "--", "no-such-command"], 127, "no-such-command cannot be run");
    kvctl.says(&["lock", "l", "--", "/"], 126, "/ cannot be run");
    assert_eq!(places(&kvctl, "l"), 0);
}

#[test]
fn holder_that_was_stopped_has_its_command_ended_and_another_one_got_the_lock_meanwhile() {
    let (_dir, _server, kvctl) = start();
    let mut first = Running::start(&kvctl, &["lock", "l", "--ttl", "2", "--", "sh", "-c", WORK]);
    let first_revision = revision(&first.line());
    first.signal("-STOP");
    let mut second = Running::start(&kvctl, &["lock", "l", "--", "sh", "-c", WORK]);
    assert!(revision(&second.line()) > first_revision, "a later holder has a greater number");
    first.signal("-CONT");
    assert_eq!(first.line(), "told");
    assert_eq!(first.ended(), Some(120));
    assert_eq!(places(&kvctl, "l"), 1);
    second.signal("-TERM");
    assert_eq!((second.line().as_str(), second.ended()), ("told", Some(7)));
}

#[test]
fn command_that_ignores_sigterm_is_killed_with_all_that_it_started_when_no_server_answers() {
    let (_dir, server, kvctl) = start();
    let stubborn = "trap '' TERM; sleep 600 & echo $!; wait";
    let arguments = ["lock", "l", "--ttl", "1", "--grace", "1", "--", "sh", "-c", stubborn];
    let mut holder = Running::start(&kvctl, &arguments);
    let started = holder.line();
    server.signal("-STOP");
    assert_eq!(holder.ended(), Some(120));
    server.signal("-CONT");
    assert!(holder.is_silent(), "whatever it has started is gone");
    let status = std::fs::read_to_string(Path::new("/proc").join(&started).join("status"));
    assert!(status.is_err() || status.is_ok_and(|status| status.contains("State:\tZ")), "{started} runs");
}

#[test]
fn lock_whose_key_was_deleted_is_lost() {
    let (_dir, _server, kvctl) = start();
    let mut holder = Running::start(&kvctl, &["lock", "l", "--", "sh", "-c", WORK]);
    holder.line();
    let mut next = Running::start(&kvctl, &["lock", "l", "--", "sh", "-c", WORK]);
    eventually("it waits", || places(&kvctl, "l") == 2);
    let holders_key = kvctl.run(&["range", "l/", "--prefix", "--keys-only", "--limit", "2"], "").1;
    assert_eq!(holders_key.lines().count(), 2);
    let held = holders_key.lines().min_by_key(|key| {
        let pair = kvctl.run(&["--output", "json", "get", key], "").1;
        serde_json::from_str::<serde_json::Value>(&pair).unwrap()["create_revision"].as_i64()
    });
    kvctl.says(&["del", held.unwrap()], 0, "1 deleted");
    assert_eq!((holder.line().as_str(), holder.ended()), ("told", Some(120)));
    next.line();
    next.signal("-INT");
    assert_eq!(next.ended(), Some(7));
}

#[test]
fn signal_gives_up_a_place_in_the_queue_and_goes_to_a_command_that_runs() {
    let (_dir, _server, kvctl) = start();
    let mut holder = Running::start(&kvctl, &["lock", "l", "--ttl", "600", "--", "sh", "-c", WORK]);
    holder.line();
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut waiting = Running::start(&kvctl, &["lock", "l", "--ttl", "600", "--", "echo", "never"]);
        eventually("it waits", || places(&kvctl, "l") == 2);
        waiting.signal(signal);
        assert_eq!(waiting.ended(), Some(code));
        assert!(places(&kvctl, "l") == 1 && waiting.is_silent());
    }
    holder.signal("-INT");
    assert_eq!((holder.line().as_str(), holder.ended()), ("told", Some(7)));
    assert_eq!(places(&kvctl, "l"), 0, "it is unlocked although its lease would live for long");
}

#[test]
fn signal_ends_a_lock_that_no_server_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let kvctl = Kvctl::new(silent.local_addr().unwrap().to_string());
    for command in [&["lock", "l", "--", "echo", "never"][..], &["elect", "e", "never"]] {
        let arguments: Vec<&str> = ["--timeout-ms", "60000"].iter().chain(command).copied().collect();
        let mut waiting = Running::start(&kvctl, &arguments);
        let _connection = silent.accept().unwrap();
        waiting.signal("-INT");
        assert_eq!(waiting.ended(), Some(130));
        assert!(waiting.is_silent());
    }
}

#[test]
fn lock_without_a_command_is_held_until_it_is_interrupted() {
    let (_dir, _server, kvctl) = start();
    let mut holder = Running::start(&kvctl, &["lock", "l", "--ttl", "600"]);
    let key = holder.line();
    assert_eq!(kvctl.run(&["range", "l/", "--prefix", "--keys-only"], "").1, key);
    holder.signal("-INT");
    assert_eq!(holder.ended(), Some(0));
    assert_eq!(places(&kvctl, "l"), 0);
    // One that cannot print the key does not keep the lock.
    for command in [&["lock", "l", "--ttl", "600"][..], &["elect", "l", "v", "--ttl", "600"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (code, error) = kvctl.run_into(full, command);
        assert!(code == 7 && places(&kvctl, "l") == 0, "{code} {error}");
    }
}

#[test]
fn command_of_a_killed_holder_is_ended() {
    let (_dir, _server, kvctl) = start();
    let mut holder = Running::start(&kvctl, &["lock", "l", "--ttl", "1", "--", "sh", "-c", WORK]);
    holder.line();
    holder.signal("-KILL");
    assert_eq!(holder.ended(), None);
    if cfg!(target_os = "linux") {
        assert_eq!(holder.line(), "told");
    }
}

#[test]
fn election_has_one_leader_after_the_other_and_listeners_are_told() {
    let (_dir, _server, kvctl) = start();
    let mut listener = Running::start(&kvctl, &["elect", "--listen", "e"]);
    let mut one = Running::start(&kvctl, &["elect", "e", "one", "--ttl", "600"]);
    let elected = one.line();
    assert!(elected.starts_with("e/") && elected.ends_with("\tone"), "{elected}");
    assert_eq!(listener.line(), elected);
    let mut two = Running::start(&kvctl, &["elect", "e", "two"]);
    let mut three = Running::start(&kvctl, &["--output", "json", "elect", "e", "three"]);
    eventually("both wait", || places(&kvctl, "e") == 3);
    three.signal("-TERM");
    assert_eq!(three.ended(), Some(143));
    one.signal("-INT");
    assert_eq!(one.ended(), Some(0));
    assert!(two.line().ends_with("\ttwo"));
    assert!(listener.line().ends_with("\ttwo"));
    // Deposed by an operator.
    let key = kvctl.run(&["range", "e/", "--prefix", "--keys-only"], "").1;
    kvctl.says(&["del", &key], 0, "1 deleted");
    assert_eq!(two.ended(), Some(120));
    listener.signal("-TERM");
    assert_eq!(listener.ended(), Some(0));
    kvctl.says(&["elect", "e"], 2, "<VALUE>");
    kvctl.says(&["elect", "e", "v", "--listen"], 2, "cannot be used");
}
