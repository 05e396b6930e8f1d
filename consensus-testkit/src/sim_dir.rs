//! A directory in memory that loses unsynced data when the power is lost.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A directory of small files in memory. Clones share it. [`image`](Self::image) returns a new directory with the content
/// that a crash leaves.
///
/// The content of a file is durable after [`sync`](Self::sync), its name after [`sync_names`](Self::sync_names). Each change
/// counts as one operation, and the power can be lost between any two ([`lose_power_after`](Self::lose_power_after)).
///
/// What this is *not*: a complete file system. There are no subdirectories, a file is always written as a whole, and changes
/// of names survive in order.
#[derive(Clone, Debug, Default)]
pub struct SimDir(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<File>,
    /// Names after each change since the last sync of names; the first element is durable.
    names: Vec<BTreeMap<String, usize>>,
    operations: u64,
    /// Number of operations after which the power is lost.
    power_until: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct File {
    content: Vec<u8>,
    durable: Vec<u8>,
}

impl SimDir {
    /// Creates an empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the file `name`; `None` if it does not exist.
    ///
    /// # Errors
    /// The power is lost.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let state = self.lock();
        state.check_power()?;
        Ok(state.find(name).map(|file| state.files[file].content.clone()))
    }

    /// Creates the file `name` with `content`, or replaces it with a new file.
    ///
    /// # Errors
    /// The power is lost.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        state.files.push(File { content: content.to_vec(), durable: Vec::new() });
        let file = state.files.len() - 1;
        state.change_names(|names| {
            names.insert(name.to_owned(), file);
        });
        Ok(())
    }

    /// Makes the content of the file `name` durable.
    ///
    /// # Errors
    /// The power is lost, or there is no such file.
    pub fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let file = state.find(name).ok_or(io::ErrorKind::NotFound)?;
        state.files[file].durable = state.files[file].content.clone();
        Ok(())
    }

    /// Renames a file. A file that has the new name is removed.
    ///
    /// # Errors
    /// The power is lost, or there is no such file.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let file = state.find(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_names(|names| {
            names.remove(from);
            names.insert(to.to_owned(), file);
        });
        Ok(())
    }

    /// Makes the names durable.
    ///
    /// # Errors
    /// The power is lost.
    pub fn sync_names(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.begin()?;
        let newest = state.names.pop().unwrap_or_default();
        state.names = vec![newest];
        Ok(())
    }

    /// Loses the power after `operations` more operations. All later operations fail.
    pub fn lose_power_after(&self, operations: u64) {
        let mut state = self.lock();
        state.power_until = Some(state.operations + operations);
    }

    /// Cancels [`lose_power_after`](Self::lose_power_after) unless the power is lost already.
    pub fn keep_power(&self) {
        let mut state = self.lock();
        if !state.power_is_lost() {
            state.power_until = None;
        }
    }

    /// Whether an operation has failed because the power was lost.
    #[must_use]
    pub fn power_is_lost(&self) -> bool {
        self.lock().power_is_lost()
    }

    /// Content of the file `name` that every crash from now on leaves; `None` if a crash may remove the file.
    #[must_use]
    pub fn durable(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let file = *state.names.first()?.get(name)?;
        Some(state.files[file].durable.clone())
    }

    /// Returns a state that a crash at this moment may leave. `choose(n)` must return a number below `n`.
    #[must_use]
    pub fn image(&self, mut choose: impl FnMut(u64) -> u64) -> Self {
        let state = self.lock();
        let newest = state.names.len() as u64;
        let Some(names) = state.names.get(choose(newest.max(1)) as usize) else { return Self::new() };
        let mut image = State::default();
        let mut left = BTreeMap::new();
        for (name, file) in names {
            let File { content, durable } = &state.files[*file];
            let content = match choose(3) {
                0 => durable.clone(),
                1 => content.clone(),
                _ if content == durable => durable.clone(),
                _ => content[..choose(content.len() as u64 + 1) as usize].to_vec(),
            };
            left.insert(name.clone(), image.files.len());
            image.files.push(File { durable: content.clone(), content });
        }
        image.names = vec![left];
        Self(Arc::new(Mutex::new(image)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn power_is_lost(&self) -> bool {
        self.power_until.is_some_and(|until| self.operations > until)
    }

    fn check_power(&self) -> io::Result<()> {
        if self.power_is_lost() { Err(io::Error::other("the power was lost")) } else { Ok(()) }
    }

    /// Counts an operation.
    fn begin(&mut self) -> io::Result<()> {
        if !self.power_is_lost() {
            self.operations += 1;
        }
        self.check_power()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.names.last()?.get(name).copied()
    }

    fn change_names(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) {
        if self.names.is_empty() {
            self.names.push(BTreeMap::new());
        }
        let mut names = self.names.last().cloned().unwrap_or_default();
        change(&mut names);
        self.names.push(names);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// All contents of `name` that a crash may leave.
    fn left(dir: &SimDir, name: &str) -> BTreeSet<Option<Vec<u8>>> {
        let mut state = 7_u64;
        let mut choose = |bound| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        (0..500).map(|_| dir.image(&mut choose).read(name).unwrap()).collect()
    }

    fn some(content: &str) -> Option<Vec<u8>> {
        Some(content.as_bytes().to_vec())
    }

    #[test]
    fn unsynced_content_is_torn_and_unsynced_names_go_back() {
        let dir = SimDir::new();
        dir.write("a", b"ab").unwrap();
        assert_eq!(left(&dir, "a"), [None, some(""), some("a"), some("ab")].into());
        dir.sync("a").unwrap();
        assert_eq!(left(&dir, "a"), [None, some("ab")].into());
        dir.sync_names().unwrap();
        assert_eq!(left(&dir, "a"), [some("ab")].into());
        assert_eq!(dir.durable("a"), some("ab"));
    }

    #[test]
    fn renamed_file_is_the_old_or_the_new_one_until_names_are_synced() {
        let dir = SimDir::new();
        dir.write("a", b"old").unwrap();
        dir.sync("a").unwrap();
        dir.sync_names().unwrap();
        dir.write("b", b"new").unwrap();
        dir.sync("b").unwrap();
        dir.rename("b", "a").unwrap();
        assert_eq!(left(&dir, "a"), [some("old"), some("new")].into());
        assert_eq!(dir.durable("a"), some("old"));
        dir.sync_names().unwrap();
        assert_eq!(left(&dir, "a"), [some("new")].into());
    }

    #[test]
    fn power_is_lost_between_two_operations() {
        let dir = SimDir::new();
        dir.lose_power_after(2);
        dir.write("a", b"x").unwrap();
        dir.sync("a").unwrap();
        assert!(!dir.power_is_lost());
        assert!(dir.sync_names().is_err() && dir.power_is_lost());
        assert!(dir.write("b", b"y").is_err() && dir.read("a").is_err());
        dir.keep_power();
        assert!(dir.power_is_lost(), "it does not come back");
        assert_eq!(left(&dir, "a"), [None, some("x")].into());
    }
}
