use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::batch::{encode_attributes, Content};
use crate::error::{Error, Result};
use crate::publication::Shipment;
use crate::wire::OFFSET_UNKNOWN;

/// A message as it was delivered. Cloning one copies no payload.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Message {
    /// The topic it came from.
    pub topic: Arc<str>,
    /// Its place in the topic.
    pub offset: u64,
    /// What was published.
    pub payload: Bytes,
    /// Its key, which is never empty.
    pub key: Option<Bytes>,
    /// When the broker took it.
    pub timestamp: SystemTime,
    /// Before when it was not to be delivered.
    pub deliver_at: Option<SystemTime>,
    /// 1 for the first delivery.
    pub attempt: u32,
    pub(crate) attributes: Option<Arc<Result<BTreeMap<String, String>>>>,
    pub(crate) origin: Origin,
}

/// Which delivery a message is of: what an acknowledgment is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub handle: u64,
    pub epoch: u64,
}

static NO_ATTRIBUTES: BTreeMap<String, String> = BTreeMap::new();

impl Message {
    /// The attributes. A message whose attributes cannot be read has none here;
    /// [`attributes_error`](Message::attributes_error) says why.
    pub fn attributes(&self) -> &BTreeMap<String, String> {
        match self.attributes.as_deref() {
            Some(Ok(attributes)) => attributes,
            _ => &NO_ATTRIBUTES,
        }
    }

    /// One attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes().get(name).map(String::as_str)
    }

    /// Why the attributes cannot be read: the broker does not look into what a producer sends as such.
    pub fn attributes_error(&self) -> Option<&Error> {
        self.attributes.as_deref().and_then(|attributes| attributes.as_ref().err())
    }
}

/// A message to be sent. Only a payload is needed: `"hello".into()` makes one.
#[derive(Debug, Clone, Default)]
pub struct Outgoing<'a> {
    pub(crate) payload: Cow<'a, [u8]>,
    pub(crate) key: Cow<'a, [u8]>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) deliver_at: u64,
    pub(crate) sequence: Option<u64>,
}

impl<'a> Outgoing<'a> {
    /// A message with this payload.
    pub fn new(payload: impl Into<Cow<'a, [u8]>>) -> Self {
        Outgoing { payload: payload.into(), ..Outgoing::default() }
    }

    /// Messages of a key keep their order in a Key-Shared subscription. An empty key is none.
    pub fn key(mut self, key: impl Into<Cow<'a, [u8]>>) -> Self {
        self.key = key.into();
        self
    }

    /// Add an attribute; one of the same name is replaced.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// Add attributes.
    pub fn attributes(mut self, attributes: impl IntoIterator<Item = (String, String)>) -> Self {
        self.attributes.extend(attributes);
        self
    }

    /// Not to be delivered before this time.
    pub fn deliver_at(mut self, when: SystemTime) -> Self {
        self.deliver_at = unix_ms(when);
        self
    }

    /// The message's number, for a producer with a name: one that was stored before is not stored again.
    ///
    /// Without it numbers follow each other; they may be left out, at the price of a round trip.
    pub fn sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    pub(crate) fn content(&self) -> Content<'_> {
        Content {
            payload: Cow::Borrowed(&self.payload),
            key: Cow::Borrowed(&self.key),
            attributes: encode_attributes(&self.attributes),
            deliver_at: self.deliver_at,
        }
    }
}

impl<'a> From<&'a [u8]> for Outgoing<'a> {
    fn from(payload: &'a [u8]) -> Self {
        Outgoing::new(payload)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Outgoing<'a> {
    fn from(payload: &'a [u8; N]) -> Self {
        Outgoing::new(&payload[..])
    }
}

impl<'a> From<&'a str> for Outgoing<'a> {
    fn from(payload: &'a str) -> Self {
        Outgoing::new(payload.as_bytes())
    }
}

impl<'a> From<&'a Vec<u8>> for Outgoing<'a> {
    fn from(payload: &'a Vec<u8>) -> Self {
        Outgoing::new(payload.as_slice())
    }
}

impl<'a> From<&'a Bytes> for Outgoing<'a> {
    fn from(payload: &'a Bytes) -> Self {
        Outgoing::new(&payload[..])
    }
}

impl From<Vec<u8>> for Outgoing<'_> {
    fn from(payload: Vec<u8>) -> Self {
        Outgoing::new(payload)
    }
}

impl From<String> for Outgoing<'_> {
    fn from(payload: String) -> Self {
        Outgoing::new(payload.into_bytes())
    }
}

/// Where messages are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The topic.
    pub topic: Arc<str>,
    /// The first message's place; `None` for a duplicate so old that the broker has forgotten where it is.
    pub offset: Option<u64>,
    /// How many messages.
    pub count: u64,
    /// Whether they are known to have been stored before, and were not stored again.
    pub duplicate: bool,
}

/// The promise of an answer for what was sent with one call: a future, that may be dropped, and waited for again.
///
/// It is ready once the messages are stored as the topic promises, or refused.
#[must_use = "a refusal is told here; `flush` and `close` of the producer tell what no receipt told"]
#[derive(Clone)]
pub struct Receipt {
    pub(crate) topic: Arc<str>,
    pub(crate) shipment: Arc<Shipment>,
    pub(crate) index: u64,
    pub(crate) count: u64,
}

impl Receipt {
    /// Whether the broker has answered.
    pub fn is_done(&self) -> bool {
        self.shipment.answer().is_some()
    }

    /// Ready once the broker has answered, with the error where it refused.
    pub(crate) fn poll_refusal(&self, context: &mut Context<'_>) -> Poll<Option<Error>> {
        self.shipment.poll(context.waker()).map(|answer| self.published(answer).err())
    }

    fn published(&self, answer: Result<u64>) -> Result<Published> {
        match answer {
            Ok(first) => Ok(Published {
                topic: Arc::clone(&self.topic),
                offset: (first != OFFSET_UNKNOWN).then(|| first.saturating_add(self.index)),
                count: self.count,
                duplicate: first == OFFSET_UNKNOWN,
            }),
            Err(error) => {
                self.shipment.observed.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

impl Future for Receipt {
    type Output = Result<Published>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.shipment.poll(context.waker()).map(|answer| self.published(answer))
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("topic", &self.topic).field("done", &self.is_done()).finish_non_exhaustive()
    }
}

pub(crate) fn unix_ms(when: SystemTime) -> u64 {
    when.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The time of some milliseconds since 1970; what no clock can show is the latest that one can.
pub(crate) fn time_of(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or_else(|| UNIX_EPOCH + Duration::from_secs(1 << 40))
}
