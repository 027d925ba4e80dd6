//! Request and reply, section 10.6 of PROTOCOL.md: a convention between clients, over an ephemeral inbox topic.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use crate::admin::Options;
use crate::attachment::Start;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::exchange::{locked, Inbox, Slot, Turn, Waiting, CORRELATION_ID};
use crate::message::{Message, Outgoing, Receipt};
use crate::signal::random;

const REPLY_TO: &str = "ister.reply_to";
const OUTLETS_MAX: usize = 64;
const REPLIES_MAX: u64 = 1024; // that wait in the inbox

impl Client {
    /// Send a message and return the reply that some consumer of the topic gives it with [`reply`](Client::reply).
    ///
    /// When the session is lost on the way the error is [`Error::ConnectionLost`]: the request may have been carried
    /// out.
    pub async fn request(&self, topic: &str, message: impl Into<Outgoing<'_>>) -> Result<Message> {
        let inbox = self.inbox().await?;
        let id = format!("{:016x}", random());
        locked(&inbox.slots).insert(id.clone(), Slot::default());
        let waiting = Waiting { inbox: &inbox, id };
        let mut message = message.into();
        message.attributes.insert(REPLY_TO.into(), inbox.topic.clone());
        message.attributes.insert(CORRELATION_ID.into(), waiting.id.clone());
        let mut receipt = Some(self.send_by(topic, message).await?);
        let reply = poll_fn(|context| {
            if let Some(sent) = &receipt {
                match sent.poll_refusal(context) {
                    Poll::Ready(Some(refusal)) => return Poll::Ready(Err(refusal)),
                    Poll::Ready(None) => receipt = None,
                    Poll::Pending => {}
                }
            }
            inbox.poll_reply(&waiting.id, context).map_err(|error| {
                self.forget_inbox(&inbox);
                Error::lost(format!("the inbox was lost, and with it the reply to a request to {topic:?}: {error}"))
            })
        });
        reply.await
    }

    /// Answer a message that came from [`request`](Client::request). Whoever asked may be gone: then nobody hears it.
    pub async fn reply(&self, to: &Message, message: impl Into<Outgoing<'_>>) -> Result<()> {
        let Some(topic) = to.attribute(REPLY_TO) else {
            return Err(Error::invalid("this message asks for no reply"));
        };
        let mut message = message.into();
        if let Some(id) = to.attribute(CORRELATION_ID) {
            message.attributes.insert(CORRELATION_ID.into(), id.into());
        }
        match self.send_by(topic, message).await {
            Err(error) if matches!(error.code(), "unknown-topic" | "topic-deleted") => Ok(()),
            sent => sent.map(drop),
        }
    }

    /// Send with a producer that is kept for the next message to the topic.
    async fn send_by(&self, topic: &str, message: Outgoing<'_>) -> Result<Receipt> {
        let exchange = &self.owner.exchange;
        let kept = locked(&exchange.state).outlets.get(topic).cloned();
        if let Some(producer) = kept {
            match producer.send(message.clone()).await {
                // Its topic was made anew, for example: a new one may do.
                Err(error) if !matches!(error.action(), crate::Action::Fix) => exchange.forget_outlet(topic),
                sent => return sent,
            }
        }
        let producer = Arc::new(self.producer(topic).open_inside().await?);
        let receipt = producer.send(message).await?;
        let mut state = locked(&exchange.state);
        let surplus = match state.outlets.len() {
            OUTLETS_MAX.. => state.outlets.keys().next().cloned(),
            _ => None,
        };
        let gone = surplus.and_then(|surplus| state.outlets.remove(&surplus));
        let other = state.outlets.insert(topic.into(), producer);
        drop(state);
        drop((gone, other)); // they send what they have, not under the lock
        Ok(receipt)
    }

    fn forget_inbox(&self, inbox: &Arc<Inbox>) {
        let mut state = locked(&self.owner.exchange.state);
        if state.inbox.as_ref().is_some_and(|present| Arc::ptr_eq(present, inbox)) {
            state.inbox = None;
        }
    }

    async fn inbox(&self) -> Result<Arc<Inbox>> {
        let exchange = &self.owner.exchange;
        let _turn = Turn::take(exchange).await;
        if let Some(inbox) = locked(&exchange.state).inbox.clone() {
            if !inbox.reader.is_over() {
                return Ok(inbox);
            }
        }
        let topic = format!("_inbox/{:016x}{:016x}", random(), random());
        let settings = Options::new().set("dispatch", "non-reliable").set("ephemeral", 1);
        self.create_topic(&topic, settings).await?;
        let builder = self.reader(topic.as_str()).start(Start::Latest).credit_messages(REPLIES_MAX);
        let reader = builder.open_inside().await?;
        let inbox = Arc::new(Inbox { topic, reader, slots: Mutex::default() });
        locked(&exchange.state).inbox = Some(Arc::clone(&inbox));
        Ok(inbox)
    }
}
