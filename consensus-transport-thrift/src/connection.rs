//! Creates TCP connections and sets their options.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use consensus_core::Endpoint;
use consensus_tls::{Stream, Tls};
use futures::{StreamExt, stream::FuturesUnordered};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};

/// Connects to `endpoint` within `time_limit`, which includes the resolution of the name. [Configures](configure) the
/// connection.
///
/// A name may have several addresses, and some of them may drop all packets. They are tried as RFC 8305 recommends: IPv6 and
/// IPv4 in turn, the next one as soon as the previous one has failed, or after 250 ms without a result (less if otherwise
/// some address would not be tried in the first half of `time_limit`). The first connection that succeeds is used.
///
/// # Errors
/// The name has no address, or no address accepts the connection within `time_limit`. The error names the endpoint, and the
/// result for each address.
pub async fn connect(endpoint: &Endpoint, time_limit: Duration) -> io::Result<TcpStream> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{endpoint}: {error}"));
    let deadline = Instant::now() + time_limit;
    let found = timeout_at(deadline, lookup_host((endpoint.host(), endpoint.port()))).await;
    let found = found.unwrap_or_else(|_| Err(timed_out("the name was not resolved", time_limit)));
    let stream = connect_to_any(found.map_err(named)?, time_limit, deadline).await.map_err(named)?;
    configure(&stream).map_err(named)?;
    Ok(stream)
}

/// [Connects](connect) with TLS, if there is any, all within `time_limit`. The certificate of the server must be for the host of
/// `endpoint`. Where plain connections are accepted, a server that speaks no TLS gets one.
///
/// # Errors
/// As [`connect`], or the handshake failed.
pub async fn connect_with(
    endpoint: &Endpoint,
    time_limit: Duration,
    tls: Option<&Tls>,
) -> io::Result<Stream> {
    let deadline = Instant::now() + time_limit;
    let stream = connect(endpoint, time_limit).await?;
    let Some(tls) = tls else { return Ok(stream.into()) };
    let left = deadline.saturating_duration_since(Instant::now());
    match tls.connect(stream, endpoint.host(), left).await {
        Err(error) if error.kind() == io::ErrorKind::Unsupported && tls.accepts_plain() => {
            let left = deadline.saturating_duration_since(Instant::now());
            connect(endpoint, left).await.map(Stream::from)
        }
        connected => connected.map_err(|error| io::Error::new(error.kind(), format!("{endpoint}: {error}"))),
    }
}

/// Connects to the first of `addresses` that accepts.
async fn connect_to_any(
    addresses: impl Iterator<Item = SocketAddr>,
    time_limit: Duration,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let attempt = |address| async move {
        let connecting = timeout_at(deadline, TcpStream::connect(address)).await;
        (address, connecting.unwrap_or_else(|_| Err(timed_out("no response", time_limit))))
    };
    let mut untried = order_addresses(addresses);
    let head_start = HEAD_START.min(time_limit / (2 * untried.len().max(1) as u32));
    let mut attempts = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        attempts.extend(untried.pop_front().map(attempt));
        let ended = if untried.is_empty() {
            attempts.next().await
        } else {
            timeout(head_start, attempts.next()).await.unwrap_or(None)
        };
        match ended {
            Some((_, Ok(stream))) => return Ok(stream),
            Some((address, Err(error))) => failed.push((address, error)),
            None if attempts.is_empty() => return Err(connect_error(failed)),
            None => {} // No result yet: try the next address as well.
        }
    }
}

/// Order in which addresses are tried: IPv6 and IPv4 in turn, each family in the order of the resolver, without duplicates.
fn order_addresses(addresses: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let mut families: [VecDeque<SocketAddr>; 2] = Default::default();
    let mut first_is_v6 = None;
    for address in addresses {
        let other_family = usize::from(*first_is_v6.get_or_insert(address.is_ipv6()) != address.is_ipv6());
        if !families[other_family].contains(&address) {
            families[other_family].push_back(address);
        }
    }
    let [mut preferred, mut other] = families;
    let mut order = VecDeque::new();
    while order.len() < ADDRESSES_MAX && !(preferred.is_empty() && other.is_empty()) {
        order.extend(preferred.pop_front());
        order.extend(other.pop_front());
    }
    order
}

fn timed_out(what: &str, time_limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {} ms", time_limit.as_millis()))
}

fn connect_error(mut failed: Vec<(SocketAddr, io::Error)>) -> io::Error {
    let Some((_, last)) = failed.last() else {
        return io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    };
    let kind = last.kind();
    if failed.len() == 1 {
        return failed.remove(0).1;
    }
    let each: Vec<String> = failed.iter().map(|(address, error)| format!("{address}: {error}")).collect();
    io::Error::new(kind, format!("none of its {} addresses accepts: {}", each.len(), each.join("; ")))
}

/// Disables Nagle's algorithm, and makes the loss of the peer noticeable within about 20 s: by keep-alive probes on an idle
/// connection, and by the user timeout when data is sent. Every listener of a node uses it for accepted connections, so that
/// no connection to a lost peer stays open for ever.
///
/// # Errors
/// The operating system refuses an option.
pub fn configure(stream: &TcpStream) -> io::Result<()> {
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

/// Time before the next address is tried as well; RFC 8305, section 8.
const HEAD_START: Duration = Duration::from_millis(250);
/// Most addresses of one name that are tried, plus one at most.
const ADDRESSES_MAX: usize = 16;
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TIME_LIMIT: Duration = Duration::from_secs(5);

    /// A port whose backlog is full, so that the system drops further connection requests. Also returns the connections and
    /// the socket that keep the backlog full.
    async fn silent_port() -> (SocketAddr, Vec<TcpStream>, socket2::Socket) {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
            assert!(waiting.len() < 100, "the backlog does not fill");
        }
        (address, waiting, listener)
    }

    /// A port that refuses connections.
    async fn closed_port() -> SocketAddr {
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    async fn connect_to(addresses: &[SocketAddr], time_limit: Duration) -> io::Result<TcpStream> {
        connect_to_any(addresses.iter().copied(), time_limit, Instant::now() + time_limit).await
    }

    #[tokio::test]
    async fn second_address_is_taken_when_the_first_drops_packets() {
        let (silent, _waiting, _full) = silent_port().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        for addresses in [[silent, good], [good, silent]] {
            for time_limit in [TIME_LIMIT, Duration::from_millis(400)] {
                let since = Instant::now();
                let stream = connect_to(&addresses, time_limit).await.unwrap();
                assert_eq!(stream.peer_addr().unwrap(), good);
                assert!(since.elapsed() < time_limit, "{:?}", since.elapsed());
            }
        }
    }

    #[tokio::test]
    async fn second_address_is_tried_at_once_when_the_first_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let since = Instant::now();
        connect_to(&[closed_port().await, good], Duration::from_secs(60)).await.unwrap();
        assert!(since.elapsed() < HEAD_START, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn error_says_what_each_address_did() {
        let (silent, _waiting, _full) = silent_port().await;
        let closed = closed_port().await;
        let since = Instant::now();
        let error = connect_to(&[silent, closed], Duration::from_millis(300)).await.unwrap_err().to_string();
        assert!(since.elapsed() < TIME_LIMIT, "{:?}", since.elapsed());
        for words in ["none of its 2 addresses", &format!("{silent}: no response within 300 ms"), "refused"] {
            assert!(error.contains(words), "{error}");
        }
        let error = connect_to(&[closed, closed], TIME_LIMIT).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect_to(&[], TIME_LIMIT).await.unwrap_err().to_string().contains("no address"));
    }

    #[test]
    fn families_are_tried_in_turn_each_address_once() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let [a, b, c, v4] = ["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"].map(address);
        assert_eq!(order_addresses([a, b, a, c, v4].into_iter()), [a, v4, b, c]);
        assert_eq!(order_addresses([v4, a, b].into_iter()), [v4, a, b]);
        let many = (1..100).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        assert_eq!(order_addresses(many).len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn accepted_connection_notices_a_peer_that_is_gone() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        configure(&accepted).unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(19)));
    }
}
