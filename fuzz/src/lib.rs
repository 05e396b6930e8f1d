//! The decoders of the workspace under a fuzzer.
//!
//! Each target is a function of bytes that come from a peer, a client, a disk or an operator. It holds the decoder to
//! three things, and panics if one is broken:
//!
//! * no bytes make it panic, end the stack, or loop,
//! * it allocates in proportion to the bytes that are there, whatever lengths they claim ([`bounded`] measures it),
//! * what it accepts is encoded again, and that is decoded to the same value.
//!
//! ```text
//!  fuzz_targets/NAME.rs ── libFuzzer ──┐
//!  tests/corpus.rs ── corpus/, regressions/ ──┼──▶ TARGETS ──▶ decoder, encoder, decoder
//!  tests/damage.rs ── cuts, changed bits, hostile lengths ──┘
//! ```
//!
//! `docs/fuzzing.md` says how to run it and what was found.

#[cfg(feature = "kv")]
mod etcd;
#[cfg(feature = "kv")]
mod kv;
mod log;
mod memory;
pub mod seeds;
mod wire;

pub use memory::bounded;

/// Something to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Of its binary, and of its folders in `corpus` and `regressions`.
    pub name: &'static str,
    /// Panics if something is wrong.
    pub run: fn(&[u8]),
    /// Valid encodings to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: wire::frames, seeds: seeds::frames },
    Target { name: "message", run: wire::message, seeds: seeds::messages },
    Target { name: "chunks", run: wire::chunks, seeds: seeds::chunks },
    Target { name: "record", run: log::record, seeds: seeds::records },
    Target { name: "segments", run: log::segments, seeds: seeds::segments },
    Target { name: "stored", run: log::stored, seeds: seeds::stored },
    Target { name: "session", run: log::session, seeds: seeds::sessions },
    Target { name: "flight", run: log::flight, seeds: seeds::flights },
    #[cfg(feature = "kv")]
    Target { name: "kv_call", run: kv::call, seeds: seeds::kv_calls },
    #[cfg(feature = "kv")]
    Target { name: "kv_reply", run: kv::reply, seeds: seeds::kv_replies },
    #[cfg(feature = "kv")]
    Target { name: "kv_command", run: kv::command, seeds: seeds::kv_commands },
    #[cfg(feature = "kv")]
    Target { name: "kv_store", run: kv::store, seeds: seeds::kv_store },
    #[cfg(feature = "kv")]
    Target { name: "kv_snapshot", run: kv::snapshot, seeds: seeds::kv_snapshots },
    #[cfg(feature = "kv")]
    Target { name: "etcd_request", run: etcd::request, seeds: seeds::etcd_requests },
    #[cfg(feature = "kv")]
    Target { name: "etcd_json", run: etcd::json, seeds: seeds::etcd_json },
    #[cfg(feature = "kv")]
    Target { name: "etcd_snapshot", run: etcd::snapshot, seeds: seeds::etcd_snapshots },
    #[cfg(feature = "kv")]
    Target { name: "configuration", run: kv::configuration, seeds: seeds::configurations },
];

/// Runs a target.
///
/// # Panics
/// There is none of that name, or something is wrong.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("there is no target {name}")).run)(bytes);
}

/// The program of a target without libFuzzer: runs it on the files that are named on its command line.
///
/// # Panics
/// A file cannot be read, or something is wrong with what is in it.
pub fn replay(name: &str) {
    for path in std::env::args_os().skip(1) {
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        run(name, &bytes);
        println!("{}: nothing is wrong", path.display());
    }
}
