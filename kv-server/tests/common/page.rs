//! Commands in the documentation, run as they are written.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    process::{Command, Stdio},
};

use super::{free_port, kvctl};

/// A page in `docs`, by its file name. Its sections have blocks marked `console`: lines that begin with `$ ` are commands, and
/// those below are parts of what they print. Blocks marked `file=NAME` are files that the commands find.
pub struct Page(pub &'static str);

/// Steps of an operator in a section of the page.
#[derive(Default)]
struct Section {
    /// Contents by name.
    files: BTreeMap<String, String>,
    steps: Vec<Step>,
}

struct Step {
    command: String,
    /// Lines that its output contains.
    expected: Vec<String>,
}

impl Page {
    /// The titles of the sections that have commands, in alphabetical order.
    pub fn titles(&self) -> Vec<String> {
        self.sections().into_keys().collect()
    }

    /// Runs the section with this title, in a directory and on ports of its own.
    pub fn run(&self, title: &str) {
        let mut sections = self.sections();
        let section = sections.remove(title);
        let section = section.unwrap_or_else(|| panic!("docs/{} has no section {title:?}", self.0));
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
        for (name, content) in &section.files {
            std::fs::write(dir.path().join(name), with_free_ports(content, &ports)).unwrap();
        }
        let programs = [kvctl::program(), Path::new(env!("CARGO_BIN_EXE_kv-server"))];
        let folders = programs.map(|program| program.parent().unwrap().display().to_string()).join(":");
        let path = format!("{folders}:{}", std::env::var("PATH").unwrap());
        std::fs::write(dir.path().join("steps.sh"), script(&section, &ports)).unwrap();
        let mut command = Command::new("bash");
        command.arg("steps.sh").current_dir(dir.path()).env("PATH", path).stdin(Stdio::null());
        command.env("KVCTL_ENDPOINTS", format!("localhost:{}", ports[0]));
        let output = command.output().unwrap();
        let logs = std::fs::read_to_string(dir.path().join("servers.log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{title}:\n{said}\n--- what the servers logged\n{logs}");
    }

    /// The sections that have commands, by title.
    fn sections(&self) -> BTreeMap<String, Section> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(self.0);
        let page = std::fs::read_to_string(page).unwrap();
        read(&page)
    }
}

fn read(page: &str) -> BTreeMap<String, Section> {
    let mut sections = BTreeMap::<String, Section>::new();
    let (mut title, mut block) = (String::new(), None::<String>);
    for line in page.lines() {
        let section = sections.entry(title.clone()).or_default();
        match (&block, line) {
            (None, _) if line.starts_with("## ") => title = line[3..].to_owned(),
            (None, _) if line.starts_with("```") => block = Some(line[3..].to_owned()),
            (Some(_), "```") => block = None,
            (Some(kind), _) if kind == "console" => match line.strip_prefix("$ ") {
                Some(command) => {
                    section.steps.push(Step { command: command.to_owned(), expected: Vec::new() });
                }
                None => {
                    section
                        .steps
                        .last_mut()
                        .expect("output follows a command")
                        .expected
                        .push(line.to_owned());
                }
            },
            (Some(kind), _) if kind.contains("file=") => {
                let name = kind.split_once("file=").expect("a file has a name").1;
                let file = section.files.entry(name.to_owned()).or_default();
                writeln!(file, "{line}").unwrap();
            }
            _ => {}
        }
    }
    sections.retain(|_, section| !section.steps.is_empty());
    sections
}

/// Puts free ports in the place of those that the page names: 9090 to 9093, and 1000 more for the nodes among themselves.
fn with_free_ports(text: &str, ports: &[u16]) -> String {
    let mut text = text.to_owned();
    for (n, port) in ports.iter().enumerate() {
        text = text.replace(&format!("localhost:1009{n}"), &format!("localhost:{}", port + 1000));
        text = text.replace(&format!("localhost:909{n}"), &format!("localhost:{port}"));
        text = text.replace(&format!("--port 909{n}"), &format!("--port {port}"));
    }
    text
}

/// A shell script that runs the steps one after another and ends at the first that does not do as the page says.
fn script(section: &Section, ports: &[u16]) -> String {
    let mut script = PRELUDE.to_owned();
    for Step { command, expected } in &section.steps {
        let command = quoted(&with_free_ports(command, ports));
        let expected: Vec<String> =
            expected.iter().map(|line| format!("'{}'", quoted(&with_free_ports(line, ports)))).collect();
        let runs_on = command.contains(" & ") || command.ends_with('&');
        let is_query = ["get", "member list", "status", "cat"].iter().any(|query| command.contains(query));
        // Of what runs on, the output goes to a file, where the page does not say to which.
        let log = if command.contains('>') { " 2>>servers.log &" } else { " >>servers.log 2>&1 &" };
        let command = if runs_on { command.replacen(" &", log, 1) } else { command };
        // A variable has to be set in this shell.
        let is_assignment =
            command.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase()));
        let is_once = runs_on || command.starts_with("kill");
        let how = match (is_once, is_query, expected.is_empty()) {
            (true, ..) => "once",
            _ if is_assignment => "until_set",
            (false, true, false) => "until_shown",
            (false, _, false) => "shown",
            (false, _, true) => "until_done",
        };
        writeln!(script, "{how} '{command}' {}", expected.join(" ")).unwrap();
    }
    script
}

/// For a place between single quotes.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

/// `once` runs a command in this shell; its code may be that of a process that a signal has ended. `until_set` sets a variable in this
/// shell; `until_done` repeats a command while it fails, as a cluster may have no leader for a moment;
/// `shown` runs it and `until_shown` repeats it until its output has the expected lines.
const PRELUDE: &str = r#"
exec 2>&1
set -a
trap 'builtin kill -9 $(jobs -p) 2>/dev/null; wait' EXIT
fail() { echo "FAILED: $1"; echo "$2"; exit 1; }
kill() { builtin kill "$@" || fail "kill $*" "a process to kill has ended before"; }
once() {
    echo "\$ $1"
    eval "$1"
    local code=$?
    ((code == 0 || code >= 128)) || fail "$1" "exit code $code"
}
until_set() {
    echo "\$ $1"
    for _ in $(seq 60); do eval "$1" && return; sleep 0.5; done
    fail "$1"
}
has() { local text=$1 line; shift; for line in "$@"; do [[ $text == *"$line"* ]] || return 1; done; }
until_done() {
    local text
    echo "\$ $1"
    for _ in $(seq 60); do text=$(eval "$1" 2>&1) && return; sleep 0.5; done
    fail "$1" "$text"
}
shown() {
    local command=$1 text
    shift
    echo "\$ $command"
    text=$(timeout 60 bash -c "$command" 2>&1)
    has "$text" "$@" || fail "$command" "$text"
}
until_shown() {
    local command=$1 text
    shift
    echo "\$ $command"
    for _ in $(seq 120); do text=$(eval "$command" 2>&1); has "$text" "$@" && return; sleep 0.5; done
    fail "$command" "$text"
}
"#;
