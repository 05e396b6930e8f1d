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
        /// Name of the authority.
        #[arg(long, default_value = "kv-server CA")]
        name: String,
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
    #[command(flatten)]
    folder: Folder,
}

/// Makes the files, and prints which.
pub(super) fn execute(command: &Command, show: Show) -> Result<u8, Failure> {
    let (dir, name, issued) = match command {
        Command::Init { name, days, folder } => {
            let key = folder.dir.join("ca.key");
            if key.exists() {
                let why =
                    "it is there already; with a new key all certificates that it signed would be invalid";
                return Err(Failure::Usage(format!("{}: {why}", key.display())));
            }
            std::fs::create_dir_all(&folder.dir).map_err(|error| file_error(&folder.dir, &error))?;
            (&folder.dir, "ca", Authority::create(name, Days(*days)).map_err(issue_error)?.1)
        }
        Command::Node { name, hosts, issue } => {
            let issued = issue.authority()?.issue_node(name, hosts, Days(issue.days));
            (&issue.folder.dir, name.as_str(), issued.map_err(issue_error)?)
        }
        Command::Client { name, issue } => {
            let issued = issue.authority()?.issue_client(name, Days(issue.days));
            (&issue.folder.dir, name.as_str(), issued.map_err(issue_error)?)
        }
    };
    write(dir, name, &issued, show)
}

impl Issue {
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

fn write(dir: &Path, name: &str, issued: &Issued, show: Show) -> Result<u8, Failure> {
    if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
        return Err(Failure::Usage(format!("{name:?} cannot be the name of a file")));
    }
    let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    issued.write(&certificate, &key).map_err(|error| Failure::Usage(error.to_string()))?;
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    show.either(&format!("{certificate}\n{key}"), || json!({ "certificate": certificate, "key": key }))?;
    Ok(0)
}

fn file_error(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("{}: {error}", path.display()))
}

fn issue_error(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("the certificate cannot be made: {error}"))
}
