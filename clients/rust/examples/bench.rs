//! Publishes and consumes for some seconds, and says how much: `bench ENDPOINT [message|batch] [BYTES] [SECONDS]`.
//!
//! One call for each message (`message`), or one for 500 (`batch`); every message is acknowledged. Producer and
//! consumer have a client and a thread each, and a reliable topic that is made for them.

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use ister::{block_on, Client, Options, Start, SubscriptionType};

const BATCH: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().ok_or("an endpoint is needed, like tcp://127.0.0.1:5555")?;
    let batches = arguments.next().as_deref() == Some("batch");
    let bytes: usize = arguments.next().as_deref().unwrap_or("100").parse()?;
    let seconds: u64 = arguments.next().as_deref().unwrap_or("5").parse()?;
    let topic = format!("bench-rust-{}", std::process::id());
    let client = block_on(Client::connect(&endpoint))?;
    block_on(client.create_topic(&topic, Options::new()))?;

    let consuming = {
        let topic = topic.clone();
        thread::spawn(move || block_on(consume(&endpoint, &topic, batches)))
    };
    let (sent, took) = block_on(publish(&client, &topic, batches, bytes, Duration::from_secs(seconds)))?;
    println!("published {sent} messages of {bytes} bytes, {:.0} a second", sent as f64 / took.as_secs_f64());
    let (received, took) = consuming.join().map_err(|_| "the consumer panicked")??;
    println!("consumed {received} messages, {:.0} a second", received as f64 / took.as_secs_f64());
    block_on(client.delete_topic(&topic))?;
    Ok(block_on(client.close())?)
}

/// Until the time is over, and every receipt is there.
async fn publish(
    client: &Client,
    topic: &str,
    batches: bool,
    bytes: usize,
    time: Duration,
) -> ister::Result<(usize, Duration)> {
    let (producer, payload) = (client.producer(topic).open().await?, vec![b'x'; bytes]);
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < time {
        if batches {
            drop(producer.send_batch(std::iter::repeat_n(&payload, BATCH)).await?);
        } else {
            for _ in 0..BATCH {
                drop(producer.send(&payload).await?);
            }
        }
        sent += BATCH;
    }
    producer.flush().await?;
    let took = began.elapsed();
    producer.send("").await?.await?; // the last one
    Ok((sent, took))
}

/// Until the empty message comes.
async fn consume(endpoint: &str, topic: &str, batches: bool) -> ister::Result<(usize, Duration)> {
    let client = Client::connect(endpoint).await?;
    let builder = client.consumer(topic, "bench").kind(SubscriptionType::Exclusive).start(Start::Earliest);
    let consumer = builder.open().await?;
    let (mut began, mut received) = (None, 0);
    loop {
        let messages = if batches { consumer.receive_batch(BATCH).await? } else { vec![consumer.receive().await?] };
        let began = *began.get_or_insert_with(Instant::now);
        consumer.ack_all(&messages)?;
        received += messages.len();
        if messages.last().is_some_and(|last| last.payload.is_empty()) {
            let took = began.elapsed();
            client.close().await?;
            return Ok((received - 1, took));
        }
    }
}
