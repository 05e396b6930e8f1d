//! The certificate of a client, as handlers see it.

/// The verified certificate that a client showed in the TLS handshake. It is in the extensions of every request of HTTP and gRPC of the
/// connection; absent if the connection is plain or the client showed none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerCertificate {
    /// Common name of the subject; `None` if it has none.
    pub(crate) common_name: Option<String>,
}

impl PeerCertificate {
    /// The certificate of a connection.
    pub(crate) fn of(stream: &consensus_tls::Stream) -> Option<Self> {
        let consensus_tls::PeerCertificate { common_name, .. } = stream.peer_certificate()?;
        Some(Self { common_name })
    }
}
