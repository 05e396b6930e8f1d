//! A stock Thrift client (Python's thriftpy2) does every call of the IDL.

use std::process::Command;

use crate::common::{Cluster, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_the_idl_from_python() {
    let python = std::env::var("KV_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import thriftpy2"]).output();
    if !probe.as_ref().is_ok_and(|probe| probe.status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI needs thriftpy2, and KV_TEST_PYTHON to say which Python has it: {probe:?}"
        );
        eprintln!("skipped: {python} has no thriftpy2; `make test` installs it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let standalone = Server::standalone(dir.path());
    let cluster = Cluster::start(3, "routing = \"redirect\"", "");
    let mut lonely = Cluster::start(3, "", "");
    lonely.leader().await;
    lonely.servers[0].kill();
    lonely.servers[1].kill();
    lonely
        .eventually("the last node notices", async |lonely| {
            lonely.status(2).await?.leader_id.is_none().then_some(())
        })
        .await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    cluster
        .eventually("the follower knows the leader", async |cluster| {
            (cluster.status(follower).await?.leader_id == Some(leader as i64)).then_some(())
        })
        .await;
    standalone.client().get("k").await.unwrap();

    let output = Command::new(python)
        .arg("tests/python_client.py")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../kv-store-client/idl/kv.thrift"))
        .args([standalone.port, cluster.servers[follower].port].map(|port| port.to_string()))
        .arg(format!("127.0.0.1:{}", cluster.servers[leader].port))
        .arg(lonely.servers[2].port.to_string())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
}
