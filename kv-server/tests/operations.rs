//! Runs the commands of docs/operations.md: one test for each section, in a directory and on ports of its own.

mod common;

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    process::{Command, Stdio},
};

use common::{free_port, kvctl::Kvctl};

/// What a section of the page has an operator do.
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

/// The sections of the page that have commands, by title.
fn sections() -> BTreeMap<String, Section> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
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
    }
    text
}

/// A shell script that runs the steps one after another and ends at the first that does not do as the page says.
fn script(section: &Section, ports: &[u16]) -> String {
    let mut script = PRELUDE.to_owned();
    for Step { command, expected } in &section.steps {
        let command = with_free_ports(command, ports).replace('\'', "'\\''");
        let expected: Vec<String> = expected.iter().map(|line| format!("'{line}'")).collect();
        let runs_on = command.contains(" & ") || command.ends_with('&');
        let is_query = ["get", "member list", "status"].iter().any(|query| command.contains(query));
        let command = if runs_on { command.replacen(" &", " >>servers.log 2>&1 &", 1) } else { command };
        let how = match (runs_on || command.starts_with("kill"), is_query, expected.is_empty()) {
            (true, ..) => "once",
            (false, true, false) => "until_shown",
            (false, _, false) => "shown",
            (false, _, true) => "until_done",
        };
        writeln!(script, "{how} '{command}' {}", expected.join(" ")).unwrap();
    }
    script
}

/// Runs the section with this title.
fn run(title: &str) {
    let sections = sections();
    let section =
        sections.get(title).unwrap_or_else(|| panic!("docs/operations.md has no section {title:?}"));
    let dir = tempfile::tempdir().unwrap();
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    for (name, content) in &section.files {
        std::fs::write(dir.path().join(name), with_free_ports(content, &ports)).unwrap();
    }
    drop(Kvctl::new(String::new())); // Builds it.
    let programs = Path::new(env!("CARGO_BIN_EXE_kv-server")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    std::fs::write(dir.path().join("steps.sh"), script(section, &ports)).unwrap();
    let mut command = Command::new("bash");
    command.arg("steps.sh").current_dir(dir.path()).env("PATH", path).stdin(Stdio::null());
    let output = command.output().unwrap();
    let logs = std::fs::read_to_string(dir.path().join("servers.log")).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{title}:\n{said}\n--- what the servers logged\n{logs}");
}

/// `once` runs a command in this shell; `until_done` repeats it while it fails, as a cluster may have no leader for a moment;
/// `shown` runs it and `until_shown` repeats it until its output has the expected lines.
const PRELUDE: &str = r#"
exec 2>&1
trap 'kill -9 $(jobs -p) 2>/dev/null; wait' EXIT
fail() { echo "FAILED: $1"; echo "$2"; exit 1; }
once() { echo "\$ $1"; eval "$1" || true; }
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

#[test]
fn from_one_node_to_three_keeps_the_data() {
    run("From one node to three");
}

#[test]
fn node_that_lost_its_disk_is_replaced() {
    run("Replacing a node");
}

#[test]
fn copy_of_a_data_directory_becomes_a_cluster() {
    run("Restoring from a copy");
}

#[test]
fn survivor_of_a_majority_becomes_a_cluster() {
    run("Loss of a majority");
}

#[test]
fn node_without_room_serves_reads() {
    run("Full and stalled disks");
}

#[test]
fn moved_node_is_found() {
    run("Moving addresses");
}

#[test]
fn every_section_with_commands_is_run() {
    let titles: Vec<String> = sections().into_keys().collect();
    let run = [
        "From one node to three",
        "Full and stalled disks",
        "Loss of a majority",
        "Moving addresses",
        "Replacing a node",
        "Restoring from a copy",
    ];
    assert_eq!(titles, run);
}
