//! The examples are the files beside this folder:
//!
//! * `counter` - a replicated counter, all of it in one file.
//! * `embedded_kv` - the key-value store inside a program, transactions included.
//! * `lock_service` - workers that exclude each other by a lock, also when one of them has lost it without noticing.
//! * `config_watcher` - a service that follows its configuration without gaps, over restarts of the server and of itself.
//! * `partition` - three nodes in memory, and what a network partition does to them.
//! * `own_transport` - a transport of one's own, checked by the conformance suite.
//! * `swap_engine` - one application on three engines.
//!
//! Run one with `cargo run -p examples --example counter`, all with `make examples`. `embedded_kv`, `lock_service` and
//! `config_watcher` need `--features kv`, which builds RocksDB; the latter two are clients, and start a server for themselves.

pub mod guide;
#[cfg(feature = "kv")]
pub mod server;

// Compiles and runs the code of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;
