//! Removes ranges of any size, in portions.

use std::time::{Duration, Instant};

use kv_store_client::{
    KvClient,
    idl::{DeleteRequest, DeleteResponse},
};

use crate::Failure;

/// Removes the range; says now and then, and if it fails, how many keys are gone.
pub(crate) async fn execute(client: &KvClient, request: DeleteRequest) -> Result<DeleteResponse, Failure> {
    let mut deleted = 0;
    let mut said = Instant::now();
    let progress = |now: i64| {
        deleted = now;
        if said.elapsed() >= PROGRESS_INTERVAL {
            eprintln!("kvctl: {deleted} keys deleted so far");
            said = Instant::now();
        }
    };
    let response = client.delete_in_portions(request, progress).await;
    if response.is_err() && deleted > 0 {
        eprintln!(
            "kvctl: {deleted} keys were deleted before this failed; the same command goes on with the rest"
        );
    }
    Ok(response?)
}

const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
