//! Text of bytes that may be no UTF-8.

use std::fmt::Write;

/// Renders bytes so that they can be recovered: UTF-8 as it is, `\\` for a backslash, `\xNN` for a byte that is not part of UTF-8.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for (n, part) in chunk.valid().split('\\').enumerate() {
            text.push_str(if n > 0 { "\\\\" } else { "" });
            text.push_str(part);
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// The first bytes of a text, at most `bytes_max`.
pub(super) fn shortened(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recovers the bytes, as a reader of the log does.
    fn unescaped(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match (first, after) {
                (b'\\', [b'\\', after @ ..]) => {
                    bytes.push(b'\\');
                    rest = after;
                }
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let digits = [*high, *low];
                    bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                    rest = after;
                }
                (byte, _) => bytes.push(*byte),
            }
        }
        bytes
    }

    #[test]
    fn text_stays_readable_and_other_bytes_are_hexadecimal() {
        assert_eq!(escaped(b"app/\xff\x00"), "app/\\xff\0");
        assert_eq!(escaped("gr\u{fc}n\\x41".as_bytes()), "gr\u{fc}n\\\\x41");
        assert_eq!(shortened("gr\u{fc}n", 3), "gr");
    }

    #[test]
    fn every_key_is_recovered() {
        let parts: [&[u8]; 8] = [b"\\", b"x", b"4", b"f", b"\xff", b"\xc3", b"\xbc", "\u{1f980}".as_bytes()];
        let mut keys = vec![Vec::new()];
        for _ in 0..4 {
            let longer = |key: &Vec<u8>| parts.map(|part| [&key[..], part].concat());
            keys = keys.iter().flat_map(longer).collect();
            for key in &keys {
                assert_eq!(unescaped(&escaped(key)), *key);
            }
        }
    }
}
