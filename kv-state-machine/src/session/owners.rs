//! Sessions by the users that opened them: which one is removed when there are too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Name of the user that opened a session while authentication was enabled; `None` for all other sessions together.
type Owner = Option<Arc<str>>;

/// Sessions of each owner. Deterministic.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Owner and log index of the last use, by session.
    sessions: BTreeMap<u64, (Owner, u64)>,
    /// Log index of the last use and id of the sessions of each owner, so that the first is idle for longest.
    by_owner: BTreeMap<Owner, BTreeSet<(u64, u64)>>,
    /// Number of sessions of each owner, and the owner.
    by_count: BTreeSet<(usize, Owner)>,
}

impl Owners {
    /// Adds a session that was used last at log index `index`.
    pub(super) fn insert(&mut self, id: u64, owner: Option<&str>, index: u64) {
        self.remove(id);
        let owner: Owner = owner.map(Arc::from);
        self.sessions.insert(id, (owner.clone(), index));
        self.change(owner, |sessions| {
            sessions.insert((index, id));
        });
    }

    pub(super) fn remove(&mut self, id: u64) {
        let Some((owner, index)) = self.sessions.remove(&id) else { return };
        self.change(owner, |sessions| {
            sessions.remove(&(index, id));
        });
    }

    /// Notes that a session was used at log index `index`.
    pub(super) fn touch(&mut self, id: u64, index: u64) {
        let Some((owner, last)) = self.sessions.get_mut(&id) else { return };
        if let Some(sessions) = self.by_owner.get_mut(owner) {
            sessions.remove(&(*last, id));
            sessions.insert((index, id));
        }
        *last = index;
    }

    /// Name of the user that opened a session while authentication was enabled.
    pub(super) fn get(&self, id: u64) -> Option<&str> {
        self.sessions.get(&id)?.0.as_deref()
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// The session to be removed when `owner` opens another one: of the sessions of the owner that has most, the one that is idle for
    /// longest. So nobody can remove the sessions of others by opening many.
    pub(super) fn first_to_remove(&self, owner: Option<&str>) -> Option<u64> {
        let (most, other) = self.by_count.last()?;
        let own = self.by_owner.get(&owner.map(Arc::from));
        let sessions = own.filter(|own| own.len() == *most).or_else(|| self.by_owner.get(other))?;
        sessions.first().map(|(_, id)| *id)
    }

    fn change(&mut self, owner: Owner, change: impl FnOnce(&mut BTreeSet<(u64, u64)>)) {
        let sessions = self.by_owner.entry(owner.clone()).or_default();
        let before = sessions.len();
        change(sessions);
        let after = sessions.len();
        if after == 0 {
            self.by_owner.remove(&owner);
        }
        self.by_count.remove(&(before, owner.clone()));
        if after > 0 {
            self.by_count.insert((after, owner));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens sessions one after the other with room for `max`. Returns those that were removed.
    fn open(owners: &mut Owners, ids: std::ops::Range<u64>, owner: Option<&str>, max: usize) -> Vec<u64> {
        let mut removed = Vec::new();
        for id in ids {
            while owners.len() >= max {
                let idle = owners.first_to_remove(owner).unwrap();
                owners.remove(idle);
                removed.push(idle);
            }
            owners.insert(id, owner, id);
        }
        removed
    }

    #[test]
    fn user_that_opens_sessions_in_a_loop_removes_its_own() {
        let mut owners = Owners::default();
        assert_eq!(open(&mut owners, 0..5, Some("ann"), 10), []);
        let removed = open(&mut owners, 10..40, Some("bob"), 10);
        assert!(removed.iter().all(|id| *id >= 10), "{removed:?}");
        assert_eq!(owners.by_owner[&Some("ann".into())].len(), 5);
        // Another user gets places of the one that has most.
        let removed = open(&mut owners, 50..53, Some("eve"), 10);
        assert_eq!(removed.len(), 3);
        assert_eq!(owners.by_count.iter().map(|(count, _)| *count).collect::<Vec<_>>(), [3, 3, 4]);
    }

    #[test]
    fn session_that_is_idle_for_longest_is_the_first_to_be_removed() {
        let mut owners = Owners::default();
        open(&mut owners, 0..3, None, 3);
        owners.touch(0, 7);
        assert_eq!(open(&mut owners, 8..10, None, 3), [1, 2]);
        assert_eq!(owners.get(0), None);
        assert_eq!(owners.len(), 3);
        for id in [0, 8, 9] {
            owners.remove(id);
        }
        assert!(owners.by_owner.is_empty() && owners.by_count.is_empty());
        assert_eq!(owners.first_to_remove(None), None);
    }
}
