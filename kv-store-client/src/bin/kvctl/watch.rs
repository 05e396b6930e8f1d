//! Watches.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use clap::Args;
use futures::StreamExt;
use kv_store_client::{
    ClientError, KvClient, WatchError,
    idl::{WatchEvent, WatchRequest},
};
use serde_json::{Value, json};

use crate::{
    Failure,
    job::Job,
    range_end,
    show::{Show, escaped, pair},
    signals::Signals,
};

#[derive(Args)]
pub(crate) struct Watch {
    /// The key; with --prefix its first part, "" for all keys.
    key: String,
    /// All keys from `key` up to this one, exclusive.
    #[arg(long, conflicts_with = "prefix")]
    to: Option<String>,
    /// All keys that begin with `key`.
    #[arg(long)]
    prefix: bool,
    /// Begin with this revision, which may be long ago; left out for what is written from now on.
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    from_revision: Option<i64>,
    /// Print the value that the key had before, too: as a fifth column, empty if there was none.
    #[arg(long)]
    previous: bool,
    /// Run a command for each event, given after `--`, one after the other, instead of printing it. The event is in its
    /// environment: KV_WATCH_EVENT_TYPE (PUT or DELETE), KV_WATCH_KEY, KV_WATCH_VALUE, KV_WATCH_REVISION; and, as JSON, in its
    /// standard input. A variable that the system cannot pass on is not set: one with a byte 0, or longer than 64 KiB.
    #[arg(long, requires = "command")]
    exec: bool,
    /// The command.
    #[arg(last = true, value_name = "COMMAND", requires = "exec")]
    command: Vec<OsString>,
}

/// Prints events, or runs a command for each, until it is interrupted.
pub(crate) async fn run(client: &KvClient, arguments: &Watch, show: Show) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let key = &arguments.key;
    let start = if key.is_empty() && arguments.prefix { vec![0] } else { key.as_bytes().to_vec() };
    let request = WatchRequest {
        start_revision: arguments.from_revision,
        return_previous: Some(arguments.previous),
        ..WatchRequest::of(start, range_end(key, arguments.to.as_deref(), arguments.prefix))
    };
    let mut watch = tokio::select! {
        watch = client.watch(request) => watch?,
        _ = signals.next() => return Ok(0),
    };
    loop {
        let event = tokio::select! {
            event = watch.next() => event,
            _ = signals.next() => return Ok(0),
        };
        let Some(event) = event.transpose().map_err(ended)? else { return Ok(0) };
        if arguments.exec {
            if let Some(code) = execute(&arguments.command, &event, &mut signals).await? {
                return Ok(code);
            }
            continue;
        }
        // A reader that does not read delays the output, but not the handling of a signal.
        tokio::select! {
            is_read = show.event(line(&event, arguments.previous), || value(&event)) => if !is_read? { return Ok(0) },
            _ = signals.next() => return Ok(0),
        }
    }
}

/// Runs the command for an event. Returns the exit code of kvctl if kvctl has to end.
async fn execute(
    command: &[OsString],
    event: &WatchEvent,
    signals: &mut Signals,
) -> Result<Option<u8>, Failure> {
    let mut job = Job::start(command, environment(event), Some(format!("{}\n", value(event)).into_bytes()))?;
    let mut is_interrupted = false;
    let code = loop {
        tokio::select! {
            code = job.ended() => break code?,
            signal = signals.next() => {
                is_interrupted = true;
                job.pass_on(signal);
            }
        }
    };
    if code != 0 {
        let revision = event.kv.mod_revision;
        eprintln!(
            "kvctl: the command ended with {code} at revision {revision}; --from-revision {revision} begins with this event, \
             or others of its revision"
        );
        return Ok(Some(code));
    }
    Ok(is_interrupted.then_some(0))
}

/// Returns the variables that describe an event. A value that the system cannot pass on is `None`.
fn environment(event: &WatchEvent) -> [(&'static str, Option<OsString>); 4] {
    let fits = |text: &[u8]| text.len() <= VARIABLE_BYTES_MAX && !text.contains(&0);
    let text = |text: &Vec<u8>| fits(text).then(|| OsString::from_vec(text.clone()));
    [
        ("KV_WATCH_EVENT_TYPE", Some(kind(event).to_uppercase().into())),
        ("KV_WATCH_KEY", text(&event.kv.key)),
        ("KV_WATCH_VALUE", text(&event.kv.value)),
        ("KV_WATCH_REVISION", Some(event.kv.mod_revision.to_string().into())),
    ]
}

/// Returns the failure for a watch that has ended.
fn ended(error: WatchError) -> Failure {
    match error {
        WatchError::Compacted { oldest } => Failure::Compacted(format!(
            "revisions below {oldest} were compacted away before they were watched: events are missing; read the keys, and \
             watch from the revision after that of the answer"
        )),
        WatchError::Rejected(fault) => ClientError::Rejected(fault).into(),
        error => Failure::Usage(error.to_string()),
    }
}

fn kind(event: &WatchEvent) -> &'static str {
    if event.deleted { "delete" } else { "put" }
}

/// Returns an event as one line, whatever its key and values contain. A deletion has no value; if the
/// previous value is included, the column of the value is empty.
fn line(event: &WatchEvent, with_previous: bool) -> String {
    let mut fields = vec![event.kv.mod_revision.to_string(), kind(event).to_owned(), escaped(&event.kv.key)];
    if !event.deleted || with_previous {
        fields.push(escaped(&event.kv.value));
    }
    if with_previous {
        fields.push(event.previous.as_ref().map(|kv| escaped(&kv.value)).unwrap_or_default());
    }
    fields.join("\t")
}

/// Returns an event as JSON, for programs.
fn value(event: &WatchEvent) -> Value {
    let mut kv = pair(&event.kv);
    if event.deleted
        && let Some(fields) = kv.as_object_mut()
    {
        fields.retain(|name, _| name.starts_with("key"));
    }
    let mut value = json!({ "event": kind(event), "revision": event.kv.mod_revision, "kv": kv });
    if let Some(previous) = &event.previous {
        value["previous"] = pair(previous);
    }
    value
}

/// Maximum length of a variable of a command's environment, in bytes. Linux accepts less than 128 KiB,
/// including the name.
const VARIABLE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use kv_store_client::idl::KeyValue;

    use super::*;

    fn event(deleted: bool, value: &[u8]) -> WatchEvent {
        let kv = |value: &[u8]| KeyValue::new(b"a\tb".to_vec(), value.to_vec(), 3, 7, 2, 0);
        WatchEvent::new(deleted, kv(value), kv(b"before"))
    }

    #[test]
    fn event_is_one_line_whatever_is_in_it() {
        let put = event(false, b"1\n2\\\xff");
        assert_eq!(line(&put, true), "7\tput\ta\\tb\t1\\n2\\\\\\xff\tbefore");
        assert_eq!(line(&put, false), "7\tput\ta\\tb\t1\\n2\\\\\\xff");
        assert_eq!(line(&event(true, b""), true), "7\tdelete\ta\\tb\t\tbefore");
        assert_eq!(line(&event(true, b""), false), "7\tdelete\ta\\tb");
        assert_eq!(value(&event(true, b""))["kv"], json!({ "key": "a\tb" }));
        assert_eq!(value(&event(false, b"\xff"))["kv"]["value_hex"], "ff");
    }

    #[test]
    fn variable_that_cannot_be_passed_on_is_not_set() {
        let variable = |value: &[u8]| environment(&event(false, value))[2].1.clone();
        assert_eq!(variable(b"v"), Some("v".into()));
        assert_eq!(variable(b""), Some("".into()));
        for value in [&b"\0"[..], &vec![b'x'; VARIABLE_BYTES_MAX + 1]] {
            assert_eq!(variable(value), None);
        }
    }
}
