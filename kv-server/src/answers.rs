//! Bounds the memory of answers that were computed and are not yet written to their clients.
//!
//! A call reserves as much as its answer can have before it is executed, and waits for it if need be; when the answer is
//! there, what it does not need is given back, and the rest when it is written. So a client that asks for much and reads
//! nothing has its own calls wait, and all clients together cannot take more than the node's share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::call_log::{Stage, timed};

/// Memory limit of all responses of a node.
#[derive(Clone, Debug)]
pub(crate) struct NodeBudget {
    units: Arc<Semaphore>,
    /// Half of them, for responses that are collected in parts: they must not hold up all others.
    growing_units: Arc<Semaphore>,
    units_max: u32,
    connection_units_max: u32,
}

/// Memory limit of the responses of one connection, as part of the node's.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionBudget {
    node: NodeBudget,
    units: Arc<Semaphore>,
    /// Number of responses that wait for the client to read them.
    unread: Arc<AtomicUsize>,
}

/// The room for one answer; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    budget: ConnectionBudget,
    held: Option<[OwnedSemaphorePermit; 2]>,
    /// Whether the response waits for the client.
    is_unread: bool,
}

impl NodeBudget {
    pub(crate) fn new(node_bytes: u64, connection_bytes: u64) -> Self {
        let (units_max, connection_units_max) = (units(node_bytes), units(connection_bytes));
        let semaphore = |units: u32| Arc::new(Semaphore::new(units as usize));
        let growing_units = semaphore(units_max.div_ceil(2));
        Self { units: semaphore(units_max), growing_units, units_max, connection_units_max }
    }

    pub(crate) fn connection(&self) -> ConnectionBudget {
        let units = Arc::new(Semaphore::new(self.connection_units_max as usize));
        ConnectionBudget { node: self.clone(), units, unread: Arc::default() }
    }
}

impl ConnectionBudget {
    pub(crate) fn room(&self) -> Room {
        Room { budget: self.clone(), held: None, is_unread: false }
    }

    /// Room for a response whose size is not known before it is complete.
    pub(crate) fn growing_room(&self) -> GrowingRoom {
        GrowingRoom { budget: self.clone(), held: [None, None], is_unread: false }
    }

    /// Whether calls of all connections wait for room, as there is hardly any.
    pub(crate) fn is_contended(&self) -> bool {
        self.node.units.available_permits() < self.node.connection_units_max as usize
    }

    /// Whether responses wait for the client to read them.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed) > 0
    }
}

impl Room {
    /// Waits for room for an answer of at most so many bytes. An answer that could be larger than a whole share gets the
    /// share. A second call has no effect.
    pub(crate) async fn reserve(&mut self, bytes: usize) {
        if bytes <= SMALL_BYTES || self.held.is_some() {
            return;
        }
        let ConnectionBudget { node, units: connection, .. } = &self.budget;
        let count = units(bytes as u64).min(node.connection_units_max).min(node.units_max);
        // The connection's share first: a call that waits for its own connection takes nothing from others.
        let acquired = async {
            let of_connection = connection.clone().acquire_many_owned(count).await.ok()?;
            let of_node = node.units.clone().acquire_many_owned(count).await.ok()?;
            Some([of_connection, of_node])
        };
        if let Some(permits) = timed(Stage::Memory, acquired).await {
            self.held = Some(permits);
        }
    }

    /// Gives back what an answer of so many bytes does not need.
    pub(crate) fn settle(&mut self, bytes: usize) {
        for permit in self.held.iter_mut().flatten() {
            let needed = units(bytes as u64) as usize;
            drop(permit.split(permit.num_permits().saturating_sub(needed)));
        }
    }

    /// Notes that the response waits for the client from now on.
    pub(crate) fn note_unread(&mut self) {
        if !std::mem::replace(&mut self.is_unread, true) {
            self.budget.unread.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_none()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.is_unread {
            self.budget.unread.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The room for a response that is collected in parts; given back when dropped. It is a part of the node's memory alone: other
/// calls of its connection go on meanwhile.
#[derive(Debug)]
pub(crate) struct GrowingRoom {
    budget: ConnectionBudget,
    /// Of those for responses in parts, and of all.
    held: [Option<OwnedSemaphorePermit>; 2],
    is_unread: bool,
}

impl GrowingRoom {
    /// Most bytes of one room: a quarter of the node's memory.
    pub(crate) fn bytes_max(&self) -> usize {
        self.budget.node.units_max as usize * UNIT_BYTES as usize / 4
    }

    /// Waits until there is room for a response of so many bytes.
    pub(crate) async fn grow(&mut self, bytes: usize) {
        let node = &self.budget.node;
        let wanted = units(bytes as u64).min(node.units_max / 2);
        for (held, units) in self.held.iter_mut().zip([&node.growing_units, &node.units]) {
            let count = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = wanted.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
            match (held, units.clone().acquire_many_owned(more).await) {
                (Some(held), Ok(more)) => held.merge(more),
                (held, more) => *held = more.ok(),
            }
        }
    }

    /// Notes that the response waits for the client from now on.
    pub(crate) fn note_unread(&mut self) {
        if !std::mem::replace(&mut self.is_unread, true) {
            self.budget.unread.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for GrowingRoom {
    fn drop(&mut self) {
        if self.is_unread {
            self.budget.unread.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// In units, rounded up.
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, UNITS_MAX)
}

const UNIT_BYTES: u64 = 1 << 10;
/// Two TiB; what a semaphore takes at once.
const UNITS_MAX: u32 = i32::MAX as u32;
/// Answers up to this size need no room: the calls that a connection may have in hand bound them.
const SMALL_BYTES: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn is_ready(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn answer_waits_until_its_connection_has_room() {
        let node = NodeBudget::new(100 << 10, 10 << 10);
        let (one, other) = (node.connection(), node.connection());
        let (mut first, mut second, mut elsewhere) = (one.room(), one.room(), other.room());
        assert!(is_ready(pin!(first.reserve(8 << 10))));
        let mut waiting = pin!(second.reserve(8 << 10));
        assert!(!is_ready(waiting.as_mut()));
        assert!(is_ready(pin!(elsewhere.reserve(8 << 10))), "another connection has its own share");
        first.settle(2 << 10);
        assert!(is_ready(waiting), "what an answer does not need is given back");
    }

    #[test]
    fn all_connections_together_have_the_share_of_the_node() {
        let node = NodeBudget::new(20 << 10, 10 << 10);
        let mut rooms: Vec<Room> = (0..3).map(|_| node.connection().room()).collect();
        let [first, second, third] = &mut rooms[..] else { panic!() };
        assert!(is_ready(pin!(first.reserve(10 << 10))) && is_ready(pin!(second.reserve(10 << 10))));
        let mut waiting = pin!(third.reserve(10 << 10));
        assert!(!is_ready(waiting.as_mut()));
        first.held = None;
        assert!(is_ready(waiting));
    }

    #[test]
    fn answer_larger_than_a_share_gets_the_share() {
        let mut room = NodeBudget::new(20 << 10, 10 << 10).connection().room();
        assert!(is_ready(pin!(room.reserve(usize::MAX))));
        let mut small = NodeBudget::new(1, 1).connection().room();
        assert!(is_ready(pin!(small.reserve(5 << 20))));
    }
}
