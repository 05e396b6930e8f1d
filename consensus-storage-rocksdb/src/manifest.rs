//! Checks of RocksDB's list of tables, the `MANIFEST`, and of its logs, before RocksDB reads them: some damage keeps RocksDB
//! (11, as of the crate rocksdb 0.25) from ever returning.
//!
//! These files consist of blocks of 32 KiB, with records of a checksum (4 bytes), a length (2), a type (1) and content,
//! all little-endian. Zeros at the end of a block are padding. An incomplete record at the end of the file is
//! left to RocksDB, which takes it for an interrupted write.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use consensus_core::StorageError;

/// Checks the list of tables that the database in the directory `path` uses, if there is one.
pub(crate) fn check(path: &Path) -> Result<(), StorageError> {
    // RocksDB describes what is wrong with CURRENT.
    let Ok(current) = std::fs::read_to_string(path.join("CURRENT")) else { return Ok(()) };
    let name = current.trim_end();
    if !name.starts_with("MANIFEST-") || name.contains('/') {
        return Ok(());
    }
    let place = path.join(name);
    check_blocks(&place, check_block)
}

/// Checks that the logs of the database in the directory `path` have no records of a kind that RocksDB writes only into logs
/// that it uses again, which no storage here allows. Other damage is left to RocksDB: it may come from an interrupted write.
pub(crate) fn check_logs(path: &Path) -> Result<(), StorageError> {
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(()) };
    for place in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if place.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        check_blocks(&place, |block| match reused_record(block) {
            Some(at) => Err((at, "a record is of a kind that is never written")),
            None => Ok(()),
        })?;
    }
    Ok(())
}

/// Checks each block of a file, if there is such a file. `check` returns an offset in the block, and says what is wrong.
fn check_blocks(
    place: &Path,
    check: impl Fn(&[u8]) -> Result<(), (usize, &'static str)>,
) -> Result<(), StorageError> {
    let io = |source| StorageError::Io { context: format!("reading {}", place.display()), source };
    let mut file = match File::open(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(io)?,
    };
    let mut offset = 0;
    loop {
        let mut block = Vec::with_capacity(BLOCK_LEN);
        file.by_ref().take(BLOCK_LEN as u64).read_to_end(&mut block).map_err(io)?;
        if let Err((at, why)) = check(&block) {
            let position = format!("{} at offset {}", place.display(), offset + at);
            return Err(StorageError::Corrupt { position, why: why.to_owned() });
        }
        if block.len() < BLOCK_LEN {
            return Ok(());
        }
        offset += BLOCK_LEN;
    }
}

/// Offset of the first record of a reused log in a block.
fn reused_record(block: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some((header, rest)) = block[at..].split_first_chunk::<HEADER_LEN>() {
        if REUSED_KINDS.contains(&header[6]) {
            return Some(at);
        }
        let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let is_padding = header == &[0; HEADER_LEN];
        if is_padding || rest.len() < len {
            return None;
        }
        at += HEADER_LEN + len;
    }
    None
}

/// Checks the records of a block. An error has an offset and says what is wrong.
fn check_block(block: &[u8]) -> Result<(), (usize, &'static str)> {
    let is_last = block.len() < BLOCK_LEN;
    let mut at = 0;
    while let Some((header, rest)) = block[at..].split_first_chunk::<HEADER_LEN>() {
        let checksum = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
        if header == &[0; HEADER_LEN] {
            return Ok(());
        }
        let Some(content) = rest.get(..len) else {
            return if is_last { Ok(()) } else { Err((at, "a record is longer than its block")) };
        };
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[6..]), content);
        if mask(sum) != checksum {
            return Err((at, "a record does not have its checksum"));
        }
        at += HEADER_LEN + len;
    }
    Ok(())
}

/// The form in which RocksDB stores a checksum.
fn mask(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Kinds of records in logs that are used again.
const REUSED_KINDS: [u8; 6] = [5, 6, 7, 8, 11, 131];
const BLOCK_LEN: usize = 32 << 10;
const HEADER_LEN: usize = 7;

#[cfg(test)]
mod tests {
    use rocksdb::{DB, Options};

    use super::*;

    #[test]
    fn log_of_database_is_accepted_and_record_of_reused_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.create_if_missing(true);
        let db = DB::open(&options, dir.path()).unwrap();
        for number in 0..2000u32 {
            db.put(number.to_be_bytes(), [7; 100]).unwrap();
        }
        check_logs(dir.path()).unwrap();
        drop(db);
        check_logs(dir.path()).unwrap();
        let record = |kind: u8| [&[0, 0, 0, 0, 2, 0, kind][..], &[1, 1]].concat();
        assert_eq!(reused_record(&[record(1), record(4), vec![0; 20]].concat()), None);
        assert_eq!(reused_record(&[record(1), record(REUSED_KINDS[0])].concat()), Some(9));
    }

    #[test]
    fn list_of_tables_is_accepted_and_its_damage_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path()).is_ok(), "there is no database yet");
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_disable_auto_compactions(true);
        let db = DB::open(&options, dir.path()).unwrap();
        // Long enough for several blocks.
        for number in 0..300u32 {
            db.put([&number.to_be_bytes()[..], &[7; 100]].concat(), b"v").unwrap();
            db.flush().unwrap();
        }
        drop(db);
        check(dir.path()).unwrap();
        let current = std::fs::read_to_string(dir.path().join("CURRENT")).unwrap();
        let place = dir.path().join(current.trim_end());
        let content = std::fs::read(&place).unwrap();
        assert!(content.len() > BLOCK_LEN, "{} bytes", content.len());
        // An interrupted write.
        std::fs::write(&place, &content[..content.len() - 1]).unwrap();
        check(dir.path()).unwrap();
        for at in [HEADER_LEN, content.len() / 2, content.len() - 1] {
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            std::fs::write(&place, damaged).unwrap();
            let error = check(dir.path()).unwrap_err().to_string();
            assert!(error.contains(current.trim_end()), "{error}");
        }
    }
}
