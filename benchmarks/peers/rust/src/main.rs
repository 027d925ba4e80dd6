//! Iggy through its own client: batches that are awaited one by one, and a consumer that polls. See ../README.md.
//!
//!     driver iggy ROLE HOST:PORT TOPIC MESSAGES BYTES RATE

use bytes::Bytes;
use iggy::prelude::*;
use std::error::Error;
use std::io::Write;
use std::time::Duration;

const WATCH_NS: i64 = 80_000; // before a message is due: the clock is watched, not slept through
const BATCH_BYTES: usize = 256 << 10;
const BATCH_MESSAGES: usize = 1000;

struct Load {
    messages: usize,
    size: usize,
    rate: f64,
}

fn now() -> i64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut at) };
    at.tv_sec * 1_000_000_000 + at.tv_nsec
}

fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().expect("nobody reads");
}

fn wait_for_go() {
    say("\"ready\"");
    let mut line = String::new();
    if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
        std::process::exit(1);
    }
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

fn message(payload: &Bytes) -> Result<IggyMessage, IggyError> {
    IggyMessage::builder().payload(payload.clone()).build()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = std::env::args().collect();
    if given.len() != 8 {
        eprintln!("usage: driver iggy ROLE HOST:PORT TOPIC MESSAGES BYTES RATE");
        std::process::exit(2);
    }
    let load = Load { messages: given[5].parse::<f64>()? as usize, size: given[6].parse()?, rate: given[7].parse()? };
    let client = IggyClientBuilder::new().with_tcp().with_server_address(given[3].clone()).build()?;
    client.connect().await?;
    client.login_user(DEFAULT_ROOT_USERNAME, DEFAULT_ROOT_PASSWORD).await?;
    let name = given[4].clone();
    let (stream, topic) = (Identifier::named(&name)?, Identifier::named(&name)?);
    let role = given[2].as_str();
    if role == "remove" {
        client.delete_stream(&stream).await?;
        return Ok(());
    }
    if role == "consume" || load.rate < 0.0 {
        client.create_stream(&name).await?;
        let (plain, keep, size) = (CompressionAlgorithm::default(), IggyExpiry::NeverExpire, MaxTopicSize::ServerDefault);
        client.create_topic(&stream, &name, 1, plain, None, keep, size).await?;
    }
    let to = Partitioning::partition_id(0);
    let payload = Bytes::from(vec![0u8; load.size]);
    match role {
        "publish" => {
            let most = BATCH_MESSAGES.min((BATCH_BYTES / load.size.max(1)).max(1));
            wait_for_go();
            let began = now();
            let mut left = load.messages;
            while left > 0 {
                let count = most.min(left);
                let mut batch = (0..count).map(|_| message(&payload)).collect::<Result<Vec<_>, _>>()?;
                client.send_messages(&stream, &topic, &to, &mut batch).await?;
                left -= count;
            }
            say(&format!("{{\"began\": {began}, \"ended\": {}}}", now()));
        }
        "lone" => {
            let mut took = Vec::with_capacity(load.messages);
            wait_for_go();
            let began = now();
            let mut last = began;
            for _ in 0..load.messages {
                client.send_messages(&stream, &topic, &to, &mut [message(&payload)?]).await?;
                let at = now();
                took.push(at - last);
                last = at;
            }
            say(&format!("{{\"began\": {began}, \"ended\": {last}, \"took\": {took:?}}}"));
        }
        "paced" => {
            let mut took = Vec::with_capacity(load.messages);
            wait_for_go();
            let began = now() + 1_000_000;
            for number in 0..load.messages {
                let due = began + (number as f64 * 1e9 / load.rate) as i64;
                let wait = due - now() - WATCH_NS;
                if wait > 0 {
                    std::thread::sleep(Duration::from_nanos(wait as u64));
                }
                while now() < due {}
                let mut stamped = vec![0u8; load.size];
                stamped[..8].copy_from_slice(&due.to_le_bytes());
                client.send_messages(&stream, &topic, &to, &mut [message(&Bytes::from(stamped))?]).await?;
                took.push(now() - due);
            }
            say(&format!("{{\"took\": {took:?}}}"));
        }
        "consume" => {
            let consumer = Consumer::default();
            let (mut count, mut bytes, mut took) = (0usize, 0usize, Vec::new());
            say("\"ready\"");
            while count < load.messages {
                // it asks again at once when there is nothing: this system does not push
                let polled = client
                    .poll_messages(
                        &stream,
                        &topic,
                        Some(0),
                        &consumer,
                        &PollingStrategy::offset(count as u64),
                        BATCH_MESSAGES as u32,
                        true,
                    )
                    .await?;
                for each in &polled.messages {
                    if load.rate > 0.0 {
                        took.push(now() - i64::from_le_bytes(each.payload[..8].try_into()?));
                    }
                    bytes += each.payload.len();
                }
                count += polled.messages.len();
            }
            let ended = now();
            say(&format!("{{\"messages\": {count}, \"bytes\": {bytes}, \"ended\": {ended}, \"took\": {took:?}}}"));
        }
        _ => {
            eprintln!("there is no role {role}");
            std::process::exit(2);
        }
    }
    Ok(())
}
