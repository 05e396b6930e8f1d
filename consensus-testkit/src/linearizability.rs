//! Checks whether the results that clients got could have come from a single copy of the data (linearizability, Herlihy &
//! Wing 1990).
//!
//! The search is that of Wing & Gong (1993) with Lowe's cache of visited states (2017). It orders the operations one by one;
//! each comes after all operations that had ended when it began. An order that contradicts the [`Model`] is abandoned.
//!
//! ```
//! use consensus_testkit::linearizability::{CheckResult, Operation, Register, check};
//!
//! // A write that was acknowledged, and a read that began afterwards and did not return its value.
//! let write = Operation { client: 1, call: Register::Write(7), began: 1, ended: Some((2, None)) };
//! let read = Operation { client: 2, call: Register::Read, began: 3, ended: Some((4, Some(0))) };
//! assert!(matches!(check(&Register::Read, &[write, read], 1_000), CheckResult::Violation { .. }));
//! ```

use std::{collections::HashSet, fmt, hash::Hash};

/// Behaviour of a single copy of the data.
pub trait Model {
    /// State of the data.
    type State: Clone + Eq + Hash;
    /// Request of a client.
    type Call;
    /// Result of a request.
    type Response;

    /// Returns the initial state.
    fn initial(&self) -> Self::State;

    /// Returns the state after `call`, or `None` if `response` cannot be its response in `state`. `response` is `None` if
    /// the client never received one; every response is possible then.
    fn apply(
        &self,
        state: &Self::State,
        call: &Self::Call,
        response: Option<&Self::Response>,
    ) -> Option<Self::State>;
}

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<C, A> {
    /// Number of the client; printed with a violation.
    pub client: u64,
    /// Request.
    pub call: C,
    /// Start of the operation, in any unit that all operations share.
    pub began: u64,
    /// End of the operation and its response. `None` if there was no response: the operation may have taken effect at any
    /// time since its start, or never. An operation that ends at the time at which another one begins counts as concurrent
    /// with it.
    pub ended: Option<(u64, A)>,
}

/// Result of [`check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// Some order explains all responses.
    Linearizable,
    /// No order explains all responses.
    Violation {
        /// Positions in the history of the operations in the longest order found.
        explained: Vec<usize>,
        /// Position of an operation that had ended but cannot follow that order.
        stuck: usize,
    },
    /// The search reached its limit of steps. A history with many concurrent operations, or many operations without a
    /// response, can need more steps than there is time for.
    Undecided,
}

/// Checks a history with at most `steps` steps, each of which tries to append one operation to the order.
///
/// If each operation concerns one key, check each key separately: linearizability is a local property, and the cost grows
/// steeply with the number of concurrent operations.
pub fn check<M: Model>(model: &M, history: &[Operation<M::Call, M::Response>], steps: u64) -> CheckResult {
    Search::new(model, history).run(steps)
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Call, M::Response>],
    /// Calls and returns, ordered by time.
    moments: Vec<Moment>,
    /// Doubly linked list of the remaining moments; the last element is its head.
    next: Vec<usize>,
    previous: Vec<usize>,
    return_of: Vec<Option<usize>>,
    placed: Vec<u64>,
    /// Ordered operations, each with the state before it.
    order: Vec<(usize, M::State)>,
    seen: HashSet<(Vec<u64>, M::State)>,
    best: Option<(Vec<usize>, usize)>,
}

#[derive(Clone, Copy)]
enum Moment {
    Call(usize),
    Return(usize),
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, history: &'a [Operation<M::Call, M::Response>]) -> Self {
        let mut timed = Vec::with_capacity(2 * history.len());
        for (at, operation) in history.iter().enumerate() {
            timed.push((operation.began, 0, Moment::Call(at)));
            if let Some((ended, _)) = &operation.ended {
                timed.push((*ended, 1, Moment::Return(at)));
            }
        }
        timed.sort_by_key(|(time, returns, _)| (*time, *returns));
        let moments: Vec<Moment> = timed.into_iter().map(|(.., moment)| moment).collect();
        let head = moments.len();
        let mut return_of = vec![None; history.len()];
        for (at, moment) in moments.iter().enumerate() {
            if let Moment::Return(operation) = moment {
                return_of[*operation] = Some(at);
            }
        }
        Self {
            model,
            history,
            next: (0..=head).map(|at| if at == head { 0 } else { at + 1 }).collect(),
            previous: (0..=head).map(|at| if at == 0 { head } else { at - 1 }).collect(),
            moments,
            return_of,
            placed: vec![0; history.len().div_ceil(64)],
            order: Vec::new(),
            seen: HashSet::new(),
            best: None,
        }
    }

    fn run(mut self, steps: u64) -> CheckResult {
        let head = self.moments.len();
        let mut state = self.model.initial();
        let mut open_returns = self.return_of.iter().flatten().count();
        let mut at = self.next[head];
        for _ in 0..steps {
            if open_returns == 0 {
                return CheckResult::Linearizable;
            }
            match self.moments.get(at) {
                Some(Moment::Call(operation)) => {
                    let (operation, call_at) = (*operation, at);
                    at = self.next[at];
                    let Some(after) = self.place(operation, &state) else { continue };
                    self.order.push((call_at, std::mem::replace(&mut state, after)));
                    self.unlink(call_at);
                    if let Some(return_at) = self.return_of[operation] {
                        self.unlink(return_at);
                        open_returns -= 1;
                    }
                    at = self.next[head];
                }
                // An operation ended before any remaining one could begin, or only operations without a response remain.
                moment => {
                    if let Some(Moment::Return(operation)) = moment {
                        self.record_stuck(*operation);
                    }
                    let Some((call_at, before)) = self.order.pop() else {
                        let (explained, stuck) = self.best.unwrap_or_default();
                        return CheckResult::Violation { explained, stuck };
                    };
                    state = before;
                    let operation = self.operation_at(call_at);
                    self.placed[operation / 64] &= !(1 << (operation % 64));
                    if let Some(return_at) = self.return_of[operation] {
                        self.reinsert(return_at);
                        open_returns += 1;
                    }
                    self.reinsert(call_at);
                    at = self.next[call_at];
                }
            }
        }
        if open_returns == 0 { CheckResult::Linearizable } else { CheckResult::Undecided }
    }

    /// Appends an operation to the order, if the model allows it and the resulting state was not visited before.
    fn place(&mut self, operation: usize, state: &M::State) -> Option<M::State> {
        let Operation { call, ended, .. } = &self.history[operation];
        let after = self.model.apply(state, call, ended.as_ref().map(|(_, response)| response))?;
        self.placed[operation / 64] |= 1 << (operation % 64);
        if self.seen.insert((self.placed.clone(), after.clone())) {
            return Some(after);
        }
        self.placed[operation / 64] &= !(1 << (operation % 64));
        None
    }

    fn operation_at(&self, at: usize) -> usize {
        match self.moments[at] {
            Moment::Call(operation) | Moment::Return(operation) => operation,
        }
    }

    /// Records the longest order so far.
    fn record_stuck(&mut self, stuck: usize) {
        if self.best.as_ref().is_none_or(|(explained, _)| explained.len() < self.order.len()) {
            let explained = self.order.iter().map(|(at, _)| self.operation_at(*at)).collect();
            self.best = Some((explained, stuck));
        }
    }

    fn unlink(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn reinsert(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }
}

/// Model of one value that is read, written, and compared and set; and its requests. The initial value is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Returns the value.
    Read,
    /// Sets the value. Returns `None`.
    Write(u64),
    /// Sets the second value if the current one is the first. Returns the value before.
    CompareAndSet(u64, u64),
}

impl Model for Register {
    type State = u64;
    type Call = Self;
    type Response = Option<u64>;

    fn initial(&self) -> u64 {
        0
    }

    fn apply(&self, state: &u64, call: &Self, response: Option<&Option<u64>>) -> Option<u64> {
        let (after, expected) = match call {
            Self::Read => (*state, Some(*state)),
            Self::Write(value) => (*value, None),
            Self::CompareAndSet(from, to) => (if state == from { *to } else { *state }, Some(*state)),
        };
        response.is_none_or(|response| *response == expected).then_some(after)
    }
}

/// Describes a violation for a reader: the last operations of the longest order, and the one that cannot follow.
pub fn explain<C: fmt::Debug, A: fmt::Debug>(history: &[Operation<C, A>], result: &CheckResult) -> String {
    let CheckResult::Violation { explained, stuck } = result else { return format!("{result:?}") };
    let line = |at: usize| {
        let Operation { client, call, began, ended } = &history[at];
        match ended {
            Some((ended, response)) => {
                format!("  client {client} {call:?} at {began} -> {response:?} at {ended}\n")
            }
            None => format!("  client {client} {call:?} at {began} -> no response\n"),
        }
    };
    let from = explained.len().saturating_sub(SHOWN);
    let mut text = format!(
        "no order explains the history; {} operations can be ordered, ending with\n",
        explained.len()
    );
    text.extend(explained[from..].iter().map(|at| line(*at)));
    text + "after which this operation had to follow:\n" + &line(*stuck)
}

/// Maximum number of operations that [`explain`] lists.
const SHOWN: usize = 12;

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    type Op = Operation<Register, Option<u64>>;

    fn op(client: u64, call: Register, began: u64, ended: Option<(u64, Option<u64>)>) -> Op {
        Operation { client, call, began, ended }
    }

    fn result(history: &[Op]) -> CheckResult {
        check(&Register::Read, history, 1_000_000)
    }

    #[test]
    fn a_read_beside_a_write_may_see_either() {
        for seen in [0, 7] {
            let write = op(1, Register::Write(7), 1, Some((10, None)));
            assert_eq!(
                result(&[write, op(2, Register::Read, 2, Some((3, Some(seen))))]),
                CheckResult::Linearizable
            );
        }
    }

    #[test]
    fn what_was_seen_stays_seen() {
        let write = op(1, Register::Write(7), 1, Some((10, None)));
        let first = op(2, Register::Read, 2, Some((3, Some(7))));
        let second = op(3, Register::Read, 4, Some((5, Some(0))));
        let history = [write, first, second];
        let found = result(&history);
        assert!(matches!(found, CheckResult::Violation { stuck: 2, .. }), "{found:?}");
        assert!(explain(&history, &found).ends_with("client 3 Read at 4 -> Some(0) at 5\n"));
    }

    #[test]
    fn what_was_not_answered_may_come_late_or_never() {
        let write = op(1, Register::Write(7), 1, None);
        let read = |began, seen| op(2, Register::Read, began, Some((began + 1, Some(seen))));
        assert_eq!(result(&[write.clone(), read(5, 0), read(90, 7)]), CheckResult::Linearizable);
        assert_eq!(result(&[write.clone(), read(5, 0), read(90, 0)]), CheckResult::Linearizable);
        assert!(matches!(result(&[write, read(5, 7), read(90, 0)]), CheckResult::Violation { .. }));
    }

    #[test]
    fn a_search_that_is_too_long_is_given_up() {
        let writes: Vec<Op> = (0..9).map(|n| op(n, Register::Write(n), 0, Some((9, None)))).collect();
        assert_eq!(check(&Register::Read, &writes, 3), CheckResult::Undecided);
    }

    /// Tries every order.
    fn brute_force(history: &[Op], placed: &mut Vec<usize>, state: u64) -> bool {
        if (0..history.len()).all(|at| placed.contains(&at) || history[at].ended.is_none()) {
            return true;
        }
        (0..history.len()).any(|at| {
            let free = |before: &usize| {
                let ended = history[*before].ended.as_ref().map(|(ended, _)| *ended);
                placed.contains(before) || ended.is_none_or(|ended| ended >= history[at].began)
            };
            if placed.contains(&at) || !(0..history.len()).all(|before| free(&before)) {
                return false;
            }
            let response = history[at].ended.as_ref().map(|(_, response)| response);
            let Some(after) = Register::Read.apply(&state, &history[at].call, response) else { return false };
            placed.push(at);
            let found = brute_force(history, placed, after);
            placed.pop();
            found
        })
    }

    #[test]
    fn it_agrees_with_brute_force() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut violations = 0;
        for _ in 0..3_000 {
            let history: Vec<Op> = (0..random.random_range(1..7))
                .map(|client| {
                    let began = random.random_range(0..12);
                    let (call, response) = match random.random_range(0..4) {
                        0 => (Register::Write(random.random_range(1..3)), None),
                        1 => (
                            Register::CompareAndSet(random.random_range(0..3), 2),
                            Some(random.random_range(0..3)),
                        ),
                        _ => (Register::Read, Some(random.random_range(0..3))),
                    };
                    let ended =
                        random.random_bool(0.8).then(|| (began + random.random_range(1..8), response));
                    op(client, call, began, ended)
                })
                .collect();
            let expected = brute_force(&history, &mut Vec::new(), 0);
            assert_eq!(result(&history) == CheckResult::Linearizable, expected, "{history:#?}");
            violations += u64::from(!expected);
        }
        assert!((500..2_500).contains(&violations), "both outcomes are tried: {violations}");
    }
}
