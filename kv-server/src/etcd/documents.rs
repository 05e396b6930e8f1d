//! Finds the JSON documents in the body of a request, which arrives in parts.

use bytes::{Bytes, BytesMut};
use tonic::Status;

/// Cuts bytes into JSON objects. Each byte is looked at once, however small the parts are in which the bytes arrive.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// Bytes of documents that were not taken yet.
    left: BytesMut,
    /// Number of bytes of `left` that were looked at.
    scanned: usize,
    /// Number of objects and lists that are open.
    depth: usize,
    is_in_text: bool,
    is_after_backslash: bool,
}

impl Documents {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.left.extend_from_slice(bytes);
    }

    /// Number of bytes that wait for the rest of their document.
    pub(super) fn len(&self) -> usize {
        self.left.len()
    }

    /// Takes the next whole document, if there is one. It may still be invalid inside.
    ///
    /// # Errors
    /// The bytes are not the beginning of an object.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Status> {
        while let Some(byte) = self.left.get(self.scanned).copied() {
            if self.depth == 0 && byte.is_ascii_whitespace() {
                let _ = self.left.split_to(1);
                continue;
            }
            self.scanned += 1;
            self.pass(byte)?;
            if self.depth == 0 {
                let length = std::mem::take(&mut self.scanned);
                return Ok(Some(self.left.split_to(length).freeze()));
            }
        }
        Ok(None)
    }

    /// Checks that no document is incomplete at the end of the body.
    ///
    /// # Errors
    /// One is.
    pub(super) fn end(&self) -> Result<(), Status> {
        if self.left.is_empty() {
            return Ok(());
        }
        Err(Status::invalid_argument("json: the request ends within a message"))
    }

    fn pass(&mut self, byte: u8) -> Result<(), Status> {
        if std::mem::take(&mut self.is_after_backslash) {
            return Ok(());
        }
        match byte {
            b'\\' if self.is_in_text => self.is_after_backslash = true,
            b'"' if self.depth > 0 => self.is_in_text = !self.is_in_text,
            _ if self.is_in_text => {}
            b'{' => self.depth += 1,
            b'[' if self.depth > 0 => self.depth += 1,
            b'}' | b']' if self.depth > 0 => self.depth -= 1,
            _ if self.depth > 0 => {}
            _ => return Err(Status::invalid_argument("json: a message does not begin with `{`")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(documents: &mut Documents) -> Vec<Bytes> {
        std::iter::from_fn(|| documents.next().unwrap()).collect()
    }

    #[test]
    fn documents_of_a_body_are_the_same_however_it_is_cut() {
        let body = br#" {"a":1}{"b":"} \" ]","c":[{"d":{}}]}
            {"e":"\\"} "#;
        let expected = [&br#"{"a":1}"#[..], br#"{"b":"} \" ]","c":[{"d":{}}]}"#, br#"{"e":"\\"}"#];
        for size in 1..=body.len() {
            let (mut documents, mut found) = (Documents::default(), Vec::new());
            for part in body.chunks(size) {
                documents.add(part);
                found.extend(all(&mut documents));
            }
            assert_eq!(found, expected, "in parts of {size} bytes");
            documents.end().unwrap();
        }
    }

    #[test]
    fn body_that_is_no_object_or_ends_within_one_is_refused() {
        for wrong in [&b"}"[..], b"1", b"\"{}\"", b"[{}]"] {
            let mut documents = Documents::default();
            documents.add(wrong);
            assert!(documents.next().is_err(), "{wrong:?}");
        }
        let mut documents = Documents::default();
        documents.add(br#"{"a":"#);
        assert_eq!((documents.next().unwrap(), documents.len()), (None, 5));
        assert!(documents.end().is_err());
    }

    #[test]
    fn each_byte_of_a_long_document_is_looked_at_once() {
        let mut documents = Documents::default();
        documents.add(br#"{"a":""#);
        for _ in 0..1000 {
            documents.add(b"xxxx");
            let scanned = documents.scanned;
            assert_eq!(documents.next().unwrap(), None);
            assert!(documents.scanned - scanned <= 10 && documents.scanned == documents.len());
        }
    }
}
