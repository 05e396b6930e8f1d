//! Members and leaders of real clusters that change, while clients write.

mod common;

use std::time::Instant;

use common::{
    Cluster, Server,
    kvctl::Kvctl,
    writers::{Writers, check},
};
use kv_store_client::{
    ClientError, KvClient,
    admin::{MemberChange, MemberKind},
    protocol::Fault,
};

fn add(cluster: &Cluster, id: usize) -> MemberChange {
    let port = cluster.servers[id].port;
    let (consensus, client) = (format!("127.0.0.1:{}", port + 1000), format!("127.0.0.1:{port}"));
    MemberChange::new(id as i64, MemberKind::JOINING, consensus, client, None)
}

fn remove(id: usize) -> MemberChange {
    MemberChange::new(id as i64, None, None, None, None)
}

/// As an operator would: again, when another change is under way or there is no leader just then.
async fn change(client: &KvClient, changes: Vec<MemberChange>) {
    let start = Instant::now();
    loop {
        match client.change_members(changes.clone()).await {
            Ok(()) => return,
            Err(error) => {
                assert!(start.elapsed().as_secs() < 30, "{error}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn wait_for_voters(cluster: &Cluster, ask: usize, voters: &[usize]) {
    let expected: Vec<(i64, String)> = voters.iter().map(|id| (*id as i64, "voter".to_owned())).collect();
    cluster
        .eventually(&format!("the voters are {voters:?}"), async |cluster| {
            let members = cluster.status(ask).await?.members;
            let found: Vec<_> = members.into_iter().map(|member| (member.node_id, member.kind)).collect();
            (found == expected).then_some(())
        })
        .await;
}

/// Of servers of the cluster.
fn kvctl(cluster: &Cluster, ids: &[usize]) -> Kvctl {
    let endpoints = ids.iter().map(|id| format!("127.0.0.1:{}", cluster.servers[*id].port));
    Kvctl::new(endpoints.collect::<Vec<_>>().join(","))
}

/// `what` a member, with where it is.
fn with_endpoints(what: &str, cluster: &Cluster, id: usize) -> String {
    let port = cluster.servers[id].port;
    format!("member {what} {id} --consensus 127.0.0.1:{} --client 127.0.0.1:{port}", port + 1000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn three_become_five_and_three_again_under_load() {
    let mut cluster =
        Cluster::start(3, "", "[log]\ncompact_after_entries = 200\ncompact_keep_entries = 20\n");
    let first_leader = cluster.leader().await;
    let writers = Writers::start(&cluster.client(), 8);
    writers.acknowledged_again(Instant::now()).await;
    let (third, fourth) = (cluster.join(), cluster.join());
    let operator = kvctl(&cluster, &[0, 1, 2, third, fourth]);
    let insist = |command: &str| tokio::task::block_in_place(|| operator.insist(command));

    insist(&with_endpoints("add", &cluster, third));
    insist(&format!("{} --learner", with_endpoints("add", &cluster, fourth)));
    let listed = insist("member list");
    assert!(listed.contains("node 4  learner  consensus 127.0.0.1:"), "{listed}");
    insist("member promote 4");
    wait_for_voters(&cluster, fourth, &[0, 1, 2, 3, 4]).await;
    writers.acknowledged_again(Instant::now()).await;

    // The lead goes to a new node, and the two oldest go in one step, one of them the first leader.
    let leads = insist("transfer 4");
    assert!(leads.contains("node 4"), "{leads}");
    let mut gone = [first_leader, usize::from(first_leader == 0)];
    gone.sort_unstable();
    insist(&format!("member remove {} {}", gone[0], gone[1]));
    let staying: Vec<usize> = (0..5).filter(|id| !gone.contains(id)).collect();
    for id in gone {
        cluster.servers[id].terminate();
    }
    wait_for_voters(&cluster, fourth, &staying).await;
    writers.acknowledged_again(Instant::now()).await;
    let acknowledged = writers.stop().await;
    let ports: Vec<u16> = staying.iter().map(|id| cluster.servers[*id].port).collect();
    check(&common::client(&ports), &acknowledged).await;
    for id in gone.into_iter().rev() {
        cluster.servers.remove(id);
    }
    cluster.same_hash().await;
}

/// Addresses are part of the membership: the others learn the new one from the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_node_moves_to_another_address() {
    let mut cluster = Cluster::start(3, "", "");
    let moving = (cluster.leader().await + 1) % 3;
    cluster.servers[moving].terminate();
    let staying: Vec<usize> = (0..3).filter(|id| *id != moving).collect();
    let operator = kvctl(&cluster, &staying);
    let insist = |command: &str| tokio::task::block_in_place(|| operator.insist(command));
    insist("put k v");
    cluster.start_elsewhere(moving);
    let listed = insist(&with_endpoints("update", &cluster, moving));
    assert!(listed.contains(&format!("clients 127.0.0.1:{}", cluster.servers[moving].port)), "{listed}");
    cluster.same_hash().await;
    // And it lives on where it is: it can lead, and is found there.
    insist(&format!("transfer {moving}"));
    insist("put k w");
    assert_eq!(cluster.servers[moving].client().get("k").await.unwrap().unwrap().value, b"w");
    insist(&format!("member update {moving} --priority 3"));
}

/// It is sent the log rather than a snapshot, and answers a leader of which it knows only that it called.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_a_young_cluster() {
    let mut cluster = Cluster::start(1, "", "");
    cluster.leader().await;
    let client = cluster.client();
    client.put("k", "v").await.unwrap();
    let second = cluster.join();
    change(&client, vec![add(&cluster, second)]).await;
    wait_for_voters(&cluster, second, &[0, 1]).await;
    cluster.same_hash().await;
    assert_eq!(cluster.servers[second].client().get("k").await.unwrap().unwrap().value, b"v");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_three_goes_on_alone_when_told_to() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let client = cluster.client();
    client.put("k", "v").await.unwrap();
    cluster.same_hash().await;
    let recover = |cluster: &Cluster| {
        let data = cluster.dir.path().join(format!("node-{leader}")).display().to_string();
        let arguments = ["--force-new-cluster", "--node-id", &leader.to_string(), "--data-dir", &data];
        let program = env!("CARGO_BIN_EXE_kv-server");
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout) + &text(output.stderr))
    };
    let (done, said) = recover(&cluster);
    assert!(!done && said.contains("nothing was changed") && said.contains("in use"), "{said}");
    for server in &mut cluster.servers {
        server.kill();
    }
    let (done, said) = recover(&cluster);
    assert!(done && said.contains("is the only member now"), "{said}");
    let (done, said) = recover(&cluster);
    assert!(!done && said.contains("only voter already"), "{said}");
    cluster.servers[leader].start();
    let client = cluster.servers[leader].client();
    assert_eq!(client.get("k").await.unwrap().unwrap().value, b"v");
    client.put("k", "w").await.unwrap();
    let joined = cluster.join();
    change(&client, vec![add(&cluster, joined)]).await;
    wait_for_voters(&cluster, joined, &[leader, joined]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_gets_wrong_is_told() {
    let cluster = Cluster::start(1, "", "");
    cluster.leader().await;
    let client = cluster.client();
    let refused = async |changes| match client.change_members(changes).await {
        Err(ClientError::Rejected(Fault::Refused(why))) => why.message,
        other => panic!("{other:?}"),
    };
    let without_endpoint = MemberChange::new(7, MemberKind::VOTER, None, None, None);
    assert_eq!(refused(vec![without_endpoint]).await, "node 7 is new: its consensus endpoint is needed");
    assert!(refused(vec![remove(7)]).await.contains("node 7 is not a member"));
    assert!(refused(vec![remove(0)]).await.contains("no voter would be left"));
    let bad = MemberChange::new(7, MemberKind::VOTER, "nowhere".to_owned(), "h:1".to_owned(), None);
    assert!(refused(vec![bad]).await.contains("there is no port"));
    let nobody = client.transfer_leader(None).await.unwrap_err().to_string();
    assert!(nobody.contains("no other node is fit to lead"), "{nobody}");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let alone = server.client().transfer_leader(None).await.unwrap_err().to_string();
    assert!(alone.contains("stands alone"), "{alone}");
}
