//! The server as a program; see the library for what it is made of.

use std::process::ExitCode;

// What is allocated on one thread is freed on another all the time, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    kv_server::run()
}
