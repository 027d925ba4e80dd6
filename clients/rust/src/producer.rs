use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{producer_id, Packing};
use crate::client::{Client, Owner};
use crate::error::{Error, Result};
use crate::io::Shared;
use crate::message::{Outgoing, Receipt};
use crate::network::Core;
use crate::publication::{Publication, Settings};
use crate::session::{Handle, Wire};
use crate::signal::random;

const BATCH_BYTES: u64 = 64 << 10;
const LINGER: Duration = Duration::from_millis(1);

/// How a [`Producer`] is to be opened.
#[must_use]
pub struct ProducerBuilder<'a> {
    client: &'a Client,
    topic: Arc<str>,
    name: Option<String>,
    batch_bytes: u64,
    linger: Duration,
    window_bytes: Option<u64>,
}

impl ProducerBuilder<'_> {
    /// The same producer over restarts of the program; a second one of that name fences the first.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Messages gather until there are so many bytes (64 KiB), or the linger is over, or the batch before is answered.
    pub fn batch_bytes(mut self, bytes: u64) -> Self {
        self.batch_bytes = bytes.max(1);
        self
    }

    /// Messages gather for so long at most (1 ms).
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// At most so many bytes are without a receipt (what the broker allows).
    pub fn window_bytes(mut self, bytes: u64) -> Self {
        self.window_bytes = Some(bytes);
        self
    }

    /// Open it.
    pub async fn open(self) -> Result<Producer> {
        let (shared, owner) = (Arc::clone(self.client.shared()), Some(Arc::clone(&self.client.owner)));
        self.open_by(shared, owner).await
    }

    /// Open it, so that it does not keep the client alive.
    pub(crate) async fn open_inside(self) -> Result<Producer> {
        let shared = Arc::clone(self.client.shared());
        self.open_by(shared, None).await
    }

    async fn open_by(self, shared: Arc<Shared>, owner: Option<Arc<Owner>>) -> Result<Producer> {
        let id = match &self.name {
            Some(name) => producer_id(&self.topic, name),
            None => random() >> 11 | 1, // 53 bits, which every language has
        };
        let topic = Arc::clone(&self.topic);
        let settings = Settings {
            topic: self.topic,
            id,
            batch_bytes: self.batch_bytes,
            linger: self.linger,
            window_bytes: self.window_bytes,
        };
        let now = Instant::now();
        let number = shared.lock().attach(now, |number| Handle::Producer(Publication::new(number, settings, now)))?;
        let producer = Producer { shared, number, topic, _owner: owner };
        producer.until(|publication, _| publication.opened.then_some(Ok(()))).await?;
        Ok(producer)
    }
}

/// Sends messages to one topic.
///
/// One that is dropped sends what it has taken in the background, and receipts still come;
/// [`close`](Producer::close) waits for that.
pub struct Producer {
    shared: Arc<Shared>,
    number: u64,
    topic: Arc<str>,
    _owner: Option<Arc<Owner>>,
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.lock().abandon(self.number);
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Client {
    /// Say how a producer of a topic is to be opened.
    pub fn producer(&self, topic: impl Into<Arc<str>>) -> ProducerBuilder<'_> {
        ProducerBuilder {
            client: self,
            topic: topic.into(),
            name: None,
            batch_bytes: BATCH_BYTES,
            linger: LINGER,
            window_bytes: None,
        }
    }
}

impl Producer {
    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    fn closed(&self) -> Error {
        Error::closed(&format!("the producer for topic {:?}", self.topic))
    }

    /// Wait for something about an open producer.
    fn until<'a, T: 'a>(
        &'a self,
        mut look: impl FnMut(&mut Publication, &mut Wire) -> Option<Result<T>> + 'a,
    ) -> impl Future<Output = Result<T>> + 'a {
        self.shared.until(move |core, waker| {
            let Some((publication, wire)) = core.producer(self.number) else { return Some(Err(self.closed())) };
            if let Some(error) = &publication.error {
                return Some(Err(error.clone()));
            }
            if publication.is_ending() {
                return Some(Err(self.closed()));
            }
            let answer = look(publication, wire);
            if answer.is_none() {
                publication.changed.wait(waker);
            }
            if publication.lingers_anew() {
                core.poke = true;
            }
            answer
        })
    }

    fn receipt(&self, (shipment, index): (Arc<crate::publication::Shipment>, u64), count: u64) -> Receipt {
        Receipt { topic: Arc::clone(&self.topic), shipment, index, count }
    }

    /// The number of the next message; at first, for a name, the one to go on with.
    pub fn next_sequence(&self) -> u64 {
        self.shared.lock().producer(self.number).map_or(0, |(publication, _)| publication.next)
    }

    /// Have one message taken. Ready at once, unless the window is full; a future that is dropped before has taken
    /// nothing. The receipt is the promise of the broker's answer.
    pub async fn send(&self, message: impl Into<Outgoing<'_>>) -> Result<Receipt> {
        let message = message.into();
        let content = message.content();
        self.until(|publication, wire| {
            if let Err(error) = publication.check_size(std::slice::from_ref(&content)) {
                return Some(Err(error));
            }
            if content.deliver_at > 0 && publication.strategy == "non-reliable" {
                let text = format!("topic {:?} is non-reliable: it can delay no message", self.topic);
                return Some(Err(Error::invalid(text)));
            }
            if let Some(sequence) = message.sequence {
                if sequence < publication.next {
                    return Some(Ok(self.receipt(publication.before(sequence), 1)));
                }
                if sequence > publication.next {
                    if !publication.is_answered() {
                        publication.seal(wire);
                        return None;
                    }
                    publication.skip_to(sequence, wire);
                }
            }
            publication.take(&content, wire, Instant::now()).map(|place| Ok(self.receipt(place, 1)))
        })
        .await
    }

    /// Have many messages taken at once: one receipt, consecutive offsets.
    pub async fn send_batch<'m, M: Into<Outgoing<'m>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Receipt> {
        let messages: Vec<Outgoing<'m>> = messages.into_iter().map(Into::into).collect();
        if messages.is_empty() {
            return Err(Error::invalid("a batch holds at least one message"));
        }
        if messages.iter().any(|message| message.sequence.is_some()) {
            return Err(Error::invalid("messages of a batch have no numbers of their own: send them one by one"));
        }
        let contents: Vec<_> = messages.iter().map(Outgoing::content).collect();
        let count = contents.len() as u64;
        self.until(|publication, _| Some(publication.check_size(&contents))).await?;
        let mut packing = Packing::default();
        contents.iter().for_each(|content| packing.push(content));
        let (columns, body) = packing.done();
        self.until(|publication, wire| {
            publication.take_batch(count, columns, &body, wire).map(|made| Ok(self.receipt((made, 0), count)))
        })
        .await
    }

    /// Wait until everything taken so far is answered. A refusal whose receipt nobody has looked at is the error.
    pub async fn flush(&self) -> Result<()> {
        self.until(|publication, wire| {
            publication.seal(wire);
            if !publication.is_answered() {
                return None;
            }
            let refused = publication.refused.take();
            let unseen = refused.filter(|refused| !refused.observed.load(Ordering::Relaxed));
            Some(unseen.and_then(|refused| refused.answer()).map_or(Ok(()), |answer| answer.map(drop)))
        })
        .await
    }

    /// Flush, and tell the broker that this producer is done. Closing again does nothing.
    pub async fn close(&self) -> Result<()> {
        let is_over = |core: &mut Core| core.producer(self.number).is_none_or(|(each, _)| each.is_ending());
        let flushed = if is_over(&mut self.shared.lock()) { Ok(()) } else { self.flush().await };
        if let Some((publication, wire)) = self.shared.lock().producer(self.number) {
            publication.close(wire);
        }
        self.shared
            .until(|core, waker| {
                let connected = core.is_connected(self.number);
                let Some((publication, _)) = core.producer(self.number) else { return Some(Ok(())) };
                publication.changed.wait(waker);
                // Where there is no connection, nothing is left that could be lost.
                (publication.is_closed() || !connected).then_some(Ok(()))
            })
            .await?;
        flushed
    }
}
