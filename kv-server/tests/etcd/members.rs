//! Members as etcd's clients add, move, promote and remove them.

use std::time::Instant;

use kv_etcd_api::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, cluster_client::ClusterClient,
};
use tonic::{Code, transport::Channel};

use super::{
    clients::{Alone, PATIENCE, channel, refusal},
    gateway::ask,
};
use crate::common::Cluster;

type Client = ClusterClient<Channel>;

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn add(port: u16, is_learner: bool) -> MemberAddRequest {
    MemberAddRequest { peer_ur_ls: vec![url(port)], is_learner }
}

/// Adds a member when all voters answer.
async fn added(client: &mut Client, port: u16, is_learner: bool) -> Member {
    let begun = Instant::now();
    loop {
        match client.member_add(add(port, is_learner)).await {
            Ok(done) => {
                let done = done.into_inner();
                assert!(done.members.contains(done.member.as_ref().unwrap()), "{done:?}");
                return done.member.unwrap();
            }
            Err(status) => {
                assert!(status.code() == Code::Unavailable && begun.elapsed() < PATIENCE, "{status}");
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn members(client: &mut Client) -> Vec<Member> {
    let list = MemberListRequest { linearizable: true };
    client.member_list(list).await.map(|answer| answer.into_inner().members).unwrap_or_default()
}

/// The number of the node, which is at the end of a member's id.
fn number(member: &Member) -> usize {
    (member.id & 0xFFFF) as usize
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_member_gets_a_new_id_votes_and_tells_where_its_clients_go() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let mut client = ClusterClient::new(channel(cluster.servers[(leader + 1) % 3].port).await);
    let port = Cluster::port_to_join();
    let member = added(&mut client, port + 1000, false).await;
    assert_eq!((number(&member), &member.name[..], member.is_learner), (3, "", false), "it has not started");
    assert_eq!((member.peer_ur_ls, member.client_ur_ls), (vec![url(port + 1000)], vec![]));
    cluster.join_at(3, port, &[]);
    cluster
        .eventually("it has told its clients", async |_: &Cluster| {
            let all = members(&mut client).await;
            let new = all.iter().find(|other| other.id == member.id)?;
            (new.client_ur_ls == [url(port)] && new.name == "3").then_some(())
        })
        .await;
    cluster
        .eventually("it votes", async |cluster: &Cluster| {
            let status = cluster.status(leader).await?;
            status.members.iter().any(|other| other.node_id == 3 && other.kind == "voter").then_some(())
        })
        .await;
    // The id of one that was removed is not given again.
    client.member_remove(MemberRemoveRequest { id: member.id }).await.unwrap();
    assert!(members(&mut client).await.iter().all(|other| other.id != member.id));
    let next = added(&mut client, Cluster::port_to_join() + 1000, false).await;
    assert_eq!(number(&next), 4);
    let moved = Cluster::port_to_join() + 1000;
    let update = MemberUpdateRequest { id: next.id, peer_ur_ls: vec![url(moved)] };
    let all = client.member_update(update).await.unwrap().into_inner().members;
    assert!(all.iter().any(|other| other.id == next.id && other.peer_ur_ls == [url(moved)]), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learner_is_promoted_on_request_once_it_is_in_sync() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let mut client = ClusterClient::new(channel(cluster.servers[(leader + 1) % 3].port).await);
    let port = Cluster::port_to_join();
    let learner = added(&mut client, port + 1000, true).await;
    assert!(learner.is_learner);
    let promote = MemberPromoteRequest { id: learner.id };
    let not_ready = "etcdserver: can only promote a learner member which is in sync with leader";
    assert_eq!(
        refusal(client.member_promote(promote).await),
        (Code::FailedPrecondition, not_ready.to_owned()),
        "it has not started"
    );
    cluster.join_at(number(&learner), port, &[]);
    let all = cluster
        .eventually("it is promoted", async |_: &Cluster| match client.member_promote(promote).await {
            Ok(done) => Some(done.into_inner().members),
            Err(status) => {
                assert!(status.message() == not_ready, "{status}");
                None
            }
        })
        .await;
    assert!(all.iter().any(|other| other.id == learner.id && !other.is_learner), "{all:?}");
    let status = cluster.status(leader).await.unwrap();
    assert!(status.members.iter().any(|other| other.node_id == 3 && other.kind == "voter"), "{status:?}");
    let again = refusal(client.member_promote(promote).await);
    assert_eq!(again, (Code::FailedPrecondition, "etcdserver: can only promote a learner member".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learner_is_healthy_and_not_ready() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let mut client = ClusterClient::new(channel(cluster.servers[leader].port).await);
    let port = Cluster::port_to_join();
    let learner = added(&mut client, port + 1000, true).await;
    cluster.join_at(number(&learner), port, &[]);
    let get = async |path: &str| match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
        Ok(_) => ask(port, "GET", path, "").await,
        Err(_) => (0, String::new()),
    };
    let not_ready = "[-]non_learner failed: not supported for learner\n";
    cluster
        .eventually("it knows that it is a learner", async |_: &Cluster| {
            (get("/readyz/non_learner").await == (503, not_ready.to_owned())).then_some(())
        })
        .await;
    cluster
        .eventually("only that keeps it from being ready", async |_: &Cluster| {
            (get("/readyz?exclude=non_learner").await.0 == 200).then_some(())
        })
        .await;
    let (status, text) = get("/readyz").await;
    assert!(status == 503 && text.contains(not_ready) && text.contains("[+]linearizable_read ok"), "{text}");
    assert_eq!(get("/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_cannot_be_are_refused_in_the_words_of_etcd() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let (follower, failed) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut client = ClusterClient::new(channel(cluster.servers[follower].port).await);
    let all = cluster
        .eventually("there are members", async |_: &Cluster| {
            Some(members(&mut client).await).filter(|all| all.len() == 3)
        })
        .await;
    let taken = (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".to_owned());
    let bad = (Code::InvalidArgument, "etcdserver: given member URLs are invalid".to_owned());
    let unknown = (Code::NotFound, "etcdserver: member not found".to_owned());
    let port_of = |node: usize| cluster.servers[node].port + 1000;
    assert_eq!(refusal(client.member_add(add(port_of(leader), true)).await), taken);
    assert_eq!(refusal(client.member_add(MemberAddRequest::default()).await), bad);
    let update = |id, port| MemberUpdateRequest { id, peer_ur_ls: vec![url(port)] };
    let id_of = |node: usize| all.iter().find(|member| number(member) == node).unwrap().id;
    assert_eq!(refusal(client.member_update(update(id_of(leader), port_of(follower))).await), taken);
    assert_eq!(refusal(client.member_update(update(77, 1)).await), unknown);
    assert_eq!(refusal(client.member_promote(MemberPromoteRequest { id: 77 }).await), unknown);
    assert_eq!(refusal(client.member_remove(MemberRemoveRequest { id: 77 }).await), unknown);
    let unhealthy = (Code::Unavailable, "etcdserver: unhealthy cluster".to_owned());
    let free = Cluster::port_to_join() + 1000;
    cluster.servers[failed].kill();
    cluster
        .eventually("the failure is noticed", async |cluster: &Cluster| {
            let status = cluster.status(leader).await?;
            let member = status.members.iter().find(|member| member.node_id == failed as i64)?;
            (!member.healthy).then_some(())
        })
        .await;
    // Removing one that answers would leave no quorum; removing the one that failed does not.
    let remove = |node: usize| MemberRemoveRequest { id: id_of(node) };
    assert_eq!(refusal(client.member_remove(remove(follower)).await), unhealthy);
    assert_eq!(refusal(client.member_add(add(free, false)).await), unhealthy);
    client.member_remove(remove(failed)).await.unwrap();
    added(&mut client, free, false).await;
}

#[tokio::test]
async fn standalone_server_knows_no_other_member_and_cannot_be_joined() {
    let alone = Alone::start().await;
    let mut client = ClusterClient::new(channel(alone.server.port).await);
    let unknown = (Code::NotFound, "etcdserver: member not found".to_owned());
    assert_eq!(refusal(client.member_remove(MemberRemoveRequest { id: 77 }).await), unknown);
    assert_eq!(refusal(client.member_promote(MemberPromoteRequest { id: 77 }).await), unknown);
    for peer_ur_ls in [vec![url(1)], Vec::new()] {
        assert_eq!(refusal(client.member_update(MemberUpdateRequest { id: 77, peer_ur_ls }).await), unknown);
    }
    let (code, text) = refusal(client.member_add(add(1, true)).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("stands alone"), "{text}");
}
