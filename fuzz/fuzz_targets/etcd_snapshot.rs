//! The target `etcd_snapshot` as a program: under libFuzzer, or else for the files that it is told.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| consensus_fuzz::run("etcd_snapshot", bytes));

#[cfg(not(fuzzing))]
fn main() {
    consensus_fuzz::replay("etcd_snapshot");
}
