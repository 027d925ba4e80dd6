/* ister.h - a client of the Ister message broker.
 *
 * ister_connect() gives a client; producers, consumers and readers are opened from it. A lost connection is made again
 * for as long as the client lives: producers send again what has no receipt, consumers are given again what they had
 * not acknowledged.
 *
 * Threads. Every function may be called from any thread, also several at once for one handle, except the _free()
 * functions: when one is called, no other thread may be in a call about the same handle. Each client has one thread of
 * its own, which alone uses the sockets; it runs the callbacks. A callback must not wait: calls that wait refuse it.
 *
 * Waiting. timeout_ms is how long a call may wait: 0 is not at all, -1 for ever. A call that ends with ISTER_TIMEOUT or
 * ISTER_CANCELLED has changed nothing: a message was not taken, or not received. What it waited for goes on.
 *
 * Errors. Functions that can fail return an ister_result, and say more in an ister_error, where one is passed (it may
 * be NULL). Texts are UTF-8 and end with a NUL.
 *
 * Memory. What a function hands out is freed with the _free() function of its type; those accept NULL. Receipts and
 * messages may outlive what they came from. Like libzmq, the library ends the program when there is no memory.
 */
#ifndef ISTER_H
#define ISTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ISTER_VERSION "0.1.0"

typedef struct ister_client ister_client;
typedef struct ister_producer ister_producer;
typedef struct ister_consumer ister_consumer;
typedef struct ister_receipt ister_receipt;
typedef struct ister_map ister_map;
typedef struct ister_value ister_value;

/* ---- errors ---- */

typedef enum ister_result {
    ISTER_OK = 0,
    ISTER_TIMEOUT,   /* the time was over */
    ISTER_CANCELLED, /* ister_client_interrupt() */
    ISTER_LOST,      /* the broker cannot be reached, or has forgotten what this was about */
    ISTER_CLOSED,    /* the client, producer or consumer was closed here */
    ISTER_INVALID,   /* the call was refused without asking the broker */
    ISTER_REFUSED    /* the broker said no: see the code */
} ister_result;

typedef enum ister_action {
    ISTER_RETRY, /* the same again, after a while */
    ISTER_FIX,   /* something in the call is wrong */
    ISTER_STOP   /* trying again will not help */
} ister_action;

typedef struct ister_error {
    ister_result result;
    ister_action action;
    char code[48];  /* stable: "unknown-topic", "timeout", ... (PROTOCOL.md, section 11) */
    char text[256]; /* for people */
} ister_error;

/* ---- clients ---- */

typedef enum ister_log_level { ISTER_LOG_INFO, ISTER_LOG_WARNING } ister_log_level;

/* Called by the client's thread. */
typedef void ister_log_function(void *user, ister_log_level level, const char *text);

typedef struct ister_client_options {
    const char *name;        /* for people who look at the broker; may be NULL */
    ister_log_function *log; /* NULL: nothing is logged */
    void *log_user;
} ister_client_options;

/* What became of a connection, or what the broker tells a consumer besides messages (PROTOCOL.md, section 9.7). */
typedef struct ister_event {
    char code[48]; /* of a client: "connected" (also: again), "lost" */
    uint64_t count;
    int64_t offset;  /* -1: none */
    char text[256];  /* of a client: the endpoint, and why */
    char topic[256]; /* of a consumer */
} ister_event;

/* Connects to the first of some endpoints that answers, like "tcp://127.0.0.1:5555", and waits for a session. options
 * may be NULL. */
ister_result ister_connect(const char *const *endpoints, size_t endpoints_count, const ister_client_options *options,
                           int64_t timeout_ms, ister_client **client, ister_error *error);

/* The halves of ister_connect(): begin to connect, and wait until there is a session. A client whose wait ended with
 * ISTER_TIMEOUT goes on trying. */
ister_result ister_client_open(const char *const *endpoints, size_t endpoints_count,
                               const ister_client_options *options, ister_client **client, ister_error *error);
ister_result ister_client_wait(ister_client *client, int64_t timeout_ms, ister_error *error);

/* Ends every call about this client that waits now, in whatever thread: they return ISTER_CANCELLED. May be called
 * from any thread; not from a signal handler. */
void ister_client_interrupt(ister_client *client);

/* Takes what became of the connections, oldest first; false: nothing new. At most the last 256 are kept. */
bool ister_client_next_event(ister_client *client, ister_event *event);

/* Cuts every connection without a word, as a broken network would; for tests. They are made again at once. */
void ister_client_drop(ister_client *client);

/* Closes every producer and consumer of the client (as ister_producer_close() and ister_consumer_close() do), and says
 * goodbye. When the time is over it leaves all the same, and says ISTER_TIMEOUT. Closing again does nothing. */
ister_result ister_client_close(ister_client *client, int64_t timeout_ms, ister_error *error);

/* Frees a client; one that was not closed leaves without waiting. Producers, consumers, receipts and messages that
 * are still there stay valid: they say that they are closed. */
void ister_client_free(ister_client *client);

/* ---- messages ---- */

typedef struct ister_attribute {
    const char *name, *value;
    size_t name_size, value_size; /* 0: up to the NUL */
} ister_attribute;

/* A message to be sent; zero all that is not needed. Everything is copied. */
typedef struct ister_outgoing {
    const void *payload;
    size_t payload_size;
    const void *key;
    size_t key_size; /* 0: no key */
    const ister_attribute *attributes;
    size_t attributes_count;
    int64_t deliver_at_ms; /* unix ms before which it should not be delivered; 0: at once */
    /* The message's number, for a producer with a name: one that was stored before is not stored again. Without it
     * numbers follow each other; they may be left out, at the price of a round trip. */
    bool has_sequence;
    uint64_t sequence;
} ister_outgoing;

/* A message as it was delivered. Payload and key are valid until ister_message_free(). */
typedef struct ister_message {
    const char *topic;
    uint64_t offset;
    const void *payload;
    size_t payload_size;
    const void *key; /* NULL: no key */
    size_t key_size;
    int64_t timestamp_ms;  /* when the broker took it, unix ms */
    int64_t deliver_at_ms; /* 0: none */
    unsigned attempt;      /* 1: delivered for the first time */
} ister_message;

/* Walks through the attributes: begin with *cursor 0; false at the end. They are not NUL-terminated. */
bool ister_message_next_attribute(const ister_message *message, size_t *cursor, ister_attribute *attribute);
/* Finds an attribute; false: it has none of that name. */
bool ister_message_attribute(const ister_message *message, const char *name, ister_attribute *attribute);
/* Says whether the attributes are what the protocol says: another client may have written anything there. Where they
 * are not, the message has none. */
bool ister_message_attributes_valid(const ister_message *message);
void ister_message_free(ister_message *message);

/* ---- producers ---- */

typedef struct ister_producer_options {
    const char *name;   /* the same producer over restarts of the program; a second one of that name fences the first */
    size_t batch_bytes; /* messages gather until there are so many bytes (0: 64 KiB) */
    unsigned linger_us; /* or so long (0: 1000), or until the batch before them is answered */
    size_t window_bytes; /* at most so many are without a receipt (0: what the broker allows) */
} ister_producer_options;

typedef struct ister_published {
    bool has_offset; /* false: a duplicate so old that the broker has forgotten where it is */
    uint64_t offset; /* of the first message */
    size_t count;
    bool duplicate; /* true: the broker said that it had stored this long ago */
} ister_published;

/* Called by the client's thread when the broker has answered; error is NULL for a message that is stored. */
typedef void ister_receipt_function(void *user, const ister_published *published, const ister_error *error);

ister_result ister_producer_open(ister_client *client, const char *topic, const ister_producer_options *options,
                                 int64_t timeout_ms, ister_producer **producer, ister_error *error);

/* The number of the next message; at first, for a name, the one to go on with. */
uint64_t ister_producer_next_sequence(ister_producer *producer);

/* Has one message taken; waits only while the window is full. receipt may be NULL: then ister_producer_flush() tells
 * of a refusal. */
ister_result ister_producer_send(ister_producer *producer, const ister_outgoing *message, int64_t timeout_ms,
                                 ister_receipt **receipt, ister_error *error);

/* Has many messages taken at once: one receipt, consecutive offsets. */
ister_result ister_producer_send_batch(ister_producer *producer, const ister_outgoing *messages, size_t count,
                                       int64_t timeout_ms, ister_receipt **receipt, ister_error *error);

/* As ister_producer_send(); the answer is given to a function, which is called exactly once if ISTER_OK is returned. */
ister_result ister_producer_send_then(ister_producer *producer, const ister_outgoing *message, int64_t timeout_ms,
                                      ister_receipt_function *then, void *user, ister_error *error);

/* Waits until everything taken so far is answered. The error of a refused message that no receipt and no function was
 * asked for, or told of, is returned here, once. */
ister_result ister_producer_flush(ister_producer *producer, int64_t timeout_ms, ister_error *error);

/* Flushes, and tells the broker that this producer is done. Closing again does nothing. */
ister_result ister_producer_close(ister_producer *producer, int64_t timeout_ms, ister_error *error);
/* Frees a producer; one that was not closed gives up what has no receipt. */
void ister_producer_free(ister_producer *producer);

/* Says whether the broker has answered. */
bool ister_receipt_poll(ister_receipt *receipt);
/* Waits until the messages are stored as the topic promises, or refused. published may be NULL. */
ister_result ister_receipt_wait(ister_receipt *receipt, int64_t timeout_ms, ister_published *published,
                                ister_error *error);
void ister_receipt_free(ister_receipt *receipt);

/* The id of a named producer: the same in every language. */
uint64_t ister_producer_id(const char *topic, const char *name);

/* ---- consumers and readers ---- */

/* Where a new subscription, or a reader, begins. */
typedef enum ister_place_kind {
    ISTER_DEFAULT, /* latest; of a reader earliest */
    ISTER_EARLIEST,
    ISTER_LATEST,
    ISTER_AT_OFFSET,
    ISTER_AT_TIME /* the first message that was taken at or after value, in unix ms */
} ister_place_kind;

typedef struct ister_place {
    ister_place_kind kind;
    uint64_t value;
} ister_place;

typedef struct ister_consumer_options {
    const char *type;         /* "shared" (also: NULL), "exclusive", "failover", "key-shared" */
    ister_place start;        /* of a new subscription */
    uint64_t priority;        /* of a failover consumer: lower is preferred */
    bool force;               /* takes an exclusive subscription over */
    bool wait_for_place;      /* of an exclusive subscription that somebody has */
    uint64_t credit_messages; /* how many messages may wait here; 0: follows the program's pace */
    const ister_map *options; /* of a new subscription: PROTOCOL.md, section 10 */
} ister_consumer_options;

/* Opens a consumer; a subscription that does not exist is created. options may be NULL.
 *
 * The topic may be a pattern: "*" stands for one part of a name, ">" at the end for one or more ("orders/" and "*").
 * Then this is a consumer of every topic that matches, each with a subscription of that name; topics that are created
 * later are received from their first message on, while something is being received. Topics take turns; message->topic
 * and event.topic say which it is. Topics that take dead letters are left out. credit_messages is each topic's, and an
 * exclusive subscription that somebody has is waited for, topic by topic. */
ister_result ister_consumer_open(ister_client *client, const char *topic, const char *subscription,
                                 const ister_consumer_options *options, int64_t timeout_ms, ister_consumer **consumer,
                                 ister_error *error);

/* Opens a reader: a consumer without a subscription, which acknowledges nothing. credit_messages as above. */
ister_result ister_reader_open(ister_client *client, const char *topic, ister_place start, uint64_t credit_messages,
                               int64_t timeout_ms, ister_consumer **reader, ister_error *error);

/* The topics that it receives from at present: a list of texts, to be freed. */
ister_value *ister_consumer_topics(ister_consumer *consumer);

/* Where the subscription stood when it was opened (last); of a pattern 0. */
uint64_t ister_consumer_position(ister_consumer *consumer);

/* Waits for the next message. */
ister_result ister_consumer_receive(ister_consumer *consumer, int64_t timeout_ms, ister_message **message,
                                    ister_error *error);
/* Waits for messages that came together: at least one, at most most. */
ister_result ister_consumer_receive_batch(ister_consumer *consumer, size_t most, int64_t timeout_ms,
                                          ister_message **messages, size_t *count, ister_error *error);

/* Acknowledges messages: they are not delivered to this subscription again. Acknowledgments are sent within a few
 * milliseconds; ister_consumer_flush() waits until they are written. The messages are not freed. */
ister_result ister_consumer_ack(ister_consumer *consumer, ister_message *const *messages, size_t count,
                                ister_error *error);
/* Acknowledges everything up to and including a message: of the whole subscription (exclusive, failover), or of what
 * this consumer was given. */
ister_result ister_consumer_ack_until(ister_consumer *consumer, const ister_message *message, ister_error *error);
/* Gives messages back, to be delivered again after delay_ms: 0 is at once, -1 after the subscription's back-off. The
 * reason is for people; it may be NULL. */
ister_result ister_consumer_nack(ister_consumer *consumer, ister_message *const *messages, size_t count,
                                 int64_t delay_ms, const char *reason, ister_error *error);
/* Says that messages are still being worked on: their acknowledgment timeout begins anew. */
ister_result ister_consumer_extend(ister_consumer *consumer, ister_message *const *messages, size_t count,
                                   ister_error *error);
/* Says that the program failed at what it has in hand (of a reliable topic), and will leave: each of those messages
 * has failed once more, so that one which ends program after program becomes a dead letter. The reason is for people;
 * it may be NULL. */
ister_result ister_consumer_blame(ister_consumer *consumer, const char *reason, ister_error *error);
/* Waits until every acknowledgment so far is written. ISTER_LOST: the broker forgot what it had delivered, and delivers
 * those messages again. */
ister_result ister_consumer_flush(ister_consumer *consumer, int64_t timeout_ms, ister_error *error);

/* Moves the whole subscription; position (may be NULL) is the offset of the next message. */
ister_result ister_consumer_seek(ister_consumer *consumer, ister_place to, int64_t timeout_ms, uint64_t *position,
                                 ister_error *error);

/* Takes what the broker told besides messages, oldest first; false: nothing new. At most the last 256 are kept. */
bool ister_consumer_next_event(ister_consumer *consumer, ister_event *event);

/* Sends the acknowledgments made so far and leaves. Closing again does nothing. */
ister_result ister_consumer_close(ister_consumer *consumer, int64_t timeout_ms, ister_error *error);
void ister_consumer_free(ister_consumer *consumer);

/* ---- request and reply ---- */

/* Sends a message and returns the reply that some consumer of the topic gives it with ister_reply(). When the session
 * is lost on the way the result is ISTER_LOST: the request may have been carried out. */
ister_result ister_request(ister_client *client, const char *topic, const ister_outgoing *message, int64_t timeout_ms,
                           ister_message **reply, ister_error *error);
/* Answers a message that came from ister_request(). Whoever asked may be gone: then nobody hears it. */
ister_result ister_reply(ister_client *client, const ister_message *to, const ister_outgoing *message,
                         int64_t timeout_ms, ister_error *error);

/* ---- administration ---- */

/* Named arguments and options. Setting a name again replaces it. */
ister_map *ister_map_new(void);
void ister_map_text(ister_map *map, const char *name, const char *value);
void ister_map_number(ister_map *map, const char *name, uint64_t value);
void ister_map_flag(ister_map *map, const char *name, bool value);
void ister_map_free(ister_map *map);

/* What a broker answers: a value that may hold others. Accessors accept NULL, and values of another kind. */
typedef enum ister_kind {
    ISTER_NOTHING,
    ISTER_NUMBER,
    ISTER_NEGATIVE, /* -1 - number */
    ISTER_REAL,
    ISTER_FLAG,
    ISTER_TEXT,
    ISTER_BYTES,
    ISTER_LIST,
    ISTER_MAP
} ister_kind;

ister_kind ister_value_kind(const ister_value *value);
uint64_t ister_value_number(const ister_value *value, uint64_t otherwise);
double ister_value_real(const ister_value *value, double otherwise);
bool ister_value_flag(const ister_value *value, bool otherwise);
/* Text or bytes, with a NUL behind; size may be NULL. NULL where it is neither. */
const char *ister_value_text(const ister_value *value, size_t *size);
size_t ister_value_count(const ister_value *value);
const ister_value *ister_value_at(const ister_value *value, size_t index);  /* of a list or map */
const ister_value *ister_value_key(const ister_value *value, size_t index); /* of a map */
const ister_value *ister_value_get(const ister_value *value, const char *name);
void ister_value_free(ister_value *value); /* of what a function handed out; not of its parts */

/* Asks the broker: operations, arguments and results are those of PROTOCOL.md, section 10. arguments and result may be
 * NULL. What is answered with "retry" is asked again until the time is over. */
ister_result ister_admin(ister_client *client, const char *operation, const ister_map *arguments, int64_t timeout_ms,
                         ister_value **result, ister_error *error);

/* Common operations, each typed. options and result may be NULL. A creation or deletion whose answer was lost is not
 * an error when it turns out to have been done. */
ister_result ister_topic_create(ister_client *client, const char *topic, const ister_map *options, int64_t timeout_ms,
                                ister_value **result, ister_error *error);
ister_result ister_topic_update(ister_client *client, const char *topic, const ister_map *options, int64_t timeout_ms,
                                ister_value **result, ister_error *error);
ister_result ister_topic_show(ister_client *client, const char *topic, int64_t timeout_ms, ister_value **result,
                              ister_error *error);
ister_result ister_topic_list(ister_client *client, int64_t timeout_ms, ister_value **result, ister_error *error);
ister_result ister_topic_delete(ister_client *client, const char *topic, int64_t timeout_ms, ister_error *error);
ister_result ister_subscription_create(ister_client *client, const char *topic, const char *subscription,
                                       const char *type, ister_place start, const ister_map *options,
                                       int64_t timeout_ms, ister_value **result, ister_error *error);
ister_result ister_subscription_update(ister_client *client, const char *topic, const char *subscription,
                                       const ister_map *options, int64_t timeout_ms, ister_value **result,
                                       ister_error *error);
ister_result ister_subscription_show(ister_client *client, const char *topic, const char *subscription,
                                     int64_t timeout_ms, ister_value **result, ister_error *error);
ister_result ister_subscription_list(ister_client *client, const char *topic, int64_t timeout_ms, ister_value **result,
                                     ister_error *error);
ister_result ister_subscription_explain(ister_client *client, const char *topic, const char *subscription,
                                        int64_t timeout_ms, ister_value **result, ister_error *error);
ister_result ister_subscription_unblock(ister_client *client, const char *topic, const char *subscription,
                                        const char *action, int64_t timeout_ms, uint64_t *messages, ister_error *error);
ister_result ister_subscription_seek(ister_client *client, const char *topic, const char *subscription, ister_place to,
                                     int64_t timeout_ms, uint64_t *position, ister_error *error);
ister_result ister_subscription_delete(ister_client *client, const char *topic, const char *subscription,
                                       int64_t timeout_ms, ister_error *error);
ister_result ister_status(ister_client *client, int64_t timeout_ms, ister_value **result, ister_error *error);

/* ---- dead letters ---- */

/* Why a message of a dead-letter topic is there; text that is not there is empty. */
typedef struct ister_dead_letter {
    char topic[256], subscription[256]; /* which gave it up */
    int64_t offset;                     /* in its topic; -1: unknown */
    uint64_t attempts;                  /* how often it was delivered */
    char reason[804];                   /* of the last failure */
    char producer[24];                  /* its id, hexadecimal */
    int64_t timestamp_ms, dead_lettered_at_ms;
} ister_dead_letter;

void ister_dead_letter_read(const ister_message *letter, ister_dead_letter *into);

/* How many wait, of every subscription that shares the dead-letter topic. */
ister_result ister_dead_letters_count(ister_client *client, const char *topic, const char *subscription,
                                      int64_t timeout_ms, uint64_t *count, ister_error *error);
/* The letters of a subscription that wait, oldest first, at most most (letters has room for them): payload, key and
 * attributes as they were sent, and the attributes about the failure. Nothing is taken. Free each message. after is the
 * offset of the last one of the call before; -1 at first; *count 0 is the end. */
ister_result ister_dead_letters_list(ister_client *client, const char *topic, const char *subscription, int64_t after,
                                     size_t most, int64_t timeout_ms, ister_message **letters, size_t *count,
                                     ister_error *error);
/* Which letters are sent back, and where to; zero all that is not needed. */
typedef struct ister_redrive_options {
    const uint64_t *offsets; /* of the dead-letter topic; NULL: all */
    size_t offsets_count;
    uint64_t most;  /* 0: all */
    const char *to; /* a topic; NULL: the one they were in */
} ister_redrive_options;

/* Sends letters back; options may be NULL. Payload, key and attributes are unchanged; those about the failure are
 * replaced by ister.redriven_from, ister.redriven_offset and ister.redriven_for. At least once: what is interrupted may
 * be sent again, and nothing is lost. A letter that the topic refuses stays, and stops no others; its error is told in
 * the end. *count (may be NULL) is how many were sent, also after an error. */
ister_result ister_dead_letters_redrive(ister_client *client, const char *topic, const char *subscription,
                                        const ister_redrive_options *options, int64_t timeout_ms, uint64_t *count,
                                        ister_error *error);
/* Deletes letters, at most most (0: all). Messages that become dead letters meanwhile stay. */
ister_result ister_dead_letters_purge(ister_client *client, const char *topic, const char *subscription, uint64_t most,
                                      int64_t timeout_ms, uint64_t *count, ister_error *error);

/* ---- the codec alone, for tests; programs have no use for it ---- */

typedef struct ister_slice {
    const void *data;
    size_t size;
} ister_slice;

ister_result ister_codec_header(const void *frame, size_t size, ister_value **header, ister_error *error);
/* messages is an array of count; free it with ister_codec_messages_free(). */
ister_result ister_codec_cut(uint64_t columns, const ister_slice *frames, size_t frames_count,
                             ister_message ***messages, size_t *count, ister_error *error);
void ister_codec_messages_free(ister_message **messages, size_t count);
/* frames is an array of 5; each frame is freed with free(). */
ister_result ister_codec_pack(const ister_outgoing *messages, size_t count, uint64_t *columns, ister_slice *frames,
                              size_t *frames_count, ister_error *error);

#ifdef __cplusplus
}
#endif

#endif
