//! Workers that exclude each other: each holds a lock in the store while it works on something outside of it. What they work on
//! checks the number of the lock, as a worker may lose its lock without noticing.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use examples::server::{self, Server};
use kv_store_client::KvClient;
use tokio::time::sleep;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What the workers share, outside of the store. It could be a file or a machine; it has to know one number.
#[derive(Default)]
struct Ledger {
    balance: u64,
    /// Greatest number of a lock that was presented.
    newest_lock: i64,
}

impl Ledger {
    /// Takes a new balance from the holder of the lock with this number. A later holder has a greater number, so that one
    /// that held the lock before is refused.
    fn write(&mut self, balance: u64, lock_number: i64) -> Result<(), String> {
        if lock_number < self.newest_lock {
            return Err(format!("lock {lock_number} is over: lock {} was here", self.newest_lock));
        }
        self.newest_lock = lock_number;
        self.balance = balance;
        Ok(())
    }
}

/// The workers' handle of the ledger.
#[derive(Clone, Default)]
struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    fn read(&self) -> u64 {
        self.0.lock().expect("no worker panics").balance
    }

    fn write(&self, balance: u64, lock_number: i64) -> Result<(), String> {
        self.0.lock().expect("no worker panics").write(balance, lock_number)
    }
}

/// Pays in 1 so many times. It reads, takes its time, and writes: another worker in between would be overwritten.
async fn pay_in(client: KvClient, ledger: SharedLedger, times: u64) -> Outcome<()> {
    // It keeps itself alive. Should this process end, others get the lock 5 s later.
    let lease = client.hold_lease(Duration::from_secs(5)).await?;
    for _ in 0..times {
        let lock = client.lock("ledger", &lease).await?;
        let balance = ledger.read();
        tokio::select! {
            () = lock.lost() => return Err("the lock was lost; the work is left".into()),
            () = sleep(Duration::from_millis(5)) => {}
        }
        ledger.write(balance + 1, lock.revision())?;
        lock.unlock().await?;
    }
    lease.revoke().await?;
    Ok(())
}

async fn run() -> Outcome<()> {
    let server = Server::start()?;
    let ledger = SharedLedger::default();

    // Each with a client of its own, as if they were on different machines.
    let workers: Vec<_> = (0..4).map(|_| tokio::spawn(pay_in(server.client(), ledger.clone(), 25))).collect();
    for worker in workers {
        worker.await??;
    }
    println!("4 workers have paid in 25 each: the balance is {}", ledger.read());
    assert_eq!(ledger.read(), 100, "a payment was overwritten");

    // One reads the balance and is suspended for longer than its lease lives. Here its lease is ended for it.
    let (slow, fast) = (server.client(), server.client());
    let slow_lease = slow.hold_lease(Duration::from_secs(5)).await?;
    let slow_lock = slow.lock("ledger", &slow_lease).await?;
    let stale_balance = ledger.read();
    fast.revoke_lease(slow_lease.id()).await?;

    // Another one gets the lock meanwhile, and writes.
    pay_in(fast, ledger.clone(), 1).await?;

    // The first one goes on as if nothing had happened, and is refused.
    let refusal = ledger.write(stale_balance + 1, slow_lock.revision());
    println!("a worker that had lost its lock wants to write: {}", refusal.clone().err().unwrap_or_default());
    assert!(refusal.is_err() && ledger.read() == 101, "a payment was overwritten");

    // It would have known, had it asked.
    slow_lock.lost().await;
    assert!(!slow_lock.is_held());
    Ok(())
}

fn main() -> ExitCode {
    server::run(run)
}
