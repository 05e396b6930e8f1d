//! Parsers of values: each accepts the same words on the command line, in the environment and in the file.

use std::{
    fmt,
    ops::{Bound, RangeBounds},
    str::FromStr,
    time::Duration,
};

use bytesize::ByteSize;
use consensus_core::Endpoint;
use consensus_tls::TlsVersion;
use tracing_subscriber::{filter::Directive, filter::LevelFilter};

/// Bounds for [`duration`] and [`size`].
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// No disk is larger. Sums of a few sizes up to this do not overflow.
pub(crate) const SIZE_MAX: u64 = 1 << 60;

/// Parses a duration such as `500ms`, `10s` or `1m 30s` within `range`.
pub(crate) fn duration<R: RangeBounds<Duration> + Clone>(
    range: R,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        if text != "0" && text.parse::<f64>().is_ok() {
            return Err(format!("a duration needs a unit, for example {text}ms or {text}s"));
        }
        let duration = humantime::parse_duration(text)
            .map_err(|error| format!("it must be a duration, for example 500ms or 10s ({error})"))?;
        within(&range, duration, |bound| humantime::format_duration(*bound).to_string())
    }
}

/// Parses a size such as `20MiB` or `1.5GiB`, or a rate such as `20MiB/s`, within `range`; bytes, or bytes per second.
pub(crate) fn size<R: RangeBounds<u64> + Clone>(range: R) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| {
        if text != "0" && text.parse::<f64>().is_ok() {
            return Err(format!("a size needs a unit, for example {text}MiB or {text}KiB"));
        }
        let size: ByteSize = text
            .strip_suffix("/s")
            .unwrap_or(text)
            .parse()
            .map_err(|_| "it must be a size, for example 256MiB, 64KiB or 1.5GiB".to_owned())?;
        if size.as_u64() > SIZE_MAX {
            return Err("no disk is that large".to_owned());
        }
        within(&range, size.as_u64(), |bound| ByteSize(*bound).display().iec().to_string())
    }
}

/// Parses a number within `range`.
pub(crate) fn number<T, R>(range: R) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr<Err: fmt::Display> + PartialOrd + fmt::Display,
    R: RangeBounds<T> + Clone,
{
    move |text| {
        let number = text.parse().map_err(|error: T::Err| format!("it must be a whole number ({error})"))?;
        within(&range, number, T::to_string)
    }
}

/// A time or a number of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retention {
    Number(u64),
    Time(Duration),
}

/// Parses a whole number, or a duration of at least a second such as `30m`.
pub(crate) fn retention(text: &str) -> Result<Retention, String> {
    match text.parse() {
        Ok(number) => Ok(Retention::Number(number)),
        Err(_) => duration(SECOND..)(text).map(Retention::Time),
    }
}

/// Parses a version of TLS, as a number or as etcd writes it.
pub(crate) fn tls_version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "1.2" | "TLS1.2" => Ok(TlsVersion::Tls12),
        "1.3" | "TLS1.3" => Ok(TlsVersion::Tls13),
        _ => Err("it must be 1.2 or 1.3; older versions are broken".to_owned()),
    }
}

/// Parses a host to listen at: a name or an address. An IPv6 address may stand in brackets.
pub(crate) fn host(text: &str) -> Result<String, String> {
    let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = unbracketed.filter(|host| host.contains(':')).unwrap_or(text);
    match Endpoint::new(host, 0) {
        Ok(_) => Ok(host.to_owned()),
        Err(_) => Err("it must be a host name, an IPv4 address or an IPv6 address, without a port; for \
                       example localhost, 0.0.0.0, :: or [::]"
            .to_owned()),
    }
}

/// Checks what to log: directives of [`tracing_subscriber::EnvFilter`], separated by commas.
///
/// A word alone must be a level. `EnvFilter` takes any other word for a target, and then logs nothing else.
pub(crate) fn log_filter(text: &str) -> Result<String, String> {
    for directive in directives(text) {
        let is_target = directive.contains(['=', '[']);
        let is_valid = match is_target {
            true => directive.parse::<Directive>().is_ok(),
            false => directive.parse::<LevelFilter>().is_ok(),
        };
        if !is_valid {
            return Err(format!(
                "`{directive}` is neither a level (off, error, warn, info, debug, trace) nor target=level, for example \
                 info,consensus_engine_raft=debug"
            ));
        }
    }
    Ok(text.to_owned())
}

/// Splits at commas, except within the braces of a span's fields.
fn directives(filter: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let at_comma = move |c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    filter.split(at_comma).map(str::trim).filter(|directive| !directive.is_empty())
}

fn within<T: PartialOrd>(
    range: &impl RangeBounds<T>,
    value: T,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    if range.contains(&value) {
        return Ok(value);
    }
    let is_low = match range.start_bound() {
        Bound::Included(least) => value < *least,
        Bound::Excluded(least) => value <= *least,
        Bound::Unbounded => false,
    };
    let (bound, words) = match is_low {
        true => (range.start_bound(), ["at least", "more than"]),
        false => (range.end_bound(), ["at most", "less than"]),
    };
    Err(match bound {
        Bound::Included(bound) => format!("it must be {} {}", words[0], show(bound)),
        Bound::Excluded(bound) => format!("it must be {} {}", words[1], show(bound)),
        Bound::Unbounded => "it is out of range".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_in_words_is_accepted() {
        let parse = duration(Duration::ZERO..=DAY);
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn duration_without_unit_or_out_of_range_says_what_is_allowed() {
        let parse = duration(MILLISECOND..=DAY);
        assert!(parse("500").unwrap_err().contains("500ms"));
        assert!(parse("soon").unwrap_err().contains("for example 500ms"));
        assert_eq!(parse("0").unwrap_err(), "it must be at least 1ms");
        assert_eq!(parse("25h").unwrap_err(), "it must be at most 1day");
    }

    #[test]
    fn size_in_words_is_accepted() {
        let parse = size(..);
        assert_eq!(parse("20MiB"), Ok(20 << 20));
        assert_eq!(parse("20 MiB/s"), Ok(20 << 20));
        assert_eq!(parse("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse("5MB"), Ok(5_000_000));
        assert_eq!(parse("0"), Ok(0));
    }

    #[test]
    fn size_without_unit_or_out_of_range_says_what_is_allowed() {
        assert!(size(..)("256").unwrap_err().contains("256MiB"));
        assert!(size(..)("large").unwrap_err().contains("for example 256MiB"));
        assert_eq!(size(..)("99999999999999MiB").unwrap_err(), "no disk is that large");
        assert_eq!(size(1024..)("1B").unwrap_err(), "it must be at least 1.0 KiB");
    }

    #[test]
    fn number_out_of_range_says_what_is_allowed() {
        assert_eq!(number(1_u64..)("7"), Ok(7));
        assert_eq!(number(1_u64..)("0").unwrap_err(), "it must be at least 1");
        assert_eq!(number(0_u32..=50)("51").unwrap_err(), "it must be at most 50");
        assert!(number(1_u64..)("-1").unwrap_err().contains("whole number"));
    }

    #[test]
    fn retention_is_a_number_or_a_duration() {
        assert_eq!(retention("0"), Ok(Retention::Number(0)));
        assert_eq!(retention("10000"), Ok(Retention::Number(10_000)));
        assert_eq!(retention("90m"), Ok(Retention::Time(Duration::from_secs(5400))));
        assert!(retention("1ms").unwrap_err().contains("at least 1s"));
        assert!(retention("-1").is_err() && retention("often").is_err());
    }

    #[test]
    fn host_with_or_without_brackets_is_accepted() {
        assert_eq!(host("[::]").as_deref(), Ok("::"));
        assert_eq!(host("::1").as_deref(), Ok("::1"));
        assert_eq!(host("localhost").as_deref(), Ok("localhost"));
        for wrong in ["", "[::", "::]", "[localhost]", "localhost:9090", "[::]:9090", "a b"] {
            assert!(host(wrong).unwrap_err().contains("without a port"), "{wrong}");
        }
    }

    #[test]
    fn log_filter_with_unknown_directive_is_refused() {
        for valid in [
            "info",
            "off",
            "warn,kv_server=debug",
            "info,[span{a,b}]=trace",
            "kv_server::node=info,",
            "DEBUG",
        ] {
            assert!(log_filter(valid).is_ok(), "{valid}");
        }
        for (wrong, directive) in [
            ("verbose", "`verbose`"),
            ("info,kv_server=debg", "`kv_server=debg`"),
            ("info,kv_server", "`kv_server`"),
        ] {
            let error = log_filter(wrong).unwrap_err();
            assert!(error.contains(directive) && error.contains("trace"), "{error}");
        }
    }
}
