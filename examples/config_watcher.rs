//! A service that reads its configuration from the store and follows every change of it, without gaps: when the server restarts,
//! when the service itself restarts, and when so much happened meanwhile that the history is gone.

use std::{collections::BTreeMap, fs, io, path::Path, process::ExitCode};

use examples::server::{self, Server};
use futures::TryStreamExt;
use kv_store_client::{
    KvClient, WatchError,
    idl::{RangeRequest, WatchEvent, WatchRequest},
    prefix_end,
};
use serde::{Deserialize, Serialize};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The configuration, and where its history goes on. The service keeps both in a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Config {
    values: BTreeMap<String, String>,
    /// First revision that is not part of `values`.
    next_revision: i64,
    /// Number of changes that were taken one by one.
    changes: u64,
}

impl Config {
    /// All keys as of one revision.
    async fn read(client: &KvClient) -> Outcome<Self> {
        let found = client.range(RangeRequest::of(PREFIX, Some(prefix_end(PREFIX)))).await?;
        let pairs =
            found.kvs.into_iter().map(|kv| Ok((String::from_utf8(kv.key)?, String::from_utf8(kv.value)?)));
        Ok(Self {
            values: pairs.collect::<Outcome<_>>()?,
            next_revision: found.header.revision + 1,
            changes: 0,
        })
    }

    /// Takes a change. To take it twice does no harm.
    fn apply(&mut self, event: WatchEvent) -> Outcome<()> {
        let key = String::from_utf8(event.kv.key)?;
        if event.deleted {
            println!("  {key} is gone");
            self.values.remove(&key);
        } else {
            let value = String::from_utf8(event.kv.value)?;
            println!("  {key} is {value}");
            self.values.insert(key, value);
        }
        self.changes += 1;
        Ok(())
    }

    /// Replaces the file as a whole, so that it is complete whenever the service ends.
    fn save(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_string(self)?)?;
        fs::rename(new, file)
    }
}

/// The service: follows the configuration, here until it is as the caller waits for.
async fn serve(client: &KvClient, file: &Path, until: impl Fn(&Config) -> bool) -> Outcome<Config> {
    let mut config = match fs::read_to_string(file) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) => Config::read(client).await?, // The first start.
    };
    config.save(file)?;
    println!("service starts with {:?}", config.values);
    while !until(&config) {
        // The watch resumes by itself when the server is away.
        let start_revision = Some(config.next_revision);
        let request = WatchRequest { start_revision, ..WatchRequest::of(PREFIX, Some(prefix_end(PREFIX))) };
        let mut watch = client.watch(request).await?;
        while !until(&config) {
            match watch.try_next().await {
                Ok(Some(event)) => config.apply(event)?,
                // What happened next is compacted: only the state can be read, not the way there.
                Err(WatchError::Compacted { oldest }) => {
                    config = Config::read(client).await?;
                    println!("  changes before revision {oldest} are gone; read anew: {:?}", config.values);
                    break;
                }
                Ok(None) => break,
                Err(error) => return Err(error.into()),
            }
            config.next_revision = watch.next_revision();
            config.save(file)?;
        }
        config.save(file)?;
    }
    Ok(config)
}

async fn run() -> Outcome<()> {
    let mut server = Server::start()?;
    let (client, dir) = (server.client(), tempfile::tempdir()?);
    let file = dir.path().join("config.json");
    client.put("config/limit", "10").await?;
    let first = serve(&client, &file, |_| true).await?;
    assert_eq!(first.values["config/limit"], "10");

    // The server is killed and restarted while the service follows.
    let has_colour = |config: &Config| config.values.contains_key("config/colour");
    let (before, changed) = tokio::join!(serve(&client, &file, has_colour), async {
        client.put("config/limit", "20").await?;
        server.restart()?;
        client.put("config/colour", "green").await?;
        Outcome::Ok(())
    });
    changed?;
    let before = before?;
    assert_eq!((before.values["config/limit"].as_str(), before.changes), ("20", 2));

    // While the service is away there are changes. It takes each of them when it is back.
    client.put("config/limit", "30").await?;
    client.put("config/limit", "31").await?;
    client.delete("config/colour").await?;
    let after = serve(&client, &file, |config| !has_colour(config)).await?;
    assert_eq!((after.values["config/limit"].as_str(), after.changes - before.changes), ("31", 3));

    // While it is away again the history is compacted. It finds that out, and reads the configuration anew.
    let latest = client.put("config/limit", "40").await?.header.revision;
    client.put("config/colour", "blue").await?;
    client.compact(latest + 1).await?;
    let anew = serve(&client, &file, has_colour).await?;
    assert_eq!((anew.values["config/limit"].as_str(), anew.changes), ("40", 0));
    Ok(())
}

fn main() -> ExitCode {
    server::run(run)
}

const PREFIX: &str = "config/";
