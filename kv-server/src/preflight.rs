//! `--check-config`: the errors that a start would find in the settings, and in the files and directories that they name.
//!
//! Everything is checked, and nothing is changed: no directory is made, no port opened, no data read but the records of whose data it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::{
    config::{Findings, Settings},
    node, tls,
};

/// One line about settings that are right, or all errors.
pub(crate) fn report(findings: Findings) -> Result<String, Vec<String>> {
    let Findings { settings, data_dir, tls } = findings;
    let mut errors = tls::faults(&tls);
    let dir_error = data_dir_error(&data_dir);
    match settings {
        Ok(settings) => {
            // The directory is only read where it can be.
            let of_data = match dir_error {
                Some(error) => Some(error),
                None => node::verify_data_dir(&settings).err().map(|error| error.to_string()),
            };
            errors.extend(of_data);
            if errors.is_empty() { Ok(summary(&settings)) } else { Err(errors) }
        }
        Err(faults) => {
            let of_settings = faults.iter().map(ToString::to_string);
            Err(of_settings.chain(errors).chain(dir_error).collect())
        }
    }
}

fn summary(settings: &Settings) -> String {
    let Settings { node, client_listen, topology, data_dir, .. } = settings;
    let place = match topology {
        None => "standalone".to_owned(),
        Some(topology) => format!("one of {} nodes", topology.nodes.len()),
    };
    let is_new = !data_dir.exists();
    let new = if is_new { ", which is made at the start" } else { "" };
    format!(
        "the settings are right: node {node}, {place}, clients at {client_listen}, data in {}{new}; not checked: whether ports are \
         free, names of hosts, and other nodes",
        data_dir.display()
    )
}

/// Why the data directory cannot be used or made by this user; `None` if it can.
fn data_dir_error(dir: &Path) -> Option<String> {
    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Some(format!("data directory {shown}: it is not a directory")),
        Ok(_) => {
            let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
            access_error(dir, wanted)
                .map(|error| format!("data directory {shown}: it cannot be written: {error}"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => creation_error(dir).map(|(above, error)| {
            format!("data directory {shown}: it cannot be made in {}: {error}", above.display())
        }),
        Err(error) => Some(format!("data directory {shown}: {error}")),
    }
}

/// Why the directory cannot be made, with the nearest directory above that exists.
fn creation_error(dir: &Path) -> Option<(PathBuf, io::Error)> {
    let dir = match std::path::absolute(dir) {
        Ok(dir) => dir,
        Err(error) => return Some((dir.to_owned(), error)),
    };
    let above = dir.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok())?;
    access_error(above, Access::WRITE_OK | Access::EXEC_OK).map(|error| (above.to_owned(), error))
}

/// Why this user may not do these things in the directory.
fn access_error(dir: &Path, wanted: Access) -> Option<io::Error> {
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => return Some(io::ErrorKind::NotADirectory.into()),
        Ok(_) => {}
        Err(error) => return Some(error),
    }
    accessat(CWD, dir, wanted, AtFlags::EACCESS).err().map(io::Error::from)
}
