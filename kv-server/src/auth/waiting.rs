//! Logins that wait for their turn: a bounded number, of which no address and no user has all.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Where a client connects from: an address of IPv4, or the network of an address of IPv6, of which a host has as many
/// addresses as it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Counts the logins that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of_origins: HashMap<Origin, usize>,
    /// By hash: names are as long as clients want.
    of_users: HashMap<u64, usize>,
    hasher: RandomState,
}

/// Place of a login that waits; it is given up when it is dropped.
pub(super) struct Place {
    waiting: Waiting,
    origin: Origin,
    user: Option<u64>,
}

impl Waiting {
    /// Takes a place for a login of a user, or for a password that is to be hashed; `None` if too many wait: in all, from this
    /// origin, or for this user.
    pub(super) fn enter(&self, origin: Origin, user: Option<&str>) -> Option<Place> {
        let mut counts = self.lock();
        let user = user.map(|user| counts.hasher.hash_one(user));
        let of_origin = counts.of_origins.get(&origin).copied().unwrap_or(0);
        let of_user = user.and_then(|user| counts.of_users.get(&user).copied()).unwrap_or(0);
        if counts.all >= WAITING_MAX || of_origin >= OF_ORIGIN_MAX || of_user >= OF_USER_MAX {
            return None;
        }
        counts.all += 1;
        counts.of_origins.insert(origin, of_origin + 1);
        if let Some(user) = user {
            counts.of_users.insert(user, of_user + 1);
        }
        Some(Place { waiting: self.clone(), origin, user })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.waiting.lock();
        counts.all -= 1;
        remove_one(&mut counts.of_origins, &self.origin);
        if let Some(user) = &self.user {
            remove_one(&mut counts.of_users, user);
        }
    }
}

/// Removes the entry of a key that has none left, so that the map is never larger than the number of places.
fn remove_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Logins that wait for their turn.
const WAITING_MAX: usize = 256;
/// Logins from one origin that wait. A burst of all clients of a host fits, and three more hosts have places.
const OF_ORIGIN_MAX: usize = 64;
/// Logins as one user that wait. Twice that of an origin: one address alone locks no user out.
const OF_USER_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        address.parse::<IpAddr>().unwrap().into()
    }

    fn fill(waiting: &Waiting, origin: Origin, user: Option<&str>) -> Vec<Place> {
        std::iter::from_fn(|| waiting.enter(origin, user)).collect()
    }

    #[test]
    fn flood_from_one_address_leaves_places_for_others() {
        let waiting = Waiting::default();
        let flood = fill(&waiting, origin("10.0.0.1"), Some("root"));
        assert_eq!(flood.len(), OF_ORIGIN_MAX);
        assert!(waiting.enter(origin("10.0.0.1"), Some("ann")).is_none());
        assert!(waiting.enter(origin("10.0.0.2"), Some("root")).is_some());
        drop(flood);
        assert!(waiting.enter(origin("10.0.0.1"), Some("root")).is_some());
    }

    #[test]
    fn flood_for_one_user_from_many_addresses_leaves_places_for_other_users() {
        let waiting = Waiting::default();
        let flood: Vec<_> = (0..10)
            .flat_map(|host| fill(&waiting, origin(&format!("10.0.0.{host}")), Some("root")))
            .collect();
        assert_eq!(flood.len(), OF_USER_MAX);
        assert!(waiting.enter(origin("10.0.0.9"), Some("root")).is_none());
        assert!(waiting.enter(origin("10.0.0.9"), Some("ann")).is_some());
    }

    #[test]
    fn all_together_are_bounded_and_nothing_is_kept_of_those_that_have_gone() {
        let waiting = Waiting::default();
        let flood: Vec<_> =
            (0..9).flat_map(|host| fill(&waiting, origin(&format!("10.0.0.{host}")), None)).collect();
        assert_eq!(flood.len(), WAITING_MAX);
        drop(flood);
        drop(waiting.enter(origin("::1"), Some("ann")));
        let counts = waiting.lock();
        assert_eq!((counts.all, counts.of_origins.len(), counts.of_users.len()), (0, 0, 0));
    }

    #[test]
    fn addresses_of_a_network_of_ipv6_are_one_origin() {
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::2:3:4:5"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), origin("10.0.0.1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
    }
}
