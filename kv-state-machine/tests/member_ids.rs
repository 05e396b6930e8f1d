//! Ids for members of a cluster: no id is assigned twice.

use consensus_core::NodeId;
use kv_state_machine::{ConsensusKvDatabase, KvError, KvOperation, KvRejection, KvResult};

async fn reserve(database: &ConsensusKvDatabase, through: u64, more: u64) -> Result<u64, KvError> {
    let operation = KvOperation::ReserveMemberIds { through, more };
    match database.execute_operation(operation).await?.result {
        KvResult::MemberId(last) => Ok(last),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn reserved_member_id_exceeds_all_used_ids_across_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
    let database = open();
    database.start().await.unwrap();
    assert_eq!(reserve(&database, 2, 1).await, Ok(3));
    assert_eq!(reserve(&database, 2, 1).await, Ok(4), "3 may be a member that was removed");
    assert_eq!(reserve(&database, 9, 0).await, Ok(9));
    database.shutdown().await.unwrap();
    drop(database);
    let database = open();
    database.start().await.unwrap();
    assert_eq!(database.last_member_id(), 9);
    assert_eq!(reserve(&database, 4, 1).await, Ok(10));
    assert_eq!(reserve(&database, u64::MAX, 0).await, Ok(u64::MAX));
    let none_left = reserve(&database, 0, 1).await;
    assert!(matches!(none_left, Err(KvError::Rejected(KvRejection::Invalid(_)))), "{none_left:?}");
    assert_eq!(database.last_member_id(), u64::MAX, "a refusal changes nothing");
}
