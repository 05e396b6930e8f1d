//! etcd's flags: one row each, from which parsing, messages, `--help` and docs/etcd-flags.md follow.

mod security;
mod table;

use std::net::IpAddr;

use super::duration::parse_duration;

/// A flag of etcd 3.7.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flag {
    /// Heading on the page and in `--help`.
    pub(super) group: Group,
    /// Name without dashes.
    pub(super) name: &'static str,
    /// Values that it takes.
    pub(super) kind: Kind,
    /// etcd's default.
    pub(super) default: &'static str,
    /// Effect of a value.
    pub(super) effect: Effect,
    /// Note for operators; for a flag without effect, why nothing is needed; for a refused flag, what to do.
    pub(super) note: &'static str,
}

/// Groups of flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Member,
    Consensus,
    Store,
    Clients,
    Security,
    Logging,
}

impl Group {
    pub(super) const ALL: [Self; 6] =
        [Self::Member, Self::Consensus, Self::Store, Self::Clients, Self::Security, Self::Logging];

    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Member => "Member and cluster",
            Self::Consensus => "Consensus and log",
            Self::Store => "Store",
            Self::Clients => "Clients",
            Self::Security => "Security",
            Self::Logging => "Logging",
        }
    }
}

/// Kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// `true` or `false`; the flag alone is `true`.
    Bool,
    /// A whole number that is not negative.
    Number,
    /// A whole number.
    Signed,
    /// A number of milliseconds.
    Milliseconds,
    /// A number of bytes.
    Bytes,
    /// A time with a unit, such as `5m`; in a file a number of nanoseconds.
    Duration,
    /// A time with a unit, or a number of hours or revisions.
    Retention,
    /// URLs to listen at, separated by commas.
    ListenUrls,
    /// URLs where others reach the member, separated by commas.
    Urls,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl Kind {
    /// Placeholder of a value in `--help`.
    pub(super) fn value_name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Bool => "BOOL",
            Self::Number | Self::Signed => "NUMBER",
            Self::Milliseconds => "MILLISECONDS",
            Self::Bytes => "BYTES",
            Self::Duration => "DURATION",
            Self::Retention => "RETENTION",
            Self::ListenUrls | Self::Urls => "URLS",
            Self::Choice(_) => "WORD",
        }
    }
}

/// Effect of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It is the value of this setting of kv-server. Not given, the setting keeps its own default.
    Sets(&'static str),
    /// The same, but the setting has etcd's default.
    SetsAlways(&'static str),
    /// It becomes something else; the text is its counterpart on the page.
    Becomes(&'static str),
    /// It is accepted and has no effect.
    Unneeded,
    /// It is refused, unless it is etcd's default.
    Absent,
}

impl Flag {
    /// The flag with this name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        all().find(|flag| flag.name == name)
    }

    /// Environment variable of the flag.
    pub(super) fn variable(&self) -> String {
        format!("ETCD_{}", self.name.to_uppercase().replace('-', "_"))
    }

    pub(super) fn is_bool(&self) -> bool {
        self.kind == Kind::Bool
    }

    /// Whether a value asks for nothing else than no value.
    pub(super) fn is_default(&self, value: &str) -> bool {
        let value = value.trim();
        match self.kind {
            Kind::Bool => boolean(value) == boolean(self.default),
            Kind::Duration => {
                value.is_empty() || parse_duration(value).ok() == parse_duration(self.default).ok()
            }
            _ => value.is_empty() || value == self.default,
        }
    }

    /// Checks a value; the error says what it must be.
    pub(super) fn check(&self, value: &str) -> Result<(), String> {
        let number = |is_valid: bool| {
            if is_valid { Ok(()) } else { Err("it must be a whole number".to_owned()) }
        };
        match self.kind {
            Kind::Text => Ok(()),
            Kind::Bool => boolean(value).map(drop).ok_or_else(|| "it must be true or false".to_owned()),
            Kind::Number | Kind::Milliseconds | Kind::Bytes => number(value.parse::<u64>().is_ok()),
            Kind::Signed => number(value.parse::<i64>().is_ok()),
            Kind::Duration => parse_duration(value).map(drop),
            Kind::Retention if value.parse::<u64>().is_ok() => Ok(()),
            Kind::Retention => parse_duration(value).map(drop),
            Kind::ListenUrls | Kind::Urls => Ok(()), // They are checked where they are used.
            Kind::Choice(words) if words.contains(&value) => Ok(()),
            Kind::Choice(words) => Err(format!("it must be one of {}", words.join(", "))),
        }
    }
}

/// All flags, in the order of the page.
pub(super) fn all() -> impl Iterator<Item = &'static Flag> {
    table::FLAGS.iter().chain(security::FLAGS)
}

/// A truth value as Go parses flags, and as YAML 1.1 has them.
pub(super) fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "y" | "yes" | "on" => Some(true),
        "0" | "f" | "false" | "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Whether a host is reached from this machine alone, or stands for all addresses of a machine.
pub(super) fn is_of_no_use_elsewhere(host: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    host == "localhost" || address.is_some_and(|address| address.is_loopback() || address.is_unspecified())
}

/// Rows of the table: `"name" Kind "default" Effect: "note";` below the name of a group.
macro_rules! flags {
    ($($group:ident { $($name:literal $kind:expr, $default:literal => $effect:expr; $note:expr;)* })*) => {
        &[$($($crate::etcd_start::flags::Flag {
            group: $crate::etcd_start::flags::Group::$group,
            name: $name,
            kind: $kind,
            default: $default,
            effect: $effect,
            note: $note,
        },)*)*]
    };
}
use flags;
