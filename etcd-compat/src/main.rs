//! The same requests, chosen at random from a seed, to etcd and to kv-server, and what differs in the answers.
//!
//! ```text
//! kv-etcd-compat --etcd PROGRAM --kv-server PROGRAM [--seeds 100] [--from 0] [--steps 60] [--flags-page FILE]
//! ```
//! Both servers begin empty for each seed, so that revisions are equal and are compared as they are. Of headers only the
//! revision is compared. The first difference of a seed ends the seed, and is shown with as few requests before it as were found
//! to bring it about. After each seed a snapshot of etcd is imported by kv-server, and keys, changes and leases are compared.

mod answer;
mod import;
mod request;
mod server;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use clap::Parser;
use rand::{SeedableRng, rngs::SmallRng};

use crate::{
    answer::Answer,
    request::{Generator, Step},
    server::{Clients, Server},
};

#[derive(Parser)]
#[command(about = "Compares the answers of etcd and of kv-server to the same requests")]
struct Arguments {
    /// The program etcd, version 3.7.
    #[arg(long)]
    etcd: PathBuf,
    /// The program kv-server.
    #[arg(long)]
    kv_server: PathBuf,
    /// How many sequences of requests.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Requests in a sequence.
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// A page that must name every flag of etcd.
    #[arg(long)]
    flags_page: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(page) = &arguments.flags_page
        && let Err(why) = check_flags(&arguments.etcd, page)
    {
        println!("{}: {why}", page.display());
        return ExitCode::FAILURE;
    }
    let mut failed = 0;
    let mut compared = 0;
    for seed in arguments.from..arguments.from + arguments.seeds {
        match check(&arguments, seed).await {
            Ok(answers) => compared += answers,
            Err(text) => {
                println!("seed {seed}: {text}\n");
                failed += 1;
            }
        }
    }
    println!("{} seeds, {compared} answers compared, {failed} seeds with a difference", arguments.seeds);
    if failed == 0 && compared > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the page names every flag that etcd's `--help` shows.
fn check_flags(etcd: &Path, page: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(page).map_err(|error| error.to_string())?;
    let help = Command::new(etcd).arg("--help").output().map_err(|error| error.to_string())?;
    let help = [help.stdout, help.stderr].concat();
    let help = String::from_utf8_lossy(&help);
    let flags: BTreeSet<&str> =
        help.lines().filter(|line| line.trim().starts_with("--")).filter_map(first_word).collect();
    let missing: Vec<&str> =
        flags.iter().copied().filter(|flag| !text.contains(&format!("`{flag}`"))).collect();
    match (flags.len(), missing.is_empty()) {
        (0, _) => Err("etcd --help shows no flags".to_owned()),
        (_, true) => Ok(()),
        (_, false) => Err(format!("it does not name {}", missing.join(", "))),
    }
}

fn first_word(line: &str) -> Option<&str> {
    line.split_whitespace().next().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric() && c != '-'))
}

/// Compares the answers to the requests of a seed; returns how many. `Err`: a difference, after as few requests as were found to
/// show it, or why the servers could not be asked.
async fn check(arguments: &Arguments, seed: u64) -> Result<usize, String> {
    let mut generator = Generator::new(SmallRng::seed_from_u64(seed));
    let next = |answered: Option<(&Step, &Answer)>, number: usize| {
        if let Some((step, answer)) = answered {
            generator.learn(step, answer);
        }
        (number < arguments.steps).then(|| generator.next_step())
    };
    match compare(arguments, next).await? {
        Outcome::Same(answers) => Ok(answers),
        Outcome::EtcdEnded(answers) => {
            println!(
                "seed {seed}: etcd ended by itself after {answers} requests; the others are not compared"
            );
            Ok(answers)
        }
        Outcome::NotImported(steps, why) => {
            let steps: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
            Err(format!("after these requests, {why}\n{}", steps.join("\n")))
        }
        Outcome::Differs(difference) => Err(shrink(arguments, *difference).await?.to_string()),
    }
}

/// Removes requests as long as there is a difference after the others: first halves of them, then quarters, and so on.
async fn shrink(arguments: &Arguments, mut shown: Difference) -> Result<Difference, String> {
    let mut piece = shown.before.len().div_ceil(2);
    while piece > 0 {
        let mut from = 0;
        while from < shown.before.len() {
            let mut steps = shown.steps();
            steps.drain(from..(from + piece).min(shown.before.len()));
            match compare(arguments, |_, number| steps.get(number).cloned()).await? {
                Outcome::Differs(difference) => shown = *difference,
                Outcome::Same(_) | Outcome::EtcdEnded(_) | Outcome::NotImported(..) => from += piece,
            }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    Ok(shown)
}

/// What came of a sequence of requests, with the number of equal answers.
enum Outcome {
    Same(usize),
    EtcdEnded(usize),
    /// A snapshot of etcd after these requests was not imported rightly, and why.
    NotImported(Vec<Step>, String),
    Differs(Box<Difference>),
}

struct Difference {
    before: Vec<Step>,
    step: Step,
    etcd: Answer,
    kv_server: Answer,
}

impl Difference {
    /// All requests, the last of which shows it.
    fn steps(&self) -> Vec<Step> {
        self.before.iter().chain([&self.step]).cloned().collect()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, step, etcd, kv_server } = self;
        writeln!(f, "after {} requests", before.len())?;
        before.iter().try_for_each(|step| writeln!(f, "  {step:?}"))?;
        write!(f, "{step:?}\n  etcd:      {etcd:?}\n  kv-server: {kv_server:?}")
    }
}

/// Sends the requests that `next` returns to two servers that are empty, until answers differ. `next` is given the request
/// before with its answer, and the number of requests before.
async fn compare(
    arguments: &Arguments,
    mut next: impl FnMut(Option<(&Step, &Answer)>, usize) -> Option<Step>,
) -> Result<Outcome, String> {
    let (mut theirs, mut to_theirs) = start(|| Server::etcd(&arguments.etcd)).await?;
    let (_ours, mut to_ours) = start(|| Server::kv(&arguments.kv_server)).await?;
    let mut before: Vec<Step> = Vec::new();
    let mut answer = None;
    while let Some(step) = next(before.last().zip(answer.as_ref()), before.len()) {
        let (etcd, kv_server) = tokio::join!(to_theirs.ask(&step), to_ours.ask(&step));
        let (etcd, kv_server) = (etcd?, kv_server?);
        if etcd.is_of_lost_connection() && theirs.has_ended() {
            return Ok(Outcome::EtcdEnded(before.len()));
        }
        if etcd != kv_server {
            return Ok(Outcome::Differs(Box::new(Difference { before, step, etcd, kv_server })));
        }
        before.push(step);
        answer = Some(etcd);
    }
    match import::check(&arguments.kv_server, &mut to_theirs).await {
        Ok(_) => Ok(Outcome::Same(before.len())),
        Err(_) if theirs.has_ended() => Ok(Outcome::EtcdEnded(before.len())),
        Err(why) => Ok(Outcome::NotImported(before, why)),
    }
}

/// Starts a server, more than once if it does not answer: another program may have taken its ports meanwhile.
async fn start(server: impl Fn() -> Result<Server, String>) -> Result<(Server, Clients), String> {
    let mut why = String::new();
    for _ in 0..STARTS_MAX {
        let server = server()?;
        match Clients::connect(server.port).await {
            Ok(clients) => return Ok((server, clients)),
            Err(error) => why = error,
        }
    }
    Err(why)
}

const STARTS_MAX: usize = 3;
