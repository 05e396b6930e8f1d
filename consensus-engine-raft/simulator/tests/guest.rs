//! State machines in the simulated clusters: a correct one passes, and each defect is found with a message that names it.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use consensus_core::{Entry, LogId, Payload, Snapshot, StateMachine, StateMachineError, codec};
use consensus_raft_simulator::{AnyGuest, Guest, Options, Random, run, run_guest, shrink};

/// Defect of a state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    StartsAtNonzeroPosition,
    RespondsFromProcessCounter,
    RespondsInHashMapOrder,
    LongResponseDiffersAtTheEnd,
    RespondsByPositionInBatch,
    RespondsToNonCommands,
    RespondsToCommandsOnly,
    CountsCommandsOnly,
    OmitsFieldInSnapshot,
    ForgetsASilentFieldInTheSnapshot,
    MergesOnRestore,
    LosesPositionOnRestore,
    AppliesTwiceAfterRestore,
    ReportsFlushBeyondApplied,
    RefusesACommand,
    PanicsOnACommand,
    FailsToWriteSnapshot,
    BreaksItsInvariant,
}

/// Numbers under a few names, with the number of times that each was set, and the number of all commands.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct State {
    applied: LogId,
    numbers: BTreeMap<u8, (u64, u64)>,
    /// Number of commands so far; a part of each response.
    commands: u64,
    /// Number of commands so far; not a part of responses.
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
            Defect::RespondsFromProcessCounter => *commands = next_of_the_process(),
            Defect::RespondsInHashMapOrder => return Ok(all.into_keys().collect()),
            Defect::LongResponseDiffersAtTheEnd => {
                return Ok([vec![b'x'; 200], next_of_the_process().to_le_bytes().to_vec()].concat());
            }
            Defect::AppliesTwiceAfterRestore if self.is_restored => *commands += 1,
            Defect::RespondsByPositionInBatch => return Ok(vec![place as u8]),
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
            Defect::StartsAtNonzeroPosition => self.state.applied.max(LogId::new(0, 1)),
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
                _ if self.defect == Defect::RespondsToCommandsOnly => {}
                _ if self.defect == Defect::RespondsToNonCommands => responses.push("nothing".into()),
                _ => responses.push(Bytes::new()),
            }
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        match self.defect {
            Defect::ReportsFlushBeyondApplied => Ok(LogId::new(100, self.state.applied.index.0 + 1)),
            _ => Ok(LogId::ZERO),
        }
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let mut state = self.state.clone();
        match self.defect {
            Defect::OmitsFieldInSnapshot => state.commands = 0,
            Defect::ForgetsASilentFieldInTheSnapshot => state.silent = 0,
            Defect::FailsToWriteSnapshot => return Ok(Box::new(Unwritable)),
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
            Defect::LosesPositionOnRestore => state.applied = self.state.applied,
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
fn correct_machine_passes_and_is_crashed_and_restored() {
    let totals = run_guest(NumbersGuest { defect: Defect::None, compares_states: true }, 0..60).unwrap();
    assert_eq!(totals.seeds, 60);
    for what in [
        "guest's response compared",
        "guest's state compared",
        "guest restarted from a snapshot",
        "guest was sent a snapshot",
        "guest with a state was sent a snapshot",
        "repeated command had the same response",
    ] {
        assert!(totals.reached.get(what).is_some_and(|times| *times > 3), "{what}: {:?}", totals.reached);
    }
}

/// Returns the failure message of a defective machine, which must be found within a few seeds.
fn failure(defect: Defect, compares_states: bool) -> String {
    match run_guest(NumbersGuest { defect, compares_states }, 0..400) {
        Ok(_) => panic!("{defect:?} was not found"),
        Err(failure) => failure.to_string(),
    }
}

#[test]
fn each_defect_is_found_and_named() {
    let same = "breaks the rule \"an entry has the same response on every node";
    let fails = "breaks the rule \"no call fails or panics";
    let one_each =
        "breaks the rule \"every entry has one response, which is empty if the entry has no command\"";
    let position = "breaks the rule \"the applied position is that of the last entry";
    let table: &[(Defect, &[&str])] = &[
        (
            Defect::StartsAtNonzeroPosition,
            &["\"a new machine has applied nothing\"", "applied() is 0.1 and not 0.0"],
        ),
        (Defect::RespondsFromProcessCounter, &[same, "run again:", "The same seed ended differently"]),
        (Defect::RespondsInHashMapOrder, &[same, " by node "]),
        (Defect::LongResponseDiffersAtTheEnd, &[same, "\n    from byte 170 on \"xxxx"]),
        (Defect::RespondsByPositionInBatch, &[same, "(after a batch of 1; it "]),
        (Defect::RespondsToNonCommands, &[one_each, "\"nothing\" to entry 0.1 (no command)"]),
        (Defect::RespondsToCommandsOnly, &[fails, "0.1 (no command)", "`apply` returned no responses"]),
        (Defect::CountsCommandsOnly, &[position, "applied() is ", " after apply of "]),
        (Defect::OmitsFieldInSnapshot, &[same, " by node ", "the snapshot "]),
        (Defect::MergesOnRestore, &[same, " by node ", "the snapshot "]),
        (
            Defect::LosesPositionOnRestore,
            &["\"a restore replaces the whole state", "after restore of a snapshot"],
        ),
        (Defect::AppliesTwiceAfterRestore, &[same, " by node ", "the snapshot "]),
        (
            Defect::ReportsFlushBeyondApplied,
            &["\"the flushed position is not after the applied position\"", "flush returned 100."],
        ),
        (Defect::RefusesACommand, &[fails, "(command \"", "failed: state machine: 77?"]),
        (Defect::PanicsOnACommand, &[fails, "apply of", "panicked: no more than 76"]),
        (Defect::FailsToWriteSnapshot, &[fails, "Snapshot::write_to failed: out of ink"]),
        (Defect::BreaksItsInvariant, &["\"the guest's own checks\"", "Guest::check failed: "]),
    ];
    for (defect, texts) in table {
        let failure = failure(*defect, false);
        for text in ["seed ", "the state machine ", "RAFT_SIM_SEED="].iter().chain(*texts) {
            assert!(failure.contains(text), "{defect:?}: no {text:?} in {failure}");
        }
    }
}

#[test]
fn defect_without_effect_on_responses_is_found_by_digest() {
    let defect = Defect::ForgetsASilentFieldInTheSnapshot;
    assert!(run_guest(NumbersGuest { defect, compares_states: false }, 0..20).is_ok());
    let failure = failure(defect, true);
    assert!(failure.contains("\"nodes at the same position have the same state\""), "{failure}");
    assert!(failure.contains(" Guest::digest was\n    "), "{failure}");
}

#[test]
fn same_seed_repeats_the_run_and_failures_are_shrunk() {
    let guest = |defect| Some(AnyGuest::new(NumbersGuest { defect, compares_states: true }));
    let sound = Options { seed: 3, guest: guest(Defect::None), ..Options::default() };
    assert_eq!(run(&sound).trace.hash, run(&sound).trace.hash);
    let first =
        run_guest(NumbersGuest { defect: Defect::OmitsFieldInSnapshot, compares_states: true }, 0..400);
    let first = first.unwrap_err();
    assert_eq!(run(&first.options).failure.as_ref(), Some(&first.why));
    let (smallest, outcome) = shrink(&first.options).expect("it fails again");
    assert!(smallest.guest.is_some() && !smallest.skip.is_empty());
    assert!(outcome.trace.describe().contains("FAILURE: the state machine "));
}

/// Runs the test as a separate process with the seed in its environment.
#[test]
fn seed_in_the_environment_prints_the_smallest_run() {
    if std::env::var_os("RAFT_SIM_SEED").is_some() {
        panic!("{}", failure(Defect::PanicsOnACommand, false));
    }
    let this = "seed_in_the_environment_prints_the_smallest_run";
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", this, "--nocapture"]).env("RAFT_SIM_SEED", "5").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    for text in ["seed 5: the state machine of node", "the smallest run that fails leaves out", "FAILURE: "] {
        assert!(told.contains(text), "no {text:?} in {told}");
    }
}
