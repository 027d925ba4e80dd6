use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use crate::batch::Packing;
use crate::error::{Error, Result};
use crate::io::Shared;
use crate::message::{Outgoing, Receipt};
use crate::network::Core;
use crate::outbox::Wire;
use crate::publication::{Publication, Settings};
use crate::session::Handle;
use crate::waiting::Keep;

/// Sends messages to one topic.
///
/// One that is dropped sends what it has taken in the background, and receipts still come;
/// [`close`](Producer::close) waits for that.
pub struct Producer {
    shared: Arc<Shared>,
    number: u64,
    topic: Arc<str>,
    _owner: Option<Keep>,
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

impl Producer {
    pub(crate) async fn open(shared: Arc<Shared>, owner: Option<Keep>, settings: Settings) -> Result<Producer> {
        let (topic, now) = (Arc::clone(&settings.topic), Instant::now());
        let number = shared.lock().attach(now, |number| Handle::Producer(Publication::new(number, settings, now)))?;
        let producer = Producer { shared, number, topic, _owner: owner };
        producer.until(|publication, _| publication.opened.then_some(Ok(()))).await?;
        Ok(producer)
    }

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
