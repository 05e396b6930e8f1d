//! Network addresses of nodes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A host (name, IPv4 or IPv6 address) and a port, written `host:port` or `[v6]:port`. Names are resolved again for
/// every connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// A text that is not a valid endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an endpoint ({why}); write host:port, for example db1.example:9090 or [::1]:9090")]
pub struct EndpointError {
    text: String,
    why: &'static str,
}

impl Endpoint {
    /// Creates an endpoint. An IPv6 `host` is given without brackets.
    ///
    /// # Errors
    /// `host` is empty, is not a valid IPv6 address though it contains a colon, or contains a character that is not allowed
    /// in a host name.
    pub fn new(host: &str, port: u16) -> Result<Self, EndpointError> {
        let bad = |why| EndpointError { text: format!("{host}:{port}"), why };
        if host.is_empty() {
            return Err(bad("the host is empty"));
        }
        if host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad("an IPv6 address must be valid and in brackets"));
        }
        if host.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | '[' | ']' | '@')) {
            return Err(bad("the host contains a character that is not allowed"));
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Host name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = |why| EndpointError { text: text.to_owned(), why };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("there is no port"))?;
        let port = port.parse().map_err(|_| bad("the port is not a number from 0 to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(|| bad("the bracket is not closed"))?,
            None if host.contains(':') => return Err(bad("an IPv6 address must be in brackets")),
            None => host,
        };
        Self::new(host, port).map_err(|error| bad(error.why))
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_as_text_round_trips() {
        for text in ["localhost:9090", "127.0.0.1:1", "[::1]:65535", "db-1.example.org:0"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_endpoint_error_says_why() {
        for (text, why) in [
            ("localhost", "no port"),
            ("localhost:", "not a number"),
            (":9090", "empty"),
            ("::1:9090", "brackets"),
            ("[::1:9090", "not closed"),
            ("a b:1", "character"),
            ("h:99999", "65535"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("host:port"), "{text}: {error}");
        }
    }
}
