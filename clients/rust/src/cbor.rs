//! CBOR as sections 2.2 and 2.3 of PROTOCOL.md want it: definite lengths, no tags, no key twice, nothing behind the item.
//!
//! minicbor reads and writes the items; that what is read is one of those above is looked at here, because its own
//! readers take indefinite lengths, tags, keys that come twice and what lies behind the item.

use std::collections::HashSet;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use crate::error::{Error, Result};

/// A value that was decoded, or is to be encoded: of an answer about a topic, or of an option.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Null.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number, from -2^64 to 2^64-1.
    Int(i128),
    /// A fraction.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A map, in the order in which it was encoded; keys are text or whole numbers.
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// The whole number, if it is one from 0 to 2^64-1.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The truth value, if it is one, or 0 or 1.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            Value::Int(0) => Some(false),
            Value::Int(1) => Some(true),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The member of a map with a text key.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Map(members) => members.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value),
            _ => None,
        }
    }
}

macro_rules! whole {
    ($($kind:ty),*) => { $(impl From<$kind> for Value {
        fn from(number: $kind) -> Value { Value::Int(i128::from(number)) }
    })* };
}
whole!(u8, u16, u32, u64, i8, i16, i32, i64);

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

/// Write a value in the shortest form.
#[cfg(test)]
pub(crate) fn encode(value: &Value) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder, value);
    encoder.into_writer()
}

/// Put a value behind what an encoder has written.
pub(crate) fn write(encoder: &mut Encoder<Vec<u8>>, value: &Value) {
    // Writing to a Vec cannot fail.
    match value {
        Value::Null => drop(encoder.null()),
        Value::Bool(value) => drop(encoder.bool(*value)),
        Value::Int(number) => match u64::try_from(*number) {
            Ok(number) => drop(encoder.u64(number)),
            Err(_) => {
                let least = -1 - i128::from(u64::MAX);
                if let Ok(number) = minicbor::data::Int::try_from((*number).max(least)) {
                    drop(encoder.int(number));
                }
            }
        },
        Value::Float(number) => drop(encoder.f64(*number)),
        Value::Text(text) => drop(encoder.str(text)),
        Value::Bytes(bytes) => drop(encoder.bytes(bytes)),
        Value::List(list) => {
            drop(encoder.array(list.len() as u64));
            list.iter().for_each(|each| write(encoder, each));
        }
        Value::Map(members) => {
            drop(encoder.map(members.len() as u64));
            for (key, value) in members {
                write(encoder, key);
                write(encoder, value);
            }
        }
    }
}

/// Read one item that takes up all of the bytes, nested at most so deep.
pub(crate) fn decode(bytes: &[u8], levels: usize) -> Result<Value> {
    let mut decoder = Decoder::new(bytes);
    let value = read(&mut decoder, levels)?;
    if decoder.position() != bytes.len() {
        return Err(Error::malformed("something lies behind a CBOR item"));
    }
    Ok(value)
}

fn broken(error: minicbor::decode::Error) -> Error {
    Error::malformed(format!("this is no CBOR item: {error}"))
}

/// How much room a list or map of so many items may be given before they have been seen.
fn room(count: u64, decoder: &Decoder<'_>) -> usize {
    let left = decoder.input().len() - decoder.position().min(decoder.input().len());
    usize::try_from(count).unwrap_or(usize::MAX).min(left)
}

fn read(decoder: &mut Decoder<'_>, levels: usize) -> Result<Value> {
    let deep = || Error::malformed("a CBOR item is nested too deep");
    let indefinite = || Error::malformed("a CBOR item has an indefinite length");
    Ok(match decoder.datatype().map_err(broken)? {
        Type::Null => {
            decoder.null().map_err(broken)?;
            Value::Null
        }
        Type::Bool => Value::Bool(decoder.bool().map_err(broken)?),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int => {
            Value::Int(decoder.int().map_err(broken)?.into())
        }
        Type::F16 => Value::Float(half(decoder)?),
        Type::F32 => Value::Float(decoder.f32().map_err(broken)?.into()),
        Type::F64 => Value::Float(decoder.f64().map_err(broken)?),
        Type::String => Value::Text(decoder.str().map_err(broken)?.into()),
        Type::Bytes => Value::Bytes(decoder.bytes().map_err(broken)?.into()),
        Type::Array => {
            let count = decoder.array().map_err(broken)?.ok_or_else(indefinite)?;
            if levels == 0 {
                return Err(deep());
            }
            let mut list = Vec::with_capacity(room(count, decoder).min(1024));
            for _ in 0..count {
                list.push(read(decoder, levels - 1)?);
            }
            Value::List(list)
        }
        Type::Map => {
            let count = decoder.map().map_err(broken)?.ok_or_else(indefinite)?;
            if levels == 0 {
                return Err(deep());
            }
            let mut members = Vec::with_capacity(room(count, decoder).min(1024));
            for _ in 0..count {
                let key = read(decoder, 0)?;
                if !matches!(key, Value::Text(_) | Value::Int(_)) {
                    return Err(Error::malformed("a key of a CBOR map is neither text nor a whole number"));
                }
                members.push((key, read(decoder, levels - 1)?));
            }
            if twice(&members) {
                return Err(Error::malformed("a key comes twice in a CBOR map"));
            }
            Value::Map(members)
        }
        other => {
            return Err(Error::malformed(format!(
                "a CBOR item of the kind {other} is not allowed: plain values of definite length are"
            )))
        }
    })
}

fn twice(members: &[(Value, Value)]) -> bool {
    #[derive(PartialEq, Eq, Hash)]
    enum Key<'a> {
        Number(i128),
        Text(&'a str),
    }
    let mut seen = HashSet::with_capacity(members.len());
    members.iter().any(|(key, _)| match key {
        Value::Int(number) => !seen.insert(Key::Number(*number)),
        Value::Text(text) => !seen.insert(Key::Text(text)),
        _ => false,
    })
}

/// minicbor reads half-precision floats only with another crate; they are few lines.
fn half(decoder: &mut Decoder<'_>) -> Result<f64> {
    let at = decoder.position();
    let Some(&[_, high, low]) = decoder.input().get(at..at + 3) else {
        return Err(Error::malformed("a CBOR item is cut short"));
    };
    decoder.set_position(at + 3);
    let bits = u16::from_be_bytes([high, low]);
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
    };
    Ok(if bits >> 15 == 1 { -size } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let value = Value::Map(vec![
            (0u8.into(), Value::List(vec![u64::MAX.into(), (-1i8).into(), Value::Int(-1 - i128::from(u64::MAX))])),
            ("größe".into(), Value::Map(vec![("a".into(), Value::Float(1.5))])),
            (7u8.into(), Value::Bytes(vec![0, 255])),
            (8u8.into(), Value::Null),
            (9u8.into(), true.into()),
        ]);
        assert_eq!(decode(&encode(&value), 8).unwrap(), value);
    }

    #[test]
    fn whole_numbers_are_read_in_every_width() {
        for bytes in [&[7][..], &[0x18, 7], &[0x19, 0, 7], &[0x1a, 0, 0, 0, 7], &[0x1b, 0, 0, 0, 0, 0, 0, 0, 7]] {
            assert_eq!(decode(bytes, 0).unwrap().as_u64(), Some(7), "{bytes:x?}");
        }
    }

    #[test]
    fn what_the_library_takes_and_the_protocol_refuses_is_refused() {
        for (what, bytes) in [
            ("something behind the item", &[0xa0, 0][..]),
            ("a key twice", &[0xa2, 0, 1, 0, 2]),
            ("an indefinite map", &[0xbf, 0, 1, 0xff]),
        ] {
            let taken = minicbor::decode::<std::collections::BTreeMap<u8, u8>>(bytes);
            assert!(taken.is_ok(), "{what}: minicbor refuses it by itself now");
            assert!(decode(bytes, 8).is_err(), "{what}");
        }
    }

    #[test]
    fn what_is_not_plain_is_refused() {
        for (what, bytes) in [
            ("something behind the item", &[0xa0, 0][..]),
            ("a key twice", &[0xa2, 0, 1, 0, 2]),
            ("a key twice, in two widths", &[0xa2, 0, 1, 0x18, 0, 2]),
            ("an indefinite map", &[0xbf, 0, 1, 0xff]),
            ("an indefinite list", &[0x9f, 0xff]),
            ("indefinite text", &[0x7f, 0x61, 0x61, 0xff]),
            ("indefinite bytes", &[0x5f, 0x41, 0x61, 0xff]),
            ("a tag", &[0xc0, 0]),
            ("a bignum", &[0xc2, 0x41, 1]),
            ("undefined", &[0xf7]),
            ("a simple value", &[0xe0]),
            ("a key of bytes", &[0xa1, 0x41, 1, 0]),
            ("text that is not UTF-8", &[0x61, 0xff]),
            ("a list that is cut short", &[0x9a, 0xff, 0xff, 0xff, 0xff]),
            ("a list larger than memory", &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            ("nothing", &[]),
        ] {
            assert!(decode(bytes, 8).is_err(), "{what}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |levels: usize| {
            let mut bytes = vec![0x81; levels - 1];
            bytes.push(0x80);
            bytes
        };
        assert!(decode(&nested(4), 4).is_ok());
        assert!(decode(&nested(5), 4).is_err());
        assert!(decode(&vec![0x81; 100_000], 8).is_err());
    }

    #[test]
    fn half_precision_floats_are_read() {
        for (bits, number) in [(0x3c00u16, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 5.960464477539063e-8)] {
            let [high, low] = bits.to_be_bytes();
            assert_eq!(decode(&[0xf9, high, low], 0).unwrap(), Value::Float(number));
        }
        assert_eq!(decode(&[0xf9, 0x7c, 0], 0).unwrap(), Value::Float(f64::INFINITY));
        assert!(decode(&[0xf9, 0x7c], 0).is_err());
    }
}
