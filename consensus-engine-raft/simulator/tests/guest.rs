//! State machines of somebody else in the simulated clusters: a sound one passes, and each mistake is found, with a text
//! that says which.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use consensus_core::{Entry, LogId, Payload, Snapshot, StateMachine, StateMachineError, codec};
use consensus_raft_simulator::{AnyGuest, Guest, Options, Random, run, run_guest, shrink};

/// What is wrong with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    StartsSomewhere,
    AnswersFromACounterOfTheProcess,
    AnswersInTheOrderOfAHashMap,
    AnswersAtLengthAndDiffersAtTheEnd,
    AnswersByPlaceInTheBatch,
    AnswersWhatIsNoCommand,
    AnswersCommandsOnly,
    CountsCommandsOnly,
    ForgetsAFieldInTheSnapshot,
    ForgetsASilentFieldInTheSnapshot,
    MergesOnRestore,
    ForgetsThePositionOnRestore,
    AppliesTwiceOnceRestored,
    FlushedMoreThanApplied,
    RefusesACommand,
    PanicsOnACommand,
    CannotWriteItsSnapshot,
    BreaksItsInvariant,
}

/// Numbers under a few names, each with how often it was set, and how many there ever were.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct State {
    applied: LogId,
    numbers: BTreeMap<u8, (u64, u64)>,
    /// Commands so far; a part of each response.
    commands: u64,
    /// The same, and no part of any.
    silent: u64,
}

struct Numbers {
    defect: Defect,
    state: State,
    is_restored: bool,
}

fn next_of_the_process() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

impl Numbers {
    /// An odd command removes a name, an even one sets it.
    fn command(&mut self, place: usize, command: &[u8]) -> Result<Vec<u8>, StateMachineError> {
        let State { numbers, commands, silent, .. } = &mut self.state;
        (*commands, *silent) = (*commands + 1, *silent + 1);
        let (name, value) = (command[0], u64::from(command[1]));
        let times = numbers.get(&name).map_or(0, |(_, times)| *times);
        if value % 2 == 1 {
            numbers.remove(&name);
        } else {
            numbers.insert(name, (value, times + 1));
        }
        let all: HashMap<u8, u64> = numbers.iter().map(|(name, (value, _))| (*name, *value)).collect();
        match self.defect {
            Defect::AnswersFromACounterOfTheProcess => *commands = next_of_the_process(),
            Defect::AnswersInTheOrderOfAHashMap => return Ok(all.into_keys().collect()),
            Defect::AnswersAtLengthAndDiffersAtTheEnd => {
                return Ok([vec![b'x'; 200], next_of_the_process().to_le_bytes().to_vec()].concat());
            }
            Defect::AppliesTwiceOnceRestored if self.is_restored => *commands += 1,
            Defect::AnswersByPlaceInTheBatch => return Ok(vec![place as u8]),
            Defect::RefusesACommand if value == 77 => return Err(StateMachineError::Other("77?".into())),
            Defect::PanicsOnACommand if value == 77 => panic!("no more than 76"),
            Defect::BreaksItsInvariant if value == 77 => *commands = 0,
            _ => {}
        }
        Ok(codec::encode(1, &(times, *commands)))
    }
}

impl StateMachine for Numbers {
    fn applied(&self) -> LogId {
        match self.defect {
            Defect::StartsSomewhere => self.state.applied.max(LogId::new(0, 1)),
            _ => self.state.applied,
        }
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let mut responses = Vec::new();
        for (place, entry) in entries.iter().enumerate() {
            let is_command = matches!(entry.payload, Payload::Command(_));
            if is_command || self.defect != Defect::CountsCommandsOnly {
                self.state.applied = entry.id;
            }
            match &entry.payload {
                Payload::Command(command) => responses.push(self.command(place, command)?.into()),
                _ if self.defect == Defect::AnswersCommandsOnly => {}
                _ if self.defect == Defect::AnswersWhatIsNoCommand => responses.push("nothing".into()),
                _ => responses.push(Bytes::new()),
            }
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        match self.defect {
            Defect::FlushedMoreThanApplied => Ok(LogId::new(100, self.state.applied.index.0 + 1)),
            _ => Ok(LogId::ZERO),
        }
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let mut state = self.state.clone();
        match self.defect {
            Defect::ForgetsAFieldInTheSnapshot => state.commands = 0,
            Defect::ForgetsASilentFieldInTheSnapshot => state.silent = 0,
            Defect::CannotWriteItsSnapshot => return Ok(Box::new(Unwritable)),
            _ => {}
        }
        Ok(Box::new(codec::encode(1, &state)))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let mut state: State = codec::decode("state", 1, &bytes)?;
        match self.defect {
            Defect::MergesOnRestore => {
                let old = std::mem::take(&mut self.state.numbers);
                state.numbers = old.into_iter().chain(state.numbers).collect();
            }
            Defect::ForgetsThePositionOnRestore => state.applied = self.state.applied,
            _ => {}
        }
        (self.state, self.is_restored) = (state, true);
        Ok(())
    }
}

struct Unwritable;

impl Snapshot for Unwritable {
    fn write_to(&mut self, _out: &mut dyn std::io::Write) -> std::io::Result<()> {
        Err(std::io::Error::other("out of ink"))
    }
}

#[derive(Clone, Copy)]
struct NumbersGuest {
    defect: Defect,
    compares_states: bool,
}

impl Guest for NumbersGuest {
    type Machine = Numbers;

    fn open(&self) -> Numbers {
        Numbers { defect: self.defect, state: State::default(), is_restored: false }
    }

    fn command(&self, random: &mut Random) -> Bytes {
        vec![random.below(6) as u8, random.below(100) as u8].into()
    }

    fn check(&self, machine: &mut Numbers) -> Result<(), String> {
        let State { silent, commands, .. } = machine.state;
        let counts = silent == commands || self.defect != Defect::BreaksItsInvariant;
        counts.then_some(()).ok_or_else(|| format!("{silent} is not {commands}"))
    }

    fn digest(&self, machine: &mut Numbers) -> Option<Vec<u8>> {
        self.compares_states.then(|| codec::encode(1, &machine.state))
    }
}

#[test]
fn a_sound_machine_passes_and_is_crashed_and_restored() {
    let totals = run_guest(NumbersGuest { defect: Defect::None, compares_states: true }, 0..60).unwrap();
    assert_eq!(totals.seeds, 60);
    for what in [
        "guest's response compared",
        "guest's state compared",
        "guest restarted from a snapshot",
        "guest was sent a snapshot",
        "guest with a state was sent a snapshot",
        "repeated command answered again",
    ] {
        assert!(totals.reached.get(what).is_some_and(|times| *times > 3), "{what}: {:?}", totals.reached);
    }
}

/// What the failure of a defective machine says; it must be found in few seeds.
fn failure(defect: Defect, compares_states: bool) -> String {
    match run_guest(NumbersGuest { defect, compares_states }, 0..400) {
        Ok(_) => panic!("{defect:?} was not found"),
        Err(failure) => failure.to_string(),
    }
}

#[test]
fn each_mistake_is_found_and_named() {
    let same = "breaks the rule \"an entry has the same response on every node";
    let fails = "breaks the rule \"no call fails or panics";
    let one_each =
        "breaks the rule \"every entry has one response, which is empty if the entry has no command\"";
    let position = "breaks the rule \"the applied position is that of the last entry";
    let table: &[(Defect, &[&str])] = &[
        (Defect::StartsSomewhere, &["\"a new machine has applied nothing\"", "applied() is 0.1 and not 0.0"]),
        (Defect::AnswersFromACounterOfTheProcess, &[same, "run again:", "The same seed ended differently"]),
        (Defect::AnswersInTheOrderOfAHashMap, &[same, " by node "]),
        (Defect::AnswersAtLengthAndDiffersAtTheEnd, &[same, "\n    from byte 170 on \"xxxx"]),
        (Defect::AnswersByPlaceInTheBatch, &[same, "(after a batch of 1; it "]),
        (Defect::AnswersWhatIsNoCommand, &[one_each, "\"nothing\" to entry 0.1 (no command)"]),
        (Defect::AnswersCommandsOnly, &[fails, "0.1 (no command)", "`apply` returned no responses"]),
        (Defect::CountsCommandsOnly, &[position, "applied() is ", " after apply of "]),
        (Defect::ForgetsAFieldInTheSnapshot, &[same, " by node ", "the snapshot "]),
        (Defect::MergesOnRestore, &[same, " by node ", "the snapshot "]),
        (
            Defect::ForgetsThePositionOnRestore,
            &["\"a restore replaces the whole state", "after restore of a snapshot"],
        ),
        (Defect::AppliesTwiceOnceRestored, &[same, " by node ", "the snapshot "]),
        (
            Defect::FlushedMoreThanApplied,
            &["\"the flushed position is not after the applied position\"", "flush said 100."],
        ),
        (Defect::RefusesACommand, &[fails, "(command \"", "failed: state machine: 77?"]),
        (Defect::PanicsOnACommand, &[fails, "apply of", "panicked: no more than 76"]),
        (Defect::CannotWriteItsSnapshot, &[fails, "Snapshot::write_to failed: out of ink"]),
        (Defect::BreaksItsInvariant, &["\"what the guest asks for\"", "Guest::check failed: "]),
    ];
    for (defect, texts) in table {
        let failure = failure(*defect, false);
        for text in ["seed ", "the state machine ", "RAFT_SIM_SEED="].iter().chain(*texts) {
            assert!(failure.contains(text), "{defect:?}: no {text:?} in {failure}");
        }
    }
}

#[test]
fn what_shows_in_no_response_needs_a_digest() {
    let defect = Defect::ForgetsASilentFieldInTheSnapshot;
    assert!(run_guest(NumbersGuest { defect, compares_states: false }, 0..20).is_ok());
    let failure = failure(defect, true);
    assert!(failure.contains("\"nodes at the same position have the same state\""), "{failure}");
    assert!(failure.contains(" Guest::digest was\n    "), "{failure}");
}

#[test]
fn the_same_seed_is_the_same_run_and_a_failure_is_made_small() {
    let guest = |defect| Some(AnyGuest::new(NumbersGuest { defect, compares_states: true }));
    let sound = Options { seed: 3, guest: guest(Defect::None), ..Options::default() };
    assert_eq!(run(&sound).trace.hash, run(&sound).trace.hash);
    let first =
        run_guest(NumbersGuest { defect: Defect::ForgetsAFieldInTheSnapshot, compares_states: true }, 0..400);
    let first = first.unwrap_err();
    assert_eq!(run(&first.options).failure.as_ref(), Some(&first.why));
    let (smallest, outcome) = shrink(&first.options).expect("it fails again");
    assert!(smallest.guest.is_some() && !smallest.skip.is_empty());
    assert!(outcome.trace.tell().contains("FAILURE: the state machine "));
}

/// As a program of its own, in whose environment the seed is named.
#[test]
fn a_seed_in_the_environment_tells_its_story() {
    if std::env::var_os("RAFT_SIM_SEED").is_some() {
        panic!("{}", failure(Defect::PanicsOnACommand, false));
    }
    let this = "a_seed_in_the_environment_tells_its_story";
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", this, "--nocapture"]).env("RAFT_SIM_SEED", "5").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    for text in ["seed 5: the state machine of node", "the smallest run that fails leaves out", "FAILURE: "] {
        assert!(told.contains(text), "no {text:?} in {told}");
    }
}
