//! `kvctl lease`, and keys that go with a lease.

use crate::common::{
    Server,
    kvctl::{Kvctl, Running},
};

#[test]
fn lease_is_granted_listed_renewed_and_revoked_with_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["lease", "grant", "600", "--id", "7f"], 0, "7f");
    kvctl.says(&["lease", "grant", "600", "--id", "7f"], 3, "there is a lease 7f already");
    kvctl.says(&["put", "a\nb", "1", "--lease", "7f"], 0, "revision 2");
    let granted = kvctl.run(&["lease", "grant", "1000"], "").1;
    kvctl.says(&["lease", "list"], 0, &format!("7f\n{granted}"));
    let (code, found, _) = kvctl.run(&["lease", "timetolive", "7f", "--keys"], "");
    let (first, keys) = found.split_once('\n').unwrap();
    assert!(code == 0 && first.starts_with("lease 7f  600 s, 59") && keys == r"a\nb", "{found}");
    let (_, found, _) = kvctl.run(&["--output", "json", "lease", "timetolive", "7f", "--keys"], "");
    assert!(found.contains(r#""lease":"7f""#) && found.contains(r#""ttl_seconds":600"#), "{found}");
    let pair = kvctl.run(&["--output", "json", "get", "a\nb"], "").1;
    assert!(pair.contains(r#""lease":"7f""#), "{pair}");
    kvctl.says(&["lease", "keep-alive", "7f", "--once"], 0, "lease 7f lives 600 s from now");
    kvctl.says(&["lease", "revoke", "7f"], 0, "revision 3");
    kvctl.says(&["get", "a\nb"], 1, "");
    for gone in
        [&["lease", "revoke", "7f"][..], &["lease", "timetolive", "7f"], &["lease", "keep-alive", "7f"]]
    {
        kvctl.says(gone, 3, "there is no lease 7f");
    }
    kvctl.says(&["put", "a", "1", "--lease", "7f"], 3, "there is no lease 7f");
    kvctl.says(&["put", "a", "1", "--lease", "not-hex"], 2, "hexadecimal");
    kvctl.says(&["lease", "grant", "0"], 2, "0 is not in 1..=9000000000");
}

#[test]
fn kept_lease_outlives_its_time_and_its_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["lease", "grant", "2", "--id", "7f"], 0, "7f");
    let mut kept = Running::start(&kvctl, &["lease", "keep-alive", "7f"]);
    assert_eq!(kept.line(), "lease 7f is kept alive, 2 s at a time");
    std::thread::sleep(std::time::Duration::from_secs(3));
    kvctl.says(&["lease", "list"], 0, "7f");
    kept.signal("-TERM");
    assert_eq!(kept.ended(), Some(0));
    // Nobody renews it now, and the time of another one is not over.
    kvctl.says(&["lease", "grant", "600", "--id", "80"], 0, "80");
    let mut kept = Running::start(&kvctl, &["lease", "keep-alive", "80"]);
    assert_eq!(kept.line(), "lease 80 is kept alive, 600 s at a time");
    kept.signal("-INT");
    assert_eq!(kept.ended(), Some(0));
    // One that others end.
    kvctl.says(&["lease", "grant", "2", "--id", "81"], 0, "81");
    let mut kept = Running::start(&kvctl, &["lease", "keep-alive", "81"]);
    kept.line();
    kvctl.run(&["lease", "revoke", "81"], "");
    assert_eq!(kept.ended(), Some(120));
}
