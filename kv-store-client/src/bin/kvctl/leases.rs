//! Leases.

use clap::Subcommand;
use kv_store_client::KvClient;
use serde_json::json;

use crate::{
    Failure,
    show::{Show, escaped},
    signals::Signals,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Grants a lease, and prints its id.
    Grant {
        /// Seconds that it lives without being renewed.
        #[arg(value_name = "TTL", value_parser = clap::value_parser!(i64).range(1..=TTL_SECONDS_MAX))]
        ttl_seconds: i64,
        /// Its id, in hexadecimal; left out for one that is drawn. Refused if there is a lease of this id.
        #[arg(long, value_parser = parse_id)]
        id: Option<i64>,
    },
    /// Keeps a lease alive until it is interrupted, or lost.
    KeepAlive {
        /// Its id, in hexadecimal.
        #[arg(value_parser = parse_id)]
        id: i64,
        /// Give it its whole time once, and end.
        #[arg(long)]
        once: bool,
    },
    /// Ends a lease; its keys are deleted.
    Revoke {
        /// Its id, in hexadecimal.
        #[arg(value_parser = parse_id)]
        id: i64,
    },
    /// Prints how long a lease lives.
    #[command(name = "timetolive", alias = "time-to-live")]
    TimeToLive {
        /// Its id, in hexadecimal.
        #[arg(value_parser = parse_id)]
        id: i64,
        /// Print the keys that go with it, too.
        #[arg(long)]
        keys: bool,
    },
    /// Prints the ids of all leases.
    List,
}

pub(crate) async fn execute(client: &KvClient, command: &Command, show: Show) -> Result<u8, Failure> {
    match command {
        Command::Grant { ttl_seconds, id } => {
            let granted = client.grant_lease(*ttl_seconds, *id).await?;
            let id = id_text(granted.lease_id);
            show.either(&id, || json!({ "lease": id, "ttl_seconds": granted.ttl_seconds }))?;
        }
        Command::KeepAlive { id, once } => keep_alive(client, *id, *once, show).await?,
        Command::Revoke { id } => {
            let revision = client.revoke_lease(*id).await?.revision;
            show.either(&format!("revision {revision}"), || json!({ "revision": revision }))?;
        }
        Command::TimeToLive { id, keys } => time_to_live(client, *id, *keys, show).await?,
        Command::List => {
            let ids: Vec<String> = client.leases().await?.into_iter().map(id_text).collect();
            show.either(&ids.join("\n"), || json!(ids))?;
        }
    }
    Ok(0)
}

async fn keep_alive(client: &KvClient, lease_id: i64, once: bool, show: Show) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let id = id_text(lease_id);
    if once {
        let ttl_seconds = client.keep_alive(lease_id).await?;
        return show.either(
            &format!("lease {id} lives {ttl_seconds} s from now"),
            || json!({ "lease": id, "ttl_seconds": ttl_seconds }),
        );
    }
    let lease = tokio::select! {
        lease = client.adopt_lease(lease_id) => lease?,
        _ = signals.next() => return Ok(()),
    };
    let ttl_seconds = lease.ttl().as_secs();
    show.either(
        &format!("lease {id} is kept alive, {ttl_seconds} s at a time"),
        || json!({ "lease": id, "ttl_seconds": ttl_seconds }),
    )?;
    tokio::select! {
        () = lease.lost() => Err(Failure::Lost(format!("lease {id} is lost: it has ended, or could not be renewed in time"))),
        _ = signals.next() => Ok(()),
    }
}

async fn time_to_live(client: &KvClient, id: i64, with_keys: bool, show: Show) -> Result<(), Failure> {
    let found = client.time_to_live(id, with_keys).await?;
    let (id, ttl_seconds, remaining_ms) = (id_text(id), found.granted_ttl_seconds, found.remaining_ms);
    let keys = found.keys.unwrap_or_default();
    let mut rows = vec![format!("lease {id}  {ttl_seconds} s, {:.3} s left", remaining_ms as f64 / 1e3)];
    rows.extend(keys.iter().map(|key| escaped(key)));
    let more = found.more.unwrap_or(false);
    if more {
        rows.push("(and more keys)".to_owned());
    }
    show.either(&rows.join("\n"), || {
        let mut value = json!({ "lease": id, "ttl_seconds": ttl_seconds, "remaining_ms": remaining_ms });
        if with_keys {
            value["keys"] = keys.iter().map(|key| json!(escaped(key))).collect();
            value["more"] = json!(more);
        }
        value
    })
}

/// Returns an id as text, in the format of etcd's tools and of the keys of locks.
pub(crate) fn id_text(id: i64) -> String {
    format!("{id:x}")
}

pub(crate) fn parse_id(text: &str) -> Result<i64, String> {
    match u64::from_str_radix(text, 16) {
        Ok(0) => Err("0 stands for no lease".to_owned()),
        Ok(id) => Ok(id.cast_signed()),
        Err(error) => Err(format!("not a lease's id, 1 to 16 hexadecimal digits: {error}")),
    }
}

/// Maximum time to live that the store grants, in seconds.
pub(crate) const TTL_SECONDS_MAX: i64 = 9_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_id_survives_text_and_back() {
        for id in [1, 255, i64::MAX, -1, i64::MIN] {
            assert_eq!(parse_id(&id_text(id)), Ok(id));
        }
        for wrong in ["", "0", "xyz", "1ffffffffffffffff", "-1"] {
            assert!(parse_id(wrong).is_err(), "{wrong}");
        }
    }
}
