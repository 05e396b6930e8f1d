//! Whether what clients saw could have come from one copy of the data (linearizability, Herlihy & Wing 1990).
//!
//! The search is that of Wing & Gong (1993) with Lowe's memory of what was seen (2017): operations are put in an order,
//! one after another, each after all that had ended when it began; an order that the [`Model`] contradicts is given up.
//!
//! ```
//! use consensus_testkit::linearizability::{Operation, Register, Verdict, check};
//!
//! // A write that was acknowledged, and a read that began afterwards and did not see it.
//! let write = Operation { client: 1, call: Register::Write(7), began: 1, ended: Some((2, None)) };
//! let read = Operation { client: 2, call: Register::Read, began: 3, ended: Some((4, Some(0))) };
//! assert!(matches!(check(&Register::Read, &[write, read], 1_000), Verdict::Violation { .. }));
//! ```

use std::{collections::HashSet, fmt, hash::Hash};

/// What one copy of the data does.
pub trait Model {
    /// The data.
    type State: Clone + Eq + Hash;
    /// What a client asks.
    type Call;
    /// What it is told.
    type Answer;

    /// The data in the beginning.
    fn initial(&self) -> Self::State;

    /// The data after `call`, or `None` if `answer` cannot be its answer there. `answer` is `None` where the client never
    /// learned it: any would do.
    fn apply(
        &self,
        state: &Self::State,
        call: &Self::Call,
        answer: Option<&Self::Answer>,
    ) -> Option<Self::State>;
}

/// One client's operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<C, A> {
    /// Who; shown in a violation.
    pub client: u64,
    /// What it asked.
    pub call: C,
    /// When, in any unit that is the same for all.
    pub began: u64,
    /// When it was answered, and what; `None` if it never was: it may have taken effect at any time since, or not at all.
    /// What ends at the moment at which something else begins counts as beside it.
    pub ended: Option<(u64, A)>,
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Violation {
        /// Operations, by position in the history, in the order that explained most of them.
        explained: Vec<usize>,
        /// The operation at which that order ended: it was over, and fits nowhere.
        stuck: usize,
    },
    /// The search was given up. A history with many operations beside each other, or without an answer, can need more
    /// steps than there is time for.
    Undecided,
}

/// Checks a history, in at most `steps` attempts to put an operation in its place.
///
/// Check each key by itself where operations concern one key: linearizability is a local property, and the search grows
/// steeply with what goes on at the same time.
pub fn check<M: Model>(model: &M, history: &[Operation<M::Call, M::Answer>], steps: u64) -> Verdict {
    Search::new(model, history).run(steps)
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Call, M::Answer>],
    /// Calls and returns in order of time.
    moments: Vec<Moment>,
    /// The moments that are left, as a doubly linked list; the last place is its head.
    next: Vec<usize>,
    previous: Vec<usize>,
    return_of: Vec<Option<usize>>,
    placed: Vec<u64>,
    /// What was placed, in order, with the state before.
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
    fn new(model: &'a M, history: &'a [Operation<M::Call, M::Answer>]) -> Self {
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

    fn run(mut self, steps: u64) -> Verdict {
        let head = self.moments.len();
        let mut state = self.model.initial();
        let mut unanswered = self.return_of.iter().flatten().count();
        let mut at = self.next[head];
        for _ in 0..steps {
            if unanswered == 0 {
                return Verdict::Linearizable;
            }
            match self.moments.get(at) {
                Some(Moment::Call(operation)) => {
                    let (operation, call_at) = (*operation, at);
                    at = self.next[at];
                    let Some(after) = self.place(operation, &state) else { continue };
                    self.order.push((call_at, std::mem::replace(&mut state, after)));
                    self.lift(call_at);
                    if let Some(return_at) = self.return_of[operation] {
                        self.lift(return_at);
                        unanswered -= 1;
                    }
                    at = self.next[head];
                }
                // Something was over before all that is left could begin, or nothing is left but what never ended.
                moment => {
                    if let Some(Moment::Return(operation)) = moment {
                        self.note(*operation);
                    }
                    let Some((call_at, before)) = self.order.pop() else {
                        let (explained, stuck) = self.best.unwrap_or_default();
                        return Verdict::Violation { explained, stuck };
                    };
                    state = before;
                    let operation = self.operation_at(call_at);
                    self.placed[operation / 64] &= !(1 << (operation % 64));
                    if let Some(return_at) = self.return_of[operation] {
                        self.unlift(return_at);
                        unanswered += 1;
                    }
                    self.unlift(call_at);
                    at = self.next[call_at];
                }
            }
        }
        if unanswered == 0 { Verdict::Linearizable } else { Verdict::Undecided }
    }

    /// Puts an operation next, if the model allows it and it leads to somewhere new.
    fn place(&mut self, operation: usize, state: &M::State) -> Option<M::State> {
        let Operation { call, ended, .. } = &self.history[operation];
        let after = self.model.apply(state, call, ended.as_ref().map(|(_, answer)| answer))?;
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

    /// Remembers the order that explained most.
    fn note(&mut self, stuck: usize) {
        if self.best.as_ref().is_none_or(|(explained, _)| explained.len() < self.order.len()) {
            let explained = self.order.iter().map(|(at, _)| self.operation_at(*at)).collect();
            self.best = Some((explained, stuck));
        }
    }

    fn lift(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn unlift(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }
}

/// One value that is written, read, and compared and set: the model of one key, and its calls. It begins as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Answered with the value.
    Read,
    /// Answered with `None`.
    Write(u64),
    /// Sets the second if the value is the first; answered with the value before.
    CompareAndSet(u64, u64),
}

impl Model for Register {
    type State = u64;
    type Call = Self;
    type Answer = Option<u64>;

    fn initial(&self) -> u64 {
        0
    }

    fn apply(&self, state: &u64, call: &Self, answer: Option<&Option<u64>>) -> Option<u64> {
        let (after, says) = match call {
            Self::Read => (*state, Some(*state)),
            Self::Write(value) => (*value, None),
            Self::CompareAndSet(from, to) => (if state == from { *to } else { *state }, Some(*state)),
        };
        answer.is_none_or(|answer| *answer == says).then_some(after)
    }
}

/// A violation as people read it: the operations that were explained last, and the one that fits nowhere.
pub fn explain<C: fmt::Debug, A: fmt::Debug>(history: &[Operation<C, A>], verdict: &Verdict) -> String {
    let Verdict::Violation { explained, stuck } = verdict else { return format!("{verdict:?}") };
    let line = |at: usize| {
        let Operation { client, call, began, ended } = &history[at];
        match ended {
            Some((ended, answer)) => {
                format!("  client {client} {call:?} at {began} -> {answer:?} at {ended}\n")
            }
            None => format!("  client {client} {call:?} at {began} -> no answer\n"),
        }
    };
    let from = explained.len().saturating_sub(SHOWN);
    let mut text = format!(
        "no order explains the history; {} operations can be ordered, ending with\n",
        explained.len()
    );
    text.extend(explained[from..].iter().map(|at| line(*at)));
    text + "after which this had to come:\n" + &line(*stuck)
}

/// Operations shown of a violation.
const SHOWN: usize = 12;

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    type Op = Operation<Register, Option<u64>>;

    fn op(client: u64, call: Register, began: u64, ended: Option<(u64, Option<u64>)>) -> Op {
        Operation { client, call, began, ended }
    }

    fn verdict(history: &[Op]) -> Verdict {
        check(&Register::Read, history, 1_000_000)
    }

    #[test]
    fn a_read_beside_a_write_may_see_either() {
        for seen in [0, 7] {
            let write = op(1, Register::Write(7), 1, Some((10, None)));
            assert_eq!(
                verdict(&[write, op(2, Register::Read, 2, Some((3, Some(seen))))]),
                Verdict::Linearizable
            );
        }
    }

    #[test]
    fn what_was_seen_stays_seen() {
        let write = op(1, Register::Write(7), 1, Some((10, None)));
        let first = op(2, Register::Read, 2, Some((3, Some(7))));
        let second = op(3, Register::Read, 4, Some((5, Some(0))));
        let history = [write, first, second];
        let found = verdict(&history);
        assert!(matches!(found, Verdict::Violation { stuck: 2, .. }), "{found:?}");
        assert!(explain(&history, &found).ends_with("client 3 Read at 4 -> Some(0) at 5\n"));
    }

    #[test]
    fn what_was_not_answered_may_come_late_or_never() {
        let write = op(1, Register::Write(7), 1, None);
        let read = |began, seen| op(2, Register::Read, began, Some((began + 1, Some(seen))));
        assert_eq!(verdict(&[write.clone(), read(5, 0), read(90, 7)]), Verdict::Linearizable);
        assert_eq!(verdict(&[write.clone(), read(5, 0), read(90, 0)]), Verdict::Linearizable);
        assert!(matches!(verdict(&[write, read(5, 7), read(90, 0)]), Verdict::Violation { .. }));
    }

    #[test]
    fn a_search_that_is_too_long_is_given_up() {
        let writes: Vec<Op> = (0..9).map(|n| op(n, Register::Write(n), 0, Some((9, None)))).collect();
        assert_eq!(check(&Register::Read, &writes, 3), Verdict::Undecided);
    }

    /// Every order, tried.
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
            let answer = history[at].ended.as_ref().map(|(_, answer)| answer);
            let Some(after) = Register::Read.apply(&state, &history[at].call, answer) else { return false };
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
                    let (call, answer) = match random.random_range(0..4) {
                        0 => (Register::Write(random.random_range(1..3)), None),
                        1 => (
                            Register::CompareAndSet(random.random_range(0..3), 2),
                            Some(random.random_range(0..3)),
                        ),
                        _ => (Register::Read, Some(random.random_range(0..3))),
                    };
                    let ended = random.random_bool(0.8).then(|| (began + random.random_range(1..8), answer));
                    op(client, call, began, ended)
                })
                .collect();
            let expected = brute_force(&history, &mut Vec::new(), 0);
            assert_eq!(verdict(&history) == Verdict::Linearizable, expected, "{history:#?}");
            violations += u64::from(!expected);
        }
        assert!((500..2_500).contains(&violations), "both outcomes are tried: {violations}");
    }
}
