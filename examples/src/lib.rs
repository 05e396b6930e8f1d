//! The examples are the files beside this folder:
//!
//! * `counter` - a replicated counter, all of it in one file.
//! * `embedded_kv` - the key-value store inside a program, transactions included.
//! * `partition` - three nodes in memory, and what a network partition does to them.
//! * `own_transport` - a transport of one's own, checked by the conformance suite.
//! * `swap_engine` - one application on three engines.
//!
//! Run one with `cargo run -p examples --example counter`, all with `make examples`.
