//! docs/performance.md: prose by people, and between marks what was measured.

use std::{fs, path::Path, process::ExitCode};

use crate::{readme, table::Table};

/// Prints `table`, and writes it into performance.md in `docs` if given, and its figures into README.md. Returns the exit code of `program`.
pub fn report(program: &str, table: Result<Table, String>, docs: Option<&Path>, machine: &str) -> ExitCode {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let written = table.and_then(|table| {
        println!("{}\n\n{table}", table.name());
        docs.map_or(Ok(()), |docs| write(docs, &table, &format!("{program} {arguments}"), machine))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{program}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Puts `table`, its plots and how it came about in the place of what stands between its marks.
fn write(docs: &Path, table: &Table, command: &str, machine: &str) -> Result<(), String> {
    let path = docs.join("performance.md");
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    let plots = docs.join("performance");
    fs::create_dir_all(&plots).map_err(at)?;
    let pictures = table.draw(&plots)?;
    let text = fs::read_to_string(&path).map_err(at)?;
    let (begin, end) =
        (format!("<!-- begin: {} -->", table.name()), format!("<!-- end: {} -->", table.name()));
    let (Some(from), Some(to)) = (text.find(&begin), text.find(&end)) else {
        return Err(format!("{}: there are no lines {begin} and {end}", path.display()));
    };
    let note = if table.note().is_empty() { String::new() } else { format!(", {}", table.note()) };
    let how = format!("`{command}`, {machine}{note}");
    let (before, after) = (&text[..from + begin.len()], &text[to..]);
    fs::write(&path, format!("{before}\n{table}\n{how}.\n{pictures}\n{after}")).map_err(at)?;
    readme::renew(docs)
}

/// On what, and what else it does now.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!("{cores} cores ({}), load average before {load}", model.trim_start_matches([' ', '\t', ':']))
}
