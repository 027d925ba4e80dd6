//! Dead letters: listing what a subscription gave up, sending it back, and deleting it.
//!
//! They are in the subscription's dead-letter topic, and are taken from there through its Exclusive subscription
//! `redrive`.
//!
//! Invariants
//! - a letter is acknowledged once the topic it went to has it, and never before: an interruption loses nothing
//! - what fails again meanwhile waits for the next call: no letter loops for ever
//! - a dead-letter topic may serve several subscriptions: only this one's letters are touched

use std::time::Duration;

use crate::attachment::{Start, SubscriptionType};
use crate::cbor::Value;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::message::{Message, Outgoing};
use crate::producer::Producer;

const REDRIVE: &str = "redrive"; // the subscription of a dead-letter topic that its letters are taken from
const TOGETHER: usize = 200; // letters that are settled together
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

    /// Where it was in its topic.
    pub fn origin_offset(&self) -> Option<u64> {
        self.0.attribute("ister.offset")?.parse().ok()
    }
}

/// What waits in a dead-letter topic.
struct Waiting {
    ranges: Vec<(u64, u64)>,
    count: u64,
}

impl Waiting {
    fn holds(&self, offset: u64) -> bool {
        self.ranges.iter().any(|&(first, end)| (first..end).contains(&offset))
    }

    fn is_below(&self, end: u64) -> bool {
        self.ranges.iter().any(|&(first, _)| first < end)
    }
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
                return Ok(Waiting { ranges: Vec::new(), count: 0 });
            }
            told => told?,
        };
        let pairs = told.get("pending").and_then(Value::as_list).unwrap_or(&[]);
        let ranges = pairs.iter().filter_map(|pair| match pair.as_list()? {
            [first, end] => Some((first.as_u64()?, end.as_u64()?)),
            _ => None,
        });
        Ok(Waiting { ranges: ranges.collect(), count: told.number("unacknowledged").unwrap_or(0) })
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

    /// The letters that wait, oldest first, at most `limit`; nothing is taken. Of letters with more than a hundred gaps
    /// between them, those behind the hundredth are not seen.
    pub async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        let topic = self.topic().await?;
        let waiting = self.waiting(&topic).await?;
        let Some((&(first, _), &(_, end))) = waiting.ranges.first().zip(waiting.ranges.last()) else {
            return Ok(Vec::new());
        };
        let reader = self.client.reader(topic.as_str()).start(Start::Offset(first)).open().await?;
        let mut found = Vec::new();
        while found.len() < limit {
            let message = reader.receive().await?;
            let last = message.offset + 1 >= end;
            if waiting.holds(message.offset) && self.is_mine(&message) {
                found.push(DeadLetter(message));
            }
            if last {
                break;
            }
        }
        reader.close().await?;
        Ok(found)
    }

    /// Send letters, at most `limit`, back to the topic they were in, and return how many. Payload, key and attributes
    /// are unchanged; those about the failure are replaced by `ister.redriven_from`, `ister.redriven_offset` and
    /// `ister.redriven_for`. At least once: what is interrupted may be sent again, and nothing is lost. A letter that
    /// the topic refuses stays, and stops no others; its error is the answer in the end.
    pub async fn redrive(&self, limit: usize) -> Result<usize> {
        if self.client.topic(&self.topic).await?.strategy() == "non-reliable" {
            return Err(Error::invalid(format!(
                "topic {:?} is non-reliable: it stores nothing, so letters would be lost",
                self.topic
            )));
        }
        let producer = self.client.producer(self.topic.as_str()).open().await?;
        let settled = self.settle(limit, Some(&producer)).await?;
        producer.close().await?;
        Ok(settled)
    }

    /// Delete letters, at most `limit`, and return how many. Messages that become dead letters meanwhile stay.
    pub async fn purge(&self, limit: usize) -> Result<usize> {
        self.settle(limit, None).await
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

    async fn settle(&self, limit: usize, producer: Option<&Producer>) -> Result<usize> {
        let topic = self.topic().await?;
        let waiting = self.waiting(&topic).await?;
        if waiting.ranges.is_empty() || limit == 0 {
            return Ok(0);
        }
        let end = self.client.topic(&topic).await?.number("durable_end").unwrap_or(u64::MAX);
        let builder = self.client.consumer(topic.as_str(), REDRIVE).kind(SubscriptionType::Exclusive);
        let consumer = builder.credit_messages(TOGETHER as u64).open().await?;
        let (mut done, mut passed, mut refused) = (0, 0, None);
        while done < limit {
            let batch = self.client.within(SILENCE, consumer.receive_batch(TOGETHER.min(limit - done))).await;
            let letters = match batch {
                Err(Error::Timeout(_)) => {
                    let left = self.waiting(&topic).await?;
                    if !left.is_below(end) || left.count <= passed {
                        break;
                    }
                    continue;
                }
                batch => batch?,
            };
            let behind = letters.iter().any(|letter| letter.offset >= end);
            let (mine, others): (Vec<Message>, Vec<Message>) =
                letters.into_iter().partition(|letter| letter.offset < end && self.is_mine(letter));
            passed += others.len() as u64;
            let mut settled = Vec::with_capacity(mine.len());
            let mut sent = Vec::with_capacity(mine.len());
            for letter in mine {
                match producer {
                    Some(producer) => sent.push((producer.send(self.again(&letter)).await, letter)),
                    None => settled.push(letter),
                }
            }
            for (receipt, letter) in sent {
                let stored = match receipt {
                    Ok(receipt) => receipt.await.map(drop),
                    Err(error) => Err(error),
                };
                match stored {
                    Ok(()) => settled.push(letter),
                    Err(error) if error.action() == crate::Action::Fix => {
                        passed += 1;
                        refused.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            consumer.ack_all(&settled)?;
            consumer.flush().await?;
            done += settled.len();
            if behind {
                break;
            }
        }
        consumer.close().await?;
        refused.map_or(Ok(done), Err)
    }
}
