//! Completions for shells, and manual pages: made from the definition of the command line. No server is asked.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{Arguments, Failure};

/// Prints the completions for a shell.
pub(crate) fn complete(shell: Shell) -> Result<u8, Failure> {
    // The generator ends the program when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut script);
    match io::stdout().lock().write_all(&script) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(0),
    }
}

/// Writes a manual page for the program and for each of its subcommands into a directory.
pub(crate) fn write_manual(dir: &Path) -> Result<u8, Failure> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let written = fs::create_dir_all(dir).and_then(|()| write_pages(&command, dir));
    written.map(|()| 0).map_err(|error| Failure::File(format!("manual pages in {}: {error}", dir.display())))
}

fn write_pages(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, dir)?;
    }
    Man::new(command.clone()).manual("User commands").generate_to(dir).map(drop)
}

/// Name of the program.
const NAME: &str = "kvctl";
