//! Failures at each server, for the error of a call to which no server responded.

use std::{fmt, time::Duration};

use consensus_core::Endpoint;

/// Reason that one server did not execute a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) server: Endpoint,
    pub(super) told: Told,
    pub(super) why: String,
}

/// Amount of information that a failure has about the cluster. A greater value has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    /// The endpoint refuses connections.
    Refused,
    /// The server does not respond, or the network to it does not work.
    Nothing,
    /// The server itself gave the reason.
    Word,
}

impl Failure {
    /// Failure for which the server gave the reason.
    pub(super) fn said(server: Endpoint, why: String) -> Self {
        Self { server, told: Told::Word, why }
    }

    /// Failure of a server that did not respond for the time `waited`.
    pub(super) fn late(server: Endpoint, waited: Duration) -> Self {
        let why =
            format!("no answer in time ({:.1} s): it hangs, is paused, or is cut off", waited.as_secs_f64());
        Self { server, told: Told::Nothing, why }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.server, self.why)
    }
}

/// Last failure of each server that was tried, ordered by the servers' first failures.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<Failure>);

impl Failures {
    pub(super) fn note(&mut self, failure: Failure) {
        match self.0.iter_mut().find(|known| known.server == failure.server) {
            Some(known) => *known = failure,
            None => self.0.push(failure),
        }
    }

    /// Records that the time limit of the call ended before the server responded. An earlier failure of the
    /// server stays, because it has more information.
    pub(super) fn note_end_of_time(&mut self, failure: Failure) {
        if self.0.iter().all(|known| known.server != failure.server) {
            self.0.push(failure);
        }
    }

    /// Returns whether each of these servers was tried.
    pub(super) fn include_all(&self, servers: &[Endpoint]) -> bool {
        servers.iter().all(|server| self.0.iter().any(|known| known.server == *server))
    }

    /// Returns whether each of these servers was tried and refused the last connection.
    pub(super) fn all_refuse(&self, servers: &[Endpoint]) -> bool {
        let refuses = |server: &Endpoint| {
            self.0.iter().any(|known| known.server == *server && known.told == Told::Refused)
        };
        servers.iter().all(refuses)
    }
}

/// Lists the failure with the most information first. Servers with the same failure are listed together.
impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut known: Vec<&Failure> = self.0.iter().collect();
        known.sort_by_key(|failure| std::cmp::Reverse(failure.told));
        let mut groups: Vec<(&str, Vec<String>)> = Vec::new();
        for failure in known {
            match groups.iter_mut().find(|(why, _)| *why == failure.why) {
                Some((_, servers)) => servers.push(failure.server.to_string()),
                None => groups.push((&failure.why, vec![failure.server.to_string()])),
            }
        }
        let text: Vec<String> = groups
            .iter()
            .take(GROUPS_MAX)
            .map(|(why, servers)| format!("{}: {why}", servers.join(", ")))
            .collect();
        f.write_str(&text.join("; "))
    }
}

/// Maximum number of different failures in one error.
const GROUPS_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Endpoint {
        Endpoint::new("h", port).unwrap()
    }

    fn failure(port: u16, told: Told, why: &str) -> Failure {
        Failure { server: at(port), told, why: why.to_owned() }
    }

    #[test]
    fn most_telling_failure_comes_first() {
        let mut failures = Failures::default();
        failures.note(failure(1, Told::Refused, "refused"));
        failures.note(failure(2, Told::Word, "there is no leader"));
        failures.note(failure(3, Told::Nothing, "no answer"));
        failures.note(failure(4, Told::Refused, "refused"));
        assert_eq!(failures.to_string(), "h:2: there is no leader; h:3: no answer; h:1, h:4: refused");
    }

    #[test]
    fn end_of_time_does_not_hide_the_word_of_a_server() {
        let mut failures = Failures::default();
        failures.note(failure(1, Told::Word, "there is no leader"));
        failures.note_end_of_time(failure(1, Told::Nothing, "no answer in time"));
        failures.note_end_of_time(failure(2, Told::Nothing, "no answer in time"));
        assert_eq!(failures.to_string(), "h:1: there is no leader; h:2: no answer in time");
    }

    #[test]
    fn last_failure_of_a_server_counts() {
        let mut failures = Failures::default();
        failures.note(failure(1, Told::Word, "there is no leader"));
        assert!(!failures.all_refuse(&[at(1)]));
        failures.note(failure(1, Told::Refused, "refused"));
        assert_eq!(failures.to_string(), "h:1: refused");
        assert!(failures.all_refuse(&[at(1)]) && !failures.all_refuse(&[at(1), at(2)]));
    }
}
