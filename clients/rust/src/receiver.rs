//! What programs hold of consumers and readers alike: receiving, and leaving.

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::stream::{FusedStream, Stream};

use crate::attachment::{Attachment, Event, Target};
use crate::error::{Error, Result};
use crate::io::Shared;
use crate::message::Message;
use crate::outbox::Wire;
use crate::session::Handle;
use crate::waiting::Keep;

/// What consumers and readers have in common: both can be used as one.
pub struct Receiver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) number: u64,
    pub(crate) topic: Arc<str>,
    _owner: Option<Keep>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        if std::thread::panicking() {
            if let Some((attachment, wire)) = core.consumer(self.number) {
                attachment.blame("a panic ended its consumer", wire);
            }
        }
        core.abandon(self.number);
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Receiver {
    pub(crate) async fn open(
        shared: Arc<Shared>,
        owner: Option<Keep>,
        target: Target,
        wait: Option<Duration>,
    ) -> Result<Receiver> {
        let topic = Arc::clone(&target.topic);
        let now = Instant::now();
        let number = shared.lock().attach(now, |number| Handle::Consumer(Attachment::new(number, target, now)))?;
        let receiver = Receiver { shared, number, topic, _owner: owner };
        let opened = receiver.shared.until(|core, waker| {
            let Some((attachment, _)) = core.consumer(number) else { return Some(Err(receiver.closed())) };
            attachment.changed.wait(waker);
            match (&attachment.error, attachment.opened) {
                (Some(error), _) => Some(Err(error.clone())),
                (None, true) => Some(Ok(())),
                (None, false) => None,
            }
        });
        let Some(wait) = wait else {
            opened.await?;
            return Ok(receiver);
        };
        match receiver.shared.within(wait, opened).await {
            Err(Error::Timeout(text)) => {
                let trouble = receiver.with(|attachment, _| attachment.trouble.clone());
                let busy = trouble.filter(|error| error.code() == "subscription-busy");
                Err(busy.unwrap_or(Error::Timeout(text)))
            }
            opened => opened.map(|()| receiver),
        }
    }

    pub(crate) fn closed(&self) -> Error {
        Error::closed(&format!("the consumer or reader of topic {:?}", self.topic))
    }

    /// Look at the attachment, where there is one.
    pub(crate) fn with<T: Default>(&self, look: impl FnOnce(&mut Attachment, &mut Wire) -> T) -> T {
        match self.shared.lock().consumer(self.number) {
            Some((attachment, wire)) => look(attachment, wire),
            None => T::default(),
        }
    }

    pub(crate) fn check(attachment: &mut Attachment) -> Result<()> {
        if let Some(complaint) = attachment.complaint.take() {
            return Err(complaint);
        }
        match &attachment.error {
            Some(error) => Err(error.clone()),
            None if attachment.is_ending() => Err(attachment.closed_error()),
            None => Ok(()),
        }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Where it stood when it was opened last: up to where the subscription had delivered.
    pub fn position(&self) -> u64 {
        self.with(|attachment, _| attachment.position)
    }

    /// What the broker told besides messages since the last call, oldest first; at most the last 256.
    pub fn events(&self) -> Vec<Event> {
        self.with(|attachment, _| attachment.events.drain(..).collect())
    }

    fn poll_next<T>(
        &self,
        context: &mut Context<'_>,
        next: impl FnOnce(&mut Attachment, &mut Wire, Instant) -> Option<T>,
    ) -> Poll<Result<T>> {
        let mut core = self.shared.lock();
        let Some((attachment, wire)) = core.consumer(self.number) else { return Poll::Ready(Err(self.closed())) };
        if let Some(taken) = next(attachment, wire, Instant::now()) {
            return Poll::Ready(Ok(taken));
        }
        attachment.changed.wait(context.waker());
        match Receiver::check(attachment) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    pub(crate) fn poll_one(&self, context: &mut Context<'_>) -> Poll<Result<Message>> {
        self.poll_next(context, Attachment::next_one)
    }

    pub(crate) fn poll_batch(&self, context: &mut Context<'_>, most: usize) -> Poll<Result<Vec<Message>>> {
        self.poll_next(context, |attachment, wire, now| attachment.next(most, wire, now))
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn is_over(&self) -> bool {
        self.with(|attachment, _| Some(attachment.is_ending())).unwrap_or(true)
    }

    /// The next message, once there is one. A future that is dropped before has taken none.
    pub async fn receive(&self) -> Result<Message> {
        std::future::poll_fn(|context| self.poll_one(context)).await
    }

    /// The next message, or none where none comes within a time.
    pub async fn receive_within(&self, limit: Duration) -> Result<Option<Message>> {
        match self.shared.within(limit, self.receive()).await {
            Ok(message) => Ok(Some(message)),
            Err(Error::Timeout(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Messages that came together, at least one and at most so many.
    pub async fn receive_batch(&self, most: usize) -> Result<Vec<Message>> {
        std::future::poll_fn(|context| self.poll_batch(context, most)).await
    }

    /// A stream of messages. It ends behind the error that ended the consumer; what the broker complains of besides is
    /// an error in its place, and the stream goes on.
    pub fn messages(&self) -> Messages<'_> {
        Messages { receiver: self, ended: false }
    }

    /// Send the acknowledgments made so far, and leave; ready when the broker has applied them. Where it forgot what
    /// they are about, because it was started again meanwhile, the error is [`Error::ConnectionLost`], and those
    /// messages are delivered again. Closing again does nothing.
    pub async fn close(&self) -> Result<()> {
        let settled = self.with(|attachment, wire| {
            attachment.forgotten &= !attachment.is_settled();
            attachment.close(wire);
            attachment.is_settled()
        });
        self.shared
            .until(|core, waker| {
                let connected = core.is_connected(self.number);
                let Some((attachment, _)) = core.consumer(self.number) else { return Some(Ok(())) };
                attachment.changed.wait(waker);
                if !attachment.is_closed() && (connected || !attachment.is_settled()) {
                    return None;
                }
                let lost = !settled && std::mem::take(&mut attachment.forgotten);
                Some(if lost { Err(forgotten()) } else { Ok(()) })
            })
            .await
    }
}

pub(crate) fn forgotten() -> Error {
    Error::lost("the broker forgot what some acknowledgments were about; it delivers those messages again")
}

/// A stream of messages; made by [`Receiver::messages`].
#[derive(Debug)]
pub struct Messages<'a> {
    receiver: &'a Receiver,
    ended: bool,
}

impl Stream for Messages<'_> {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = self.receiver.poll_one(context);
        if let Poll::Ready(Err(_)) = &next {
            self.ended = self.receiver.is_over();
        }
        next.map(Some)
    }
}

impl FusedStream for Messages<'_> {
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

/// Reads a topic, without a subscription and without acknowledgments.
#[derive(Debug)]
pub struct Reader {
    pub(crate) receiver: Receiver,
}

impl Deref for Reader {
    type Target = Receiver;

    fn deref(&self) -> &Receiver {
        &self.receiver
    }
}
