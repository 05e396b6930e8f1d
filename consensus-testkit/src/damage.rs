//! Damaged files: each file of a directory is truncated, changed by one bit or removed, one at a time.
//!
//! A storage must detect the damage: it either opens with its complete content, or refuses to open and names the location.
//! It must never open with less.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Damage to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Path of the file, relative to the directory.
    pub file: PathBuf,
    /// Kind of damage.
    pub how: DamageKind,
}

/// A way to damage a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// Only this number of bytes is left.
    Truncated(usize),
    /// In the byte at this offset, this bit (0 to 7) is flipped.
    BitFlipped(usize, u8),
    /// The file is removed.
    Removed,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.file.display(), self.how)
    }
}

/// Result of opening damaged files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The storage opened with its complete content.
    Intact,
    /// The storage refused to open, with this error.
    Refused(String),
}

/// Numbers of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Damaged copies.
    pub tried: usize,
    /// Copies that opened with their complete content.
    pub intact: usize,
    /// Copies that were refused.
    pub refused: usize,
    /// Refused copies whose error names the file.
    pub file_named: usize,
}

/// Damages copies of `dir` in every way, and calls `open` for each. Each file is truncated to nothing, to half and by one
/// byte, has a bit flipped in its first, middle and last byte, and is removed. It is also truncated and changed at
/// `more(file)` offsets drawn from `seed`, or at all offsets if it is shorter.
///
/// # Panics
/// An error names neither the directory nor the file. (`open` must check that the content is complete.)
pub fn try_all(
    dir: &Path,
    seed: u64,
    more: impl Fn(&Path) -> usize,
    mut open: impl FnMut(&Damage, &Path) -> Outcome,
) -> Tally {
    let (mut tally, mut random) = (Tally::default(), SmallRng::seed_from_u64(seed));
    let copies = dir.with_extension("damaged");
    for file in files(dir, Path::new("")).expect("the directory can be read") {
        let len = fs::metadata(dir.join(&file)).expect("the file is there").len() as usize;
        for how in ways(len, more(&file), &mut random) {
            let damage = Damage { file: file.clone(), how };
            let place = copies.join(tally.tried.to_string());
            // Printed for a test that fails or hangs.
            println!("{damage}");
            copy(dir, &place).and_then(|()| damage.apply(&place)).expect("a copy can be made");
            tally.tried += 1;
            match open(&damage, &place) {
                Outcome::Intact => tally.intact += 1,
                Outcome::Refused(why) => {
                    tally.refused += 1;
                    let names = |what: &Path| why.contains(&what.display().to_string());
                    let name = file.file_name().map(Path::new);
                    tally.file_named += usize::from(name.is_some_and(names));
                    assert!(
                        names(&place) || name.is_some_and(names),
                        "{damage}: refused without the name of the file or directory: {why}"
                    );
                }
            }
            fs::remove_dir_all(&place).expect("the copy can be removed");
        }
    }
    tally
}

impl Damage {
    fn apply(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(&self.file);
        let mut content = fs::read(&path)?;
        match self.how {
            DamageKind::Removed => return fs::remove_file(path),
            DamageKind::Truncated(len) => content.truncate(len),
            DamageKind::BitFlipped(at, bit) => content[at] ^= 1 << bit,
        }
        fs::write(path, content)
    }
}

fn ways(len: usize, more: usize, random: &mut SmallRng) -> Vec<DamageKind> {
    let mut ways = vec![DamageKind::Removed];
    if len == 0 {
        return ways;
    }
    let mut cuts = vec![0, len / 2, len - 1];
    let mut flips: Vec<_> = [0, len / 2, len - 1].map(|at| (at, random.random_range(0..8))).to_vec();
    if len <= more {
        cuts = (0..len).collect();
        flips = (0..len).map(|at| (at, random.random_range(0..8))).collect();
    } else {
        cuts.extend((0..more).map(|_| random.random_range(0..len)));
        flips.extend((0..more).map(|_| (random.random_range(0..len), random.random_range(0..8))));
    }
    ways.extend(cuts.into_iter().map(DamageKind::Truncated));
    ways.extend(flips.into_iter().map(|(at, bit)| DamageKind::BitFlipped(at, bit)));
    ways
}

/// Returns all files below `dir` as relative paths, in order.
fn files(dir: &Path, below: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(files(dir, &path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for file in files(from, Path::new(""))? {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        fs::copy(from.join(file), target)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn try_all_damages_every_file_in_every_way() {
        let dir = std::env::temp_dir().join(format!("consensus-testkit-damage-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/long"), vec![7; 100]).unwrap();
        fs::write(dir.join("short"), "ab").unwrap();
        let tally = try_all(
            &dir,
            1,
            |_| 3,
            |damage, place| {
                let changed = fs::read(place.join(&damage.file)).unwrap_or_default()
                    != fs::read(dir.join(&damage.file)).unwrap();
                assert!(changed, "{damage}");
                if damage.how == DamageKind::Removed {
                    Outcome::Refused(damage.file.display().to_string())
                } else {
                    Outcome::Intact
                }
            },
        );
        fs::remove_dir_all(&dir).unwrap();
        fs::remove_dir_all(dir.with_extension("damaged")).unwrap();
        // short: removed, truncated to 0 and 1, flipped at 0 and 1. long: removed, three and three truncations, three and
        // three flips.
        assert_eq!(tally, Tally { tried: 5 + 13, intact: 16, refused: 2, file_named: 2 });
    }
}
