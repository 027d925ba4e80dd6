//! The driver of the Rust client; tests/conformance_clients/DRIVER.md says how one works.

use std::collections::HashMap;
use std::future::Future;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ister::{
    block_on, codec, Client, Consumer, Error, Event, Info, Message, Nack, Options, Outgoing, PatternConsumer, Producer,
    Reader, Receipt, Redrive, Start, SubscriptionType, Value,
};
use serde_json::{json, Map, Value as Json};

const CAPABILITIES: &[&str] = &[
    "batch",
    "pipeline",
    "keys",
    "attributes",
    "delivery-time",
    "timestamps",
    "attempts",
    "named-producer",
    "batch-receive",
    "confirm",
    "nack",
    "ack-until",
    "extend",
    "reader",
    "seek",
    "priority",
    "force",
    "options",
    "credit",
    "window",
    "events",
    "admin",
    "request-reply",
    "patterns",
    "dead-letters",
    "taken",
    "moved",
    "reconnect",
    "heartbeat",
    "orderly-close",
    "cancel",
    "drop",
    "codec",
    "bench",
];
const PAGE: usize = 100; // letters that are listed at a time
const TIMEOUT_MS: u64 = 10_000;
const EXACT_MAX: i128 = (1 << 53) - 1; // above it, readers of JSON in some languages round

/// What a command may fail with.
#[derive(Debug)]
enum Failure {
    Client(Error),
    Cancelled,
    Unsupported(String),
    Driver(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Client(error)
    }
}

type Answer = Result<Json, Failure>;

fn no_name(what: &str) -> Failure {
    Failure::Driver(format!("nothing has this name: {what}"))
}

/// A command, and the time it has.
struct Command {
    given: Map<String, Json>,
    due: Instant,
    cancelled: Option<Instant>,
}

impl Command {
    fn text(&self, name: &str) -> &str {
        self.given.get(name).and_then(Json::as_str).unwrap_or("")
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.given.get(name).and_then(Json::as_u64)
    }

    fn flag(&self, name: &str) -> bool {
        self.given.get(name).and_then(Json::as_bool).unwrap_or(false)
    }

    fn list(&self, name: &str) -> &[Json] {
        self.given.get(name).and_then(Json::as_array).map_or(&[], Vec::as_slice)
    }

    fn place(&self, name: &str) -> Result<Option<Start>, Failure> {
        self.given.get(name).map(place).transpose()
    }

    fn left(&self) -> Duration {
        self.cancelled.map_or(self.due, |at| at.min(self.due)).saturating_duration_since(Instant::now())
    }

    /// What a call's end at the end of its time means.
    fn late(&self, error: Error) -> Failure {
        match error {
            Error::Timeout(_) if self.cancelled.is_some_and(|at| at < self.due) => Failure::Cancelled,
            error => Failure::Client(error),
        }
    }

    /// Wait for a call; at the end of its time it is dropped.
    fn wait<T>(&self, client: &Client, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        block_on(client.within(self.left(), call)).map_err(|error| self.late(error))
    }
}

fn place(given: &Json) -> Result<Start, Failure> {
    match given {
        Json::Number(offset) => offset.as_u64().map(Start::Offset),
        Json::String(text) => match text.as_str() {
            "earliest" => Some(Start::Earliest),
            "latest" => Some(Start::Latest),
            text => text.strip_prefix("time:").and_then(|ms| ms.parse().ok()).map(|ms| Start::Time(time(ms))),
        },
        _ => None,
    }
    .ok_or_else(|| Failure::Driver(format!("{given} is no place")))
}

fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

fn ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"0123456789abcdef";
    let digit = |four: u8| DIGITS[usize::from(four)] as char;
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>, Failure> {
    let digit = |letter: u8| (letter as char).to_digit(16).map(|digit| digit as u8);
    let bytes = text.as_bytes().chunks(2).map(|pair| match pair {
        &[high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    bytes.collect::<Option<_>>().ok_or_else(|| Failure::Driver(format!("{text:?} is not hexadecimal")))
}

fn attributes(given: Option<&Json>) -> impl Iterator<Item = (String, String)> + '_ {
    let members = given.and_then(Json::as_object).into_iter().flatten();
    members.map(|(name, value)| (name.clone(), value.as_str().unwrap_or("").to_owned()))
}

fn outgoing(given: &Json) -> Result<Outgoing<'static>, Failure> {
    let mut message = Outgoing::new(unhex(given["payload"].as_str().unwrap_or(""))?)
        .key(unhex(given["key"].as_str().unwrap_or(""))?)
        .attributes(attributes(given.get("attributes")));
    if let Some(due) = given["deliver_at_ms"].as_u64() {
        message = message.deliver_at(time(due));
    }
    if let Some(sequence) = given["sequence"].as_u64() {
        message = message.sequence(sequence);
    }
    Ok(message)
}

fn shown(message: &Message) -> Json {
    json!({
        "topic": &*message.topic,
        "offset": message.offset,
        "payload": hex(&message.payload),
        "key": message.key.as_deref().map(hex),
        "attributes": message.attributes(),
        "timestamp_ms": ms(message.timestamp),
        "deliver_at_ms": message.deliver_at.map(ms),
        "attempt": message.attempt,
    })
}

/// A decoded value in the notation of tests/vectors/README.md.
fn in_notation(value: &Value) -> Json {
    match value {
        Value::Int(number) if *number > EXACT_MAX => json!({ "uint": number.to_string() }),
        Value::Int(number) if *number < -EXACT_MAX => json!({ "nint": number.to_string() }),
        Value::Int(number) => json!(*number as i64),
        Value::Float(number) => json!({ "float": format!("{number:?}") }),
        Value::Bytes(bytes) => json!({ "bytes": hex(bytes) }),
        value => plain(value, in_notation),
    }
}

/// A value of an answer, as JSON can hold it.
fn in_json(value: &Value) -> Json {
    match value {
        Value::Int(number) => u64::try_from(*number).map_or_else(|_| json!(*number as i64), |number| json!(number)),
        Value::Float(number) => json!(number),
        Value::Bytes(bytes) => json!(hex(bytes)),
        value => plain(value, in_json),
    }
}

fn plain(value: &Value, inner: impl Fn(&Value) -> Json) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::Text(text) => json!(text),
        Value::List(list) => list.iter().map(inner).collect(),
        Value::Map(members) => {
            let named = members.iter().map(|(key, value)| {
                let name = match key {
                    Value::Int(number) => number.to_string(),
                    key => key.as_str().unwrap_or("").to_owned(),
                };
                (name, inner(value))
            });
            Json::Object(named.collect())
        }
        _ => Json::Null,
    }
}

fn members(info: &Info) -> Json {
    Json::Object(info.iter().map(|(name, value)| (name.to_owned(), in_json(value))).collect())
}

fn value(given: &Json) -> Value {
    match given {
        Json::Bool(given) => Value::Bool(*given),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (_, Some(number)) => number.into(),
            _ => Value::Float(number.as_f64().unwrap_or(0.0)),
        },
        Json::String(text) => text.as_str().into(),
        _ => Value::Null,
    }
}

fn kind(name: &str) -> Result<SubscriptionType, Failure> {
    Ok(match name {
        "exclusive" => SubscriptionType::Exclusive,
        "shared" => SubscriptionType::Shared,
        "failover" => SubscriptionType::Failover,
        "key-shared" => SubscriptionType::KeyShared,
        other => return Err(Failure::Driver(format!("{other:?} is no type of subscription"))),
    })
}

/// A consumer or a reader, and what it has handed out.
struct Place {
    client: Client,
    receiver: Kind,
    held: HashMap<(String, u64), Message>, // by topic and offset
    late: Option<Failure>,
}

enum Kind {
    Consumer(Consumer),
    Pattern(PatternConsumer),
    Reader(Reader),
}

impl Kind {
    fn position(&self) -> Option<u64> {
        match self {
            Kind::Consumer(consumer) => Some(consumer.position()),
            Kind::Pattern(_) => None,
            Kind::Reader(reader) => Some(reader.position()),
        }
    }

    fn events(&self) -> Vec<Event> {
        match self {
            Kind::Consumer(consumer) => consumer.events(),
            Kind::Pattern(pattern) => pattern.events(),
            Kind::Reader(reader) => reader.events(),
        }
    }

    async fn receive(&self) -> ister::Result<Message> {
        match self {
            Kind::Consumer(consumer) => consumer.receive().await,
            Kind::Pattern(pattern) => pattern.receive().await,
            Kind::Reader(reader) => reader.receive().await,
        }
    }

    async fn receive_batch(&self, most: usize) -> ister::Result<Vec<Message>> {
        match self {
            Kind::Consumer(consumer) => consumer.receive_batch(most).await,
            Kind::Pattern(pattern) => pattern.receive_batch(most).await,
            Kind::Reader(reader) => reader.receive_batch(most).await,
        }
    }

    async fn flush(&self) -> ister::Result<()> {
        match self {
            Kind::Consumer(consumer) => consumer.flush().await,
            Kind::Pattern(pattern) => pattern.flush().await,
            Kind::Reader(_) => Ok(()),
        }
    }

    async fn close(self) -> ister::Result<()> {
        match self {
            Kind::Consumer(consumer) => consumer.close().await,
            Kind::Pattern(pattern) => pattern.close().await,
            Kind::Reader(reader) => reader.close().await,
        }
    }

    fn ack_all(&self, messages: &[Message]) -> ister::Result<()> {
        match self {
            Kind::Consumer(consumer) => consumer.ack_all(messages),
            Kind::Pattern(pattern) => pattern.ack_all(messages),
            Kind::Reader(_) => Ok(()),
        }
    }

    fn ack_until(&self, message: &Message) -> ister::Result<()> {
        match self {
            Kind::Consumer(consumer) => consumer.ack_until(message),
            Kind::Pattern(pattern) => pattern.ack_until(message),
            Kind::Reader(_) => Ok(()),
        }
    }

    fn nack_all(&self, messages: &[Message], how: Nack) -> ister::Result<()> {
        match self {
            Kind::Consumer(consumer) => consumer.nack_all(messages, how),
            Kind::Pattern(pattern) => pattern.nack_all(messages, &how),
            Kind::Reader(_) => Ok(()),
        }
    }

    fn extend_all(&self, messages: &[Message]) -> ister::Result<()> {
        match self {
            Kind::Consumer(consumer) => consumer.extend_all(messages),
            Kind::Pattern(pattern) => pattern.extend_all(messages),
            Kind::Reader(_) => Ok(()),
        }
    }
}

#[derive(Default)]
struct Driver {
    clients: HashMap<String, Client>,
    producers: HashMap<String, (Client, Producer)>,
    places: HashMap<String, Place>,
    receipts: HashMap<String, (Client, Receipt)>,
}

impl Driver {
    fn client(&self, command: &Command) -> Result<Client, Failure> {
        let name = command.text("client");
        self.clients.get(name).cloned().ok_or_else(|| no_name(name))
    }

    fn carry_out(&mut self, what: &str, command: &Command) -> Answer {
        match what {
            "hello" => Ok(json!({
                "protocol": 1, "language": "rust", "client": codec::CLIENT_TEXT, "capabilities": CAPABILITIES,
            })),
            "decode" | "decode_batch" | "encode_batch" | "producer_id" => coded(what, command),
            "connect" => self.connect(command),
            "close" => self.close(command),
            "receipt" => self.receipt(command),
            "publish" | "publish_batch" => self.publish(what, command),
            "flush" => self.flush(command),
            "drop" => {
                self.client(command)?.drop_connections();
                Ok(json!({}))
            }
            "admin" => {
                let result = admin(&self.client(command)?, command)?;
                Ok(json!({ "result": result }))
            }
            "producer" => self.producer(command),
            "consumer" | "reader" => self.place(what, command),
            "request" => {
                let client = self.client(command)?;
                let message = Outgoing::new(unhex(command.text("payload"))?)
                    .attributes(attributes(command.given.get("attributes")));
                let reply = command.wait(&client, client.request(command.text("topic"), message))?;
                Ok(json!({ "message": shown(&reply) }))
            }
            "letters" | "redrive" | "purge" => self.letters(what, command),
            "bench_publish" => self.bench_publish(command),
            "bench_receive" => self.bench_receive(command),
            "bench_round_trips" => self.bench_round_trips(command),
            "events" => self.events(command),
            "receive" => self.receive(command),
            "ack" | "nack" | "extend" | "ack_until" | "seek" | "reply" => self.consume(what, command),
            other => Err(Failure::Unsupported(format!("the command {other:?}"))),
        }
    }

    fn letters(&self, what: &str, command: &Command) -> Answer {
        let client = self.client(command)?;
        let letters = client.dead_letters(command.text("topic"), command.text("subscription"));
        let most = command.number("max").map_or(usize::MAX, |most| most as usize);
        if what == "letters" {
            let mut found = command.wait(&client, letters.list(most.min(PAGE)))?;
            while let Some(last) = found.last().filter(|_| found.len() < most) {
                let more = command.wait(&client, letters.list_after(last.offset(), (most - found.len()).min(PAGE)))?;
                if more.is_empty() {
                    break;
                }
                found.extend(more);
            }
            let told = found.iter().map(|letter| {
                json!({
                    "offset": letter.offset(),
                    "payload": hex(&letter.message().payload),
                    "key": letter.message().key.as_deref().map(hex),
                    "attributes": letter.attributes().collect::<HashMap<_, _>>(),
                    "topic": letter.topic(),
                    "subscription": letter.subscription(),
                    "origin_offset": letter.origin_offset(),
                    "attempts": letter.attempts(),
                    "reason": letter.reason(),
                })
            });
            return Ok(json!({ "letters": told.collect::<Vec<_>>() }));
        }
        let messages = if what == "purge" {
            command.wait(&client, letters.purge(most))?
        } else {
            let mut how = Redrive::new().limit(most);
            if command.given.contains_key("offsets") {
                how = how.offsets(command.list("offsets").iter().filter_map(Json::as_u64));
            }
            if command.given.contains_key("to") {
                how = how.to(command.text("to"));
            }
            command.wait(&client, letters.redrive_as(how))?
        };
        Ok(json!({ "messages": messages }))
    }

    fn connect(&mut self, command: &Command) -> Answer {
        let mut builder = Client::builder().timeout(command.left());
        for endpoint in command.list("endpoints") {
            builder = builder.endpoint(endpoint.as_str().unwrap_or(""));
        }
        let client = block_on(builder.connect()).map_err(|error| command.late(error))?;
        self.clients.insert(command.text("client").to_owned(), client);
        Ok(json!({}))
    }

    fn close(&mut self, command: &Command) -> Answer {
        if command.given.contains_key("client") {
            let client = self.clients.remove(command.text("client")).ok_or_else(|| no_name("a client"))?;
            block_on(client.close())?;
        } else if command.given.contains_key("producer") {
            let name = command.text("producer");
            let (client, producer) = self.producers.remove(name).ok_or_else(|| no_name(name))?;
            command.wait(&client, producer.close())?;
        } else {
            let name = command.text("consumer");
            let place = self.places.remove(name).ok_or_else(|| no_name(name))?;
            command.wait(&place.client, place.receiver.close())?;
        }
        Ok(json!({}))
    }

    fn producer(&mut self, command: &Command) -> Answer {
        let client = self.client(command)?;
        let mut builder = client.producer(command.text("topic"));
        if command.given.contains_key("name") {
            builder = builder.name(command.text("name"));
        }
        if let Some(bytes) = command.number("window_bytes") {
            builder = builder.window_bytes(bytes);
        }
        let producer = command.wait(&client, builder.open())?;
        let next = producer.next_sequence();
        self.producers.insert(command.text("producer").to_owned(), (client, producer));
        Ok(json!({ "next_sequence": next }))
    }

    fn publish(&mut self, what: &str, command: &Command) -> Answer {
        let name = command.text("producer");
        let (client, producer) = self.producers.get(name).ok_or_else(|| no_name(name))?;
        let receipt = if what == "publish" {
            let message = outgoing(&command.given["message"])?;
            command.wait(client, producer.send(message))?
        } else {
            let messages: Vec<_> = command.list("messages").iter().map(outgoing).collect::<Result<_, _>>()?;
            command.wait(client, producer.send_batch(messages))?
        };
        self.receipts.insert(command.text("receipt").to_owned(), (client.clone(), receipt));
        Ok(json!({}))
    }

    fn receipt(&mut self, command: &Command) -> Answer {
        let name = command.text("receipt");
        let (client, receipt) = self.receipts.get(name).ok_or_else(|| no_name(name))?;
        let answer = command.wait(client, receipt.clone());
        if !matches!(&answer, Err(Failure::Cancelled | Failure::Client(Error::Timeout(_)))) {
            self.receipts.remove(name);
        }
        let published = answer?;
        Ok(json!({ "offset": published.offset, "count": published.count, "duplicate": published.duplicate }))
    }

    fn flush(&mut self, command: &Command) -> Answer {
        if command.given.contains_key("producer") {
            let name = command.text("producer");
            let (client, producer) = self.producers.get(name).ok_or_else(|| no_name(name))?;
            command.wait(client, producer.flush())?;
        } else {
            let name = command.text("consumer");
            match self.places.get(name) {
                Some(Place { client, receiver, .. }) => command.wait(client, receiver.flush())?,
                None => return Err(no_name(name)),
            }
        }
        Ok(json!({}))
    }

    fn place(&mut self, what: &str, command: &Command) -> Answer {
        let client = self.client(command)?;
        let start = command.place("start")?;
        let receiver = if what == "reader" {
            let mut builder = client.reader(command.text("topic")).start(start.unwrap_or(Start::Earliest));
            if let Some(messages) = command.number("credit_messages") {
                builder = builder.credit_messages(messages);
            }
            Kind::Reader(command.wait(&client, builder.open())?)
        } else {
            let mut builder = client
                .consumer(command.text("topic"), command.text("subscription"))
                .kind(kind(command.text("type"))?)
                .priority(command.number("priority").unwrap_or(0));
            if let Some(start) = start {
                builder = builder.start(start);
            }
            if command.flag("force") {
                builder = builder.force();
            }
            if let Some(messages) = command.number("credit_messages") {
                builder = builder.credit_messages(messages);
            }
            for (name, given) in command.given.get("options").and_then(Json::as_object).into_iter().flatten() {
                builder = builder.option(name, value(given));
            }
            if command.text("topic").contains(['*', '>']) {
                Kind::Pattern(command.wait(&client, builder.open_pattern())?)
            } else if command.given.contains_key("timeout_ms") {
                builder = builder.wait_for_place(command.left());
                Kind::Consumer(block_on(builder.open()).map_err(|error| command.late(error))?)
            } else {
                Kind::Consumer(command.wait(&client, builder.open())?)
            }
        };
        let position = receiver.position();
        let place = Place { client, receiver, held: HashMap::new(), late: None };
        self.places.insert(command.text("consumer").to_owned(), place);
        Ok(json!({ "position": position }))
    }

    fn events(&mut self, command: &Command) -> Answer {
        if command.given.contains_key("client") {
            let events = self.client(command)?.events();
            let told = events.iter().map(|event| json!({"code": if event.connected { "connected" } else { "lost" }}));
            return Ok(json!({ "events": told.collect::<Vec<_>>() }));
        }
        let name = command.text("consumer");
        let place = self.places.get(name).ok_or_else(|| no_name(name))?;
        let told =
            place.receiver.events().into_iter().map(
                |event| json!({"code": event.code, "count": event.count, "offset": event.offset, "text": event.text}),
            );
        Ok(json!({ "events": told.collect::<Vec<_>>() }))
    }

    fn publisher(&self, command: &Command) -> Result<&(Client, Producer), Failure> {
        let name = command.text("producer");
        self.producers.get(name).ok_or_else(|| no_name(name))
    }

    fn taker(&self, command: &Command) -> Result<&Consumer, Failure> {
        let name = command.text("consumer");
        match self.places.get(name) {
            Some(Place { receiver: Kind::Consumer(consumer), .. }) => Ok(consumer),
            _ => Err(no_name(name)),
        }
    }

    fn bench_publish(&mut self, command: &Command) -> Answer {
        let (client, producer) = self.publisher(command)?;
        let whole = |name: &str| command.number(name).unwrap_or(0) as usize;
        let (messages, batch, payload) = (whole("messages"), whole("batch"), vec![0; whole("message_bytes")]);
        let began = Instant::now();
        command.wait(client, async {
            if batch == 0 {
                for _ in 0..messages {
                    drop(producer.send(&payload).await?);
                }
            } else {
                for first in (0..messages).step_by(batch) {
                    let some = std::iter::repeat_n(&payload, batch.min(messages - first));
                    drop(producer.send_batch(some).await?);
                }
            }
            producer.flush().await
        })?;
        Ok(json!({ "seconds": began.elapsed().as_secs_f64() }))
    }

    fn bench_receive(&mut self, command: &Command) -> Answer {
        let consumer = self.taker(command)?;
        let client = &self.places[command.text("consumer")].client;
        let messages = command.number("messages").unwrap_or(0) as usize;
        let (mut began, mut count, mut bytes) = (None, 0, 0);
        command.wait(client, async {
            while count < messages {
                if command.flag("batch") {
                    let together = consumer.receive_batch(usize::MAX).await?;
                    began.get_or_insert_with(Instant::now);
                    count += together.len();
                    bytes += together.iter().map(|message| message.payload.len()).sum::<usize>();
                    consumer.ack_all(&together)?;
                } else {
                    let message = consumer.receive().await?;
                    began.get_or_insert_with(Instant::now);
                    count += usize::from(message.offset < u64::MAX);
                    bytes += message.payload.len();
                    consumer.ack(&message)?;
                }
            }
            consumer.flush().await
        })?;
        Ok(json!({ "seconds": began.map_or(0.0, |began| began.elapsed().as_secs_f64()), "bytes": bytes }))
    }

    fn bench_round_trips(&mut self, command: &Command) -> Answer {
        let (client, producer) = self.publisher(command)?;
        let consumer = self.taker(command)?;
        let payload = vec![0; command.number("message_bytes").unwrap_or(0) as usize];
        let mut took = Vec::new();
        command.wait(client, async {
            for _ in 0..command.number("messages").unwrap_or(0) {
                let began = Instant::now();
                drop(producer.send(&payload).await?);
                let message = consumer.receive().await?;
                took.push(began.elapsed().as_secs_f64() * 1e6);
                consumer.ack(&message)?;
            }
            Ok(())
        })?;
        took.sort_by(f64::total_cmp);
        let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or(0.0);
        Ok(json!({ "p50_us": at(50), "p99_us": at(99) }))
    }

    fn receive(&mut self, command: &Command) -> Answer {
        let name = command.text("consumer");
        let place = self.places.get_mut(name).ok_or_else(|| no_name(name))?;
        if let Some(late) = place.late.take() {
            return Err(late);
        }
        let most = command.number("max").unwrap_or(1) as usize;
        let mut taken: Vec<Message> = Vec::new();
        let failed = loop {
            if taken.len() >= most {
                break None;
            }
            let came = if command.flag("batch") {
                command.wait(&place.client, place.receiver.receive_batch(most))
            } else {
                command.wait(&place.client, place.receiver.receive()).map(|message| vec![message])
            };
            match came {
                Ok(messages) => taken.extend(messages),
                Err(Failure::Client(Error::Timeout(_))) => break None,
                Err(failure) => break Some(failure),
            }
            if command.flag("batch") {
                break None;
            }
        };
        match failed {
            Some(failure) if taken.is_empty() => return Err(failure),
            failed => place.late = failed,
        }
        let messages: Vec<Json> = taken.iter().map(shown).collect();
        let held = taken.into_iter().map(|message| ((message.topic.to_string(), message.offset), message));
        place.held.extend(held);
        Ok(json!({ "messages": messages }))
    }

    fn consume(&mut self, what: &str, command: &Command) -> Answer {
        let name = command.text("consumer");
        let Some(Place { client, receiver, held, .. }) = self.places.get_mut(name) else {
            return Err(no_name(name));
        };
        if let ("seek", Kind::Consumer(consumer)) = (what, &*receiver) {
            let to = command.place("to")?.ok_or_else(|| no_name("a place"))?;
            let position = command.wait(client, consumer.seek(to))?;
            return Ok(json!({ "position": position }));
        }
        let offsets: Vec<u64> = match command.number("offset") {
            Some(offset) => vec![offset],
            None => command.list("offsets").iter().filter_map(Json::as_u64).collect(),
        };
        let topic = command.text("topic");
        let of = |key: &(String, u64), offset: u64| key.1 == offset && (topic.is_empty() || key.0 == topic);
        let found = |offset: &u64| held.iter().find(|(key, _)| of(key, *offset)).map(|(_, message)| message.clone());
        let messages: Vec<Message> = offsets.iter().filter_map(found).collect();
        if messages.len() != offsets.len() || messages.is_empty() {
            return Err(no_name("a message of these offsets"));
        }
        if matches!(what, "ack" | "nack") {
            held.retain(|key, _| !offsets.iter().any(|&offset| of(key, offset)));
        }
        match what {
            "ack" => receiver.ack_all(&messages)?,
            "nack" => {
                let delay = command.number("delay_ms").map(Duration::from_millis);
                let how = delay.map_or_else(Nack::new, Nack::after).reason(command.text("reason"));
                receiver.nack_all(&messages, how)?;
            }
            "extend" => receiver.extend_all(&messages)?,
            "ack_until" => {
                let until = &messages[0];
                held.retain(|(topic, offset), _| *offset > until.offset || **topic != *until.topic);
                receiver.ack_until(until)?;
            }
            _ => {
                let reply = Outgoing::new(unhex(command.text("payload"))?)
                    .attributes(attributes(command.given.get("attributes")));
                command.wait(client, client.reply(&messages[0], reply))?;
            }
        }
        Ok(json!({}))
    }
}

fn coded(what: &str, command: &Command) -> Answer {
    match what {
        "decode" => {
            let header = codec::header(&unhex(command.text("frame"))?)?;
            Ok(json!({ "header": in_notation(&header) }))
        }
        "decode_batch" => {
            let frames = command.list("frames").iter().map(|frame| Ok(unhex(frame.as_str().unwrap_or(""))?.into()));
            let frames: Vec<_> = frames.collect::<Result<_, Failure>>()?;
            let messages = codec::cut(command.number("columns").unwrap_or(0), &frames)?;
            let told = messages.iter().map(|message| {
                let (payload, key, attributes, due) = codec::parts(message);
                let mut told = json!({ "payload": hex(payload) });
                if !key.is_empty() {
                    told["key"] = json!(hex(key));
                }
                if !attributes.is_empty() {
                    told["attributes"] = json!(attributes);
                }
                if due > 0 {
                    told["deliver_at_ms"] = json!(due);
                }
                told
            });
            Ok(json!({ "messages": told.collect::<Vec<_>>() }))
        }
        "encode_batch" => {
            let messages: Vec<_> = command.list("messages").iter().map(outgoing).collect::<Result<_, _>>()?;
            let (columns, frames) = codec::pack(&messages);
            let frames: Vec<_> = frames.iter().map(|frame| hex(frame)).collect();
            Ok(json!({ "columns": columns, "frames": frames }))
        }
        _ => {
            let id = codec::producer_id(command.text("topic"), command.text("name"));
            Ok(json!({ "id": id.to_string() }))
        }
    }
}

fn admin(client: &Client, command: &Command) -> Answer {
    let none = Map::new();
    let given = command.given.get("arguments").and_then(Json::as_object).unwrap_or(&none);
    let text = |name: &str| given.get(name).and_then(Json::as_str).unwrap_or("");
    let by_place = ["topic", "subscription", "type", "start", "to", "action"];
    let rest = given.iter().filter(|(name, _)| !by_place.contains(&name.as_str()));
    let rest = rest.fold(Options::new(), |options, (name, given)| options.set(name, value(given)));
    let (topic, subscription) = (text("topic"), text("subscription"));
    Ok(match command.text("operation") {
        "topic.create" => members(&*command.wait(client, client.create_topic(topic, rest))?),
        "topic.update" => members(&*command.wait(client, client.update_topic(topic, rest))?),
        "topic.show" => members(&*command.wait(client, client.topic(topic))?),
        "topic.list" => {
            let topics = command.wait(client, client.topics())?;
            json!({ "topics": topics.iter().map(|each| members(each)).collect::<Vec<_>>() })
        }
        "topic.delete" => {
            command.wait(client, client.delete_topic(topic))?;
            json!({})
        }
        "subscription.create" => {
            let start = given.get("start").map(place).transpose()?.unwrap_or(Start::Latest);
            let call = client.create_subscription(topic, subscription, kind(text("type"))?, start, rest);
            members(&*command.wait(client, call)?)
        }
        "subscription.update" => {
            members(&*command.wait(client, client.update_subscription(topic, subscription, rest))?)
        }
        "subscription.show" => members(&*command.wait(client, client.subscription(topic, subscription))?),
        "subscription.list" => {
            let found = command.wait(client, client.subscriptions(topic))?;
            json!({ "subscriptions": found.iter().map(|each| members(each)).collect::<Vec<_>>() })
        }
        "subscription.explain" => members(&*command.wait(client, client.explain(topic, subscription))?),
        "subscription.unblock" => {
            let messages = command.wait(client, client.unblock(topic, subscription, text("action")))?;
            json!({ "messages": messages })
        }
        "subscription.seek" => {
            let to = given.get("to").map(place).transpose()?.ok_or_else(|| no_name("a place"))?;
            json!({ "position": command.wait(client, client.seek(topic, subscription, to))? })
        }
        "subscription.delete" => {
            command.wait(client, client.delete_subscription(topic, subscription))?;
            json!({})
        }
        "status" => members(&command.wait(client, client.status())?),
        other => return Err(Failure::Unsupported(format!("the operation {other:?}"))),
    })
}

fn answer(driver: &mut Driver, line: &str) -> Json {
    let Ok(Json::Object(mut given)) = serde_json::from_str::<Json>(line) else {
        return json!({"id": 0, "error": {"code": "driver-failed", "action": "stop", "text": "this is no command"}});
    };
    given.retain(|_, given| !given.is_null());
    let (id, what) = (given.get("id").cloned(), given.get("do").cloned());
    let now = Instant::now();
    let after = |ms: u64| now + Duration::from_millis(ms);
    let due = after(given.get("timeout_ms").and_then(Json::as_u64).unwrap_or(TIMEOUT_MS));
    let cancelled = given.get("cancel_after_ms").and_then(Json::as_u64).map(after);
    let command = Command { given, due, cancelled };
    let (code, action, text) = match driver.carry_out(what.as_ref().and_then(Json::as_str).unwrap_or(""), &command) {
        Ok(told) => return json!({ "id": id, "ok": told }),
        Err(Failure::Client(error)) => (error.code().to_owned(), error.action().as_str(), error.text().to_owned()),
        Err(Failure::Cancelled) => ("cancelled".into(), "retry", "the call was dropped".into()),
        Err(Failure::Unsupported(what)) => ("unsupported".into(), "fix", format!("this driver does not know {what}")),
        Err(Failure::Driver(text)) => ("driver-failed".into(), "stop", text),
    };
    json!({"id": id, "error": {"code": code, "action": action, "text": text}})
}

/// What the client logs goes to standard error.
struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && metadata.target() != "zmq"
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let now = ms(SystemTime::now());
            eprintln!("{now} {} {}: {}", record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

fn main() {
    if log::set_logger(&Log).is_ok() {
        let wanted = std::env::var("ISTER_LOG").ok().and_then(|level| level.parse().ok());
        log::set_max_level(wanted.unwrap_or(log::LevelFilter::Warn));
    }
    let mut driver = Driver::default();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let told = answer(&mut driver, &line);
        if writeln!(out, "{told}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    for client in driver.clients.values() {
        if let Err(error) = block_on(client.close()) {
            eprintln!("closing: {error}");
        }
    }
}
