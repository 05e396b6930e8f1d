//! Writes the seeds of all targets to `fuzz/corpus`; what else lies there stays.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    for target in consensus_fuzz::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        fs::create_dir_all(&dir)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(dir.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
