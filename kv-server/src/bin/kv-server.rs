//! The server as a program; see the library for what it is made of.

use std::process::ExitCode;

// Most memory is freed on another thread than it was allocated on, at which the system's allocator is slow.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    kv_server::run()
}
