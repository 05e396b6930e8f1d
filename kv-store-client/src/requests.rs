//! Constructors of requests with their required fields. Optional fields are set by name.

use crate::idl::{DeleteRequest, PutRequest, RangeRequest, WatchRequest};

impl PutRequest {
    /// A write of a key, without optional fields.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::new(key.into(), value.into(), None, None, None, None, None, None)
    }
}

impl DeleteRequest {
    /// A deletion of `key`, or of the keys in `[key, range_end)`.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, range_end: Option<Vec<u8>>) -> Self {
        Self::new(key.into(), range_end, None, None, None)
    }
}

impl RangeRequest {
    /// A linearizable read of `key`, or of the keys in `[key, range_end)`, at the newest revision.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, range_end: Option<Vec<u8>>) -> Self {
        Self::new(key.into(), range_end, None, None, None, None, None, None, None, None, None, None, None)
    }
}

impl WatchRequest {
    /// A watch of `key`, or of the keys in `[key, range_end)`, from the next revision on.
    #[must_use]
    pub fn of(key: impl Into<Vec<u8>>, range_end: Option<Vec<u8>>) -> Self {
        Self::new(key.into(), range_end, None, None, None, None, None, None)
    }
}

/// Returns the `range_end` of all keys that start with `prefix`. An empty prefix stands for all keys.
#[must_use]
pub fn prefix_end(prefix: impl Into<Vec<u8>>) -> Vec<u8> {
    let mut end = prefix.into();
    // The result is the first key after all keys with the prefix: the last byte that is less than 255 grows
    // by one, and the bytes after it are dropped. Without such a byte, the range has no upper bound.
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
