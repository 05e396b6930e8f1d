//! Nodes that compare their states.

use std::time::{Duration, Instant};

use crate::common::Cluster;
use consensus_core::{Entry, NodeId, StateMachine, codec};
use kv_state_machine::{Durability, KvCommand, KvOperation, KvStateMachine, Put};
use kv_store_client::{
    KvClient,
    admin::{AlarmKind, MemberChange, MemberKind},
};

/// Writes a key to the state of a node that does not run, which no entry of the log has written.
fn write_beside_the_log(cluster: &Cluster, id: usize) {
    let state = cluster.data(id).join("state");
    let mut machine = KvStateMachine::open(&state, NodeId(id as u64), Durability::FromLog).unwrap();
    let put = Put { key: "stray".into(), ..Put::default() };
    let command = codec::encode(1, &KvCommand::new(None, KvOperation::Put(put)));
    machine.apply(&[Entry::command(machine.applied(), command)]).unwrap();
    machine.flush().unwrap();
}

/// Like an operator: retries while another change is in progress or there is no leader.
async fn change(client: &KvClient, change: MemberChange) {
    let start = Instant::now();
    while let Err(error) = client.change_members(vec![change.clone()]).await {
        assert!(start.elapsed() < Duration::from_secs(30), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Removes a node whose server has stopped, and adds it again with an empty disk.
async fn replace(cluster: &mut Cluster, id: usize, client: &KvClient) {
    change(client, MemberChange::new(id as i64, None, None, None, None, None)).await;
    cluster.wipe(id);
    cluster.servers[id].argue("--join");
    cluster.servers[id].start();
    let port = cluster.servers[id].port;
    let (consensus, clients) = (format!("127.0.0.1:{}", port + 1000), format!("127.0.0.1:{port}"));
    change(client, MemberChange::new(id as i64, MemberKind::JOINING, consensus, clients, None, false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarm_names_the_node_whose_state_differs_until_it_is_replaced() {
    let mut cluster = Cluster::start(3, "", "state_check_interval = \"300ms\"\n");
    let client = cluster.client();
    for n in 0..20 {
        client.put(format!("k{n}"), "v").await.unwrap();
    }
    let leader = cluster.leader().await;
    cluster.servers[leader].says("the states of the nodes are equal");
    assert!(client.alarms().await.unwrap().is_empty());

    let other = (leader + 1) % 3;
    cluster.servers[other].terminate();
    write_beside_the_log(&cluster, other);
    cluster.servers[other].start();
    let alarms = cluster
        .eventually("an alarm is raised", async |_| {
            client.alarms().await.ok().filter(|alarms| !alarms.is_empty())
        })
        .await;
    let [alarm] = &alarms[..] else { panic!("{alarms:?}") };
    assert_eq!((alarm.kind, alarm.node_id), (AlarmKind::CORRUPT, Some(other as i64)));
    let refused = client.put("k", "v").await.unwrap_err().to_string();
    assert!(refused.contains("CORRUPT"), "{refused}");
    let leader = cluster.leader().await;
    cluster.servers[leader].says("the states of the nodes differ");

    cluster.servers[other].terminate();
    replace(&mut cluster, other, &client).await;
    cluster.same_hash().await;
    assert!(client.disarm_alarm(alarm.clone()).await.unwrap());
    client.put("k", "v").await.unwrap();
}
