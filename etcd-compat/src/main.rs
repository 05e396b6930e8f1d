//! The same requests, chosen at random from a seed, to etcd and to kv-server, and what differs in the answers.
//!
//! ```text
//! kv-etcd-compat --etcd PROGRAM --kv-server PROGRAM [--seeds 100] [--from 0] [--steps 40]
//! ```
//! Both servers begin empty for each seed, so that revisions are equal and are compared as they are. Of headers only the
//! revision is compared. The first difference of a seed is shown with the requests before it, and ends the seed.

mod answer;
mod request;
mod server;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use rand::{SeedableRng, rngs::SmallRng};

use crate::{
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
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut failed = 0;
    let mut compared = 0;
    for seed in arguments.from..arguments.from + arguments.seeds {
        match run(&arguments, seed, &mut compared).await {
            Ok(()) => {}
            Err(difference) => {
                println!("seed {seed}: {difference}\n");
                failed += 1;
            }
        }
    }
    println!("{} seeds, {compared} answers compared, {failed} seeds with a difference", arguments.seeds);
    if failed == 0 && compared > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(arguments: &Arguments, seed: u64, compared: &mut u64) -> Result<(), String> {
    let (mut theirs, ours) = (Server::etcd(&arguments.etcd)?, Server::kv(&arguments.kv_server)?);
    let (mut to_theirs, mut to_ours) =
        (Clients::connect(theirs.port).await?, Clients::connect(ours.port).await?);
    let mut generator = Generator::new(SmallRng::seed_from_u64(seed));
    let mut before: Vec<Step> = Vec::new();
    for _ in 0..arguments.steps {
        let step = generator.next_step();
        let (expected, found) = tokio::join!(to_theirs.ask(&step), to_ours.ask(&step));
        let (expected, found) = (expected?, found?);
        if expected.is_of_lost_connection() && theirs.has_ended() {
            println!(
                "seed {seed}: etcd ended by itself after {} requests; the others are not compared",
                before.len() + 1
            );
            return Ok(());
        }
        *compared += 1;
        generator.learn(&step, &expected);
        if expected != found {
            let history: Vec<String> = before.iter().map(|step| format!("  {step:?}")).collect();
            return Err(format!(
                "after\n{}\n{step:?}\n  etcd:      {expected:?}\n  kv-server: {found:?}",
                history.join("\n")
            ));
        }
        before.push(step);
    }
    Ok(())
}
