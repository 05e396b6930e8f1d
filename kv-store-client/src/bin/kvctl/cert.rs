//! Makes the certificates of a cluster.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use consensus_tls::issue::{Authority, Days, Issued};
use serde_json::json;

use super::{Failure, show::Show};

/// What to make.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Makes a certificate authority: ca.crt, which everybody may have, and ca.key, which signs certificates. Keep ca.key off the
    /// servers.
    Init {
        /// Name of the authority, which no other one that servers trust may have. Default: `kv-server CA` and a random number.
        #[arg(long)]
        name: Option<String>,
        /// Days in which it is valid.
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(i64).range(1..=36_500))]
        days: i64,
        #[command(flatten)]
        folder: Folder,
    },
    /// Makes the certificate of a node, for its clients and for other nodes: NAME.crt and NAME.key.
    Node {
        /// Name of the node, the common name of the certificate.
        name: String,
        /// Host names and addresses at which clients and other nodes reach the node, separated by commas.
        #[arg(long = "host", value_delimiter = ',', required = true, value_name = "HOSTS")]
        hosts: Vec<String>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Makes the certificate of a client: NAME.crt and NAME.key. It is not accepted for a node.
    Client {
        /// Name of the user, the common name of the certificate.
        name: String,
        #[command(flatten)]
        issue: Issue,
    },
}

#[derive(Args)]
pub(super) struct Folder {
    /// Folder of the files.
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Args)]
pub(super) struct Issue {
    /// Days in which it is valid.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=36_500))]
    days: i64,
    /// Replaces the certificate and the key if they exist.
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    folder: Folder,
}

/// Makes the files, and prints which.
pub(super) fn execute(command: &Command, show: Show) -> Result<u8, Failure> {
    match command {
        Command::Init { name, days, folder } => {
            let files = Files::of(&folder.dir, AUTHORITY)?;
            files.check_absent("with a new key all certificates that it signed would be invalid")?;
            std::fs::create_dir_all(&folder.dir).map_err(|error| file_error(&folder.dir, &error))?;
            // Revocation lists tell authorities apart by their names.
            let name = name.clone().unwrap_or_else(|| format!("kv-server CA {:08x}", rand::random::<u32>()));
            files.write(&Authority::create(&name, Days(*days)).map_err(issue_error)?.1, show)
        }
        Command::Node { name, hosts, issue } => {
            let files = issue.files(name)?;
            let issued = issue.authority()?.issue_node(name, hosts, Days(issue.days));
            files.write(&issued.map_err(issue_error)?, show)
        }
        Command::Client { name, issue } => {
            let files = issue.files(name)?;
            let issued = issue.authority()?.issue_client(name, Days(issue.days));
            files.write(&issued.map_err(issue_error)?, show)
        }
    }
}

impl Issue {
    /// The files of a node or client, which may be written.
    fn files(&self, name: &str) -> Result<Files, Failure> {
        if name.eq_ignore_ascii_case(AUTHORITY) {
            let why = "that is the name of the files of the authority; use another one";
            return Err(Failure::Usage(format!("{name}: {why}")));
        }
        let files = Files::of(&self.folder.dir, name)?;
        if !self.renew {
            files.check_absent("it may be in use; --renew replaces it")?;
        }
        Ok(files)
    }

    fn authority(&self) -> Result<Authority, Failure> {
        let read = |name: &str| {
            let path = self.folder.dir.join(name);
            std::fs::read_to_string(&path).map_err(|error| {
                Failure::Usage(format!("{}: {error}; `kvctl cert init` makes it", path.display()))
            })
        };
        let (certificate, key) = (read("ca.crt")?, read("ca.key")?);
        Authority::from_pem(&certificate, &key).map_err(|error| {
            Failure::Usage(format!("ca.crt and ca.key in {}: {error}", self.folder.dir.display()))
        })
    }
}

/// Files of a certificate and its key.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(dir: &Path, name: &str) -> Result<Self, Failure> {
        if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(Failure::Usage(format!("{name:?} cannot be the name of a file")));
        }
        let file = |ending: &str| dir.join(format!("{name}.{ending}"));
        Ok(Self { certificate: file("crt"), key: file("key") })
    }

    /// Checks that neither file exists, not even as a link to nothing.
    fn check_absent(&self, why: &str) -> Result<(), Failure> {
        let is_there = |path: &&PathBuf| path.symlink_metadata().is_ok();
        match [&self.certificate, &self.key].into_iter().find(is_there) {
            None => Ok(()),
            Some(path) => Err(Failure::Usage(format!("{} is there already; {why}", path.display()))),
        }
    }

    fn write(&self, issued: &Issued, show: Show) -> Result<u8, Failure> {
        issued.write(&self.certificate, &self.key).map_err(|error| Failure::Usage(error.to_string()))?;
        let (certificate, key) = (self.certificate.display().to_string(), self.key.display().to_string());
        show.either(&format!("{certificate}\n{key}"), || json!({ "certificate": certificate, "key": key }))?;
        Ok(0)
    }
}

fn file_error(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("{}: {error}", path.display()))
}

fn issue_error(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("the certificate cannot be made: {error}"))
}

/// Name of the files of the authority, without their endings.
const AUTHORITY: &str = "ca";
