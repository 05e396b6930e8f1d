//! Memory that the process may use.

use std::{fs, path::Path};

/// Bytes of memory of the machine, or of the control group (cgroup v2) of the process if that has a lower limit.
pub(crate) fn available() -> u64 {
    let system = rustix::system::sysinfo();
    let total = u64::from(system.mem_unit) * system.totalram as u64;
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_limit(Path::new("/sys/fs/cgroup"), &group).map_or(total, |limit| limit.min(total))
}

/// Lowest limit of the control group in `group`, the text of `/proc/self/cgroup`, and of the groups above it.
fn group_limit(root: &Path, group: &str) -> Option<u64> {
    let path = group.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let groups = Path::new(path).ancestors().map(|group| root.join(group).join("memory.max"));
    let limits = groups.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_limit_of_the_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("system.slice/kv.service");
        fs::create_dir_all(&inner).unwrap();
        let text = "1:name=systemd:/old\n0::/system.slice/kv.service\n";
        assert_eq!(group_limit(root.path(), text), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(group_limit(root.path(), text), None);
        fs::write(root.path().join("system.slice/memory.max"), "4096\n").unwrap();
        fs::write(inner.join("memory.max"), "8192\n").unwrap();
        assert_eq!(group_limit(root.path(), text), Some(4096));
        assert_eq!(group_limit(root.path(), "1:name=systemd:/old\n"), None);
        assert!(available() > 1 << 20);
    }
}
