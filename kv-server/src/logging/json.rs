//! Lines of JSON in the form of zap, etcd's logger.

use std::{
    fmt::{self, Write},
    time::SystemTime,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Lines as etcd's logger writes them: `{"level":"info","ts":"..","logger":"..","caller":"..","msg":"..",..}`. The
/// logger is the target of the event, by which directives of `log` find it.
pub(super) struct ZapFormat;

impl<S, N> FormatEvent<S, N> for ZapFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let level = metadata.level().to_string().to_lowercase();
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (message, others) = (quoted(&fields.message), fields.others);
        let caller = quoted(&caller(metadata.file(), metadata.line()));
        let logger = quoted(metadata.target());
        writeln!(
            writer,
            r#"{{"level":"{level}","ts":"{time}","logger":{logger},"caller":{caller},"msg":{message}{others}}}"#
        )
    }
}

/// Folder, file and line of the code.
fn caller(file: Option<&str>, line: Option<u32>) -> String {
    let file = file.unwrap_or_default();
    let short = file.rmatch_indices('/').nth(1).map_or(file, |(at, _)| &file[at + 1..]);
    format!("{short}:{}", line.unwrap_or_default())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The message of an event, and its other fields as JSON.
#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: &str) {
        let _ = write!(self.others, ",{}:{value}", quoted(field.name()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.add(field, &quoted(&text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, &quoted(value));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn line_is_json_with_the_keys_of_zap() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = Mutex::new(file.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(writer).event_format(ZapFormat).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(number = 7, flag = true, text = "a \"b\"", shown = %"c\n", "what\thappened");
        });
        let line = std::fs::read_to_string(file.path()).unwrap();
        assert!(line.starts_with(r#"{"level":"warn","ts":"2"#) && line.ends_with("}\n"), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["msg"], "what\thappened");
        let [number, flag, text, shown] = ["number", "flag", "text", "shown"].map(|key| value[key].clone());
        assert_eq!((number, flag, text, shown), (7.into(), true.into(), "a \"b\"".into(), "c\n".into()));
        assert!(value["caller"].as_str().unwrap().starts_with("logging/json.rs:"), "{line}");
    }

    #[test]
    fn caller_is_folder_file_and_line() {
        assert_eq!(caller(Some("kv-server/src/a/b.rs"), Some(3)), "a/b.rs:3");
        assert_eq!(caller(Some("b.rs"), None), "b.rs:0");
    }
}
