//! Lines of the audit log: one JSON object each.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{
    CallRecord,
    notes::{KEYS_MAX, Notes, ShownRange},
};

/// A line for a call, or for the start or the end of a watch.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    user: Option<&'a str>,
    /// Name of a login.
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<&'a str>,
    peer: std::net::SocketAddr,
    protocol: &'static str,
    method: &'a str,
    /// Set on the node that executes a call for a client of another node.
    #[serde(skip_serializing_if = "is_false")]
    forwarded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<WatchPart>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<ShownRange>,
    /// Number of key ranges that are not in `keys`.
    #[serde(skip_serializing_if = "is_zero")]
    more_keys: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<SubjectPart<'a>>,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    duration_us: u64,
}

/// The object of a call that is no key.
#[derive(Serialize)]
struct SubjectPart<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    /// Id in hexadecimal, as clients show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    #[serde(skip_serializing_if = "<[u64]>::is_empty")]
    members: &'a [u64],
}

/// Part of a watch in which a line is written.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct WatchPart {
    pub(super) id: i64,
    pub(super) event: &'static str,
}

/// Number of lines that are missing in the log at this place.
#[derive(Serialize)]
struct Missing {
    time: String,
    dropped: u64,
    since: String,
}

pub(super) fn of_call(
    call: &CallRecord,
    result: &'static str,
    time: SystemTime,
    duration: Duration,
) -> String {
    render(call, &call.notes, None, result, time, duration)
}

/// A line about a watch of a stream that `call` has opened.
pub(super) fn of_watch(
    call: &CallRecord,
    notes: &Notes,
    watch: WatchPart,
    result: &'static str,
    duration: Duration,
) -> String {
    render(call, notes, Some(watch), result, SystemTime::now(), duration)
}

fn render(
    call: &CallRecord,
    notes: &Notes,
    watch: Option<WatchPart>,
    result: &'static str,
    time: SystemTime,
    duration: Duration,
) -> String {
    let subject = &notes.subject;
    finish(&Line {
        time: stamp(time),
        user: call.notes.user.as_deref(),
        login: notes.login.as_deref(),
        peer: call.origin.peer,
        protocol: call.origin.protocol.name(),
        method: &call.method,
        forwarded: notes.is_forwarded,
        watch,
        keys: notes.keys.shown(KEYS_MAX),
        more_keys: notes.keys.omitted(KEYS_MAX),
        subject: (!subject.is_empty()).then(|| SubjectPart {
            user: subject.user.as_deref(),
            role: subject.role.as_deref(),
            lease: subject.lease.map(|id| format!("{id:x}")),
            members: &subject.members,
        }),
        result,
        revision: notes.revision,
        duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
    })
}

pub(super) fn of_missing(dropped: u64, since: SystemTime) -> String {
    finish(&Missing { time: stamp(SystemTime::now()), dropped, since: stamp(since) })
}

/// RFC 3339 with milliseconds, in UTC.
fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// Text in the form of JSON has no line breaks of its own.
fn finish(line: &impl Serialize) -> String {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    text
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
