//! `kvctl`, as people and scripts run it.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

pub(crate) struct Kvctl {
    program: &'static Path,
    endpoints: String,
}

/// The program, built from the sources as they are now. Cargo builds a program for the tests of its own package alone; the file
/// beside `kv-server` may be of any age. So cargo is asked to build it, and says where it is.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        // `CARGO_TARGET_TMPDIR` is a folder of the target directory of these tests, however cargo was told which one to use.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--bin", "kvctl", "--message-format", "json-render-diagnostics"]);
        cargo.args(["--manifest-path", workspace, "--target-dir"]).arg(target);
        let built = cargo.stderr(Stdio::inherit()).output().unwrap();
        assert!(built.status.success(), "kvctl was not built: {cargo:?}");
        let messages = String::from_utf8(built.stdout).unwrap();
        let messages = messages.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let mut programs = messages.filter(|message| message["target"]["name"] == "kvctl");
        let program = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        program.expect("cargo says where it has built kvctl")
    })
}

impl Kvctl {
    pub(crate) fn new(endpoints: String) -> Self {
        Self { program: program(), endpoints }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(["--endpoints", &self.endpoints]).args(arguments);
        command
    }

    /// Exit code, standard output, standard error.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> (i32, String, String) {
        let mut command = self.command(arguments);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Started, with its output in pipes.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Its exit code and standard error, with standard output into a file.
    pub(crate) fn run_into(&self, out: File, arguments: &[&str]) -> (i32, String) {
        let mut command = self.command(arguments);
        let output = command.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    pub(crate) fn says(&self, arguments: &[&str], code: i32, expected: &str) {
        self.says_to("", arguments, code, expected);
    }

    /// `expected` is the whole of standard output, or a part of standard error.
    pub(crate) fn says_to(&self, input: &str, arguments: &[&str], code: i32, expected: &str) {
        let (found, out, error) = self.run(arguments, input);
        let as_expected = if code > 1 { error.contains(expected) } else { out == expected };
        assert!(found == code && as_expected, "{arguments:?}: code {found}\n{out}\n{error}");
    }

    /// Like an operator: retries while another change is in progress or there is no leader. Returns the output.
    pub(crate) fn insist(&self, command: &str) -> String {
        let arguments: Vec<&str> = command.split(' ').collect();
        let start = Instant::now();
        loop {
            let (code, out, error) = self.run(&arguments, "");
            if code == 0 {
                return out;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{command}: code {code}\n{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A `kvctl` that runs until it is told to stop. It is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    pub(crate) fn start(kvctl: &Kvctl, arguments: &[&str]) -> Self {
        let mut command = kvctl.command(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The next line that it, or its command, prints.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(TIME).expect("it prints a line in time")
    }

    /// Whether it has printed nothing more, and its command neither, when both have ended.
    pub(crate) fn is_silent(&self) -> bool {
        self.lines.recv_timeout(TIME) == Err(mpsc::RecvTimeoutError::Disconnected)
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Waits until it has ended; its exit code, `None` if a signal has ended it.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        ended(&mut self.child)
    }
}

/// Waits until a process has ended; its exit code, `None` if a signal has ended it.
pub(crate) fn ended(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > TIME {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("kvctl has not ended in time");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TIME: Duration = Duration::from_secs(30);
