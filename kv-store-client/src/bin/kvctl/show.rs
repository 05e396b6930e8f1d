//! Output of results, for people and for programs.

use std::io::{self, Write};

use kv_store_client::idl::KeyValue;
use serde_json::{Value, json};

use crate::{Failure, Output, leases::id_text};

/// Format in which results are printed.
#[derive(Clone, Copy)]
pub(crate) struct Show(pub(crate) Output);

impl Show {
    /// Prints a result as text or as JSON.
    pub(crate) fn either(self, text: &str, value: impl FnOnce() -> Value) -> Result<(), Failure> {
        match self.0 {
            Output::Json => print(&value().to_string()).map(|_| ()),
            Output::Text if text.is_empty() => Ok(()),
            Output::Text => print(text).map(|_| ()),
        }
    }

    /// Prints one of many results as a line. Returns `false` if the reader has closed the pipe and expects no
    /// more lines. A separate thread does the output, so that other tasks continue while the reader does not
    /// read.
    pub(crate) async fn event(self, text: String, value: impl FnOnce() -> Value) -> Result<bool, Failure> {
        let text = if self.0 == Output::Json { value().to_string() } else { text };
        let printed = tokio::task::spawn_blocking(move || print(&text)).await;
        printed.unwrap_or_else(|error| Err(Failure::Output(io::Error::other(error))))
    }

    /// Prints a part of a result for people, as soon as it is known. Programs get the whole result at the
    /// end.
    pub(crate) fn row(self, text: &str) -> Result<(), Failure> {
        if self.0 == Output::Text { print(text).map(|_| ()) } else { Ok(()) }
    }

    /// Prints a whole result for programs. People have received its rows already.
    pub(crate) fn whole(self, value: impl FnOnce() -> Value) -> Result<(), Failure> {
        if self.0 == Output::Json { print(&value().to_string()).map(|_| ()) } else { Ok(()) }
    }
}

/// Prints a line. Returns `false` if the reader has closed the pipe, as `head` does when it has enough lines.
/// After any other failure the result is lost.
fn print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Output(error)),
    }
}

/// Returns bytes as a part of a line. Control characters and backslashes are escaped, for example as `\n`,
/// `\t`, `\r` and `\\`; bytes that are not UTF-8 are written as `\x` with two digits.
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

/// Returns a pair as a row of a range.
pub(crate) fn line(kv: &KeyValue, keys_only: bool) -> String {
    let key = String::from_utf8_lossy(&kv.key);
    if keys_only { key.into_owned() } else { format!("{key}\t{}", String::from_utf8_lossy(&kv.value)) }
}

/// Returns a pair with all its fields as JSON.
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
