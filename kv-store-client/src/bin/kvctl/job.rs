//! A command of the user. kvctl runs it, passes signals on to it, and ends it.

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

/// A running command.
///
/// It has its own process group, so that the processes that it starts get the signals, too. At a terminal it
/// shares kvctl's group, because only that group may read from the terminal.
pub(crate) struct Job {
    name: String,
    child: Child,
    /// Process id of the command. `None`: the command has ended already, so that the system returned no id.
    id: Option<Pid>,
    has_own_group: bool,
}

impl Job {
    /// Starts a command. Variables of `environment` that are `None` are removed from its environment, the
    /// others are set. Its standard input is `input`, or kvctl's own if `input` is `None`.
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
            // It is not a failure if the command does not read its input.
            tokio::spawn(async move { stdin.write_all(&input).await });
        }
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { name, child, id, has_own_group })
    }

    /// Waits until the command has ended. Returns its exit code, or 128 plus the number of the signal that
    /// has ended it.
    pub(crate) async fn ended(&mut self) -> Result<u8, Failure> {
        let status = self.child.wait().await;
        status.map(code).map_err(|error| Failure::Usage(format!("{}: {error}", self.name)))
    }

    /// Passes a signal on to the command, unless the terminal has sent it to the command, too.
    pub(crate) fn pass_on(&self, signal: Signal) {
        if signal != Signal::INT || self.has_own_group || !is_at_terminal() {
            self.signal(signal);
        }
    }

    /// Ends the command with SIGTERM. After `grace`, the processes that still exist get SIGKILL.
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

    /// Returns whether a process of the command's own group still exists: the command, or a process that it
    /// started.
    fn group_lives(&self) -> bool {
        self.has_own_group && self.id.is_some_and(|id| process::test_kill_process_group(id).is_ok())
    }

    fn signal(&self, signal: Signal) {
        let Some(id) = self.id else { return };
        // The command may have ended just now. No other process can have its id yet: the command is a child
        // that was not waited for, or its process group still exists.
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

/// Returns whether kvctl has a terminal that sends signals of the keyboard, such as that of Ctrl+C, to
/// kvctl's process group.
fn is_at_terminal() -> bool {
    rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == process::getpgrp())
}

/// Returns the command, started through a second kvctl process. That process has the system end the command
/// if kvctl is killed.
#[cfg(target_os = "linux")]
fn guarded(words: &[OsString]) -> Command {
    // This path is the running program, even if its file was replaced.
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

/// Returns the request of [`guarded`], if the arguments have one: the id of the requesting process, and the
/// command to become.
pub(crate) fn asked_to_become(mut arguments: impl Iterator<Item = OsString>) -> Option<(u32, Vec<OsString>)> {
    arguments.next().filter(|word| word == GUARD)?;
    let parent = arguments.next()?.to_str()?.parse().ok()?;
    Some((parent, arguments.collect()))
}

/// Replaces this process with the command. The command gets SIGTERM when the process `parent` ends, unless it
/// has its own privileges (set-user-ID).
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

/// First argument of a kvctl process that becomes a command.
const GUARD: &str = "--become-command";
/// Time between two checks of a process group that is ending.
const LOOK: Duration = Duration::from_millis(20);
