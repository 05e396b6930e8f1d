//! A command of the user that kvctl runs, passes signals on to, and ends.

use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{self, Pid, Signal};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::{Instant, sleep, timeout_at},
};

use crate::{Failure, signals};

/// A command that runs.
///
/// It has a process group of its own, so that whatever it starts gets the signals too. At a terminal it shares kvctl's group:
/// only that group may read from the terminal.
pub(crate) struct Job {
    name: String,
    child: Child,
    /// `None`: the system gave it no number, as it has ended already.
    id: Option<Pid>,
    has_own_group: bool,
}

impl Job {
    /// Starts a command with these variables in its environment, or without those that are `None`; with `input` as its standard
    /// input, or kvctl's own.
    pub(crate) fn start(
        words: &[OsString],
        environment: impl IntoIterator<Item = (&'static str, Option<OsString>)>,
        input: Option<Vec<u8>>,
    ) -> Result<Self, Failure> {
        let name = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        let has_own_group = input.is_some() || !is_at_terminal();
        let mut command = guarded(words);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if has_own_group {
            command.process_group(0);
        }
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().map_err(|error| not_started(&name, &error))?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // A command that does not read it is no failure.
            tokio::spawn(async move { stdin.write_all(&input).await });
        }
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { name, child, id, has_own_group })
    }

    /// Waits until the command has ended; its exit code, or 128 and the number of the signal that has ended it.
    pub(crate) async fn ended(&mut self) -> Result<u8, Failure> {
        let status = self.child.wait().await;
        status.map(code).map_err(|error| Failure::Usage(format!("{}: {error}", self.name)))
    }

    /// Passes a signal on, unless the terminal has sent it to the command as well.
    pub(crate) fn pass_on(&self, signal: Signal) {
        if signal != Signal::INT || self.has_own_group || !is_at_terminal() {
            self.signal(signal);
        }
    }

    /// Ends the command: SIGTERM, and SIGKILL for what is left after `grace`.
    pub(crate) async fn end(&mut self, grace: Duration) -> Result<(), Failure> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + grace;
        let ended = timeout_at(deadline, self.ended()).await;
        while self.group_lives() && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        if self.group_lives() || ended.is_err() {
            eprintln!("kvctl: {} has not ended {} s after SIGTERM: SIGKILL", self.name, grace.as_secs());
            self.signal(Signal::KILL);
        }
        self.ended().await.map(|_| ())
    }

    /// Whether the command, or what it has started, is still there, as far as its group tells.
    fn group_lives(&self) -> bool {
        self.has_own_group && self.id.is_some_and(|id| process::test_kill_process_group(id).is_ok())
    }

    fn signal(&self, signal: Signal) {
        let Some(id) = self.id else { return };
        // It may have ended just now. Its number cannot be another's: it is a child that was not waited for, or leads a group.
        let _ = if self.has_own_group && self.group_lives() {
            process::kill_process_group(id, signal)
        } else if self.child.id().is_some() {
            process::kill_process(id, signal)
        } else {
            Ok(())
        };
    }
}

fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => signals::exit_code(signal.unwrap_or_default()),
    }
}

/// Whether the terminal, if there is one, sends the signals of its keys to kvctl's process group.
fn is_at_terminal() -> bool {
    rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == process::getpgrp())
}

/// The command, started by kvctl itself, which has the system end it should kvctl be killed.
#[cfg(target_os = "linux")]
fn guarded(words: &[OsString]) -> Command {
    // The program that runs, even if its file was replaced.
    let mut command = Command::new("/proc/self/exe");
    command.arg(GUARD).arg(std::process::id().to_string()).args(words);
    command
}

#[cfg(not(target_os = "linux"))]
fn guarded(words: &[OsString]) -> Command {
    let mut command = Command::new(words.first().cloned().unwrap_or_default());
    command.args(words.get(1..).unwrap_or_default());
    command
}

/// What kvctl is asked to become by [`guarded`], if it is: the number of the process that asks, and the command.
pub(crate) fn asked_to_become(mut arguments: impl Iterator<Item = OsString>) -> Option<(u32, Vec<OsString>)> {
    arguments.next().filter(|word| word == GUARD)?;
    let parent = arguments.next()?.to_str()?.parse().ok()?;
    Some((parent, arguments.collect()))
}

/// Becomes the command, which gets SIGTERM when the process `parent` ends. A command with rights of its own (set-user-ID) does not.
pub(crate) fn become_command(parent: u32, words: &[OsString]) -> Failure {
    #[cfg(target_os = "linux")]
    {
        let asked = process::set_parent_process_death_signal(Some(Signal::TERM));
        let has_parent =
            process::getppid().is_some_and(|id| id.as_raw_nonzero().get().cast_unsigned() == parent);
        if asked.is_err() || !has_parent {
            return Failure::NotRun {
                why: "kvctl was killed before the command was started".to_owned(),
                code: 126,
            };
        }
    }
    let name = words.first().cloned().unwrap_or_default();
    let error = std::process::Command::new(&name).args(words.get(1..).unwrap_or_default()).exec();
    not_started(&name.to_string_lossy(), &error)
}

fn not_started(name: &str, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    Failure::NotRun { why: format!("{name} cannot be run: {error}"), code }
}

/// First argument of a kvctl that is to become a command.
const GUARD: &str = "--become-command";
/// How often an ending process group is looked at.
const LOOK: Duration = Duration::from_millis(20);
