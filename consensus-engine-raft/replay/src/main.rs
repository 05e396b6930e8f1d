//! Replays a recording of the flight recorder of `consensus-engine-raft`, and prints the changes of the state.

mod words;

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Parser;
use consensus_core::codec::CodecError;
use consensus_engine_raft::flight::{self, FlightError, FlightReader, Record};
use consensus_raft_protocol::{Call, Raft, Returned, Time};

/// Replays a recording of the flight recorder: repeats the calls of the protocol, and prints the changes of its state.
///
/// Ends with an error if a call returns another result than in the recording, as it may in another version of the protocol.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The recording: its directory, or one of its files.
    recording: PathBuf,
    /// First call to print.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Last call to replay.
    #[arg(long, default_value_t = u64::MAX)]
    to: u64,
    /// Prints every call, including those that change nothing that is printed.
    #[arg(long)]
    inputs: bool,
    /// Prints the results of the calls, too.
    #[arg(long)]
    outputs: bool,
    /// Waits for Enter after each call that is printed.
    #[arg(long)]
    step: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match Replay::new(arguments, io::stdout().lock()).run() {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed it.
        Err(Problem::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("raft-replay: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Why the replay ends before the recording does.
#[derive(Debug)]
enum Problem {
    Recording(FlightError),
    State(PathBuf, CodecError),
    NoState(PathBuf),
    Print(io::Error),
    Differs { call: u64 },
    OtherState { path: PathBuf },
    Panicked { call: u64 },
}

impl From<FlightError> for Problem {
    fn from(error: FlightError) -> Self {
        Self::Recording(error)
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Print(error)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Recording(error) => error.fmt(f),
            Self::State(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NoState(path) => write!(f, "{}: the file has no state at its start", path.display()),
            Self::Print(error) => write!(f, "cannot print: {error}"),
            Self::Differs { call } => write!(
                f,
                "call {call} returned another result than in the recording: either another version of the protocol made the recording, or the protocol is not a function of its inputs"
            ),
            Self::OtherState { path } => write!(
                f,
                "{}: it starts with another state than the replay reached: either another version of the protocol made the recording, or the protocol is not a function of its inputs",
                path.display()
            ),
            Self::Panicked { call } => write!(f, "the protocol panicked in call {call}, see above"),
        }
    }
}

struct Replay<W> {
    arguments: Arguments,
    out: W,
    /// Run, state of the protocol, and number of calls so far.
    at: Option<(u64, Raft, u64)>,
    /// Time on the clock of the calls.
    now: Time,
    shown: BTreeMap<String, String>,
    /// Whether the last call returned in the recorded process.
    returned: bool,
}

impl<W: Write> Replay<W> {
    fn new(arguments: Arguments, out: W) -> Self {
        Self { arguments, out, at: None, now: Time::ZERO, shown: BTreeMap::new(), returned: true }
    }

    fn run(mut self) -> Result<(), Problem> {
        for path in flight::recording(&self.arguments.recording)? {
            let mut reader = FlightReader::open(&path)?;
            let mut last = None;
            loop {
                match reader.next_record() {
                    Ok(None) => break,
                    Ok(Some(Record::FileStart { node, run, now, calls, state })) => {
                        self.start_file(&path, run, calls, &state)?;
                        self.now = now;
                        self.headline(&path, node.0, run, calls)?;
                    }
                    Ok(Some(Record::Called(call))) => last = Some(self.call(&path, call)?),
                    Ok(Some(Record::Returned(checksum))) => {
                        self.returned = true;
                        let returned = last.take();
                        if returned.is_some_and(|returned| flight::checksum(&returned) != checksum) {
                            return Err(Problem::Differs { call: self.calls() });
                        }
                    }
                    // A killed process leaves such a record, and a running one is still writing it.
                    Err(error @ FlightError::Truncated { .. }) => {
                        writeln!(self.out, "{error}")?;
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
                if self.calls() >= self.arguments.to {
                    return Ok(());
                }
            }
        }
        if !self.returned {
            writeln!(
                self.out,
                "call {} is the last one: the recorded process ended during it",
                self.calls()
            )?;
        }
        Ok(())
    }

    fn calls(&self) -> u64 {
        self.at.as_ref().map_or(0, |(_, _, calls)| *calls)
    }

    /// Starts a file. Its state must be that at the end of the previous file, unless the run differs or a file is missing.
    fn start_file(&mut self, path: &Path, run: u64, calls: u64, state: &[u8]) -> Result<(), Problem> {
        let raft = Raft::from_checkpoint(state).map_err(|error| Problem::State(path.to_owned(), error))?;
        if let Some((ours, replayed, so_far)) = &self.at
            && (*ours, *so_far) == (run, calls)
            && replayed.checkpoint() != state
        {
            return Err(Problem::OtherState { path: path.to_owned() });
        }
        self.at = Some((run, raft, calls));
        Ok(())
    }

    fn headline(&mut self, path: &Path, node: u64, run: u64, calls: u64) -> io::Result<()> {
        let Some((_, raft, _)) = &self.at else { return Ok(()) };
        self.shown = words::state(raft);
        writeln!(
            self.out,
            "== {}: node {node}, started at {}, after {calls} calls",
            path.display(),
            humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(run))
        )?;
        for (what, value) in &self.shown {
            writeln!(self.out, "{:>12}  {what}: {value}", "")?;
        }
        Ok(())
    }

    fn call(&mut self, path: &Path, call: Call) -> Result<Returned, Problem> {
        self.now = call.time().map_or(self.now, |now| self.now.max(now));
        let Some((_, raft, calls)) = &mut self.at else { return Err(Problem::NoState(path.to_owned())) };
        *calls += 1;
        let number = *calls;
        let description = words::call(&call);
        let Ok(returned) = catch_unwind(AssertUnwindSafe(|| raft.call(call))) else {
            writeln!(self.out, "{:>12.6}  #{number} {description}", self.now.as_secs_f64())?;
            return Err(Problem::Panicked { call: number });
        };
        self.returned = false;
        let state = words::state(raft);
        let changes = words::changes(&self.shown, &state);
        self.shown = state;
        let is_printed = self.arguments.inputs
            || !changes.is_empty()
            || self.arguments.outputs && !words::returned(&returned).is_empty();
        if is_printed && number >= self.arguments.from {
            writeln!(self.out, "{:>12.6}  #{number} {description}", self.now.as_secs_f64())?;
            for change in changes {
                writeln!(self.out, "{:>14}  {change}", "")?;
            }
            if self.arguments.outputs {
                for output in words::returned(&returned) {
                    writeln!(self.out, "{:>14}-> {output}", "")?;
                }
            }
            if self.arguments.step {
                self.out.flush()?;
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line)?;
            }
        }
        Ok(returned)
    }
}
