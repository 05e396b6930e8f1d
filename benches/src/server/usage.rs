//! What processes take, as the system tells it.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use super::{System, cluster::Cluster};

/// Of the nodes that run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Seconds of processor time since they began, of each in the mean.
    pub(crate) cpu: f64,
    /// MiB now, and at most since it began; of the one that has most.
    pub(crate) resident: f64,
    pub(crate) peak: f64,
    /// Bytes written to the disk that their files are on, by whomever, in the mean. What the system counts for each process is
    /// no measure: it counts whole folios, of which most pages are not written.
    pub(crate) disk: f64,
    /// Bytes sent to each other on connections that are open. `None` without `ss`.
    pub(crate) network: Option<f64>,
}

impl Usage {
    pub(crate) fn of<S: System>(cluster: &Cluster<S>) -> Result<Self, String> {
        let (mut usage, ids) = (Self::default(), cluster.ids());
        for id in &ids {
            let proc = Path::new("/proc").join(id.to_string());
            let read = |name: &str| fs::read_to_string(proc.join(name)).map_err(|error| error.to_string());
            // Behind the name, which may have blanks in it.
            let stat = read("stat")?;
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks: f64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum();
            usage.cpu += ticks / TICKS_PER_SECOND / ids.len() as f64;
            let status = read("status")?;
            usage.resident = usage.resident.max(value(&status, "VmRSS:") / 1024.0);
            usage.peak = usage.peak.max(value(&status, "VmHWM:") / 1024.0);
        }
        usage.disk = written(cluster.dir()).unwrap_or(f64::NAN) / ids.len() as f64;
        usage.network = sent(&ids, cluster.ports());
        Ok(usage)
    }
}

/// The number behind `name` in one of the lines.
fn value(lines: &str, name: &str) -> f64 {
    let line = lines.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
}

/// To the device that `dir` is on; `None` if it is none.
fn written(dir: &Path) -> Option<f64> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: f64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(512.0 * sectors)
}

/// What these processes have sent on other ports than those for clients.
fn sent(ids: &[u32], client_ports: &[u16]) -> Option<f64> {
    let output = Command::new("ss").args(["-tinpHO"]).output().ok()?;
    let lines = String::from_utf8(output.stdout).ok()?;
    let is_ours = |line: &&str| {
        let has = |what: String| line.contains(&what);
        ids.iter().any(|id| has(format!("pid={id},")))
            && !client_ports.iter().any(|port| has(format!(":{port} ")))
    };
    let bytes = |line: &str| line.split("bytes_sent:").nth(1)?.split(' ').next()?.parse::<f64>().ok();
    Some(lines.lines().filter(is_ours).filter_map(bytes).sum())
}

/// Linux says `USER_HZ` is 100 wherever it runs.
const TICKS_PER_SECOND: f64 = 100.0;
