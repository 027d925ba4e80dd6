//! Dead letters: listing what a subscription gave up, sending it back, and deleting it.
//!
//! They are in the subscription's dead-letter topic, and are taken from there through its Exclusive subscription
//! `redrive`.
//!
//! Invariants
//! - a letter is acknowledged once the topic it went to has it, and never before: an interruption loses nothing
//! - what fails again meanwhile waits for the next call: no letter loops for ever
//! - a dead-letter topic may serve several subscriptions: only this one's letters are touched

use std::collections::HashSet;
use std::time::Duration;

use crate::attachment::{Start, SubscriptionType};
use crate::cbor::Value;
use crate::client::Client;
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::message::{Message, Outgoing};
use crate::producer::Producer;
use crate::receiver::Reader;

const REDRIVE: &str = "redrive"; // the subscription of a dead-letter topic that its letters are taken from
const TOGETHER: usize = 200; // letters that are settled together
const GAP_READ_OVER: u64 = 1000; // a longer one between letters is not read through
const SILENCE: Duration = Duration::from_millis(300); // after which the broker is asked whether anything is left
const ADDED: [&str; 8] = [
    "ister.topic",
    "ister.subscription",
    "ister.offset",
    "ister.producer",
    "ister.timestamp",
    "ister.attempts",
    "ister.reason",
    "ister.dead_lettered_at",
];

/// The dead letters of one subscription; made by [`Client::dead_letters`].
#[derive(Debug, Clone)]
pub struct DeadLetters {
    client: Client,
    topic: String,
    subscription: String,
}

impl Client {
    /// The dead letters of a subscription.
    pub fn dead_letters(&self, topic: impl Into<String>, subscription: impl Into<String>) -> DeadLetters {
        DeadLetters { client: self.clone(), topic: topic.into(), subscription: subscription.into() }
    }
}

/// A message that a subscription gave up, with its payload, key and attributes as they were sent.
#[derive(Debug, Clone)]
pub struct DeadLetter(Message);

impl DeadLetter {
    /// The message in the dead-letter topic: its attributes say more.
    pub fn message(&self) -> &Message {
        &self.0
    }

    /// Why, of the last failure.
    pub fn reason(&self) -> &str {
        self.0.attribute("ister.reason").unwrap_or("")
    }

    /// How often it was delivered.
    pub fn attempts(&self) -> Option<u64> {
        self.0.attribute("ister.attempts")?.parse().ok()
    }

    /// Where it is in the dead-letter topic.
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Its attributes as they were sent, without those about the failure.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.attributes().iter().map(|(name, value)| (name.as_str(), value.as_str()));
        all.filter(|(name, _)| !ADDED.contains(name))
    }

    /// The topic that it was published to.
    pub fn topic(&self) -> &str {
        self.0.attribute("ister.topic").unwrap_or("")
    }

    /// The subscription that gave it up.
    pub fn subscription(&self) -> &str {
        self.0.attribute("ister.subscription").unwrap_or("")
    }

    /// Where it was in its topic.
    pub fn origin_offset(&self) -> Option<u64> {
        self.0.attribute("ister.offset")?.parse().ok()
    }
}

/// Which letters are sent back, and where to; see [`DeadLetters::redrive_as`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Redrive {
    offsets: Option<HashSet<u64>>,
    to: Option<String>,
    limit: Option<usize>,
}

impl Redrive {
    /// All that wait, back to the topic they were in.
    pub fn new() -> Redrive {
        Redrive::default()
    }

    /// Those at these offsets of the dead-letter topic alone.
    pub fn offsets(mut self, offsets: impl IntoIterator<Item = u64>) -> Self {
        self.offsets = Some(offsets.into_iter().collect());
        self
    }

    /// To another topic.
    pub fn to(mut self, topic: impl Into<String>) -> Self {
        self.to = Some(topic.into());
        self
    }

    /// At most so many.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    fn most(&self) -> usize {
        let named = self.offsets.as_ref().map_or(usize::MAX, HashSet::len);
        self.limit.unwrap_or(usize::MAX).min(named)
    }
}

/// What waits in a dead-letter topic.
struct Waiting {
    ranges: Vec<(u64, u64)>,
    count: u64,
    end: u64,
    paused: bool,
}

impl Waiting {
    /// The first run of letters that ends behind an offset, from there on.
    fn next(&self, from: u64) -> Option<(u64, u64)> {
        let run = self.ranges.iter().find(|&&(_, end)| end > from);
        run.map(|&(first, end)| (first.max(from), end))
    }

    /// How many the broker does not say where they are: it tells of the first hundred runs.
    fn untold(&self) -> u64 {
        self.count.saturating_sub(self.ranges.iter().map(|&(first, end)| end - first).sum())
    }
}

/// A pass over the letters that wait.
#[derive(Default)]
struct Pass {
    done: usize,
    /// Were looked at, and stay.
    passed: u64,
    /// Behind the last one that was looked at: those below come again.
    reached: u64,
    /// Settled, and not known to be acknowledged.
    gone: HashSet<u64>,
    refused: Option<Error>,
}

impl DeadLetters {
    /// The name of the topic they are in; of a subscription that was deleted, the default name.
    pub async fn topic(&self) -> Result<String> {
        let usual = format!("{}.{}.dlq", self.topic, self.subscription);
        match self.client.subscription(&self.topic, &self.subscription).await {
            Ok(told) if told.text("dead_letter_topic").is_empty() => Ok(usual),
            Ok(told) => Ok(told.text("dead_letter_topic").to_owned()),
            Err(error) if matches!(error.code(), "unknown-topic" | "unknown-subscription") => Ok(usual),
            Err(error) => Err(error),
        }
    }

    async fn waiting(&self, letters: &str) -> Result<Waiting> {
        let told = match self.client.subscription(letters, REDRIVE).await {
            Err(error) if matches!(error.code(), "unknown-topic" | "unknown-subscription") => {
                return Ok(Waiting { ranges: Vec::new(), count: 0, end: 0, paused: false });
            }
            told => told?,
        };
        let pairs = told.get("pending").and_then(Value::as_list).unwrap_or(&[]);
        let ranges = pairs.iter().filter_map(|pair| match pair.as_list()? {
            [first, end] => Some((first.as_u64()?, end.as_u64()?)),
            _ => None,
        });
        Ok(Waiting {
            ranges: ranges.collect(),
            count: told.number("unacknowledged").unwrap_or(0),
            end: told.number("durable_end").unwrap_or(u64::MAX),
            paused: told.flag("paused").unwrap_or(told.number("paused") == Some(1)),
        })
    }

    /// How many letters wait, of every subscription that shares the dead-letter topic.
    pub async fn count(&self) -> Result<u64> {
        Ok(self.waiting(&self.topic().await?).await?.count)
    }

    fn is_mine(&self, letter: &Message) -> bool {
        let of = |name, usual| letter.attribute(name).unwrap_or(usual);
        of("ister.topic", &self.topic) == self.topic
            && of("ister.subscription", &self.subscription) == self.subscription
    }

    /// The letters that wait, oldest first, at most `limit`; nothing is taken.
    pub async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        self.list_from(0, limit).await
    }

    /// As [`list`](DeadLetters::list), behind the letter at an offset: the last one of the list before. None is the end.
    pub async fn list_after(&self, offset: u64, limit: usize) -> Result<Vec<DeadLetter>> {
        self.list_from(offset.saturating_add(1), limit).await
    }

    async fn list_from(&self, mut from: u64, limit: usize) -> Result<Vec<DeadLetter>> {
        let topic = self.topic().await?;
        let waiting = self.waiting(&topic).await?;
        let mut reader: Option<Reader> = None;
        let mut found = Vec::new();
        while found.len() < limit {
            let Some((first, _)) = waiting.next(from) else { break };
            if first - from > GAP_READ_OVER {
                reader = None;
            }
            let open = match reader.take() {
                Some(open) => open,
                None => self.client.reader(topic.as_str()).start(Start::Offset(first)).open().await?,
            };
            let message = open.receive().await?;
            reader = Some(open);
            from = message.offset + 1;
            let waits = waiting.next(message.offset).is_some_and(|(first, _)| first == message.offset);
            if waits && self.is_mine(&message) {
                found.push(DeadLetter(message));
            }
        }
        if found.is_empty() && limit > 0 && waiting.untold() > 0 && !waiting.ranges.is_empty() {
            return Err(Error::invalid(format!(
                "{} letters of {topic:?} cannot be listed: they lie behind the first {} runs of letters, which are all \
                 that a broker tells; redrive or purge some of these, then list again",
                waiting.untold(),
                waiting.ranges.len()
            )));
        }
        Ok(found)
    }

    /// Send letters, at most `limit`, back to the topic they were in, and return how many. Payload, key and attributes
    /// are unchanged; those about the failure are replaced by `ister.redriven_from`, `ister.redriven_offset` and
    /// `ister.redriven_for`. At least once: what is interrupted may be sent again, and nothing is lost. A letter that
    /// the topic refuses stays, and stops no others; its error is the answer in the end.
    pub async fn redrive(&self, limit: usize) -> Result<usize> {
        self.redrive_as(Redrive::new().limit(limit)).await
    }

    /// As [`redrive`](DeadLetters::redrive): those letters, to that topic.
    pub async fn redrive_as(&self, how: Redrive) -> Result<usize> {
        let to = how.to.clone().unwrap_or_else(|| self.topic.clone());
        if to == self.topic().await? {
            return Err(Error::invalid(format!("{to:?} is the dead-letter topic: letters would loop for ever")));
        }
        if self.client.topic(&to).await?.strategy() == "non-reliable" {
            return Err(Error::invalid(format!(
                "topic {to:?} is non-reliable: it stores nothing, so letters would be lost"
            )));
        }
        let producer = self.client.producer(to).open().await?;
        let settled = self.settle(&how, Some(&producer)).await?;
        producer.close().await?;
        Ok(settled)
    }

    /// Delete letters, at most `limit`, and return how many. Messages that become dead letters meanwhile stay.
    pub async fn purge(&self, limit: usize) -> Result<usize> {
        self.settle(&Redrive::new().limit(limit), None).await
    }

    fn again(&self, letter: &Message) -> Outgoing<'static> {
        let kept = letter.attributes().iter().filter(|(name, _)| !ADDED.contains(&name.as_str()));
        Outgoing::new(letter.payload.to_vec())
            .key(letter.key.as_deref().unwrap_or(b"").to_vec())
            .attributes(kept.map(|(name, value)| (name.clone(), value.clone())))
            .attribute("ister.redriven_from", &*letter.topic)
            .attribute("ister.redriven_offset", letter.offset.to_string())
            .attribute("ister.redriven_for", self.subscription.as_str())
    }

    async fn settle(&self, how: &Redrive, producer: Option<&Producer>) -> Result<usize> {
        let topic = self.topic().await?;
        let waiting = self.waiting(&topic).await?;
        let most = how.most();
        if waiting.ranges.is_empty() || most == 0 {
            return Ok(0);
        }
        let builder = self.client.consumer(topic.as_str(), REDRIVE).kind(SubscriptionType::Exclusive);
        let consumer = builder.credit_messages(TOGETHER as u64).open().await?;
        let mut pass = Pass::default();
        while pass.done < most || !pass.gone.is_empty() {
            let wanted = most.saturating_sub(pass.done).clamp(1, TOGETHER);
            let letters = match self.client.within(SILENCE, consumer.receive_batch(wanted)).await {
                Err(Error::Timeout(_)) => {
                    let left = self.waiting(&topic).await?;
                    if left.next(0).is_none_or(|(first, _)| first >= waiting.end) || left.count <= pass.passed {
                        break;
                    }
                    if left.paused {
                        return Err(Error::Broker {
                            code: "paused".into(),
                            action: crate::Action::Retry,
                            text: format!("subscription {REDRIVE:?} of {topic:?} is paused").into(),
                        });
                    }
                    continue;
                }
                batch => batch?,
            };
            let behind = letters.iter().any(|letter| letter.offset >= waiting.end); // it failed meanwhile
            let mut mine = Vec::new();
            for letter in letters.into_iter().filter(|letter| letter.offset < waiting.end) {
                let again = letter.offset < pass.reached;
                pass.reached = pass.reached.max(letter.offset + 1);
                let wanted = match &how.offsets {
                    Some(offsets) => offsets.contains(&letter.offset),
                    None => self.is_mine(&letter),
                };
                if if again { pass.gone.contains(&letter.offset) } else { wanted && pass.done + mine.len() < most } {
                    mine.push(letter);
                } else if !again {
                    pass.passed += 1;
                }
            }
            self.settle_some(mine, producer, &consumer, &mut pass).await?;
            if behind {
                break;
            }
        }
        consumer.close().await?;
        pass.refused.map_or(Ok(pass.done), Err)
    }

    /// Settle letters, and have their acknowledgments written; what the topic refuses stays.
    async fn settle_some(
        &self,
        letters: Vec<Message>,
        producer: Option<&Producer>,
        consumer: &Consumer,
        pass: &mut Pass,
    ) -> Result<()> {
        let mut sent = Vec::with_capacity(letters.len());
        for letter in letters {
            let receipt = match producer {
                Some(producer) if !pass.gone.contains(&letter.offset) => Some(producer.send(self.again(&letter)).await),
                _ => None,
            };
            sent.push((letter, receipt));
        }
        let mut settled = Vec::with_capacity(sent.len());
        for (letter, receipt) in sent {
            let stored = match receipt {
                None => Ok(()),
                Some(Ok(receipt)) => receipt.await.map(drop),
                Some(Err(error)) => Err(error),
            };
            match stored {
                Ok(()) => {
                    pass.done += usize::from(pass.gone.insert(letter.offset));
                    settled.push(letter);
                }
                Err(error) if error.action() == crate::Action::Fix => {
                    pass.passed += 1;
                    pass.refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        if settled.is_empty() {
            return Ok(());
        }
        let written = match consumer.ack_all(&settled) {
            Ok(()) => consumer.flush().await,
            refused => refused,
        };
        match written {
            Err(Error::ConnectionLost(_)) => Ok(()), // they come again, and are acknowledged then
            written => written.map(|()| pass.gone.clear()),
        }
    }
}
