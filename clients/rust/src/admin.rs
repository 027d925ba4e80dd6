use std::collections::BTreeMap;
use std::ops::Deref;

use bytes::Bytes;

use crate::attachment::{Start, SubscriptionType};
use crate::cbor::{self, Value};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::wire::RESULT_LEVELS;

/// What the broker knows of something; section 10 of PROTOCOL.md names the members.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Info(BTreeMap<String, Value>);

impl Info {
    /// A member.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A member that is text, or nothing.
    pub fn text(&self, name: &str) -> &str {
        self.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// A member that is a number from 0 on.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(Value::as_u64)
    }

    /// A member that is true or false.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    /// All members, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    fn of(value: Value) -> Result<Info> {
        let Value::Map(members) = value else { return Err(Error::malformed("an answer is no map")) };
        let named = members.into_iter().filter_map(|(name, value)| match name {
            Value::Text(name) => Some((name, value)),
            _ => None,
        });
        Ok(Info(named.collect()))
    }
}

macro_rules! info {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name(Info);

        impl Deref for $name {
            type Target = Info;

            fn deref(&self) -> &Info {
                &self.0
            }
        }
    };
}

info!(
    /// What the broker knows of a topic; all of its members are those of an [`Info`].
    TopicInfo
);
info!(
    /// What the broker knows of a subscription; all of its members are those of an [`Info`].
    SubscriptionInfo
);
info!(
    /// Why messages of a subscription flow, or why they do not.
    Explanation
);

impl TopicInfo {
    /// Its name.
    pub fn topic(&self) -> &str {
        self.text("topic")
    }

    /// `reliable` or `non-reliable`.
    pub fn strategy(&self) -> &str {
        self.text("strategy")
    }

    /// `fsync`, `os` or `cloud`.
    pub fn durability(&self) -> &str {
        self.text("durability")
    }
}

impl SubscriptionInfo {
    /// Its topic.
    pub fn topic(&self) -> &str {
        self.text("topic")
    }

    /// Its name.
    pub fn subscription(&self) -> &str {
        self.text("subscription")
    }

    /// Its type, as a word of the protocol.
    pub fn kind(&self) -> &str {
        self.text("type")
    }
}

impl Explanation {
    /// `flowing`, `caught-up`, `waiting` or `stopped`.
    pub fn state(&self) -> &str {
        self.text("state")
    }

    /// True of the first two.
    pub fn is_flowing(&self) -> bool {
        self.flag("flowing").unwrap_or(false)
    }

    /// Why, each reason a sentence.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        let reasons = self.get("reasons").and_then(Value::as_list).unwrap_or(&[]);
        reasons.iter().filter_map(|reason| reason.get("text").and_then(Value::as_str))
    }
}

/// Settings of a topic, or options of a subscription: names and values as section 10 of PROTOCOL.md has them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options(Vec<(Value, Value)>);

impl Options {
    /// None.
    pub fn new() -> Options {
        Options::default()
    }

    /// One more, like `("max_deliveries", 3)`.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<Value>) -> Options {
        self.0.push((Value::Text(name.into()), value.into()));
        self
    }
}

fn arguments(about: &[(&str, &str)], options: Options) -> Vec<(Value, Value)> {
    let mut all: Vec<(Value, Value)> = about.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    all.extend(options.0);
    all
}

fn read(answer: &Bytes) -> Result<Info> {
    Info::of(cbor::decode(answer, RESULT_LEVELS)?)
}

/// A request that was sent twice may have done what it was to do the first time.
fn is_done(answer: &Result<Bytes>, twice: bool, codes: &[&str]) -> bool {
    twice && answer.as_ref().is_err_and(|error| codes.contains(&error.code()))
}

impl Client {
    pub(crate) async fn info(&self, operation: &str, arguments: Vec<(Value, Value)>) -> Result<Info> {
        read(&self.ask(operation, arguments).await.0?)
    }

    async fn made(
        &self,
        operations: [&str; 2],
        exists: &str,
        about: &[(&str, &str)],
        options: Options,
    ) -> Result<Info> {
        let (answer, twice) = self.ask(operations[0], arguments(about, options)).await;
        if is_done(&answer, twice, &[exists]) {
            return self.info(operations[1], arguments(about, Options::new())).await;
        }
        read(&answer?)
    }

    async fn removed(&self, operation: &str, about: &[(&str, &str)], gone: &[&str]) -> Result<()> {
        let (answer, twice) = self.ask(operation, arguments(about, Options::new())).await;
        if is_done(&answer, twice, gone) {
            return Ok(());
        }
        answer.map(drop)
    }

    async fn list(&self, operation: &str, many: &str, one: &str, about: &[(&str, &str)]) -> Result<Vec<Info>> {
        let mut found = Vec::new();
        let mut page = Options::new();
        loop {
            let told = self.info(operation, arguments(about, page)).await?;
            let entries = told.get(many).and_then(Value::as_list).unwrap_or(&[]);
            for entry in entries {
                found.push(Info::of(entry.clone())?);
            }
            if entries.is_empty() || told.flag("more") != Some(true) {
                return Ok(found);
            }
            page = Options::new().set("after", found.last().map_or("", |last| last.text(one)));
        }
    }

    /// Ask the broker for what has no call of its own here: operations, arguments and answers are those of PROTOCOL.md,
    /// section 10. What is answered with `retry` is asked again.
    ///
    /// ```no_run
    /// # async fn verify(client: ister::Client) -> ister::Result<()> {
    /// let told = client.operation("topic.verify", ister::Options::new().set("topic", "orders")).await?;
    /// println!("{:?} of {:?} bytes are read", told.number("bytes"), told.number("bytes_total"));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn operation(&self, operation: &str, arguments: Options) -> Result<Info> {
        self.info(operation, arguments.0).await
    }

    /// Create a topic. Settings are the arguments of `topic.create`: `dispatch` (`reliable`, or `non-reliable`),
    /// `durability`, `retention_ms`, ...
    pub async fn create_topic(&self, topic: &str, settings: Options) -> Result<TopicInfo> {
        let operations = ["topic.create", "topic.show"];
        Ok(TopicInfo(self.made(operations, "topic-exists", &[("topic", topic)], settings).await?))
    }

    /// Change what a reliable topic keeps.
    pub async fn update_topic(&self, topic: &str, settings: Options) -> Result<TopicInfo> {
        Ok(TopicInfo(self.info("topic.update", arguments(&[("topic", topic)], settings)).await?))
    }

    /// What the broker knows of a topic.
    pub async fn topic(&self, topic: &str) -> Result<TopicInfo> {
        Ok(TopicInfo(self.info("topic.show", arguments(&[("topic", topic)], Options::new())).await?))
    }

    /// Every topic, by name.
    pub async fn topics(&self) -> Result<Vec<TopicInfo>> {
        Ok(self.list("topic.list", "topics", "topic", &[]).await?.into_iter().map(TopicInfo).collect())
    }

    /// Delete a topic, its messages and its subscriptions.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        self.removed("topic.delete", &[("topic", topic)], &["unknown-topic"]).await
    }

    /// Create a subscription without attaching to it.
    pub async fn create_subscription(
        &self,
        topic: &str,
        subscription: &str,
        kind: SubscriptionType,
        start: Start,
        options: Options,
    ) -> Result<SubscriptionInfo> {
        let operations = ["subscription.create", "subscription.show"];
        let about = [("topic", topic), ("subscription", subscription)];
        let options = options.set("type", kind.as_str()).set("start", start.value());
        Ok(SubscriptionInfo(self.made(operations, "subscription-exists", &about, options).await?))
    }

    /// Change options of a subscription, for its present consumers too.
    pub async fn update_subscription(
        &self,
        topic: &str,
        subscription: &str,
        options: Options,
    ) -> Result<SubscriptionInfo> {
        let about = [("topic", topic), ("subscription", subscription)];
        Ok(SubscriptionInfo(self.info("subscription.update", arguments(&about, options)).await?))
    }

    /// What the broker knows of a subscription.
    pub async fn subscription(&self, topic: &str, subscription: &str) -> Result<SubscriptionInfo> {
        let about = [("topic", topic), ("subscription", subscription)];
        Ok(SubscriptionInfo(self.info("subscription.show", arguments(&about, Options::new())).await?))
    }

    /// Every subscription of a topic, by name.
    pub async fn subscriptions(&self, topic: &str) -> Result<Vec<SubscriptionInfo>> {
        let found = self.list("subscription.list", "subscriptions", "subscription", &[("topic", topic)]).await?;
        Ok(found.into_iter().map(SubscriptionInfo).collect())
    }

    /// Why messages of a subscription flow, or why they do not.
    pub async fn explain(&self, topic: &str, subscription: &str) -> Result<Explanation> {
        let about = [("topic", topic), ("subscription", subscription)];
        Ok(Explanation(self.info("subscription.explain", arguments(&about, Options::new())).await?))
    }

    /// Decide what becomes of messages that block a subscription (`retry`, `drop`, `dead-letter`); returns how many
    /// they were.
    pub async fn unblock(&self, topic: &str, subscription: &str, action: &str) -> Result<u64> {
        let about = [("topic", topic), ("subscription", subscription), ("action", action)];
        let told = self.info("subscription.unblock", arguments(&about, Options::new())).await?;
        Ok(told.number("messages").unwrap_or(0))
    }

    /// Move a subscription; returns the offset of the next message. Its consumers are told.
    pub async fn seek(&self, topic: &str, subscription: &str, to: Start) -> Result<u64> {
        let about = [("topic", topic), ("subscription", subscription)];
        let told = self.info("subscription.seek", arguments(&about, Options::new().set("to", to.value()))).await?;
        told.number("position").ok_or_else(|| Error::malformed("the answer to a seek has no position"))
    }

    /// Delete a subscription and its cursor.
    pub async fn delete_subscription(&self, topic: &str, subscription: &str) -> Result<()> {
        let about = [("topic", topic), ("subscription", subscription)];
        self.removed("subscription.delete", &about, &["unknown-subscription", "unknown-topic"]).await
    }

    /// How the broker and its processes are doing.
    pub async fn status(&self) -> Result<Info> {
        self.info("status", Vec::new()).await
    }
}
