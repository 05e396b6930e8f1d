//! TLS of the connections to servers.

use std::path::PathBuf;

use clap::Args;
use consensus_core::{Endpoint, EndpointError};
use consensus_tls::{Identity, ServerTrust, Tls, TlsSettings};

use super::Failure;

/// A server: `host:port`, or a URL of it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    /// Whether it was given as `https://` or `http://`; `None`: without either.
    has_tls: Option<bool>,
}

/// Parses a server.
pub(super) fn server(text: &str) -> Result<Server, String> {
    let (has_tls, place) = match text.split_once("://") {
        Some(("http", place)) => (Some(false), place),
        Some(("https", place)) => (Some(true), place),
        Some((scheme, _)) => {
            return Err(format!("{scheme} is no scheme: use http or https, or HOST:PORT alone"));
        }
        None => (None, text),
    };
    let endpoint: Result<Endpoint, EndpointError> = place.strip_suffix('/').unwrap_or(place).parse();
    endpoint.map(|endpoint| Server { endpoint, has_tls }).map_err(|error| error.to_string())
}

/// Files of TLS, as etcdctl has them.
#[derive(Args)]
pub(super) struct Security {
    /// Certificates of the authorities that sign those of servers. With this, --cert or an https:// endpoint the connections use TLS.
    /// Default: the authorities of the system.
    #[arg(long = "cacert", id = "tls_ca", env = "KVCTL_CACERT", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// Certificate that is shown to servers.
    #[arg(long = "cert", id = "tls_cert", env = "KVCTL_CERT", value_name = "FILE", global = true)]
    certificate: Option<PathBuf>,
    /// Private key of --cert.
    #[arg(long = "key", id = "tls_key", env = "KVCTL_KEY", value_name = "FILE", global = true)]
    key: Option<PathBuf>,
    /// Uses TLS without verifying servers: they may be anybody.
    #[arg(long = "insecure-skip-tls-verify", id = "tls_insecure", global = true)]
    is_insecure: bool,
}

impl Security {
    /// TLS of the connections; `None` if they are plain.
    pub(super) fn load(&self, servers: &[Server]) -> Result<Option<Tls>, Failure> {
        let (any_tls, any_plain) = (
            servers.iter().any(|server| server.has_tls == Some(true)),
            servers.iter().any(|server| server.has_tls == Some(false)),
        );
        if any_tls && any_plain {
            return Err(Failure::Usage("the endpoints must be all https://, or all http://".to_owned()));
        }
        let is_set =
            self.ca.is_some() || self.certificate.is_some() || self.key.is_some() || self.is_insecure;
        if any_plain && is_set {
            let why = "--cacert, --cert, --key and --insecure-skip-tls-verify (and KVCTL_CACERT, KVCTL_CERT, KVCTL_KEY) are for TLS, but \
                       an endpoint is http://, which would not be encrypted; write https:// or HOST:PORT";
            return Err(Failure::Usage(why.to_owned()));
        }
        if !(any_tls || is_set) {
            return Ok(None);
        }
        let mut settings = TlsSettings::new("servers");
        settings.ca_file.clone_from(&self.ca);
        settings.identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(Identity::new(certificate, key)),
            (None, None) => None,
            _ => return Err(Failure::Usage("--cert and --key belong together".to_owned())),
        };
        if self.is_insecure {
            settings.server_trust = ServerTrust::Unverified;
        }
        Tls::load(settings).map(Some).map_err(|error| Failure::Usage(format!("TLS: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(security: &Security, servers: &[&str]) -> Result<bool, String> {
        let servers: Vec<Server> = servers.iter().map(|text| server(text).unwrap()).collect();
        security.load(&servers).map(|tls| tls.is_some()).map_err(|failure| match failure {
            Failure::Usage(why) => why,
            _ => "another failure".to_owned(),
        })
    }

    fn security(is_insecure: bool) -> Security {
        Security { ca: None, certificate: None, key: None, is_insecure }
    }

    #[test]
    fn plain_endpoint_beside_options_of_tls_is_refused() {
        for servers in [&["http://a:1"][..], &["http://a:1", "b:1"], &["b:1", "http://a:1"]] {
            let why = load(&security(true), servers).unwrap_err();
            assert!(why.contains("would not be encrypted"), "{why}");
            assert_eq!(load(&security(false), servers), Ok(false));
        }
        assert_eq!(load(&security(true), &["a:1"]), Ok(true));
        assert_eq!(load(&security(true), &["https://a:1", "b:1"]), Ok(true));
        assert!(load(&security(false), &["https://a:1", "http://b:1"]).is_err());
    }
}
