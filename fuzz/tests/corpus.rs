//! Every file of the corpora, and every finding that there ever was.

use std::{fs, path::PathBuf};

use consensus_fuzz::TARGETS;

fn files(folder: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir: PathBuf = [env!("CARGO_MANIFEST_DIR"), folder, target].iter().collect();
    let Ok(entries) = fs::read_dir(&dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

// One test, as other threads' memory would be counted too.
#[test]
fn nothing_is_wrong_with_any_file() {
    for target in TARGETS {
        let corpus = files("corpus", target.name);
        assert!(!corpus.is_empty(), "{}: cargo run -p consensus-fuzz --example seeds", target.name);
        // Those in the corpus may be of an earlier format.
        (target.seeds)().iter().for_each(|seed| (target.run)(seed));
        for (path, bytes) in corpus.into_iter().chain(files("regressions", target.name)) {
            println!("{}", path.display());
            (target.run)(&bytes);
        }
    }
}
