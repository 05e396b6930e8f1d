//! `kvctl` as scripts use it: what it prints, and its exit codes.

mod leases;
mod locks;
mod operators;
mod page;
mod status;
mod users;
mod watches;

use std::{
    io::{BufRead, BufReader},
    process::Command,
    time::{Duration, Instant},
};

use crate::common::{
    Server,
    kvctl::Kvctl,
    silent::{can_name_hosts, silent_listener, with_two_addresses},
};
use tokio::net::TcpStream;

#[test]
fn every_command_prints_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["put", "a", "1"], 0, "revision 2");
    kvctl.says(&["put", "b", "2"], 0, "revision 3");
    kvctl.says(&["get", "a"], 0, "1");
    kvctl.says(&["get", "a", "--stale", "--revision", "2"], 0, "1");
    kvctl.says(&["get", "c"], 1, "");
    kvctl.says(&["range", ""], 0, "a\t1\nb\t2");
    kvctl.says(&["range", "b", "--prefix", "--keys-only"], 0, "b");
    kvctl.says(&["range", "", "--limit", "1", "--descending"], 0, "b\t2\n(1 of 2)");
    kvctl.says(&["range", "a", "b", "--count-only"], 0, "1");
    let found = r#"{"create_revision":2,"key":"a","mod_revision":2,"value":"1","version":1}"#;
    kvctl.says(&["--output", "json", "get", "a"], 0, found);
    let transaction = r#"{"compare": [{"key": "a", "target": "value", "result": "=", "value": "1"}],
        "success": [{"put": {"key": "a", "value": "3"}}], "failure": [{"del": {"key": "a"}}]}"#;
    kvctl.says_to(transaction, &["txn", "-"], 0, "succeeded\n{\"put\":{}}");
    kvctl.says_to(transaction, &["txn", "-"], 1, "compares do not hold\n{\"del\":1}");
    kvctl.says(&["compact", "4"], 0, "compacted to revision 4");
    kvctl.says(&["del", "b"], 0, "1 deleted");
    kvctl.says(&["del", "b"], 1, "0 deleted");
    let (code, status, _) = kvctl.run(&["status"], "");
    assert!(code == 0 && status.contains("standalone") && status.contains("revision 6"), "{status}");
    let (code, hash, _) = kvctl.run(&["--output", "json", "hash"], "");
    assert!(code == 0 && hash.contains(r#""revision":6"#), "{hash}");
    let (code, bench, _) = kvctl.run(&["bench", "--seconds", "0", "--clients", "2"], "");
    assert!(code == 0 && bench.starts_with("2 clients: "), "{bench}");
}

#[test]
fn exit_codes_tell_failures_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["put", "a"], 2, "Usage");
    kvctl.says_to("{\"succes\": []}", &["txn", "-"], 2, "unknown field `succes`");
    kvctl.says(&["txn", "no-such-file"], 2, "no-such-file: No such file");
    kvctl.says(&["put", "", "1"], 3, "key");
    kvctl.says(&["get", "a", "--revision", "99"], 3, "99");
    for negative in [&["transfer", "--", "-5"][..], &["member", "remove", "--", "-5"]] {
        kvctl.says(negative, 2, "-5");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    kvctl.says(&["put", "a", "1"], 0, "revision 2");
    let (code, error) = kvctl.run_into(full, &["get", "a"]);
    assert!(code == 7 && error.contains("could not be written to standard output: No space left"), "{error}");
    server.terminate();
    kvctl.says(&["--timeout-ms", "300", "get", "a"], 4, "unavailable");
    kvctl.says(&["--timeout-ms", "300", "status"], 4, "");
    // One that takes connections and says nothing: of a read it makes no difference whether it was executed.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let kvctl = Kvctl::new(silent.local_addr().unwrap().to_string());
    kvctl.says(&["--timeout-ms", "300", "get", "a"], 4, "nothing was done");
}

#[test]
fn program_tells_its_own_name() {
    let (code, version, _) = Kvctl::new("localhost:1".to_owned()).run(&["-V"], "");
    assert_eq!((code, version.as_str()), (0, concat!("kvctl ", env!("CARGO_PKG_VERSION"))));
}

/// An endpoint where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn command_where_nobody_listens_fails_at_once() {
    let places = [nobody(), nobody()];
    let kvctl = Kvctl::new(places.join(","));
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup").display().to_string();
    for command in [
        &["get", "a"][..],
        &["snapshot", "save", &backup],
        &["alarm", "list"],
        &["user", "list"],
        &["endpoint", "health"],
        &["lease", "list"],
        &["put", "a", "1"],
        &["member", "remove", "1"],
        &["transfer"],
        &["member", "list"],
    ] {
        let start = Instant::now();
        let (code, out, error) = kvctl.run(command, "");
        assert!(start.elapsed() < Duration::from_secs(5), "{command:?}: of 15 s took {:?}", start.elapsed());
        let said = out + &error;
        assert!(code == 4 && places.iter().all(|place| said.contains(place)), "{command:?}: {code} {said}");
        assert!(said.contains("refused"), "{said}");
    }
}

/// A name has two addresses, and the first one drops all packets: its listener has no room for connections.
#[tokio::test]
async fn server_is_reached_at_the_second_address_of_a_name_whose_first_one_drops_packets() {
    if !can_name_hosts() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone_with(dir.path(), &["--listen-host", "127.0.0.2"]);
    while TcpStream::connect(("127.0.0.2", server.port)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_silent, _waiting) = silent_listener(server.port).await;
    let kvctl = Kvctl::new(format!("two.test:{}", server.port));
    let put = kvctl.command(&["--timeout-ms", "10000", "put", "k", "v"]);
    let mut inside = Command::new("sh");
    inside.args(["-c", &with_two_addresses(dir.path())]).arg(put.get_program()).args(put.get_args());
    let began = Instant::now();
    let output = tokio::task::spawn_blocking(move || inside.output()).await.unwrap().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out} {error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Commands that wait without a time limit give the reason.
#[test]
fn watch_says_when_no_server_answers_and_when_one_does_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(format!("{},{}", server.endpoint(), nobody()));
    kvctl.says(&["put", "a", "1"], 0, "revision 2");
    server.kill();
    let mut watch = kvctl.start(&["watch", "a", "--from-revision", "1"]);
    let mut said = BufReader::new(watch.stderr.take().unwrap()).lines();
    let outage = said.next().unwrap().unwrap();
    assert!(outage.contains("no server answers") && outage.contains("refused"), "{outage}");
    server.start();
    assert_eq!(said.next().unwrap().unwrap(), "kvctl: a server answers again");
    watch.kill().unwrap();
    watch.wait().unwrap();
    let mut listener = Kvctl::new(nobody()).start(&["elect", "name", "--listen"]);
    let outage = BufReader::new(listener.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(outage.contains("no server answers") && outage.contains("refused"), "{outage}");
    listener.kill().unwrap();
    listener.wait().unwrap();
}

#[test]
fn silent_server_is_passed_over_and_the_time_limit_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let live = server.endpoint();
    Kvctl::new(live.clone()).says(&["put", "a", "1"], 0, "revision 2");
    let both = Kvctl::new(format!("{silent},{live}"));
    both.says(&["get", "a"], 0, "1");
    both.says(&["get", "a", "--stale"], 0, "1");
    let alone = Kvctl::new(silent.clone());
    let backup = dir.path().join("backup").display().to_string();
    for command in [
        &["get", "a"][..],
        &["put", "a", "1"],
        &["transfer"],
        &["status"],
        &["hash"],
        &["snapshot", "save", &backup],
        &["alarm", "list"],
        &["user", "list"],
        &["endpoint", "health"],
        &["lease", "list"],
    ] {
        let start = Instant::now();
        let limited: Vec<&str> = ["--timeout-ms", "1000"].iter().chain(command).copied().collect();
        let (code, out, error) = alone.run(&limited, "");
        let took = start.elapsed();
        assert!(took < Duration::from_millis(2500), "{command:?} took {took:?}");
        assert!(code == 4 || code == 5, "{command:?}: {code} {out} {error}");
        assert!((out + &error).contains("no answer in time"), "{command:?}: {error}");
    }
    // The row of the server that answers does not wait for the other one.
    let mut status = both.start(&["status"]);
    let mut row = String::new();
    BufReader::new(status.stdout.take().unwrap()).read_line(&mut row).unwrap();
    assert!(row.starts_with(&live), "{row}");
    assert_eq!(status.wait().unwrap().code(), Some(4));
}

/// It answers, but has no place for the client.
#[test]
fn server_without_a_place_is_passed_over() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let full = Server::standalone_with(dirs[0].path(), &["--clients-max", "8"]);
    let live = Server::standalone(dirs[1].path());
    Kvctl::new(live.endpoint()).says(&["put", "a", "1"], 0, "revision 2");
    let began = Instant::now();
    let mut taken = Vec::new();
    while taken.len() < 8 {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not start");
        match std::net::TcpStream::connect(("127.0.0.1", full.port)) {
            Ok(stream) => taken.push(stream),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    let alone = Kvctl::new(full.endpoint());
    while alone.run(&["get", "a", "--stale"], "").0 != 4 {
        assert!(began.elapsed() < Duration::from_secs(20), "the place is not taken");
    }
    let both = Kvctl::new(format!("{},{}", full.endpoint(), live.endpoint()));
    both.says(&["get", "a", "--stale"], 0, "1");
    both.says(&["get", "a"], 0, "1");
    drop(taken);
}

#[test]
fn states_that_differ_are_told() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let servers = dirs.each_ref().map(|dir| Server::standalone(dir.path()));
    let endpoints = servers.each_ref().map(Server::endpoint);
    let both = Kvctl::new(endpoints.join(","));
    let [one, other] = endpoints.map(Kvctl::new);
    one.says(&["put", "a", "1"], 0, "revision 2");
    other.says(&["put", "a", "1"], 0, "revision 2");
    assert_eq!(both.run(&["hash"], "").0, 0);
    one.says(&["put", "b", "1"], 0, "revision 3");
    assert_eq!(both.run(&["hash"], "").0, 0, "one is ahead");
    other.says(&["put", "b", "2"], 0, "revision 3");
    both.says(&["hash"], 6, "have applied the same entries and differ");
}
