//! Headers: reading them strictly, and writing them. Sections 2, 3 and 4 of PROTOCOL.md.

use bytes::Bytes;
use minicbor::Encoder;

use crate::cbor::{self, Value};
use crate::error::{Action, Error, Result};

/// Frame types.
pub(crate) mod kind {
    pub const HELLO: u64 = 1;
    pub const BYE: u64 = 2;
    pub const PING: u64 = 3;
    pub const OPEN_PRODUCER: u64 = 4;
    pub const PUBLISH: u64 = 5;
    pub const CLOSE: u64 = 6;
    pub const OPEN_CONSUMER: u64 = 7;
    pub const CREDIT: u64 = 8;
    pub const ACK: u64 = 9;
    pub const NACK: u64 = 10;
    pub const ACK_UNTIL: u64 = 11;
    pub const REQUEST: u64 = 12;
    pub const EXTEND: u64 = 13;
    pub const WELCOME: u64 = 33;
    pub const OPENED: u64 = 34;
    pub const RECEIPT: u64 = 35;
    pub const DELIVER: u64 = 36;
    pub const ERROR: u64 = 37;
    pub const MOVED: u64 = 38;
    pub const RESULT: u64 = 39;
    pub const DONE: u64 = 40;
    pub const PONG: u64 = 41;
    pub const EVENT: u64 = 42;
}

/// Header keys.
pub(crate) mod key {
    pub const TYPE: u64 = 0;
    pub const REF: u64 = 1;
    pub const HANDLE: u64 = 2;
    pub const TOPIC: u64 = 3;
    pub const SUBSCRIPTION: u64 = 4;
    pub const SEQUENCE: u64 = 5;
    pub const OFFSET: u64 = 6;
    pub const COUNT: u64 = 7;
    pub const COLUMNS: u64 = 8;
    pub const TIMESTAMPS: u64 = 9;
    pub const ATTEMPT: u64 = 10;
    pub const MESSAGES: u64 = 11;
    pub const BYTES: u64 = 12;
    pub const RANGES: u64 = 13;
    pub const DELAY: u64 = 14;
    pub const REASON: u64 = 15;
    pub const CODE: u64 = 16;
    pub const TEXT: u64 = 17;
    pub const ACTION: u64 = 18;
    pub const ENDPOINT: u64 = 19;
    pub const SESSION: u64 = 20;
    pub const BOOT: u64 = 21;
    pub const VERSION: u64 = 22;
    pub const LIMITS: u64 = 23;
    pub const ARGUMENTS: u64 = 24;
    pub const PRODUCER: u64 = 25;
    pub const START: u64 = 26;
    pub const RECEIPTS: u64 = 27;
    pub const SUBSCRIPTION_TYPE: u64 = 28;
    pub const PRIORITY: u64 = 29;
    pub const OPERATION: u64 = 30;
    pub const CLIENT: u64 = 31;
    pub const RESUMED: u64 = 32;
    pub const HEARTBEAT: u64 = 33;
    pub const CLOSED: u64 = 34;
    pub const STRATEGY: u64 = 35;
    pub const SPARSE: u64 = 36;
    pub const FORCE: u64 = 37;
    pub const TAKEN: u64 = 38;
    pub const SINGLY: u64 = 39;
    pub const INSTANCE: u64 = 40;
    pub const SOUGHT: u64 = 41;
}

pub(crate) const HEADER_BYTES_MAX: usize = 8192;
pub(crate) const HEADER_LEVELS: usize = 4;
pub(crate) const RESULT_BYTES_MAX: usize = 1 << 20;
pub(crate) const RESULT_LEVELS: usize = 8;
pub(crate) const RANGES_MAX: usize = 400;
pub(crate) const REASON_LETTERS_MAX: usize = 200;
/// In a RECEIPT: a duplicate whose offset the broker has forgotten.
pub(crate) const OFFSET_UNKNOWN: u64 = u64::MAX;

enum Kind {
    Uint,
    Text,
    Secret,
    Bool,
    Uints,
    Pairs,
    Map,
    TextOrUint,
    UintOrUints,
}

fn kind_of(name: u64) -> Option<Kind> {
    Some(match name {
        key::TOPIC
        | key::SUBSCRIPTION
        | key::REASON
        | key::CODE
        | key::TEXT
        | key::ACTION
        | key::ENDPOINT
        | key::SUBSCRIPTION_TYPE
        | key::OPERATION
        | key::CLIENT
        | key::STRATEGY
        | key::INSTANCE => Kind::Text,
        key::TIMESTAMPS | key::RANGES | key::RECEIPTS => Kind::Pairs,
        key::SESSION => Kind::Secret,
        key::VERSION => Kind::UintOrUints,
        key::LIMITS | key::ARGUMENTS => Kind::Map,
        key::START => Kind::TextOrUint,
        key::RESUMED | key::CLOSED | key::SPARSE | key::FORCE | key::SINGLY => Kind::Bool,
        0..=41 => Kind::Uint,
        _ => return None,
    })
}

impl Kind {
    fn holds(&self, value: &Value) -> bool {
        let uints = || value.as_list().is_some_and(|list| list.iter().all(|each| each.as_u64().is_some()));
        match self {
            Kind::Uint => value.as_u64().is_some(),
            Kind::Text => value.as_str().is_some(),
            Kind::Secret => matches!(value, Value::Bytes(secret) if secret.len() == 16),
            Kind::Bool => matches!(value, Value::Bool(_)),
            Kind::Uints => uints(),
            Kind::Pairs => uints() && value.as_list().is_some_and(|list| list.len() % 2 == 0),
            Kind::Map => matches!(value, Value::Map(_)),
            Kind::TextOrUint => value.as_str().is_some() || value.as_u64().is_some(),
            Kind::UintOrUints => value.as_u64().is_some() || Kind::Uints.holds(value),
        }
    }
}

fn required(kind: u64) -> Option<&'static [u64]> {
    Some(match kind {
        kind::HELLO => &[key::VERSION],
        kind::BYE | kind::PING | kind::PONG => &[],
        kind::OPEN_PRODUCER => &[key::REF, key::HANDLE, key::TOPIC, key::PRODUCER],
        kind::PUBLISH => &[key::HANDLE, key::SEQUENCE],
        kind::CLOSE | kind::OPENED => &[key::REF, key::HANDLE],
        kind::OPEN_CONSUMER => {
            &[key::REF, key::HANDLE, key::TOPIC, key::SUBSCRIPTION, key::SUBSCRIPTION_TYPE, key::MESSAGES, key::BYTES]
        }
        kind::CREDIT => &[key::HANDLE, key::MESSAGES, key::BYTES],
        kind::ACK | kind::NACK | kind::EXTEND => &[key::HANDLE, key::RANGES],
        kind::ACK_UNTIL => &[key::HANDLE, key::OFFSET],
        kind::REQUEST => &[key::REF, key::OPERATION],
        kind::WELCOME => &[key::VERSION, key::SESSION, key::BOOT, key::LIMITS, key::HEARTBEAT],
        kind::RECEIPT => &[key::HANDLE, key::RECEIPTS],
        kind::DELIVER => &[key::HANDLE, key::OFFSET, key::COUNT, key::TIMESTAMPS],
        kind::ERROR => &[key::CODE, key::TEXT, key::ACTION],
        kind::MOVED => &[key::REF, key::HANDLE, key::ENDPOINT],
        kind::RESULT | kind::DONE => &[key::REF],
        kind::EVENT => &[key::HANDLE, key::CODE],
        _ => return None,
    })
}

/// A header that was read and is what section 2 says.
#[derive(Debug)]
pub(crate) struct Header {
    pub kind: u64,
    members: Vec<(Value, Value)>,
}

impl Header {
    /// Read a header strictly.
    pub fn decode(frame: &[u8]) -> Result<Header> {
        if frame.is_empty() || frame.len() > HEADER_BYTES_MAX {
            return Err(Error::malformed(format!("a header has 1 to {HEADER_BYTES_MAX} bytes, not {}", frame.len())));
        }
        let Value::Map(members) = cbor::decode(frame, HEADER_LEVELS)? else {
            return Err(Error::malformed("a header is no map"));
        };
        let mut header = Header { kind: 0, members };
        for (name, value) in &header.members {
            let Some(name) = name.as_u64() else {
                return Err(Error::malformed("a key of a header is no whole number from 0 on"));
            };
            if kind_of(name).is_some_and(|kind| !kind.holds(value)) {
                return Err(Error::malformed(format!("key {name} of a header has a value of another kind")));
            }
        }
        header.kind = header.find(key::TYPE).ok_or_else(|| Error::malformed("a header has no type"))?;
        let Some(required) = required(header.kind) else {
            let text = format!("a frame of the unknown type {}", header.kind);
            return Err(Error::Malformed { code: "unknown-operation", text: text.into() });
        };
        for &name in required {
            if header.get(name).is_none() {
                return Err(Error::malformed(format!("a frame of type {} lacks key {name}", header.kind)));
            }
        }
        Ok(header)
    }

    fn get(&self, name: u64) -> Option<&Value> {
        self.members.iter().find(|(key, _)| key.as_u64() == Some(name)).map(|(_, value)| value)
    }

    pub fn has(&self, name: u64) -> bool {
        self.get(name).is_some()
    }

    pub fn find(&self, name: u64) -> Option<u64> {
        self.get(name).and_then(Value::as_u64)
    }

    /// A number that the table of frames requires, or 0.
    pub fn uint(&self, name: u64) -> u64 {
        self.find(name).unwrap_or(0)
    }

    pub fn find_text(&self, name: u64) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    pub fn text(&self, name: u64) -> &str {
        self.find_text(name).unwrap_or("")
    }

    pub fn flag(&self, name: u64) -> bool {
        matches!(self.get(name), Some(Value::Bool(true)))
    }

    /// A flat list of pairs.
    pub fn pairs(&self, name: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let list = self.get(name).and_then(Value::as_list).unwrap_or(&[]);
        list.chunks_exact(2).map(|pair| (pair[0].as_u64().unwrap_or(0), pair[1].as_u64().unwrap_or(0)))
    }

    pub fn secret(&self) -> Option<[u8; 16]> {
        match self.get(key::SESSION) {
            Some(Value::Bytes(secret)) => secret.as_slice().try_into().ok(),
            _ => None,
        }
    }

    /// What LIMITS says under a key, if that is a number.
    pub fn limit(&self, name: u64) -> Option<u64> {
        let Some(Value::Map(limits)) = self.get(key::LIMITS) else { return None };
        limits.iter().find(|(key, _)| key.as_u64() == Some(name)).and_then(|(_, value)| value.as_u64())
    }

    /// What an ERROR says.
    pub fn error(&self) -> Error {
        Error::Broker {
            code: self.text(key::CODE).into(),
            action: Action::of(self.text(key::ACTION)),
            text: self.text(key::TEXT).into(),
        }
    }
}

/// A header that is being written.
pub(crate) struct Frame {
    encoder: Encoder<Vec<u8>>,
    keys: u8,
}

impl Frame {
    pub fn new(kind: u64) -> Frame {
        let bytes = Vec::with_capacity(48);
        let mut frame = Frame { encoder: Encoder::new(bytes), keys: 0 };
        frame.encoder.writer_mut().push(0xa0); // a map of no keys; `done` says of how many
        frame.uint(key::TYPE, kind)
    }

    fn name(&mut self, name: u64) -> &mut Encoder<Vec<u8>> {
        self.keys += 1;
        debug_assert!(self.keys < 24, "a map of more keys needs a longer first byte");
        drop(self.encoder.u64(name));
        &mut self.encoder
    }

    pub fn uint(mut self, name: u64, value: u64) -> Frame {
        drop(self.name(name).u64(value));
        self
    }

    pub fn uint_if(self, name: u64, value: Option<u64>) -> Frame {
        match value {
            Some(value) => self.uint(name, value),
            None => self,
        }
    }

    pub fn text(mut self, name: u64, value: &str) -> Frame {
        drop(self.name(name).str(value));
        self
    }

    pub fn flag(mut self, name: u64) -> Frame {
        drop(self.name(name).bool(true));
        self
    }

    pub fn bytes(mut self, name: u64, value: &[u8]) -> Frame {
        drop(self.name(name).bytes(value));
        self
    }

    pub fn uints(mut self, name: u64, values: &[u64]) -> Frame {
        let encoder = self.name(name);
        drop(encoder.array(values.len() as u64));
        for &value in values {
            drop(encoder.u64(value));
        }
        self
    }

    pub fn value(mut self, name: u64, value: &Value) -> Frame {
        cbor::write(self.name(name), value);
        self
    }

    pub fn done(self) -> Bytes {
        let mut bytes = self.encoder.into_writer();
        bytes[0] |= self.keys;
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_is_written_is_read_again() {
        let frame = Frame::new(kind::NACK)
            .uint(key::HANDLE, u64::MAX)
            .uints(key::RANGES, &[0, 1, 300, 70_000])
            .text(key::REASON, "naïve")
            .uint_if(key::DELAY, None)
            .done();
        let header = Header::decode(&frame).unwrap();
        assert_eq!((header.kind, header.uint(key::HANDLE)), (kind::NACK, u64::MAX));
        assert_eq!(header.pairs(key::RANGES).collect::<Vec<_>>(), [(0, 1), (300, 70_000)]);
        assert_eq!(header.text(key::REASON), "naïve");
        assert!(!header.has(key::DELAY));
    }

    #[test]
    fn a_header_of_more_than_8192_bytes_is_refused() {
        let long = "x".repeat(HEADER_BYTES_MAX);
        let frame = Frame::new(kind::PONG).text(200, &long).done();
        assert_eq!(Header::decode(&frame).unwrap_err().code(), "malformed");
    }

    #[test]
    fn an_odd_number_of_items_is_no_list_of_pairs() {
        let frame = Frame::new(kind::RECEIPT).uint(key::HANDLE, 1).uints(key::RECEIPTS, &[1, 2, 3]).done();
        assert_eq!(Header::decode(&frame).unwrap_err().code(), "malformed");
    }
}
