//! Results, for people and for programs.

use std::io::Write;

use kv_store_client::idl::KeyValue;
use serde_json::{Value, json};

use crate::Output;

/// How results are printed.
pub(crate) struct Show(pub(crate) Output);

impl Show {
    /// Prints the one or the other.
    pub(crate) fn either(&self, text: &str, value: impl FnOnce() -> Value) {
        match self.0 {
            Output::Json => print(&value().to_string()),
            Output::Text if text.is_empty() => {}
            Output::Text => print(text),
        }
    }
}

/// Who does not read on, as `head` does, does not want the rest.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
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
