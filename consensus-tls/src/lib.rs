//! TLS for the ports of a server and for the connections that it opens: certificates from files, checked at start and
//! reloaded while connections stay open.
//!
//! ```text
//! TlsSettings ─ load ─▶ Tls ─ accept ─▶ Stream      (a client or peer that connected)
//!   certificate, key     │  ─ connect ▶ Stream      (a server that this program connects to)
//!   CA, CRL              └─ check_files: reads all files again, and replaces everything or nothing
//! ```
//! A [`Tls`] holds whole configurations of rustls. A reload builds new ones from all files together, so certificate, key,
//! CA and CRL always belong together. A handshake uses the configuration of the moment when it begins; connections that are
//! open keep the one that they were made with. If the new files are bad, the old configuration stays in use and the log says
//! which file is wrong and why.
//!
//! A [`Stream`] is plain or encrypted, so that code behind it serves both; a plain one costs a branch.
//!
//! What this is *not*: a certificate manager. Nothing is renewed here. With the feature `issue` the module `issue` makes
//! authorities and certificates, for tools and tests.
//!
//! ```no_run
//! # async fn run(listener: tokio::net::TcpListener) -> Result<(), Box<dyn std::error::Error>> {
//! use consensus_tls::{ClientCertificates, Identity, Tls, TlsSettings};
//!
//! let mut settings = TlsSettings::new("clients");
//! settings.identity = Some(Identity::new("node.crt", "node.key"));
//! settings.ca_file = Some("ca.crt".into());
//! settings.client_certificates = ClientCertificates::Required;
//! let tls = Tls::load(settings)?;
//! let (stream, from) = listener.accept().await?;
//! let stream = tls.accept(stream, from).await?;
//! # Ok(())
//! # }
//! ```

mod certificate;
mod configs;
mod failures;
mod files;
#[cfg(feature = "issue")]
pub mod issue;
mod settings;
mod stream;
mod tls;
mod verify;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("consensus-tls needs one of its features `aws-lc-rs` and `ring`");

pub use certificate::PeerCertificate;
pub use configs::cipher_suite_names;
pub use files::{FileRole, TlsError};
pub use settings::{
    AllowedNames, ClientCertificates, Identity, PlainConnections, ServerTrust, TlsSettings, TlsVersion,
};
pub use stream::{ReadHalf, Stream, WriteHalf};
pub use tls::{Checked, HANDSHAKE_TIMEOUT, Tls};
