//! Where a watch continues within a revision with very many changes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;

use super::WatchRequest;
use crate::{changes::Position, store::Generation};

/// The part of the next revision of a watch that was delivered.
#[derive(Clone, Debug, Default)]
pub(super) struct Within {
    /// Number of events.
    pub(super) events: u64,
    place: Option<Place>,
}

/// A position, valid in one generation only.
#[derive(Clone, Debug)]
struct Place {
    generation: Weak<Generation>,
    position: Position,
}

impl Place {
    fn position_in(&self, generation: &Arc<Generation>) -> Option<&Position> {
        std::ptr::eq(self.generation.as_ptr(), Arc::as_ptr(generation)).then_some(&self.position)
    }
}

impl Within {
    pub(super) fn at(events: u64, generation: &Arc<Generation>, position: Position) -> Self {
        Self { events, place: Some(Place { generation: Arc::downgrade(generation), position }) }
    }

    /// Where to read on; `None` if the events are to be counted from the start of the revision.
    pub(super) fn position(&self, generation: &Arc<Generation>) -> Option<&Position> {
        self.place.as_ref().and_then(|place| place.position_in(generation))
    }
}

/// Places at which watches stopped lately. A client that starts a new watch for each part of a revision, as a long poll does,
/// continues there instead of counting all events again.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<VecDeque<(WatchRequest, Place)>>);

impl Places {
    /// Adds a place.
    pub(super) fn remember(&self, request: &WatchRequest, revision: u64, within: &Within) {
        let size = request.keys.key.len() + request.keys.range_end.as_ref().map_or(0, Bytes::len);
        let Some(place) = within.place.clone().filter(|_| size <= KEY_BYTES_MAX) else { return };
        let key = key(request, revision, within.events);
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|(of, _)| *of != key);
        if places.len() >= PLACES_MAX {
            places.pop_front();
        }
        places.push_back((key, place));
    }

    /// Where a new watch starts.
    pub(super) fn find(&self, request: &WatchRequest) -> Within {
        if request.start_event == 0 || request.start_revision == 0 {
            return Within::default();
        }
        let wanted = key(request, request.start_revision, request.start_event);
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.iter().rev().find(|(of, _)| *of == wanted).map(|(_, place)| place.clone());
        Within { events: request.start_event, place }
    }
}

/// The request of a watch that has received the same events, whether or not with previous pairs.
fn key(request: &WatchRequest, start_revision: u64, start_event: u64) -> WatchRequest {
    WatchRequest { start_revision, start_event, previous: false, ..request.clone() }
}

const PLACES_MAX: usize = 64;
/// Places of watches with longer keys are not remembered.
const KEY_BYTES_MAX: usize = 4 << 10;
