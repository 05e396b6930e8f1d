//! The client's side of the key-value service: `idl/kv.thrift` and `idl/admin.thrift` over framed, binary Thrift.
//!
//! * [`KvClient`] - what programs use: finds the leader, follows it, retries, and never applies a write twice.
//! * [`Watch`] - changes of keys as a stream that resumes by itself; [`Lease`] - keeps itself alive, and knows when it is lost;
//!   [`Lock`], [`Leadership`] - locks and elections, which exclude etcd's clients of the same names, too.
//! * [`Connection`] - one connection, many calls in flight; no retries.
//! * [`idl`], [`admin`] - the generated types; [`protocol`] - calls and replies as frames, for both sides.
//!
//! ```no_run
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! use kv_store_client::{ClientConfig, KvClient};
//!
//! let client = KvClient::new(ClientConfig::new(vec!["localhost:9090".parse()?, "localhost:9091".parse()?]))?;
//! client.put("greeting", "hello").await?;
//! let found = client.get("greeting").await?;
//! assert_eq!(found.map(|kv| kv.value), Some(b"hello".to_vec()));
//! # Ok(()) }
//! ```

mod client;
mod connection;
#[rustfmt::skip]
pub mod admin;
#[rustfmt::skip]
pub mod idl;
pub mod protocol;
mod requests;

pub use client::{
    ClientConfig, ClientError, KvClient, Leadership, Lease, Lock, LockError, Watch, WatchError,
};
pub use connection::{CallError, Connection};
pub use requests::prefix_end;

// The example of the README is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
