//! URLs of members.

use std::net::IpAddr;

use consensus_core::Endpoint;

use super::values::Values;
use crate::config::ConfigError;

/// A URL of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) endpoint: Endpoint,
    /// Whether it is `https://`.
    pub(super) has_tls: bool,
}

/// The URLs of a flag, at least one if there is a default.
pub(super) fn urls(values: &Values, flag: &str) -> Result<Vec<Url>, ConfigError> {
    let urls = values.text(flag).split(',').map(str::trim).filter(|url| !url.is_empty());
    urls.map(|text| url(text).map_err(|why| values.error(flag, why))).collect()
}

/// The endpoints of a flag's URLs.
pub(super) fn endpoints(values: &Values, flag: &str) -> Result<Vec<Endpoint>, ConfigError> {
    Ok(urls(values, flag)?.into_iter().map(|url| url.endpoint).collect())
}

/// The URLs of a flag to listen at, which have addresses, not names.
pub(super) fn listen_urls(values: &Values, flag: &str) -> Result<Vec<Url>, ConfigError> {
    let address = |Url { endpoint, has_tls }: Url| {
        // As Go does, and clients that are told an address: IPv4 first.
        let host = if endpoint.host() == "localhost" { "127.0.0.1" } else { endpoint.host() };
        let is_address = host.parse::<IpAddr>().is_ok();
        let local = Endpoint::new(host, endpoint.port()).ok().filter(|_| is_address);
        local.map(|endpoint| Url { endpoint, has_tls }).ok_or_else(|| {
            values.error(flag, format!("{host} must be an address of this machine, or localhost"))
        })
    };
    let mut found = urls(values, flag)?.into_iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let mut seen = Vec::new();
    found.retain(|url| {
        !seen.contains(&url.endpoint) && {
            seen.push(url.endpoint.clone());
            true
        }
    });
    Ok(found)
}

/// Parses a URL, `http://host:port` or `https://host:port`.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let (has_tls, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(("unix" | "unixs", _)) => return Err(format!("{text}: sockets of files are not supported")),
        _ => return Err(format!("{text:?} must be a URL, http://HOST:PORT or https://HOST:PORT")),
    };
    let place = rest.strip_suffix('/').unwrap_or(rest);
    let endpoint = place.parse();
    endpoint
        .map(|endpoint| Url { endpoint, has_tls })
        .map_err(|_| format!("{text:?} must be a URL, http://HOST:PORT or https://HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_http_or_https_with_host_and_port() {
        let parsed = |text| url(text).map(|Url { endpoint, has_tls }| (endpoint.to_string(), has_tls));
        assert_eq!(parsed("http://10.0.0.1:2380"), Ok(("10.0.0.1:2380".to_owned(), false)));
        assert_eq!(parsed("http://[::1]:2380/"), Ok(("[::1]:2380".to_owned(), false)));
        assert_eq!(parsed("https://db:2380"), Ok(("db:2380".to_owned(), true)));
        for (wrong, words) in [
            ("unix://a:1", "not supported"),
            ("a:1", "http://HOST:PORT"),
            ("http://a", "http://HOST:PORT"),
            ("http://a:1/path", "http://HOST:PORT"),
            ("http://a:99999", "http://HOST:PORT"),
        ] {
            let why = url(wrong).unwrap_err();
            assert!(why.contains(words) && why.contains(wrong), "{why}");
        }
    }
}
