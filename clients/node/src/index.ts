// A client of the Ister message broker: README.md says how it is used.

export type {
  ClientEvents,
  ConnectionEvent,
  CreateSubscriptionOptions,
  CreateTopicOptions,
  Explanation,
  Status,
  SubscriptionInfo,
  SubscriptionOptions,
  TopicInfo,
  TopicOptions,
} from "./admin.js";
export type { ConsumerEvent, SubscriptionType } from "./attachment.js";
export type { Outgoing, Payload } from "./batch.js";
export {
  Client,
  type ConnectOptions,
  type ConsumerOptions,
  connect,
  type Logger,
  type ProducerOptions,
  type ReaderOptions,
  type RequestOptions,
  VERSION,
} from "./client.js";
export { Consumer, type NackOptions, Reader, Receiver, type Start } from "./consumer.js";
export { type DeadLetter, DeadLetters, type RedriveOptions } from "./deadletters.js";
export {
  type Action,
  BrokerError,
  CancelledError,
  ClosedError,
  ConnectionLostError,
  IsterError,
  ProtocolError,
  TimeoutError,
  UsageError,
} from "./errors.js";
export { PatternConsumer } from "./following.js";
export { Message, type ReplyOptions } from "./message.js";
export { Producer, type Published, Receipt, type SendOptions } from "./producer.js";
export { producerId } from "./producerid.js";
export type { WaitOptions } from "./waiting.js";
