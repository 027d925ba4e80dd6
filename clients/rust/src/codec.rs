//! What drivers and tests may see of the codec; programs have no use for it, and it may change.

use bytes::Bytes;

use crate::batch::{self, Packing};
use crate::cbor::{self, Value};
use crate::error::{Error, Result};
use crate::message::Outgoing;
use crate::wire::{Header, HEADER_LEVELS};

pub use crate::client::CLIENT_TEXT;

/// Decode a header strictly.
pub fn header(frame: &[u8]) -> Result<Value> {
    Header::decode(frame)?;
    cbor::decode(frame, HEADER_LEVELS)
}

/// Take the body of a DELIVER apart.
pub fn cut(columns: u64, body: &[Bytes]) -> Result<Vec<Outgoing<'static>>> {
    let lengths = body.first().ok_or_else(|| Error::malformed("a batch without frames"))?;
    if lengths.len() % 4 != 0 {
        return Err(Error::mismatch("a batch"));
    }
    let pieces = batch::unpack(columns, lengths.len() as u64 / 4, body)?;
    pieces
        .into_iter()
        .map(|piece| {
            Ok(Outgoing {
                payload: piece.payload.to_vec().into(),
                key: piece.key.unwrap_or_default().to_vec().into(),
                attributes: piece.attributes?,
                deliver_at: piece.deliver_at,
                sequence: None,
            })
        })
        .collect()
}

/// Make the columns and the body of a batch.
pub fn pack(messages: &[Outgoing<'_>]) -> (u64, Vec<Bytes>) {
    let mut packing = Packing::default();
    messages.iter().for_each(|message| packing.push(&message.content()));
    packing.done()
}

/// The payload, the key, the attributes and the time of delivery of a message.
pub fn parts<'a>(
    message: &'a Outgoing<'_>,
) -> (&'a [u8], &'a [u8], &'a std::collections::BTreeMap<String, String>, u64) {
    (&message.payload, &message.key, &message.attributes, message.deliver_at)
}

/// The id of a producer with a name.
pub fn producer_id(topic: &str, name: &str) -> u64 {
    batch::producer_id(topic, name)
}
