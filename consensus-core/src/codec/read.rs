//! Decoder of bincode's format for untrusted bytes. bincode's own decoder allocates a byte string before it checks that the
//! bytes exist, and recurses into nested values until the stack overflows.
//!
//! Numbers up to 250 are one byte; 251, 252, 253 and 254 mean that 2, 4, 8 or 16 bytes follow, little-endian, but never more
//! than the type has. Signed numbers are zigzag-encoded. Sequences, maps and strings start with their length, options with a
//! byte 0 or 1, enums with the number of the variant. Structs and tuples are their fields, one after the other.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

/// Decodes the value at the start of `bytes`. Returns it and the number of bytes after it.
pub(super) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize)> {
    let mut reader = Reader { rest: bytes, depth: 0 };
    let value = T::deserialize(&mut reader)?;
    Ok((value, reader.rest.len()))
}

/// Why the bytes cannot be decoded.
#[derive(Debug)]
pub(super) struct DecodeError(String);

type Result<T> = std::result::Result<T, DecodeError>;

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self(why.to_string())
    }
}

fn fail<T>(why: &str) -> Result<T> {
    Err(DecodeError(why.to_owned()))
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Number of sequences, maps, options and enums that enclose the current position.
    depth: usize,
}

impl<'a> Reader<'a> {
    fn read_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else { return fail("it is incomplete") };
        self.rest = rest;
        Ok(*taken)
    }

    fn read_byte(&mut self) -> Result<u8> {
        self.read_array().map(|[byte]| byte)
    }

    /// Reads a number whose type has `width` bytes.
    fn read_unsigned(&mut self, width: usize) -> Result<u64> {
        match self.read_byte()? {
            small @ ..=250 => Ok(small.into()),
            251 if width >= 2 => Ok(u16::from_le_bytes(self.read_array()?).into()),
            252 if width >= 4 => Ok(u32::from_le_bytes(self.read_array()?).into()),
            253 if width >= 8 => Ok(u64::from_le_bytes(self.read_array()?)),
            _ => fail("a number is wider than its type"),
        }
    }

    fn read_signed(&mut self, width: usize) -> Result<i64> {
        let zigzag = self.read_unsigned(width)?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    fn read_unsigned_128(&mut self) -> Result<u128> {
        if self.rest.first() != Some(&254) {
            return self.read_unsigned(8).map(u128::from);
        }
        self.read_byte()?;
        self.read_array().map(u128::from_le_bytes)
    }

    fn read_length(&mut self) -> Result<usize> {
        let length = self.read_unsigned(8)?;
        usize::try_from(length).or_else(|_| fail("a length exceeds the address space"))
    }

    fn read_slice(&mut self) -> Result<&'a [u8]> {
        let length = self.read_length()?;
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return fail("it is incomplete");
        };
        self.rest = rest;
        Ok(taken)
    }

    fn read_str(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.read_slice()?).map_err(de::Error::custom)
    }

    fn read_char(&mut self) -> Result<char> {
        let first = self.rest.first().copied().unwrap_or_default();
        let width = first.leading_ones().max(1) as usize;
        let text = self.rest.get(..width).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let Some(char) = text.and_then(|text| text.chars().next()) else {
            return fail("a character is not valid UTF-8");
        };
        self.rest = &self.rest[width..];
        Ok(char)
    }

    fn read_bool(&mut self) -> Result<bool> {
        match self.read_byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => fail("a byte that must be 0 or 1 is neither"),
        }
    }

    /// Reads a value that may contain values of its own type. Limits the depth, so that the stack does not overflow.
    fn read_nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == DEPTH_MAX {
            return fail("it is nested too deeply");
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn elements<'r>(&'r mut self, left: usize) -> Elements<'r, 'a> {
        Elements { reader: self, left }
    }
}

macro_rules! numbers {
    ($($method:ident: $type:ty, $visit:ident, $read:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            let number = self.$read(size_of::<$type>())?;
            visitor.$visit(<$type>::try_from(number).map_err(de::Error::custom)?)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = DecodeError;

    numbers! {
        deserialize_u16: u16, visit_u16, read_unsigned;
        deserialize_u32: u32, visit_u32, read_unsigned;
        deserialize_u64: u64, visit_u64, read_unsigned;
        deserialize_i16: i16, visit_i16, read_signed;
        deserialize_i32: i32, visit_i32, read_signed;
        deserialize_i64: i64, visit_i64, read_signed;
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_u8(self.read_byte()?)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_i8(self.read_byte()?.cast_signed())
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_u128(self.read_unsigned_128()?)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let zigzag = self.read_unsigned_128()?;
        visitor.visit_i128((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_f32(f32::from_le_bytes(self.read_array()?))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_f64(f64::from_le_bytes(self.read_array()?))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_bool(self.read_bool()?)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_char(self.read_char()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_borrowed_str(self.read_str()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_borrowed_bytes(self.read_slice()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if self.read_bool()? {
            self.read_nested(|reader| visitor.visit_some(reader))
        } else {
            visitor.visit_none()
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let length = self.read_length()?;
        self.read_nested(|reader| visitor.visit_seq(reader.elements(length)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let length = self.read_length()?;
        self.read_nested(|reader| visitor.visit_map(reader.elements(length)))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        visitor.visit_seq(self.elements(length))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.read_nested(|reader| visitor.visit_enum(reader))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value> {
        fail("the format does not describe its values, and the type to decode accepts any value")
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Remaining elements of a sequence or a map.
struct Elements<'r, 'a> {
    reader: &'r mut Reader<'a>,
    left: usize,
}

impl Elements<'_, '_> {
    /// Number of elements for which memory is allocated beforehand: at most one for each byte that is left.
    fn capacity(&self) -> usize {
        self.left.min(self.reader.rest.len())
    }
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.capacity())
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.capacity())
    }
}

impl<'de> EnumAccess<'de> for &mut Reader<'de> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self)> {
        let variant = self.read_unsigned(4)?;
        let variant = u32::try_from(variant).map_err(de::Error::custom)?;
        let value: Result<V::Value> = seed.deserialize(variant.into_deserializer());
        Ok((value?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Reader<'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<()> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_tuple(fields.len(), visitor)
    }
}

/// The usual limit of JSON libraries. One level takes up to about 1 KiB of stack in a debug build.
pub(super) const DEPTH_MAX: usize = 128;
