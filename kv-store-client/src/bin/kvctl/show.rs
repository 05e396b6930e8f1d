//! Results, for people and for programs.

use std::io::{self, Write};

use kv_store_client::idl::KeyValue;
use serde_json::{Value, json};

use crate::{Failure, Output, leases::id_text};

/// How results are printed.
#[derive(Clone, Copy)]
pub(crate) struct Show(pub(crate) Output);

impl Show {
    /// Prints the one or the other.
    pub(crate) fn either(self, text: &str, value: impl FnOnce() -> Value) -> Result<(), Failure> {
        match self.0 {
            Output::Json => print(&value().to_string()).map(|_| ()),
            Output::Text if text.is_empty() => Ok(()),
            Output::Text => print(text).map(|_| ()),
        }
    }

    /// Prints one of many results as a line. `false`: the reader has closed the pipe, and wants no more. It waits for a reader
    /// that does not read beside whatever else is done.
    pub(crate) async fn event(self, text: String, value: impl FnOnce() -> Value) -> Result<bool, Failure> {
        let text = if self.0 == Output::Json { value().to_string() } else { text };
        let printed = tokio::task::spawn_blocking(move || print(&text)).await;
        printed.unwrap_or_else(|error| Err(Failure::Output(io::Error::other(error))))
    }

    /// Prints a part of a result for people, as soon as it is known. Programs get the whole in the end.
    pub(crate) fn row(self, text: &str) -> Result<(), Failure> {
        if self.0 == Output::Text { print(text).map(|_| ()) } else { Ok(()) }
    }

    /// Prints a result for programs, of which people have had all rows.
    pub(crate) fn whole(self, value: impl FnOnce() -> Value) -> Result<(), Failure> {
        if self.0 == Output::Json { print(&value().to_string()).map(|_| ()) } else { Ok(()) }
    }
}

/// Prints a line. `false`: the reader has closed the pipe, as `head` does when it does not want the rest. Any other failure
/// loses the result.
fn print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Output(error)),
    }
}

/// Bytes as a part of a line: `\n`, `\t`, `\r`, `\\`, and `\x` with two digits for what is no text.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        text.extend(part.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
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
    if kv.lease_id != 0 {
        value["lease"] = json!(id_text(kv.lease_id));
    }
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
