//! Manual pages and completions of both programs: complete, and accepted by the programs that read them.

use std::{
    fmt::Write as _,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::common::kvctl;

fn programs() -> [(&'static str, PathBuf); 2] {
    [("kv-server", PathBuf::from(env!("CARGO_BIN_EXE_kv-server"))), ("kvctl", kvctl::program().to_owned())]
}

/// Whether the program is installed.
fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}

/// Standard output of a program that succeeds.
fn output(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_has_a_manual_page_that_is_formatted_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    for (_, program) in programs() {
        output(&program, &["man", &dir.path().display().to_string()]);
    }
    let mut pages: Vec<PathBuf> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    let names: Vec<_> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
    for name in [
        "kv-server.8",
        "kv-server-dev.8",
        "kvctl.1",
        "kvctl-put.1",
        "kvctl-lease-grant.1",
        "kvctl-cert-node.1",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("-man.")), "{names:?}");
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for part in [".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"] {
            assert!(text.contains(part), "{} has no {part}", page.display());
        }
        if is_there("groff") {
            let formatted =
                Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(page).output().unwrap();
            let said = String::from_utf8_lossy(&formatted.stderr);
            assert!(formatted.status.success() && said.is_empty(), "{}: {said}", page.display());
        }
    }
    let page = fs::read_to_string(dir.path().join("kv-server.8")).unwrap();
    for words in [r"\-\-check\-config", r"\-\-data\-dir", "LIMITS"] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn shells_accept_the_completions() {
    for (name, program) in programs() {
        for shell in ["bash", "zsh", "fish"] {
            let script = output(&program, &["completions", shell]);
            assert!(script.contains(name) && script.len() > 1000, "{name} {shell}");
            // A shell that is not installed checks nothing.
            if is_there(shell) {
                let mut check = Command::new(shell).arg("-n").stdin(Stdio::piped()).spawn().unwrap();
                check.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                assert!(check.wait().unwrap().success(), "{name} {shell}");
            }
        }
    }
}

#[test]
fn bash_completes_commands_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let completed = |program: &Path, name: &str, words: &str| {
        let mut script = output(program, &["completions", "bash"]);
        let (at, function) = (words.split(' ').count() - 1, name.replace('-', "__"));
        write!(
            script,
            "\nCOMP_WORDS=({words}) COMP_CWORD={at}\n\
             _{function} {name} \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{at}-1]}}\"\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        )
        .unwrap();
        let file = dir.path().join(name);
        fs::write(&file, script).unwrap();
        output(Path::new("bash"), &[file.to_str().unwrap()])
    };
    let [(_, server), (_, kvctl)] = programs();
    assert_eq!(completed(&kvctl, "kvctl", "kvctl snapshot sa"), "save\n");
    assert_eq!(completed(&server, "kv-server", "kv-server --check-con"), "--check-config\n");
}
