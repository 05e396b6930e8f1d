//! Requests with what they must have; the rest is set by name.

use crate::idl::{DeleteRequest, PutRequest, RangeRequest, WatchRequest};

impl PutRequest {
    /// A write of a key without anything optional.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::new(key.into(), value.into(), None, None, None, None, None, None)
    }
}

impl DeleteRequest {
    /// A removal of `key`, or of the keys from there up to `range_end`.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, range_end: Option<Vec<u8>>) -> Self {
        Self::new(key.into(), range_end, None, None, None)
    }
}

impl RangeRequest {
    /// A read of `key`, or of the keys from there up to `range_end`: the newest revision, linearizable.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, range_end: Option<Vec<u8>>) -> Self {
        Self::new(key.into(), range_end, None, None, None, None, None, None, None, None, None, None, None)
    }
}

impl WatchRequest {
    /// A watch of `key`, or of the keys from there up to `range_end`, from the next revision on.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, range_end: Option<Vec<u8>>) -> Self {
        Self::new(key.into(), range_end, None, None, None, None, None, None)
    }
}

/// The end of the range of all keys that begin with `prefix`; for every key if it is empty.
#[must_use]
pub fn prefix_end(prefix: impl Into<Vec<u8>>) -> Vec<u8> {
    let mut end = prefix.into();
    // The first text after all that begin so: its last byte, if there is one that can be, goes up by one.
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_prefix_is_after_all_that_begin_so() {
        assert_eq!(prefix_end("ab"), b"ac");
        assert_eq!(prefix_end([1, 255, 255]), [2]);
        assert_eq!(prefix_end([255]), [0]);
        assert_eq!(prefix_end(""), [0]);
    }
}
