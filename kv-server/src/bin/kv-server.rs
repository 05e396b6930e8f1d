//! The server as a program; see the library for what it is made of.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_server::run()
}
