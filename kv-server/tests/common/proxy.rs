//! A network between nodes that can be broken, one direction at a time.
//!
//! Each node listens at 127.0.0.1 and is known to the others at 127.0.0.2, where this listens: with the same port. Who
//! calls, the hello says with which every connection begins.

use std::{collections::BTreeMap, io, time::Duration};

use consensus_transport_thrift::testing::caller;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Treatment of the bytes that one node sends to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It arrives this much later.
    Delay(Duration),
    /// It does not arrive as long as this lasts, and then all of it: packets are lost, and TCP sends them again.
    Hold,
    /// It is lost, and repeated as TCP does it: after 200 ms, and then in growing intervals. So a connection that lost something
    /// can stay silent for seconds after the link works again; a new one does not.
    Lose,
    /// Connections end, and no new ones are made.
    Cut,
}

/// Sender and receiver.
pub type Direction = (usize, usize);
type Links = BTreeMap<Direction, Link>;

/// The network. Broken off when dropped.
pub struct Proxy {
    links: watch::Sender<Links>,
    listeners: Vec<JoinHandle<()>>,
}

/// Where the proxy of the node that listens at this port is.
pub fn endpoint(port: u16) -> String {
    format!("127.0.0.2:{port}")
}

impl Proxy {
    /// For nodes that will listen at these ports, in the order of their ids.
    pub async fn start(ports: &[u16]) -> Self {
        Self::start_as(ports, true).await
    }

    /// For the ports of clients, who do not say who they are: everything to and from node N is the direction (N, N).
    pub async fn of_clients(ports: &[u16]) -> Self {
        Self::start_as(ports, false).await
    }

    async fn start_as(ports: &[u16], is_of_nodes: bool) -> Self {
        let links = watch::Sender::new(Links::new());
        let mut listeners = Vec::new();
        for (to, port) in ports.iter().copied().enumerate() {
            let listener = TcpListener::bind(endpoint(port)).await.unwrap();
            let links = links.clone();
            listeners.push(tokio::spawn(async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    // Ends with either side, or with the proxy; the nodes connect again.
                    tokio::spawn(connection(stream, (to, port), is_of_nodes, links.clone()));
                }
            }));
        }
        Self { links, listeners }
    }

    /// From now on these directions are broken so, and no others.
    pub fn set(&self, links: impl IntoIterator<Item = (Direction, Link)>) {
        self.links.send_replace(links.into_iter().collect());
    }

    pub fn heal(&self) {
        self.set([]);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listeners.iter().for_each(JoinHandle::abort);
        let all = (0..self.listeners.len()).flat_map(|a| (0..self.listeners.len()).map(move |b| (a, b)));
        self.links.send_replace(all.map(|direction| (direction, Link::Cut)).collect());
    }
}

async fn connection(
    stream: TcpStream,
    (to, port): (usize, u16),
    is_of_nodes: bool,
    links: watch::Sender<Links>,
) -> io::Result<()> {
    let (mut from_caller, to_caller) = stream.into_split();
    let (mut from, mut hello) = (to, Vec::new());
    if is_of_nodes {
        hello = first_frame(&mut from_caller).await?;
        from = caller(&hello[4..]).ok_or(io::ErrorKind::InvalidData)?.0 as usize;
    }
    let callee = TcpStream::connect(("127.0.0.1", port)).await?;
    let (from_callee, to_callee) = callee.into_split();
    let there = pump(hello, from_caller, to_callee, (from, to), links.subscribe());
    let back = pump(Vec::new(), from_callee, to_caller, (to, from), links.subscribe());
    tokio::select! { ended = there => ended, ended = back => ended }
}

/// Hands on what is read, beginning with `bytes`, as the link lets it.
async fn pump(
    mut bytes: Vec<u8>,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut links: watch::Receiver<Links>,
) -> io::Result<()> {
    let mut watch = links.clone();
    let work = async {
        loop {
            let open = links.wait_for(|links| links.get(&direction) != Some(&Link::Hold)).await;
            let link = open.map_err(io::Error::other)?.get(&direction).copied();
            if let Some(Link::Delay(delay)) = link {
                tokio::time::sleep(delay).await;
            }
            repeat_until_not_lost(&links, direction).await;
            to.write_all(&bytes).await?;
            bytes.resize(64 << 10, 0);
            let len = from.read(&mut bytes).await?;
            if len == 0 {
                return Ok(());
            }
            bytes.truncate(len);
        }
    };
    tokio::select! {
        ended = work => ended,
        _ = watch.wait_for(|links| links.get(&direction) == Some(&Link::Cut)) => Ok(()),
    }
}

/// Returns when one of the attempts of TCP to send the same bytes would succeed.
async fn repeat_until_not_lost(links: &watch::Receiver<Links>, direction: Direction) {
    let mut pause = FIRST_RETRANSMISSION;
    while links.borrow().get(&direction) == Some(&Link::Lose) {
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// With its length.
async fn first_frame(stream: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes(frame[..].try_into().unwrap()) as usize;
    frame.resize(4 + length, 0);
    stream.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

/// Linux: the least time after which it sends lost bytes again.
const FIRST_RETRANSMISSION: Duration = Duration::from_millis(200);
