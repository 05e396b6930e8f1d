//! Completions for shells, and manual pages: made from the definition of the command line.

use std::{fs, io, path::Path};

use clap_complete::Shell;
use clap_mangen::Man;

use crate::config::command;

/// The completions for a shell.
pub(crate) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), NAME, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a manual page for the program and for each of its subcommands into a directory.
pub(crate) fn write_manual(dir: &Path) -> io::Result<()> {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    fs::create_dir_all(dir)?;
    write_pages(&command, dir)
}

fn write_pages(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, dir)?;
    }
    let page = Man::new(command.clone()).section(SECTION).manual("System administration");
    page.generate_to(dir).map(drop)
}

/// Name of the program.
const NAME: &str = "kv-server";
/// Section of the manual: programs for administrators.
const SECTION: &str = "8";
