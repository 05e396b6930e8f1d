use consensus_core::MemberKind;

use super::*;

const OWN: NodeId = NodeId(0);
const DISK: StorageId = StorageId(100);

fn founders(ids: impl IntoIterator<Item = u64>) -> Founders {
    ids.into_iter().map(|id| (NodeId(id), MemberKind::Voter)).collect()
}

fn config(may_be_missing: &[u64]) -> FoundingConfig {
    let endpoint = |id: u64| (NodeId(id), format!("host-{id}:1").parse().unwrap());
    FoundingConfig {
        founders: founders(0..3),
        endpoints: (0..3).map(endpoint).collect(),
        may_be_missing: may_be_missing.iter().copied().map(NodeId).collect(),
    }
}

fn answer(node: u64, state: PeerState, knows_asker: Option<Option<StorageId>>) -> Option<PeerIdentity> {
    Some(PeerIdentity {
        node: NodeId(node),
        storage: StorageId(100 + node),
        cluster: ClusterId::NONE,
        cluster_name: "name".to_owned(),
        formats: FORMATS,
        state,
        knows_asker,
        member_at_endpoint: None,
    })
}

fn empty(node: u64) -> Option<PeerIdentity> {
    answer(node, PeerState::Empty { founders: founders(0..3) }, None)
}

fn founding(node: u64, knows: Option<StorageId>) -> Option<PeerIdentity> {
    answer(node, PeerState::Founding { founders: founders(0..3) }, Some(knows))
}

fn member(node: u64, knows_asker: Option<Option<StorageId>>) -> Option<PeerIdentity> {
    answer(node, PeerState::Member, knows_asker)
}

fn decided(missing: &[u64], answers: impl IntoIterator<Item = (u64, Option<PeerIdentity>)>) -> Decision {
    let answers = answers.into_iter().map(|(id, answer)| (NodeId(id), answer)).collect();
    decide(OWN, DISK, "name", &config(missing), &answers)
}

fn bootstraps(storages: impl IntoIterator<Item = u64>) -> Decision {
    Decision::Bootstrap(storages.into_iter().map(|id| (NodeId(id), StorageId(100 + id))).collect())
}

fn waits(whom: impl IntoIterator<Item = u64>) -> Decision {
    Decision::Wait(whom.into_iter().map(NodeId).collect())
}

#[test]
fn node_bootstraps_when_all_others_are_empty_or_have_just_bootstrapped() {
    let own = (0, empty(0));
    assert_eq!(decided(&[], [own.clone(), (1, empty(1)), (2, empty(2))]), bootstraps(0..3));
    for known in [None, Some(DISK)] {
        let answers = [own.clone(), (1, founding(1, known)), (2, empty(2))];
        assert_eq!(decided(&[], answers), bootstraps(0..3));
    }
    // A node that was started to join another cluster is also empty.
    let joins = answer(1, PeerState::Empty { founders: Founders::new() }, None);
    assert_eq!(decided(&[], [own, (1, joins), (2, empty(2))]), bootstraps(0..3));
}

#[test]
fn node_bootstraps_when_its_own_endpoint_is_unreachable() {
    assert_eq!(decided(&[], [(0, None), (1, empty(1)), (2, empty(2))]), bootstraps(1..3));
}

#[test]
fn node_waits_for_founders_without_an_answer_unless_they_may_be_missing() {
    assert_eq!(decided(&[], []), waits(0..3));
    assert_eq!(decided(&[], [(0, empty(0)), (1, empty(1))]), waits([2]));
    assert_eq!(decided(&[], [(0, empty(0)), (1, empty(1)), (2, None)]), waits([2]));
    assert_eq!(decided(&[2], [(0, empty(0)), (1, empty(1)), (2, None)]), bootstraps(0..2));
    assert_eq!(decided(&[2], [(0, empty(0)), (1, empty(1))]), waits([2]), "it is asked at least once");
    assert_eq!(decided(&[2], [(0, empty(0)), (1, None), (2, None)]), waits([1]));
}

#[test]
fn node_follows_a_cluster_that_includes_it_without_waiting_for_the_others() {
    for knows in [None, Some(DISK)] {
        let answers = [(1, member(1, Some(knows))), (2, None)];
        assert_eq!(decided(&[], answers), Decision::Follow(NodeId(1)));
    }
}

#[test]
fn node_stops_at_a_single_conflicting_answer() {
    let other_disk = Conflict::OtherDisk { known: StorageId(7), own: DISK };
    let other_founders = founders(0..5);
    let mut other_name = empty(1);
    other_name.as_mut().unwrap().cluster_name = "other".to_owned();
    let mut other_formats = empty(1);
    other_formats.as_mut().unwrap().formats = 7..=9;
    let cases = [
        (member(1, None), Conflict::NotAMember(ClusterId::NONE)),
        (member(1, Some(Some(StorageId(7)))), other_disk.clone()),
        (founding(1, Some(StorageId(7))), other_disk),
        (
            answer(1, PeerState::Founding { founders: other_founders.clone() }, Some(None)),
            Conflict::OtherFounders(other_founders.clone()),
        ),
        (
            answer(1, PeerState::Empty { founders: other_founders.clone() }, None),
            Conflict::OtherFounders(other_founders),
        ),
        (empty(2), Conflict::OtherNode(NodeId(2))),
        (other_name, Conflict::OtherName("other".to_owned())),
        (other_formats, Conflict::OtherFormats(7..=9)),
    ];
    for (bad, conflict) in cases {
        // Independent of the answers of the others, and even if the peer may be missing.
        let others = [(2, empty(2)), (2, member(2, Some(None))), (2, None)];
        for other in others {
            let stopped = Decision::Stop(NodeId(1), conflict.clone());
            assert_eq!(decided(&[1], [(0, empty(0)), (1, bad.clone()), other]), stopped);
        }
    }
}

#[test]
fn node_stops_when_another_node_has_its_id() {
    let mut twin = empty(0);
    twin.as_mut().unwrap().storage = StorageId(7);
    let stopped = Decision::Stop(OWN, Conflict::OwnIdElsewhere(StorageId(7)));
    assert_eq!(decided(&[], [(0, twin), (1, empty(1)), (2, empty(2))]), stopped);
}

#[test]
fn founding_error_names_the_peer_and_the_conflict() {
    let conflict = Conflict::OtherDisk { known: StorageId(7), own: DISK };
    let error = FoundingError { peer: NodeId(1), endpoint: "h:1".parse().unwrap(), conflict }.to_string();
    for words in ["h:1, where node 1 should be", "with the storage 7", "storage 100", "emptied"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn wait_for_the_same_nodes_is_reported_less_and_less_often() {
    let (start, mut report) = (Instant::now(), WaitReport::default());
    let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
    let mut reports = |nodes: &BTreeSet<NodeId>, seconds: std::ops::Range<u64>| {
        let is_due = |second: &u64| report.is_due(nodes, start + Duration::from_secs(*second));
        seconds.filter(is_due).collect::<Vec<_>>()
    };
    assert_eq!(reports(&nodes(&[1, 2]), 0..100), [0, 10, 30, 70]);
    assert_eq!(reports(&nodes(&[2]), 100..125), [100, 110]);
    assert!(reports(&nodes(&[2]), 125..100_000).len() < 40);
    // A node that answers now and then.
    let mut flips = WaitReport::default();
    let sets = [nodes(&[1]), nodes(&[1, 2])];
    let is_due = |n: &u64| flips.is_due(&sets[(n % 2) as usize], start + Duration::from_secs(*n));
    assert!((0..1000).filter(is_due).count() < 20);
}
