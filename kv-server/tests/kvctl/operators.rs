//! `kvctl endpoint health` and `kvctl alarm`.

use kv_etcd_api::etcdserverpb::{
    AlarmRequest, AlarmType, alarm_request::AlarmAction, maintenance_client::MaintenanceClient,
};
use tonic::transport::Channel;

use crate::common::{Cluster, Server, kvctl::Kvctl};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarm_is_listed_makes_its_node_not_healthy_and_is_disarmed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let kvctl = Kvctl::new(server.endpoint());
    kvctl.says(&["alarm", "list"], 0, "");
    kvctl.says(&["alarm", "disarm"], 0, "");
    let (code, health, _) = kvctl.run(&["endpoint", "health"], "");
    assert!(code == 0 && health.contains("healthy: a linearizable read took "), "{code} {health}");
    let endpoint = Channel::from_shared(format!("http://{}", server.endpoint())).unwrap();
    let mut etcd = MaintenanceClient::new(endpoint.connect().await.unwrap());
    for (kind, member_id) in [(AlarmType::Nospace, 1), (AlarmType::Corrupt, 0)] {
        let action = AlarmAction::Activate.into();
        etcd.alarm(AlarmRequest { action, member_id, alarm: kind.into() }).await.unwrap();
    }
    let (code, alarms, _) = kvctl.run(&["alarm", "list"], "");
    let rows: Vec<&str> = alarms.lines().collect();
    assert!(code == 0 && rows.len() == 2 && rows[0].ends_with("  NOSPACE"), "{alarms}");
    assert_eq!(rows[1], "no single node  CORRUPT");
    kvctl.says(&["put", "k", "v"], 3, "CORRUPT");
    let (code, health, _) = kvctl.run(&["endpoint", "health"], "");
    assert!(code == 4 && health.contains("not healthy") && health.contains("alarm CORRUPT"), "{health}");
    kvctl.says(&["alarm", "disarm", "--node", "77"], 0, "");
    kvctl.says(&["alarm", "disarm", "--kind", "corrupt"], 0, rows[1]);
    kvctl.says(&["put", "k", "v"], 3, "NOSPACE");
    let json = kvctl.run(&["--output", "json", "alarm", "disarm"], "").1;
    assert!(json.contains(r#""kind":"NOSPACE""#), "{json}");
    kvctl.says(&["put", "k", "v"], 0, "revision 2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_of_each_endpoint_is_told_whoever_leads() {
    for routing in ["forward", "redirect"] {
        let mut cluster = Cluster::start(3, &format!("routing = \"{routing}\""), "");
        let leader = cluster.leader().await;
        let endpoints: Vec<String> = cluster.servers.iter().map(Server::endpoint).collect();
        let kvctl = Kvctl::new(endpoints.join(","));
        kvctl.insist("endpoint health");
        kvctl.insist("alarm list");
        cluster.servers[(leader + 1) % 3].kill();
        let (code, health, _) = kvctl.run(&["endpoint", "health"], "");
        assert_eq!(code, 4, "{health}");
        let dead = &endpoints[(leader + 1) % 3];
        let row = health.lines().find(|row| row.starts_with(dead.as_str())).unwrap();
        assert!(row.contains("not healthy: Connection refused"), "{row}");
        let rows = health.lines().filter(|row| row.contains("  healthy: ")).count();
        assert_eq!(rows, 2, "{health}");
    }
}
