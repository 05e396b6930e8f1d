//! Making connections.

use std::{io, time::Duration};

use consensus_core::Endpoint;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Connects to `endpoint`, trying every address that its name has, and sets what every connection here has: no delay,
/// and notice of a peer that is gone within about 20 s.
///
/// # Errors
/// The name has no address, or none answers within `timeout`; the error names the endpoint.
pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> io::Result<TcpStream> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{endpoint}: {error}"));
    let attempt = TcpStream::connect((endpoint.host(), endpoint.port()));
    let stream = tokio::time::timeout(timeout, attempt).await;
    let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(named)?;
    configure(&stream).map_err(named)?;
    Ok(stream)
}

/// Sets on an accepted connection what [`connect`] sets on one made.
pub(crate) fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probe = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&probe)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(KEEPALIVE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES))?;
    Ok(())
}

const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;
