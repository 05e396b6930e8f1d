//! Results, for people and for programs.

use std::io::{self, Write};

use kv_store_client::idl::KeyValue;
use serde_json::{Value, json};

use crate::{Failure, Output};

/// How results are printed.
#[derive(Clone, Copy)]
pub(crate) struct Show(pub(crate) Output);

impl Show {
    /// Prints the one or the other.
    pub(crate) fn either(self, text: &str, value: impl FnOnce() -> Value) -> Result<(), Failure> {
        match self.0 {
            Output::Json => print(&value().to_string()),
            Output::Text if text.is_empty() => Ok(()),
            Output::Text => print(text),
        }
    }

    /// Prints a part of a result for people, as soon as it is known. Programs get the whole in the end.
    pub(crate) fn row(self, text: &str) -> Result<(), Failure> {
        if self.0 == Output::Text { print(text) } else { Ok(()) }
    }

    /// Prints a result for programs, of which people have had all rows.
    pub(crate) fn whole(self, value: impl FnOnce() -> Value) -> Result<(), Failure> {
        if self.0 == Output::Json { print(&value().to_string()) } else { Ok(()) }
    }
}

/// A reader that closes the pipe, as `head` does, does not want the rest; any other failure loses the result.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

/// A row of a range.
pub(crate) fn line(kv: &KeyValue, keys_only: bool) -> String {
    let key = String::from_utf8_lossy(&kv.key);
    if keys_only { key.into_owned() } else { format!("{key}\t{}", String::from_utf8_lossy(&kv.value)) }
}

/// A key and all that is known of it.
pub(crate) fn pair(kv: &KeyValue) -> Value {
    let mut value = json!({
        "create_revision": kv.create_revision, "mod_revision": kv.mod_revision, "version": kv.version,
    });
    for (name, bytes) in [("key", &kv.key), ("value", &kv.value)] {
        match std::str::from_utf8(bytes) {
            Ok(text) => value[name] = json!(text),
            Err(_) => {
                value[format!("{name}_hex")] =
                    json!(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
            }
        }
    }
    value
}
