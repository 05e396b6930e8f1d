//! Starts of `kv-server etcd` after a failure, and starts that are refused, with real processes.

mod common;

use common::{
    Server,
    etcd_member::{Place, READY, count, eventually, members, put},
};

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
}

#[tokio::test]
async fn member_that_was_not_added_is_told_how_to_add_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Place::new("first"), Place::new("second"));
    first.start(dir.path(), &[&first], "new").says(READY);
    let mut server = second.start(dir.path(), &[&first, &second], "existing");
    assert_eq!(server.ended(), Some(1));
    let log = server.log();
    let words = format!("etcdctl member add second --peer-urls={}", second.peer_url());
    assert!(log.contains("--initial-cluster-state=existing") && log.contains(&words), "{log}");
    assert!(!dir.path().join("second.etcd").exists(), "nothing was written");
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
