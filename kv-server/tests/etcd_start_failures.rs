//! Starts of `kv-server etcd` after a failure, and starts that are refused, with real processes.

use crate::common::{
    Server,
    etcd_member::{Place, READY, channel, count, eventually, members, put, run},
};
use kv_etcd_api::etcdserverpb::{MemberAddRequest, MemberRemoveRequest, cluster_client::ClusterClient};

#[tokio::test]
async fn survivor_of_a_lost_majority_is_forced_to_be_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["a", "b"].map(Place::new);
    let cluster: Vec<&Place> = places.iter().collect();
    let mut servers: Vec<Server> =
        places.iter().map(|place| place.start(dir.path(), &cluster, "new")).collect();
    servers.iter().for_each(|server| server.says(READY));
    put(places[0].client, "a").await;
    servers.iter_mut().for_each(Server::kill);
    servers[0].argue("--force-new-cluster");
    servers[0].start();
    eventually("it is ready again", async || servers[0].log().matches(READY).count() == 2).await;
    assert_eq!(count(places[0].client).await.unwrap(), 1);
    assert_eq!(members(places[0].client).await.len(), 1);
    let log = servers[0].log();
    let told = log.lines().find(|line| line.contains("is the only member of its cluster now")).unwrap();
    assert!(told.contains(r#""level":"error""#), "it is seen with any --log-level: {told}");
    for words in [&places[1].peer_url(), "--force-new-cluster (command line)", "Remove the flag"] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[tokio::test]
async fn forced_member_is_not_forced_again_when_the_flag_stays_and_members_were_added() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["a", "b", "c"].map(Place::new);
    let [a, b, c] = &places;
    let mut servers: Vec<Server> =
        [a, b].into_iter().map(|place| place.start(dir.path(), &[a, b], "new")).collect();
    servers.iter().for_each(|server| server.says(READY));
    put(a.client, "before").await;
    servers.iter_mut().for_each(Server::kill);
    let server = &mut servers[0];
    server.argue("--force-new-cluster");
    for starts in 2..4 {
        server.start();
        eventually("it is ready again", async || server.log().matches(READY).count() == starts).await;
        server.kill();
    }
    assert!(server.log().contains("changes nothing"), "the second start says so");
    server.start();
    eventually("it is ready again", async || server.log().matches(READY).count() == 4).await;
    let add = MemberAddRequest { peer_ur_ls: vec![c.peer_url()], is_learner: false };
    ClusterClient::new(channel(a.client).await).member_add(add).await.unwrap();
    let added = c.start(dir.path(), &[a, c], "existing");
    added.says(READY);
    put(c.client, "after").await;
    server.kill();
    server.start();
    assert_eq!(server.ended(), Some(1), "it is not forced again");
    let log = server.log();
    let told = log.lines().last().unwrap();
    for words in ["remove --force-new-cluster (command line)", &c.peer_url(), "Nothing was changed"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    server.argue_no_more("--force-new-cluster");
    server.start();
    eventually("it is ready again", async || server.log().matches(READY).count() == 5).await;
    assert_eq!(count(a.client).await.unwrap(), 2);
    assert_eq!(members(a.client).await.len(), 2);
}

#[test]
fn data_directory_that_is_not_mounted_is_not_forced() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let output = run(&["--force-new-cluster", "--data-dir", &data.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&format!("{}/log is not there", data.display())), "{text}");
    assert!(!data.exists(), "nothing was written");
}

#[tokio::test]
async fn first_start_without_one_member_names_it_and_its_remedy_works() {
    let dir = tempfile::tempdir().unwrap();
    let (missing, place) = (Place::new("a"), Place::new("b"));
    let mut server = place.start(dir.path(), &[&missing, &place], "new");
    server.says(&format!("waiting for member a at {}", missing.peer_url()));
    server.says("start them with an --initial-cluster without it, and add it later");
    server.terminate();
    std::fs::remove_dir_all(dir.path().join("b.etcd")).unwrap();
    server.set_argument("--initial-cluster", &format!("b={}", place.peer_url()));
    server.start();
    server.says(READY);
}

#[tokio::test]
async fn removed_member_ends_at_its_next_start_and_says_how_to_add_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Place::new("first"), Place::new("second"));
    let server = first.start(dir.path(), &[&first], "new");
    server.says(READY);
    let mut client = ClusterClient::new(channel(first.client).await);
    let add = MemberAddRequest { peer_ur_ls: vec![second.peer_url()], is_learner: true };
    let id = client.member_add(add).await.unwrap().into_inner().member.unwrap().id;
    let mut joined = second.start(dir.path(), &[&first, &second], "existing");
    joined.says(READY);
    client.member_remove(MemberRemoveRequest { id }).await.unwrap();
    joined.says("this node was removed from the cluster");
    joined.terminate();
    joined.start();
    assert_eq!(joined.ended(), Some(1));
    let (log, data) = (joined.log(), dir.path().join("second.etcd"));
    let words =
        format!("member second was removed from the cluster; to add it again, empty {}", data.display());
    assert!(log.lines().last().unwrap().contains(&words), "{log}");
    // That is what adds it again.
    std::fs::remove_dir_all(&data).unwrap();
    let add = MemberAddRequest { peer_ur_ls: vec![second.peer_url()], is_learner: true };
    client.member_add(add).await.unwrap();
    joined.start();
    eventually("it is ready again", async || joined.log().matches(READY).count() == 2).await;
}

#[tokio::test]
async fn member_with_the_client_url_of_another_is_told_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Place::new("first"), Place::new("second"));
    let server = first.start(dir.path(), &[&first], "new");
    server.says(READY);
    let add = MemberAddRequest { peer_ur_ls: vec![second.peer_url()], is_learner: true };
    ClusterClient::new(channel(first.client).await).member_add(add).await.unwrap();
    let mut flags = second.flags(dir.path(), &[&first, &second], "existing");
    flags.extend(["--advertise-client-urls".to_owned(), first.client_url()]);
    let joined = Server::in_place_of_etcd(dir.path(), "second", second.client, flags);
    let words = format!("--advertise-client-urls {} is already that of member first", first.client_url());
    joined.says(&words);
    assert!(!joined.log().contains(READY));
}

#[tokio::test]
async fn member_that_was_not_added_is_told_how_to_add_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Place::new("first"), Place::new("second"));
    let mut running = first.start(dir.path(), &[&first], "new");
    running.says(READY);
    let mut server = second.start(dir.path(), &[&first, &second], "existing");
    assert_eq!(server.ended(), Some(1));
    let log = server.log();
    let words = format!("etcdctl member add second --peer-urls={}", second.peer_url());
    assert!(log.contains("--initial-cluster-state=existing") && log.contains(&words), "{log}");
    assert!(!dir.path().join("second.etcd").exists(), "nothing was written");
    running.kill();
    server.start();
    assert_eq!(server.ended(), Some(1));
    let log = server.log();
    let words = format!("none of {} answered as a member of a cluster", first.peer_url());
    assert!(log.lines().last().unwrap().contains(&words), "{log}");
}

#[tokio::test]
async fn members_with_other_lists_do_not_begin_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["a", "b"].map(Place::new);
    let cluster: Vec<&Place> = places.iter().collect();
    let renamed = Place { name: "c".to_owned(), client: places[0].client };
    let first = places[0].start(dir.path(), &cluster, "new");
    let second = places[1].start(dir.path(), &[&renamed, &places[1]], "new");
    // Of the two the one ends that hears of the other one first.
    let words = "give all members the same --initial-cluster";
    eventually("one of the two ends", async || first.log().contains(words) || second.log().contains(words))
        .await;
    assert!(!first.log().contains(READY) && !second.log().contains(READY));
}
