//! Files that were damaged: every file of a directory, cut short, with a bit flipped, or gone, one at a time.
//!
//! A storage must notice: it opens with all that it held, or it refuses and says where the damage is. What may not happen
//! is that it opens with less.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// What was done to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which, below the directory.
    pub file: PathBuf,
    /// What.
    pub how: How,
}

/// A way to damage a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Only so many bytes are left.
    Cut(usize),
    /// One bit of this byte is another.
    Flipped(usize, u8),
    /// It is not there.
    Gone,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.file.display(), self.how)
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It opened, and held all that it had held.
    Whole,
    /// It was refused; with the words for it.
    Refused(String),
}

/// How often it came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Damages tried.
    pub tried: usize,
    /// It opened whole.
    pub whole: usize,
    /// It was refused.
    pub refused: usize,
    /// It was refused, and the file was named.
    pub file_named: usize,
}

/// Damages a copy of `dir` in every way, and has each looked at by `open`. Each file is cut to nothing, to half and by
/// one byte, has a bit flipped in its first, middle and last byte, and is removed; and it is cut and changed at `more(file)`
/// places drawn from `seed`, or everywhere if it is shorter.
///
/// # Panics
/// A refusal names neither the directory nor the file. (That what opens is whole is for `open` to check.)
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
            // Shown if the test fails, or hangs.
            println!("{damage}");
            copy(dir, &place).and_then(|()| damage.apply(&place)).expect("a copy can be made");
            tally.tried += 1;
            match open(&damage, &place) {
                Outcome::Whole => tally.whole += 1,
                Outcome::Refused(why) => {
                    tally.refused += 1;
                    let names = |what: &Path| why.contains(&what.display().to_string());
                    let name = file.file_name().map(Path::new);
                    tally.file_named += usize::from(name.is_some_and(names));
                    assert!(names(&place) || name.is_some_and(names), "{damage}: refused, but where? {why}");
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
            How::Gone => return fs::remove_file(path),
            How::Cut(len) => content.truncate(len),
            How::Flipped(at, bit) => content[at] ^= 1 << bit,
        }
        fs::write(path, content)
    }
}

fn ways(len: usize, more: usize, random: &mut SmallRng) -> Vec<How> {
    let mut ways = vec![How::Gone];
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
    ways.extend(cuts.into_iter().map(How::Cut));
    ways.extend(flips.into_iter().map(|(at, bit)| How::Flipped(at, bit)));
    ways
}

/// All files below `dir`, relative to it, in order.
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
    fn every_file_is_damaged_in_every_way() {
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
                if damage.how == How::Gone {
                    Outcome::Refused(damage.file.display().to_string())
                } else {
                    Outcome::Whole
                }
            },
        );
        fs::remove_dir_all(&dir).unwrap();
        fs::remove_dir_all(dir.with_extension("damaged")).unwrap();
        // Gone, cut to 0, 1, flipped at 0, 1; gone, three and three cuts, three and three flips.
        assert_eq!(tally, Tally { tried: 5 + 13, whole: 16, refused: 2, file_named: 2 });
    }
}
