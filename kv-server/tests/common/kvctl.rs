//! `kvctl`, as people and scripts run it.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) struct Kvctl {
    program: PathBuf,
    endpoints: String,
}

impl Kvctl {
    pub(crate) fn new(endpoints: String) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_kv-server")).with_file_name("kvctl");
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let arguments = ["build", "-q", "--manifest-path", workspace, "--bin", "kvctl"];
        let built = Command::new(env!("CARGO")).args(arguments).status().unwrap();
        assert!(built.success());
        Self { program, endpoints }
    }

    /// Exit code, standard output, standard error.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> (i32, String, String) {
        let mut command = Command::new(&self.program);
        command.args(["--endpoints", &self.endpoints]).args(arguments);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Started, with its output in pipes.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(&self.program);
        command.args(["--endpoints", &self.endpoints]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Its exit code and standard error, with standard output into a file.
    pub(crate) fn run_into(&self, out: File, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(&self.program);
        command.args(["--endpoints", &self.endpoints]).args(arguments);
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

    /// As an operator would: again, when another change is under way or there is no leader just then. What it prints.
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
