//! Batches: the body of a PUBLISH and of a DELIVER, section 5 of PROTOCOL.md.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use minicbor::Encoder;

use crate::cbor::{self, Value};
use crate::error::{Error, Result};
use crate::wire::RESULT_LEVELS;

pub(crate) const KEYS: u64 = 1;
pub(crate) const ATTRIBUTES: u64 = 2;
pub(crate) const TIMES: u64 = 4;
const LENGTH: usize = 4;
const TIME: usize = 8;
/// What columns cost a message that has nothing in them, because others of its batch do.
pub(crate) const COLUMNS_COST: u64 = (2 * LENGTH + TIME) as u64;

pub(crate) type Attributes = BTreeMap<String, String>;

/// A message that is to be sent, its attributes encoded.
pub(crate) struct Content<'a> {
    pub payload: Cow<'a, [u8]>,
    pub key: Cow<'a, [u8]>,
    pub attributes: Vec<u8>,
    pub deliver_at: u64,
}

impl Content<'_> {
    /// What it takes in a batch beside the payload.
    pub fn around(&self) -> u64 {
        let column = |bytes: &[u8]| if bytes.is_empty() { 0 } else { bytes.len() + LENGTH };
        let time = if self.deliver_at > 0 { TIME } else { 0 };
        (LENGTH + column(&self.key) + column(&self.attributes) + time) as u64
    }

    pub fn size(&self) -> u64 {
        self.payload.len() as u64 + self.around()
    }
}

pub(crate) fn encode_attributes(attributes: &Attributes) -> Vec<u8> {
    if attributes.is_empty() {
        return Vec::new();
    }
    let mut encoder = Encoder::new(Vec::new());
    drop(encoder.map(attributes.len() as u64)); // writing to a Vec cannot fail
    for (name, value) in attributes {
        drop(encoder.str(name));
        drop(encoder.str(value));
    }
    encoder.into_writer()
}

/// A batch that messages are put into, one behind the other.
#[derive(Default)]
pub(crate) struct Packing {
    count: usize,
    lengths: Vec<u8>,
    payloads: Vec<u8>,
    keys: Column,
    attributes: Column,
    times: Vec<u8>,
}

#[derive(Default)]
struct Column {
    lengths: Vec<u8>,
    items: Vec<u8>,
}

impl Column {
    fn push(&mut self, item: &[u8], before: usize) {
        if !item.is_empty() {
            self.lengths.resize(LENGTH * before, 0); // those before have nothing
            push_length(&mut self.lengths, item);
            self.items.extend_from_slice(item);
        }
    }

    fn done(mut self, count: usize) -> Option<Bytes> {
        if self.lengths.is_empty() {
            return None;
        }
        self.lengths.resize(LENGTH * count, 0);
        self.lengths.append(&mut self.items);
        Some(self.lengths.into())
    }
}

fn push_length(lengths: &mut Vec<u8>, item: &[u8]) {
    // Sizes are compared with LIMITS before, and those are far below 4 GiB.
    lengths.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
}

impl Packing {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn push(&mut self, message: &Content<'_>) {
        push_length(&mut self.lengths, &message.payload);
        self.payloads.extend_from_slice(&message.payload);
        self.keys.push(&message.key, self.count);
        self.attributes.push(&message.attributes, self.count);
        if message.deliver_at > 0 {
            self.times.resize(TIME * self.count, 0);
            self.times.extend_from_slice(&message.deliver_at.to_le_bytes());
        }
        self.count += 1;
    }

    /// The columns and the body frames.
    pub fn done(mut self) -> (u64, Vec<Bytes>) {
        let mut columns = 0;
        let mut body = vec![self.lengths.into(), self.payloads.into()];
        if let Some(keys) = self.keys.done(self.count) {
            columns |= KEYS;
            body.push(keys);
        }
        if let Some(attributes) = self.attributes.done(self.count) {
            columns |= ATTRIBUTES;
            body.push(attributes);
        }
        if !self.times.is_empty() {
            columns |= TIMES;
            self.times.resize(TIME * self.count, 0);
            body.push(self.times.into());
        }
        (columns, body)
    }
}

pub(crate) fn size_of(body: &[Bytes]) -> u64 {
    body.iter().map(|frame| frame.len() as u64).sum()
}

/// A message that a batch was cut into.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub payload: Bytes,
    pub key: Option<Bytes>,
    /// Whatever the producer wrote; what is no map of text to text is an error of this message alone.
    pub attributes: Result<Attributes>,
    pub deliver_at: u64,
}

fn cut(lengths: &[u8], items: &Bytes, count: usize, what: &str) -> Result<Vec<Bytes>> {
    if lengths.len() != LENGTH * count {
        return Err(Error::mismatch(what));
    }
    let mut at = 0;
    let mut found = Vec::with_capacity(count);
    for length in lengths.chunks_exact(LENGTH) {
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length > items.len() - at {
            return Err(Error::mismatch(what));
        }
        found.push(items.slice(at..at + length));
        at += length;
    }
    if at != items.len() {
        return Err(Error::mismatch(what));
    }
    Ok(found)
}

fn cut_column(column: &Bytes, count: usize, what: &str) -> Result<Vec<Bytes>> {
    let split = LENGTH * count;
    if column.len() < split {
        return Err(Error::mismatch(what));
    }
    cut(&column[..split], &column.slice(split..), count, what)
}

fn decode_attributes(item: &[u8]) -> Result<Attributes> {
    if item.is_empty() {
        return Ok(Attributes::new());
    }
    let wrong = || Error::malformed("the attributes of a message are no map of text to text");
    let Value::Map(members) = cbor::decode(item, RESULT_LEVELS)? else { return Err(wrong()) };
    members
        .into_iter()
        .map(|member| match member {
            (Value::Text(name), Value::Text(value)) => Ok((name, value)),
            _ => Err(wrong()),
        })
        .collect()
}

/// Take the body of a DELIVER apart.
pub(crate) fn unpack(columns: u64, count: u64, body: &[Bytes]) -> Result<Vec<Piece>> {
    let wanted = 2 + (columns & (KEYS | ATTRIBUTES | TIMES)).count_ones() as usize;
    if columns > 7 || body.len() != wanted || count == 0 {
        return Err(Error::malformed(format!(
            "a batch of {count} messages with columns {columns} has {} body frames",
            body.len()
        )));
    }
    if body[0].len() % LENGTH != 0 || (body[0].len() / LENGTH) as u64 != count {
        return Err(Error::mismatch("a batch"));
    }
    let count = body[0].len() / LENGTH;
    let mut pieces: Vec<Piece> = cut(&body[0], &body[1], count, "a batch")?
        .into_iter()
        .map(|payload| Piece { payload, key: None, attributes: Ok(Attributes::new()), deliver_at: 0 })
        .collect();
    let mut rest = body[2..].iter();
    let mut next = |bit| if columns & bit == 0 { None } else { rest.next() };
    if let Some(column) = next(KEYS) {
        for (piece, key) in pieces.iter_mut().zip(cut_column(column, count, "a column of keys")?) {
            piece.key = Some(key).filter(|key| !key.is_empty());
        }
    }
    if let Some(column) = next(ATTRIBUTES) {
        for (piece, item) in pieces.iter_mut().zip(cut_column(column, count, "a column of attributes")?) {
            piece.attributes = decode_attributes(&item);
        }
    }
    if let Some(column) = next(TIMES) {
        if column.len() != TIME * count {
            return Err(Error::mismatch("a column of times"));
        }
        for (piece, time) in pieces.iter_mut().zip(column.chunks_exact(TIME)) {
            piece.deliver_at = u64::from_le_bytes(time.try_into().unwrap_or_default());
        }
    }
    Ok(pieces)
}

/// The id of a producer with a name: the same in every language.
pub(crate) fn producer_id(topic: &str, name: &str) -> u64 {
    let mut state = blake2b_simd::Params::new().hash_length(8).to_state();
    state.update(topic.as_bytes()).update(&[0]).update(name.as_bytes());
    let digest: [u8; 8] = state.finalize().as_bytes().try_into().unwrap_or_default();
    (u64::from_le_bytes(digest) >> 1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content<'a>(payload: &'a [u8], key: &'a [u8], attributes: &[(&str, &str)], deliver_at: u64) -> Content<'a> {
        let attributes = attributes.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        Content { payload: payload.into(), key: key.into(), attributes: encode_attributes(&attributes), deliver_at }
    }

    #[test]
    fn a_batch_comes_apart_as_it_was_put_together() {
        let messages = [
            content(b"a", b"", &[], 0),
            content(b"", b"k", &[], 0),
            content(b"c", b"", &[("größe", "ü"), ("", "")], 7),
            content(b"d", b"", &[], 0),
        ];
        let mut packing = Packing::default();
        messages.iter().for_each(|each| packing.push(each));
        let (columns, body) = packing.done();
        let pieces = unpack(columns, 4, &body).unwrap();
        assert_eq!(columns, 7);
        for (piece, message) in pieces.iter().zip(&messages) {
            assert_eq!(piece.payload, &message.payload[..]);
            assert_eq!(piece.key.as_deref().unwrap_or(b""), &message.key[..]);
            assert_eq!(encode_attributes(piece.attributes.as_ref().unwrap()), message.attributes);
            assert_eq!(piece.deliver_at, message.deliver_at);
        }
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        for (what, lengths, payloads) in [
            ("too small", &[1u8, 0, 0, 0][..], &b"ab"[..]),
            ("too large", &[3, 0, 0, 0], b"ab"),
            ("cut short", &[3, 0], b"ab"),
            ("more than memory", &[255, 255, 255, 255], b"ab"),
        ] {
            let body = [Bytes::copy_from_slice(lengths), Bytes::copy_from_slice(payloads)];
            assert_eq!(unpack(0, 1, &body).unwrap_err().code(), "lengths-mismatch", "{what}");
        }
        let body = [Bytes::from(vec![0; 8]), Bytes::new(), Bytes::from(vec![0; 4])];
        assert!(unpack(KEYS, 2, &body).is_err());
        assert!(unpack(8, 1, &[Bytes::from(vec![0; 4]), Bytes::new()]).is_err());
        assert!(unpack(0, u64::MAX, &[Bytes::from(vec![0; 4]), Bytes::new()]).is_err());
    }

    #[test]
    fn attributes_that_are_none_fail_their_message_alone() {
        let mut packing = Packing::default();
        let wrong = Content { attributes: vec![0xa1, 0x61, b'a', 1], ..content(b"wrong", b"", &[], 0) };
        packing.push(&wrong);
        packing.push(&content(b"right", b"", &[("a", "b")], 0));
        let (columns, body) = packing.done();
        let pieces = unpack(columns, 2, &body).unwrap();
        assert_eq!(pieces[0].attributes.as_ref().unwrap_err().code(), "malformed");
        assert_eq!(pieces[1].attributes.as_ref().unwrap()["a"], "b");
    }

    #[test]
    fn a_name_makes_the_id_of_the_document() {
        assert_eq!(producer_id("orders", "loader"), 70219652783341418);
    }
}
