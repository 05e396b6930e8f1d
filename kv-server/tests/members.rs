//! Members and leaders of real clusters that change, while clients write.

use crate::common;

use std::time::{Duration, Instant};

use crate::common::{
    Cluster, Server,
    kvctl::Kvctl,
    writers::{Writers, check},
};
use kv_store_client::{
    ClientError, Connection, KvClient,
    admin::{MemberChange, MemberKind},
    protocol::{Call, Fault, Reply},
};

fn add(cluster: &Cluster, id: usize) -> MemberChange {
    let port = cluster.servers[id].port;
    let (consensus, client) = (format!("127.0.0.1:{}", port + 1000), format!("127.0.0.1:{port}"));
    MemberChange::new(id as i64, MemberKind::JOINING, consensus, client, None, false)
}

fn remove(id: usize) -> MemberChange {
    MemberChange::new(id as i64, None, None, None, None, None)
}

/// Like an operator: retries while another change is in progress or there is no leader.
async fn change(client: &KvClient, changes: Vec<MemberChange>) {
    let start = Instant::now();
    loop {
        match client.change_members(changes.clone()).await {
            Ok(()) => return,
            Err(error) => {
                assert!(start.elapsed().as_secs() < 30, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
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
    assert!(listed.contains("node 4  learner  disk "), "{listed}");
    insist("member promote 4");
    wait_for_voters(&cluster, fourth, &[0, 1, 2, 3, 4]).await;
    writers.acknowledged_again(Instant::now()).await;

    // A new node becomes leader, and one change removes the two oldest nodes, one of them the first leader.
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
    let without_endpoint = MemberChange::new(7, MemberKind::VOTER, None, None, None, None);
    assert_eq!(refused(vec![without_endpoint]).await, "node 7 is new: its consensus endpoint is needed");
    assert!(refused(vec![remove(7)]).await.contains("node 7 is not a member"));
    assert!(refused(vec![remove(0)]).await.contains("no voter would be left"));
    let bad = MemberChange::new(7, MemberKind::VOTER, "nowhere".to_owned(), "h:1".to_owned(), None, None);
    assert!(refused(vec![bad]).await.contains("there is no port"));
    let nobody = client.transfer_leader(None).await.unwrap_err().to_string();
    assert!(nobody.contains("no other node can become leader"), "{nobody}");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::standalone(dir.path());
    let alone = server.client().transfer_leader(None).await.unwrap_err().to_string();
    assert!(alone.contains("stands alone"), "{alone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn member_added_again_or_at_another_members_endpoint_is_refused() {
    let cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    let operator = kvctl(&cluster, &[0, 1, 2]);
    let [first, second, _] = cluster.ports()[..] else { panic!("three servers") };
    let at = |consensus: u16, client: u16| {
        format!("--consensus 127.0.0.1:{consensus} --client 127.0.0.1:{client}")
    };
    let cases = [
        (format!("member add 1 {}", at(1, 2)), "kvctl member update 1"),
        (format!("member add 1 {} --learner", at(1, 2)), "kvctl member remove 1"),
        (format!("member add 7 {}", at(first + 1000, 2)), "node 7 cannot be at"),
        (format!("member add 7 {}", at(first, 2)), "node 0 is there"),
        (format!("member add 7 {}", at(1, second)), "kvctl member remove 1"),
        (format!("member add 7 {}", at(1, 1)), "cannot serve nodes and clients at the same endpoint"),
        (format!("member update 0 --client 127.0.0.1:{second}"), "node 1 is there"),
        (format!("member update 0 --consensus 127.0.0.1:{}", second + 1000), "kvctl member update 1"),
        ("member update 7 --priority 1".to_owned(), "kvctl member add"),
        ("member promote 1".to_owned(), "votes already"),
    ];
    for (command, words) in cases {
        let arguments: Vec<&str> = command.split(' ').collect();
        let (code, out, error) = tokio::task::block_in_place(|| operator.run(&arguments, ""));
        assert!(code == 3 && error.contains(words), "{command}: {code} {out} {error}");
    }
    // A client that does not say whether it means a member cannot demote one either.
    let (consensus, client) = ("127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned());
    let naive = MemberChange::new(1, MemberKind::JOINING, consensus, client, None, None);
    let error = cluster.client().change_members(vec![naive]).await.unwrap_err().to_string();
    assert!(error.contains("node 1 is a member already: voter at"), "{error}");
    wait_for_voters(&cluster, 0, &[0, 1, 2]).await;
    cluster.client().put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer_through_a_follower_tells_the_new_leader() {
    let cluster = Cluster::start(3, "", "");
    for _ in 0..3 {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        cluster
            .eventually("the follower knows the leader", async |cluster| {
                (cluster.status(follower).await?.leader_id == Some(leader as i64)).then_some(())
            })
            .await;
        let endpoint = format!("127.0.0.1:{}", cluster.servers[follower].port).parse().unwrap();
        let connection = Connection::open(&endpoint, Duration::from_secs(1)).await.unwrap();
        // A leader that was elected just now has not heard of anybody whether it follows.
        let successor = cluster
            .eventually("leadership is transferred", async |_| {
                match connection.call(Call::TransferLeader(-1)).await.unwrap() {
                    Ok(Reply::TransferLeader(successor)) => Some(successor),
                    Err(Fault::Refused(why)) if why.message.contains("no other node can become leader") => {
                        None
                    }
                    other => panic!("{other:?}"),
                }
            })
            .await;
        assert_ne!(successor, leader as i64);
        cluster
            .eventually("the successor leads", async |cluster| {
                (cluster.status(successor as usize).await?.role == "leader").then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_no_members_say_so() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (removed, waiting) = ((leader + 1) % 3, cluster.join());
    let role = async |cluster: &Cluster, id: usize| Some(cluster.status(id).await?.role);
    change(&cluster.client(), vec![remove(removed)]).await;
    for (id, expected) in [(removed, "removed"), (waiting, "waiting")] {
        cluster
            .eventually(expected, async |cluster| (role(cluster, id).await? == expected).then_some(()))
            .await;
    }
    for id in (0..3).filter(|id| *id != removed) {
        cluster.servers[id].kill();
    }
    for (id, words) in [
        (removed, format!("node {removed} was removed from the cluster")),
        (waiting, format!("kvctl member add {waiting}")),
    ] {
        let operator = kvctl(&cluster, &[id]);
        let run = |command: &[&str]| tokio::task::block_in_place(|| operator.run(command, ""));
        let (code, out, error) = run(&["--timeout-ms", "2000", "put", "k", "v"]);
        assert!(code == 4 && error.contains(&words) && !error.contains("majority"), "{code} {out} {error}");
        let (code, out, _) = run(&["status"]);
        assert!(code == 0 && out.contains(&words), "{out}");
    }
}

/// The first endpoint knows of no leader; the others have one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_call_goes_on_to_the_endpoint_that_has_a_leader() {
    let mut cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    let waiting = cluster.join();
    let run = |ids: &[usize], command: &[&str]| {
        let operator = kvctl(&cluster, ids);
        tokio::task::block_in_place(|| operator.run(command, ""))
    };
    let (code, out, error) = run(&[waiting, 0, 1, 2], &["transfer"]);
    assert_eq!(code, 0, "{out} {error}");
    // A word of a server tells more than a port where nobody listens, and the codes are those of a put.
    for command in [&["--timeout-ms", "1500", "transfer"][..], &["--timeout-ms", "1500", "put", "k", "v"]] {
        let operator = Kvctl::new(format!("{},127.0.0.1:1", cluster.servers[waiting].endpoint()));
        let (code, out, error) = tokio::task::block_in_place(|| operator.run(command, ""));
        let told = error.find("waits to be added").zip(error.find("127.0.0.1:1:"));
        assert!(code == 4 && told.is_some_and(|(word, refused)| word < refused), "{code} {out} {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_moved_go_on_by_the_file_when_told_so() {
    let mut cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    cluster.client().put("k", "v").await.unwrap();
    cluster.same_hash().await;
    cluster.servers.iter_mut().for_each(Server::kill);
    cluster.move_all();
    cluster.servers.iter_mut().for_each(Server::start);
    let place = format!(
        "at 127.0.0.1:{} (clients 127.0.0.1:{}) by the file",
        cluster.servers[0].port + 1000,
        cluster.servers[0].port
    );
    for id in 0..3 {
        cluster
            .eventually("it is told what differs and what to do", async |cluster| {
                let log = cluster.servers[id].log();
                (log.contains(&place) && log.contains("--rewrite-endpoints")).then_some(())
            })
            .await;
    }
    for server in &mut cluster.servers {
        server.kill();
        server.argue("--rewrite-endpoints");
        server.start();
    }
    assert_eq!(cluster.client().get("k").await.unwrap().unwrap().value, b"v");
    let ports = cluster.ports();
    for id in 0..3 {
        cluster
            .eventually("the configuration has the new endpoints", async |cluster| {
                let members = cluster.status(id).await?.members;
                let moved = members.iter().zip(&ports).all(|(member, port)| {
                    member.client_endpoint == format!("127.0.0.1:{port}")
                        && member.consensus_endpoint == format!("127.0.0.1:{}", port + 1000)
                        && member.kind == "voter"
                });
                (moved && members.len() == 3).then_some(())
            })
            .await;
    }
    // From now on they are as any other nodes.
    for server in &mut cluster.servers {
        server.kill();
        server.argue_no_more("--rewrite-endpoints");
        server.start();
    }
    cluster.client().put("k", "w").await.unwrap();
    cluster.same_hash().await;
}

/// Its usual command with --join: without it the server would not start with an empty disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_whose_disk_was_emptied_is_told_apart_and_can_be_replaced() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    cluster.client().put("k", "v").await.unwrap();
    cluster.same_hash().await;
    let (emptied, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.servers[emptied].kill();
    std::fs::remove_dir_all(cluster.dir.path().join(format!("node-{emptied}"))).unwrap();
    cluster.servers[emptied].argue("--join");
    cluster.servers[emptied].start();
    let words = format!("the disk of node {emptied} is not the one that the cluster knows");
    cluster
        .eventually("the node itself says so", async |cluster| {
            let problems = cluster.status(emptied).await?.problems?;
            problems.iter().any(|problem| problem.contains(&words)).then_some(())
        })
        .await;
    let checks = cluster.servers[emptied].http("/readyz");
    assert!(checks.contains("503") && checks.contains(&format!("[-]storage failed: {words}")), "{checks}");
    let health = cluster.servers[emptied].http("/health");
    assert!(health.contains(r#""health":"false""#) && health.contains(&words), "{health}");
    assert!(cluster.servers[emptied].http("/livez").contains("200 OK"), "a restart would not help");
    for id in [leader, other] {
        cluster
            .eventually("the others say so", async |cluster| {
                let members = cluster.status(id).await?.members;
                let member = members.into_iter().find(|member| member.node_id == emptied as i64)?;
                (!member.healthy && member.problem?.contains(&words)).then_some(())
            })
            .await;
    }
    let operator = kvctl(&cluster, &[leader]);
    let add = with_endpoints("add", &cluster, emptied);
    let arguments: Vec<&str> = add.split(' ').collect();
    let (code, out, error) = tokio::task::block_in_place(|| operator.run(&arguments, ""));
    assert!(code == 3 && error.contains(&words), "{code} {out} {error}");
    // With another node down two of three are there, of which one does not count.
    cluster.servers[leader].kill();
    let (code, out, error) = tokio::task::block_in_place(|| {
        kvctl(&cluster, &[emptied]).run(&["--timeout-ms", "6000", "put", "k", "w"], "")
    });
    assert!(code == 4 && error.contains("there is no leader"), "{code} {out} {error}");
    assert!(error.contains(&format!("this node: {words}")), "{error}");
    cluster.servers[leader].start();
    // The action that the message advises.
    tokio::task::block_in_place(|| operator.insist(&format!("member remove {emptied}")));
    cluster.servers[emptied].kill();
    std::fs::remove_dir_all(cluster.dir.path().join(format!("node-{emptied}"))).unwrap();
    cluster.servers[emptied].start();
    tokio::task::block_in_place(|| operator.insist(&add));
    wait_for_voters(&cluster, emptied, &[0, 1, 2]).await;
    cluster.same_hash().await;
}
