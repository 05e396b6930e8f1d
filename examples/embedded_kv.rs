//! The key-value store inside a program: one node, on disk, without consensus; versions, transactions, history.

use consensus_core::NodeId;
use kv_state_machine::{
    Compare, CompareResult, CompareTarget, ConsensusKvDatabase, KeyRange, KvOperation, KvResult, Put, Range,
    Txn,
};

fn put(key: &str, value: &str) -> KvOperation {
    KvOperation::Put(Put { key: key.to_owned().into(), value: value.to_owned().into(), ..Put::default() })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path())?;
    database.start().await?;

    database.execute_operation(put("account/ann", "100")).await?;
    let before = database.execute_operation(put("account/bob", "20")).await?.revision;
    println!("two accounts, the store is at revision {before}");

    // Move 30 from Ann to Bob, if nobody has touched Ann's account meanwhile.
    let unchanged = Compare {
        keys: KeyRange { key: "account/ann".into(), range_end: None },
        target: CompareTarget::Value("100".into()),
        result: CompareResult::Equal,
    };
    let transfer = Txn {
        compare: vec![unchanged],
        success: vec![put("account/ann", "70"), put("account/bob", "50")],
        ..Txn::default()
    };
    for attempt in 1..=2 {
        let answer = database.execute_operation(KvOperation::Txn(transfer.clone())).await?;
        let KvResult::Txn(done) = answer.result else { return Err("not a transaction's answer".into()) };
        println!(
            "attempt {attempt}: {}",
            if done.succeeded { "moved 30" } else { "refused, Ann's account has changed" }
        );
        assert_eq!(done.succeeded, attempt == 1);
    }

    for (when, revision) in [("now", 0), ("before", before)] {
        let range = Range {
            key: "account/".into(),
            range_end: Some("account0".into()),
            revision,
            ..Range::default()
        };
        let answer = database.execute_operation(KvOperation::Range(range)).await?;
        let KvResult::Range(found) = answer.result else { return Err("not a range's answer".into()) };
        let pairs = found.kvs.iter().map(|kv| {
            format!("{} = {}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value))
        });
        println!("{when}: {}", pairs.collect::<Vec<_>>().join(", "));
        assert_eq!(found.count, 2);
    }
    database.shutdown().await?;
    Ok(())
}
