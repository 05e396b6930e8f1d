//! URLs of members.

use std::net::IpAddr;

use consensus_core::Endpoint;

use super::values::Values;
use crate::config::ConfigError;

/// The endpoints of a flag's URLs, at least one if there is a default.
pub(super) fn endpoints(values: &Values, flag: &str) -> Result<Vec<Endpoint>, ConfigError> {
    let urls = values.text(flag).split(',').map(str::trim).filter(|url| !url.is_empty());
    urls.map(|url| endpoint(url).map_err(|why| values.error(flag, why))).collect()
}

/// The endpoints of a flag's URLs to listen at, which have addresses, not names.
pub(super) fn listen_endpoints(values: &Values, flag: &str) -> Result<Vec<Endpoint>, ConfigError> {
    let address = |endpoint: Endpoint| {
        // As Go does, and clients that are told an address: IPv4 first.
        let host = if endpoint.host() == "localhost" { "127.0.0.1" } else { endpoint.host() };
        let is_address = host.parse::<IpAddr>().is_ok();
        let local = Endpoint::new(host, endpoint.port()).ok().filter(|_| is_address);
        local.ok_or_else(|| {
            values.error(flag, format!("{host} must be an address of this machine, or localhost"))
        })
    };
    let mut endpoints = endpoints(values, flag)?.into_iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let mut seen = Vec::new();
    endpoints.retain(|endpoint| {
        !seen.contains(endpoint) && {
            seen.push(endpoint.clone());
            true
        }
    });
    Ok(endpoints)
}

/// The endpoint of a URL, `http://host:port`.
pub(super) fn endpoint(url: &str) -> Result<Endpoint, String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err(format!("{url}: there is no TLS; use http:// in a network of its own"));
        }
        Some(("unix" | "unixs", _)) => return Err(format!("{url}: sockets of files are not supported")),
        _ => return Err(format!("{url:?} must be a URL, http://HOST:PORT")),
    };
    let place = rest.strip_suffix('/').unwrap_or(rest);
    place.parse().map_err(|_| format!("{url:?} must be a URL, http://HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_http_with_host_and_port() {
        assert_eq!(endpoint("http://10.0.0.1:2380").unwrap().to_string(), "10.0.0.1:2380");
        assert_eq!(endpoint("http://[::1]:2380/").unwrap().to_string(), "[::1]:2380");
        for (wrong, words) in [
            ("https://a:1", "no TLS"),
            ("unix://a:1", "not supported"),
            ("a:1", "http://HOST:PORT"),
            ("http://a", "http://HOST:PORT"),
            ("http://a:1/path", "http://HOST:PORT"),
            ("http://a:99999", "http://HOST:PORT"),
        ] {
            let why = endpoint(wrong).unwrap_err();
            assert!(why.contains(words) && why.contains(wrong), "{why}");
        }
    }
}
