/* The driver of the C client; tests/conformance_clients/DRIVER.md says how one works. */
#define _POSIX_C_SOURCE 200809L

#include "ister.h"

#include "json.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char CAPABILITIES[] =
    "\"batch\",\"pipeline\",\"keys\",\"attributes\",\"delivery-time\",\"timestamps\",\"attempts\",\"named-producer\","
    "\"batch-receive\",\"confirm\",\"nack\",\"ack-until\",\"extend\",\"reader\",\"seek\",\"priority\",\"force\","
    "\"options\",\"credit\",\"window\",\"events\",\"admin\",\"request-reply\",\"patterns\",\"dead-letters\",\"taken\","
    "\"moved\",\"reconnect\",\"heartbeat\","
    "\"orderly-close\",\"cancel\",\"drop\",\"codec\",\"bench\"";

enum { BUCKETS = 4096, BATCH_MAX = 100000, END_WITHIN_MS = 5000 };

typedef enum { CLIENT, PRODUCER, CONSUMER, RECEIPT } thing_kind;

typedef struct held held;
struct held {
    ister_message *message;
    held *next;
};

/* What a test has named. */
typedef struct thing thing;
struct thing {
    thing_kind kind;
    char *name;
    ister_client *client;
    ister_producer *producer;
    ister_consumer *consumer;
    ister_receipt *receipt;
    bool is_reader;
    held **held;      /* by offset */
    ister_error late; /* for the next receive */
    thing *next;
};

static thing *things;

static void *need(void *made) {
    if (!made) abort();
    return made;
}

static thing *find(thing_kind kind, const char *name) {
    for (thing *each = things; each && name; each = each->next) {
        if (each->kind == kind && strcmp(each->name, name) == 0) return each;
    }
    return NULL;
}

static thing *keep(thing_kind kind, const char *name, ister_client *client) {
    thing *made = need(calloc(1, sizeof *made));
    made->kind = kind;
    made->name = need(strdup(name ? name : ""));
    made->client = client;
    if (kind == CONSUMER) made->held = need(calloc(BUCKETS, sizeof *made->held));
    made->next = things;
    things = made;
    return made;
}

static void let(thing *old) {
    for (thing **at = &things; *at; at = &(*at)->next) {
        if (*at == old) {
            *at = old->next;
            break;
        }
    }
    for (size_t i = 0; old->held && i < BUCKETS; i++) {
        while (old->held[i]) {
            held *each = old->held[i];
            old->held[i] = each->next;
            ister_message_free(each->message);
            free(each);
        }
    }
    free(old->held);
    if (old->kind == CLIENT) ister_client_free(old->client);
    if (old->kind == PRODUCER) ister_producer_free(old->producer);
    if (old->kind == CONSUMER) ister_consumer_free(old->consumer);
    if (old->kind == RECEIPT) ister_receipt_free(old->receipt);
    free(old->name);
    free(old);
}

/* Without a topic: of whatever topic. */
static held **place_of(thing *consumer, uint64_t offset, const char *topic) {
    held **at = &consumer->held[offset % BUCKETS];
    while (*at && ((*at)->message->offset != offset || (topic && strcmp((*at)->message->topic, topic) != 0)))
        at = &(*at)->next;
    return at;
}

static void hold(thing *consumer, ister_message *message) {
    held **at = place_of(consumer, message->offset, message->topic);
    if (*at) {
        ister_message_free((*at)->message);
    } else {
        *at = need(calloc(1, sizeof **at));
    }
    (*at)->message = message;
}

static void release(thing *consumer, uint64_t offset, const char *topic) {
    held **at = place_of(consumer, offset, topic), *old = *at;
    if (!old) return;
    *at = old->next;
    ister_message_free(old->message);
    free(old);
}

/* ---- cancelling ---- */

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread;
    ister_client *client;
    struct timespec until;
    bool over, running;
} canceller;

static void *cancel_later(void *context) {
    canceller *c = context;
    pthread_mutex_lock(&c->mutex);
    while (!c->over && pthread_cond_timedwait(&c->changed, &c->mutex, &c->until) == 0) {
    }
    bool over = c->over;
    pthread_mutex_unlock(&c->mutex);
    if (!over) ister_client_interrupt(c->client);
    return NULL;
}

static void begin_cancelling(canceller *c, const json *command, ister_client *client) {
    const json *after = json_get(command, "cancel_after_ms");
    c->running = after != NULL;
    if (!after) return;
    c->over = false;
    c->client = client;
    clock_gettime(CLOCK_REALTIME, &c->until);
    uint64_t ns = (uint64_t)c->until.tv_nsec + after->number % 1000 * 1000000;
    c->until.tv_sec += (time_t)(after->number / 1000 + ns / 1000000000);
    c->until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->changed, NULL);
    if (pthread_create(&c->thread, NULL, cancel_later, c) != 0) abort();
}

static void end_cancelling(canceller *c) {
    if (!c->running) return;
    pthread_mutex_lock(&c->mutex);
    c->over = true;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    pthread_join(c->thread, NULL);
}

/* ---- what commands say ---- */

typedef struct {
    void *data;
    size_t size;
} buffer;

static unsigned digit(char c) { return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10); }

static buffer unhex(const char *hex) {
    buffer made = {need(malloc((hex ? strlen(hex) / 2 : 0) + 1)), hex ? strlen(hex) / 2 : 0};
    for (size_t i = 0; i < made.size; i++) {
        ((unsigned char *)made.data)[i] = (unsigned char)(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
    }
    return made;
}

static size_t count_of(const json *list) {
    size_t count = 0;
    for (const json *each = list ? list->first : NULL; each; each = each->next) count++;
    return count;
}

static void read_outgoing(const json *from, ister_outgoing *into) {
    memset(into, 0, sizeof *into);
    buffer payload = unhex(json_text(from, "payload"));
    into->payload = payload.data;
    into->payload_size = payload.size;
    if (json_get(from, "key")) {
        buffer key = unhex(json_text(from, "key"));
        into->key = key.data;
        into->key_size = key.size;
    }
    const json *attributes = json_get(from, "attributes");
    into->attributes_count = count_of(attributes);
    ister_attribute *made = need(calloc(into->attributes_count + 1, sizeof *made));
    into->attributes = made;
    for (const json *each = attributes ? attributes->first : NULL; each; each = each->next) {
        *made++ = (ister_attribute){each->name, each->text, 0, each->size};
    }
    into->deliver_at_ms = (int64_t)json_number(from, "deliver_at_ms", 0);
    into->has_sequence = json_get(from, "sequence") != NULL;
    into->sequence = json_number(from, "sequence", 0);
}

static ister_outgoing *read_all(const json *list, size_t *count) {
    *count = count_of(list);
    ister_outgoing *made = need(calloc(*count + 1, sizeof *made));
    size_t i = 0;
    for (const json *each = list ? list->first : NULL; each; each = each->next) read_outgoing(each, &made[i++]);
    return made;
}

static void free_outgoings(ister_outgoing *old, size_t count) {
    for (size_t i = 0; i < count; i++) {
        free((void *)old[i].payload);
        free((void *)old[i].key);
        free((void *)old[i].attributes);
    }
    free(old);
}

static ister_place place(const json *from) {
    if (!from) return (ister_place){ISTER_DEFAULT, 0};
    if (from->kind == JSON_NUMBER) return (ister_place){ISTER_AT_OFFSET, from->number};
    if (strcmp(from->text, "earliest") == 0) return (ister_place){ISTER_EARLIEST, 0};
    if (strncmp(from->text, "time:", 5) == 0) return (ister_place){ISTER_AT_TIME, strtoull(from->text + 5, NULL, 10)};
    return (ister_place){ISTER_LATEST, 0};
}

/* An object of options; some names are left out. */
static ister_map *read_map(const json *object, bool rest) {
    static const char *const TAKEN[] = {"topic", "subscription", "type", "start", "to", "action"};
    ister_map *made = ister_map_new();
    for (const json *each = object ? object->first : NULL; each; each = each->next) {
        bool taken = false;
        for (size_t i = 0; rest && i < sizeof TAKEN / sizeof *TAKEN; i++)
            taken = taken || !strcmp(each->name, TAKEN[i]);
        if (taken) continue;
        if (each->kind == JSON_TEXT) ister_map_text(made, each->name, each->text);
        if (each->kind == JSON_NUMBER) ister_map_number(made, each->name, each->number);
        if (each->kind == JSON_TRUE || each->kind == JSON_FALSE)
            ister_map_flag(made, each->name, each->kind == JSON_TRUE);
    }
    return made;
}

/* ---- what answers say ---- */

static void add_message(text *to, const ister_message *message, bool place_too) {
    add(to, "{\"payload\":");
    add_hex(to, message->payload, message->payload_size);
    if (place_too) {
        add(to, ",\"offset\":%" PRIu64 ",\"timestamp_ms\":%" PRId64 ",\"attempt\":%u,\"topic\":", message->offset,
            message->timestamp_ms, message->attempt);
        add_quoted(to, message->topic, strlen(message->topic));
    }
    if (message->key) {
        add(to, ",\"key\":");
        add_hex(to, message->key, message->key_size);
    } else if (place_too) {
        add(to, ",\"key\":null");
    }
    if (message->deliver_at_ms)
        add(to, ",\"deliver_at_ms\":%" PRId64, message->deliver_at_ms);
    else if (place_too)
        add(to, ",\"deliver_at_ms\":null");
    size_t cursor = 0;
    ister_attribute each;
    bool first = true;
    while (ister_message_next_attribute(message, &cursor, &each)) {
        add(to, first ? ",\"attributes\":{" : ",");
        first = false;
        add_quoted(to, each.name, each.name_size);
        add(to, ":");
        add_quoted(to, each.value, each.value_size);
    }
    add(to, "%s}", !first ? "}" : place_too ? ",\"attributes\":{}" : "");
}

static void add_real(text *to, double value) {
    char digits[40];
    for (int precision = 1; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value) break;
    }
    add(to, "%s", digits);
}

static const uint64_t EXACT = ((uint64_t)1 << 53) - 1;

static void add_number(text *to, const ister_value *value) {
    uint64_t number = ister_value_number(value, 0);
    if (ister_value_kind(value) == ISTER_NUMBER)
        add(to, "%" PRIu64, number);
    else if (number == UINT64_MAX)
        add(to, "-18446744073709551616");
    else
        add(to, "-%" PRIu64, number + 1);
}

/* As plain JSON, or in the notation of tests/vectors/README.md. */
static void add_value(text *to, const ister_value *value, bool notation) {
    size_t size, count = ister_value_count(value);
    const char *found = ister_value_text(value, &size);
    uint64_t number = ister_value_number(value, 0);
    switch (ister_value_kind(value)) {
    case ISTER_NOTHING: add(to, "null"); break;
    case ISTER_FLAG: add(to, ister_value_flag(value, false) ? "true" : "false"); break;
    case ISTER_NUMBER:
    case ISTER_NEGATIVE: {
        bool wide = notation && (ister_value_kind(value) == ISTER_NUMBER ? number > EXACT : number >= EXACT);
        if (wide) add(to, ister_value_kind(value) == ISTER_NUMBER ? "{\"uint\":\"" : "{\"nint\":\"");
        add_number(to, value);
        if (wide) add(to, "\"}");
        break;
    }
    case ISTER_REAL: {
        double real = ister_value_real(value, 0);
        if (!notation && !isfinite(real)) {
            add(to, "null");
            break;
        }
        if (notation) add(to, "{\"float\":\"");
        add_real(to, real);
        if (notation) add(to, "\"}");
        break;
    }
    case ISTER_TEXT: add_quoted(to, found, size); break;
    case ISTER_BYTES:
        if (notation) add(to, "{\"bytes\":");
        add_hex(to, found, size);
        if (notation) add(to, "}");
        break;
    case ISTER_LIST:
        add(to, "[");
        for (size_t i = 0; i < count; i++) {
            if (i) add(to, ",");
            add_value(to, ister_value_at(value, i), notation);
        }
        add(to, "]");
        break;
    case ISTER_MAP:
        add(to, "{");
        for (size_t i = 0; i < count; i++) {
            const ister_value *key = ister_value_key(value, i);
            if (i) add(to, ",");
            if (ister_value_kind(key) == ISTER_TEXT) {
                add_value(to, key, false);
            } else {
                add(to, "\"");
                add_number(to, key);
                add(to, "\"");
            }
            add(to, ":");
            add_value(to, ister_value_at(value, i), notation);
        }
        add(to, "}");
        break;
    }
}

/* ---- commands ---- */

typedef struct {
    const json *command;
    const char *what;
    int64_t timeout_ms;
    struct timespec began;
    text answer; /* the members of ok */
    ister_error error;
} job;

static void unknown(job *j) {
    j->error = (ister_error){ISTER_INVALID, ISTER_FIX, "unsupported", "this driver does not know it"};
}
static void no_name(job *j) {
    j->error = (ister_error){ISTER_INVALID, ISTER_STOP, "driver-failed", "nothing has this name"};
}

static int64_t rest(const job *j) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t spent = (now.tv_sec - j->began.tv_sec) * 1000 + (now.tv_nsec - j->began.tv_nsec) / 1000000;
    return spent >= j->timeout_ms ? 0 : j->timeout_ms - spent;
}

static void connect_to(job *j) {
    const json *list = json_get(j->command, "endpoints");
    const char *endpoints[16];
    size_t count = 0;
    for (const json *each = list ? list->first : NULL; each && count < 16; each = each->next)
        endpoints[count++] = each->text;
    ister_client *client;
    if (ister_client_open(endpoints, count, NULL, &client, &j->error) != ISTER_OK) return;
    canceller c;
    begin_cancelling(&c, j->command, client);
    ister_result result = ister_client_wait(client, j->timeout_ms, &j->error);
    end_cancelling(&c);
    if (result == ISTER_OK)
        keep(CLIENT, json_text(j->command, "client"), client);
    else
        ister_client_free(client);
}

static void close_it(job *j) {
    thing *client = find(CLIENT, json_text(j->command, "client"));
    thing *producer = find(PRODUCER, json_text(j->command, "producer"));
    thing *consumer = find(CONSUMER, json_text(j->command, "consumer"));
    thing *it = client ? client : producer ? producer : consumer;
    if (!it) {
        no_name(j);
        return;
    }
    canceller c;
    begin_cancelling(&c, j->command, it->client);
    if (client)
        ister_client_close(it->client, j->timeout_ms, &j->error);
    else if (producer)
        ister_producer_close(it->producer, j->timeout_ms, &j->error);
    else
        ister_consumer_close(it->consumer, j->timeout_ms, &j->error);
    end_cancelling(&c);
    let(it);
}

static void codec(job *j) {
    const json *frames = json_get(j->command, "frames");
    ister_slice slices[16];
    size_t frames_count = 0, count = 0;
    text *out = &j->answer;
    if (strcmp(j->what, "decode") == 0) {
        buffer frame = unhex(json_text(j->command, "frame"));
        ister_value *header;
        if (ister_codec_header(frame.data, frame.size, &header, &j->error) == ISTER_OK) {
            add(out, "\"header\":");
            add_value(out, header, true);
            ister_value_free(header);
        }
        free(frame.data);
    } else if (strcmp(j->what, "decode_batch") == 0) {
        for (const json *each = frames ? frames->first : NULL; each && frames_count < 16; each = each->next) {
            buffer one = unhex(each->text);
            slices[frames_count++] = (ister_slice){one.data, one.size};
        }
        ister_message **messages;
        uint64_t columns = json_number(j->command, "columns", 0);
        if (ister_codec_cut(columns, slices, frames_count, &messages, &count, &j->error) == ISTER_OK) {
            add(out, "\"messages\":[");
            for (size_t i = 0; i < count; i++) {
                if (i) add(out, ",");
                add_message(out, messages[i], false);
            }
            add(out, "]");
            ister_codec_messages_free(messages, count);
        }
        for (size_t i = 0; i < frames_count; i++) free((void *)slices[i].data);
    } else if (strcmp(j->what, "encode_batch") == 0) {
        ister_outgoing *messages = read_all(json_get(j->command, "messages"), &count);
        uint64_t columns;
        if (ister_codec_pack(messages, count, &columns, slices, &frames_count, &j->error) == ISTER_OK) {
            add(out, "\"columns\":%" PRIu64 ",\"frames\":[", columns);
            for (size_t i = 0; i < frames_count; i++) {
                if (i) add(out, ",");
                add_hex(out, slices[i].data, slices[i].size);
                free((void *)slices[i].data);
            }
            add(out, "]");
        }
        free_outgoings(messages, count);
    } else {
        uint64_t id = ister_producer_id(json_text(j->command, "topic"), json_text(j->command, "name"));
        add(out, "\"id\":\"%" PRIu64 "\"", id);
    }
}

static void wait_for_receipt(job *j) {
    thing *receipt = find(RECEIPT, json_text(j->command, "receipt"));
    if (!receipt) {
        no_name(j);
        return;
    }
    ister_published told;
    canceller c;
    begin_cancelling(&c, j->command, receipt->client);
    ister_result result = ister_receipt_wait(receipt->receipt, j->timeout_ms, &told, &j->error);
    end_cancelling(&c);
    if (result == ISTER_OK) {
        if (told.has_offset)
            add(&j->answer, "\"offset\":%" PRIu64, told.offset);
        else
            add(&j->answer, "\"offset\":null");
        add(&j->answer, ",\"count\":%zu,\"duplicate\":%s", told.count, told.duplicate ? "true" : "false");
    }
    if (result != ISTER_TIMEOUT && result != ISTER_CANCELLED) let(receipt);
}

static void publishing(job *j) {
    thing *producer = find(PRODUCER, json_text(j->command, "producer"));
    if (!producer) {
        no_name(j);
        return;
    }
    canceller c;
    ister_receipt *receipt = NULL;
    size_t count = 1;
    bool flush = strcmp(j->what, "flush") == 0, batch = strcmp(j->what, "publish_batch") == 0;
    ister_outgoing *messages;
    if (batch) {
        messages = read_all(json_get(j->command, "messages"), &count);
    } else {
        messages = need(calloc(1, sizeof *messages));
        if (!flush) read_outgoing(json_get(j->command, "message"), messages);
    }
    begin_cancelling(&c, j->command, producer->client);
    if (flush)
        ister_producer_flush(producer->producer, j->timeout_ms, &j->error);
    else if (batch)
        ister_producer_send_batch(producer->producer, messages, count, j->timeout_ms, &receipt, &j->error);
    else
        ister_producer_send(producer->producer, messages, j->timeout_ms, &receipt, &j->error);
    end_cancelling(&c);
    free_outgoings(messages, count);
    if (receipt) keep(RECEIPT, json_text(j->command, "receipt"), producer->client)->receipt = receipt;
}

static void admin(job *j, ister_client *client) {
    const json *given = json_get(j->command, "arguments");
    const char *what = json_text(j->command, "operation"), *topic = json_text(given, "topic");
    const char *subscription = json_text(given, "subscription");
    ister_map *options = read_map(given, true);
    ister_value *result = NULL;
    ister_error *error = &j->error;
    text *out = &j->answer;
    int64_t wait = j->timeout_ms;
    uint64_t number = 0;
    const char *list = NULL;
#define IS(name) (strcmp(what, name) == 0)
    if (IS("topic.create")) {
        ister_topic_create(client, topic, options, wait, &result, error);
    } else if (IS("topic.update")) {
        ister_topic_update(client, topic, options, wait, &result, error);
    } else if (IS("topic.show")) {
        ister_topic_show(client, topic, wait, &result, error);
    } else if (IS("topic.list")) {
        list = "topics";
        ister_topic_list(client, wait, &result, error);
    } else if (IS("topic.delete")) {
        ister_topic_delete(client, topic, wait, error);
    } else if (IS("subscription.create")) {
        ister_place start = place(json_get(given, "start"));
        ister_subscription_create(client, topic, subscription, json_text(given, "type"), start, options, wait, &result,
                                  error);
    } else if (IS("subscription.update")) {
        ister_subscription_update(client, topic, subscription, options, wait, &result, error);
    } else if (IS("subscription.show")) {
        ister_subscription_show(client, topic, subscription, wait, &result, error);
    } else if (IS("subscription.list")) {
        list = "subscriptions";
        ister_subscription_list(client, topic, wait, &result, error);
    } else if (IS("subscription.explain")) {
        ister_subscription_explain(client, topic, subscription, wait, &result, error);
    } else if (IS("subscription.unblock")) {
        ister_subscription_unblock(client, topic, subscription, json_text(given, "action"), wait, &number, error);
        add(out, "\"result\":{\"messages\":%" PRIu64 "}", number);
    } else if (IS("subscription.seek")) {
        ister_subscription_seek(client, topic, subscription, place(json_get(given, "to")), wait, &number, error);
        add(out, "\"result\":{\"position\":%" PRIu64 "}", number);
    } else if (IS("subscription.delete")) {
        ister_subscription_delete(client, topic, subscription, wait, error);
    } else if (IS("status")) {
        ister_status(client, wait, &result, error);
    } else {
        unknown(j);
    }
#undef IS
    ister_map_free(options);
    if (out->size) return;
    add(out, "\"result\":");
    if (list) add(out, "{\"%s\":", list);
    if (result)
        add_value(out, result, false);
    else
        add(out, list ? "[]" : "{}");
    if (list) add(out, "}");
    ister_value_free(result);
}

static void add_events(job *j, thing *client, thing *consumer) {
    ister_event event;
    bool first = true;
    add(&j->answer, "\"events\":[");
    while (client ? ister_client_next_event(client->client, &event)
                  : ister_consumer_next_event(consumer->consumer, &event)) {
        add(&j->answer, "%s{\"code\":\"%s\",\"count\":%" PRIu64 ",\"offset\":", first ? "" : ",", event.code,
            event.count);
        first = false;
        if (event.offset >= 0)
            add(&j->answer, "%" PRId64, event.offset);
        else
            add(&j->answer, "null");
        add(&j->answer, ",\"text\":");
        add_quoted(&j->answer, event.text, strlen(event.text));
        add(&j->answer, "}");
    }
    add(&j->answer, "]");
}

static void open_producer(job *j, ister_client *client) {
    ister_producer_options options = {0};
    ister_producer *producer;
    options.name = json_text(j->command, "name");
    options.window_bytes = (size_t)json_number(j->command, "window_bytes", 0);
    if (ister_producer_open(client, json_text(j->command, "topic"), &options, j->timeout_ms, &producer, &j->error))
        return;
    keep(PRODUCER, json_text(j->command, "producer"), client)->producer = producer;
    add(&j->answer, "\"next_sequence\":%" PRIu64, ister_producer_next_sequence(producer));
}

static void open_consumer(job *j, ister_client *client) {
    const json *command = j->command;
    const char *topic = json_text(command, "topic");
    uint64_t credit = json_number(command, "credit_messages", 0);
    ister_consumer *consumer = NULL;
    bool is_reader = strcmp(j->what, "reader") == 0;
    if (is_reader) {
        ister_reader_open(client, topic, place(json_get(command, "start")), credit, j->timeout_ms, &consumer,
                          &j->error);
    } else {
        ister_map *options = read_map(json_get(command, "options"), false);
        ister_consumer_options said = {
            .type = json_text(command, "type"),
            .start = place(json_get(command, "start")),
            .priority = json_number(command, "priority", 0),
            .force = json_flag(command, "force"),
            .wait_for_place = json_get(command, "timeout_ms") != NULL,
            .credit_messages = credit,
            .options = options,
        };
        ister_consumer_open(client, topic, json_text(command, "subscription"), &said, j->timeout_ms, &consumer,
                            &j->error);
        ister_map_free(options);
    }
    if (!consumer) return;
    thing *made = keep(CONSUMER, json_text(command, "consumer"), client);
    made->consumer = consumer;
    made->is_reader = is_reader;
    if (topic && strpbrk(topic, "*>"))
        add(&j->answer, "\"position\":null");
    else
        add(&j->answer, "\"position\":%" PRIu64, ister_consumer_position(consumer));
}

static bool is_about_the_failure(const ister_attribute *one) {
    static const char *const ADDED[] = {"topic",     "subscription", "offset", "producer",
                                        "timestamp", "attempts",     "reason", "dead_lettered_at"};
    for (size_t i = 0; i < sizeof ADDED / sizeof *ADDED; i++) {
        char name[40];
        snprintf(name, sizeof name, "ister.%s", ADDED[i]);
        if (one->name_size == strlen(name) && memcmp(one->name, name, one->name_size) == 0) return true;
    }
    return false;
}

static void add_letter(text *to, const ister_message *message) {
    ister_dead_letter letter;
    ister_attribute each;
    size_t cursor = 0;
    bool first = true;
    ister_dead_letter_read(message, &letter);
    add(to, "{\"offset\":%" PRIu64 ",\"payload\":", message->offset);
    add_hex(to, message->payload, message->payload_size);
    add(to, ",\"key\":");
    if (message->key)
        add_hex(to, message->key, message->key_size);
    else
        add(to, "null");
    add(to, ",\"origin_offset\":%" PRId64 ",\"attempts\":%" PRIu64 ",\"topic\":", letter.offset, letter.attempts);
    add_quoted(to, letter.topic, strlen(letter.topic));
    add(to, ",\"subscription\":");
    add_quoted(to, letter.subscription, strlen(letter.subscription));
    add(to, ",\"reason\":");
    add_quoted(to, letter.reason, strlen(letter.reason));
    add(to, ",\"attributes\":{");
    while (ister_message_next_attribute(message, &cursor, &each)) {
        if (is_about_the_failure(&each)) continue;
        if (!first) add(to, ",");
        first = false;
        add_quoted(to, each.name, each.name_size);
        add(to, ":");
        add_quoted(to, each.value, each.value_size);
    }
    add(to, "}}");
}

static void list_letters(job *j, ister_client *client) {
    enum { PAGE = 100 };
    const char *topic = json_text(j->command, "topic"), *subscription = json_text(j->command, "subscription");
    size_t most = (size_t)json_number(j->command, "max", SIZE_MAX), count = 1, found = 0;
    int64_t after = -1;
    add(&j->answer, "\"letters\":[");
    while (found < most && count) {
        ister_message *page[PAGE];
        size_t wanted = most - found < PAGE ? most - found : PAGE;
        if (ister_dead_letters_list(client, topic, subscription, after, wanted, rest(j), page, &count, &j->error))
            return;
        for (size_t i = 0; i < count; i++) {
            if (found++) add(&j->answer, ",");
            add_letter(&j->answer, page[i]);
            after = (int64_t)page[i]->offset;
            ister_message_free(page[i]);
        }
    }
    add(&j->answer, "]");
}

static void settle_letters(job *j, ister_client *client) {
    const char *topic = json_text(j->command, "topic"), *subscription = json_text(j->command, "subscription");
    const json *list = json_get(j->command, "offsets");
    ister_redrive_options how = {.most = json_number(j->command, "max", 0), .to = json_text(j->command, "to")};
    uint64_t *offsets = need(calloc(list ? count_of(list) + 1 : 1, sizeof *offsets)), count = 0;
    for (const json *each = list ? list->first : NULL; each; each = each->next)
        offsets[how.offsets_count++] = each->number;
    if (list) how.offsets = offsets;
    if (strcmp(j->what, "purge") == 0)
        ister_dead_letters_purge(client, topic, subscription, how.most, j->timeout_ms, &count, &j->error);
    else
        ister_dead_letters_redrive(client, topic, subscription, &how, j->timeout_ms, &count, &j->error);
    free(offsets);
    add(&j->answer, "\"messages\":%" PRIu64, count);
}

static void with_client(job *j, thing *it) {
    ister_client *client = it->client;
    canceller c;
    begin_cancelling(&c, j->command, client);
    if (strcmp(j->what, "drop") == 0) {
        ister_client_drop(client);
    } else if (strcmp(j->what, "admin") == 0) {
        admin(j, client);
    } else if (strcmp(j->what, "events") == 0) {
        add_events(j, it, NULL);
    } else if (strcmp(j->what, "letters") == 0) {
        list_letters(j, client);
    } else if (strcmp(j->what, "redrive") == 0 || strcmp(j->what, "purge") == 0) {
        settle_letters(j, client);
    } else if (strcmp(j->what, "producer") == 0) {
        open_producer(j, client);
    } else if (strcmp(j->what, "consumer") == 0 || strcmp(j->what, "reader") == 0) {
        open_consumer(j, client);
    } else if (strcmp(j->what, "request") == 0) {
        ister_outgoing *message = need(calloc(1, sizeof *message));
        ister_message *reply;
        read_outgoing(j->command, message);
        if (ister_request(client, json_text(j->command, "topic"), message, j->timeout_ms, &reply, &j->error) ==
            ISTER_OK) {
            add(&j->answer, "\"message\":");
            add_message(&j->answer, reply, true);
            ister_message_free(reply);
        }
        free_outgoings(message, 1);
    } else {
        unknown(j);
    }
    end_cancelling(&c);
}

static void receive(job *j, thing *it) {
    size_t most = (size_t)json_number(j->command, "max", 1), count, taken = 0;
    bool batch = json_flag(j->command, "batch");
    if (it->late.result != ISTER_OK) {
        j->error = it->late;
        it->late.result = ISTER_OK;
        return;
    }
    if (most > BATCH_MAX) most = BATCH_MAX;
    ister_message **came = need(calloc(most + 1, sizeof *came));
    ister_error error = {0};
    add(&j->answer, "\"messages\":[");
    while (taken < most) {
        if (batch) {
            ister_consumer_receive_batch(it->consumer, most, rest(j), came, &count, &error);
        } else {
            count = ister_consumer_receive(it->consumer, rest(j), came, &error) == ISTER_OK;
        }
        for (size_t i = 0; i < count; i++) {
            if (taken++) add(&j->answer, ",");
            add_message(&j->answer, came[i], true);
            hold(it, came[i]);
        }
        if (!count || batch) break;
    }
    add(&j->answer, "]");
    free(came);
    if (error.result == ISTER_OK || error.result == ISTER_TIMEOUT) return;
    if (taken)
        it->late = error;
    else
        j->error = error;
}

static void with_messages(job *j, thing *it) {
    const json *list = json_get(j->command, "offsets"), *one = json_get(j->command, "offset");
    size_t count = list ? count_of(list) : 1, i = 0;
    ister_message **messages = need(calloc(count + 1, sizeof *messages));
    const char *what = j->what, *topic = json_text(j->command, "topic");
    for (const json *each = list ? list->first : one; each && i < count; each = list ? each->next : NULL) {
        held *found = *place_of(it, each->number, topic);
        if (!found) {
            no_name(j);
            free(messages);
            return;
        }
        messages[i++] = found->message;
    }
    if (!i) {
        no_name(j);
        free(messages);
        return;
    }
    if (strcmp(what, "ack") == 0) {
        ister_consumer_ack(it->consumer, messages, count, &j->error);
    } else if (strcmp(what, "nack") == 0) {
        int64_t delay = json_get(j->command, "delay_ms") ? (int64_t)json_number(j->command, "delay_ms", 0) : -1;
        ister_consumer_nack(it->consumer, messages, count, delay, json_text(j->command, "reason"), &j->error);
    } else if (strcmp(what, "extend") == 0) {
        ister_consumer_extend(it->consumer, messages, count, &j->error);
    } else if (strcmp(what, "ack_until") == 0) {
        uint64_t until = messages[0]->offset;
        ister_consumer_ack_until(it->consumer, messages[0], &j->error);
        for (size_t b = 0; b < BUCKETS; b++) {
            for (held **at = &it->held[b]; *at;) {
                const ister_message *message = (*at)->message;
                if (message->offset > until || (topic && strcmp(message->topic, topic) != 0))
                    at = &(*at)->next;
                else
                    release(it, message->offset, message->topic);
            }
        }
    } else {
        ister_outgoing *message = need(calloc(1, sizeof *message));
        read_outgoing(j->command, message);
        ister_reply(it->client, messages[0], message, j->timeout_ms, &j->error);
        free_outgoings(message, 1);
    }
    if (strcmp(what, "ack") == 0 || strcmp(what, "nack") == 0) {
        for (count = i, i = 0; i < count; i++) release(it, messages[i]->offset, messages[i]->topic);
    }
    free(messages);
}

static void with_consumer(job *j, thing *it) {
    static const char *const ABOUT[] = {"ack", "nack", "extend", "ack_until", "reply"};
    bool about = false;
    for (size_t i = 0; i < sizeof ABOUT / sizeof *ABOUT; i++) about = about || !strcmp(j->what, ABOUT[i]);
    canceller c;
    begin_cancelling(&c, j->command, it->client);
    if (strcmp(j->what, "receive") == 0) {
        receive(j, it);
    } else if (strcmp(j->what, "events") == 0) {
        add_events(j, NULL, it);
    } else if (strcmp(j->what, "flush") == 0) {
        ister_consumer_flush(it->consumer, j->timeout_ms, &j->error);
    } else if (strcmp(j->what, "seek") == 0) {
        uint64_t position;
        ister_consumer_seek(it->consumer, place(json_get(j->command, "to")), j->timeout_ms, &position, &j->error);
        add(&j->answer, "\"position\":%" PRIu64, position);
    } else if (about && !it->is_reader) {
        with_messages(j, it);
    } else {
        unknown(j);
    }
    end_cancelling(&c);
}

/* ---- being measured ---- */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void bench_publish(job *j, ister_producer *producer) {
    size_t messages = (size_t)json_number(j->command, "messages", 0),
           batch = (size_t)json_number(j->command, "batch", 0);
    ister_outgoing one = {.payload_size = (size_t)json_number(j->command, "message_bytes", 0)};
    ister_outgoing *many = need(calloc(batch + 1, sizeof *many));
    void *payload = need(calloc(1, one.payload_size + 1));
    one.payload = payload;
    for (size_t i = 0; i < batch; i++) many[i] = one;
    double began = seconds();
    ister_result result = ISTER_OK;
    for (size_t sent = 0; batch && sent < messages && result == ISTER_OK; sent += batch) {
        size_t some = messages - sent < batch ? messages - sent : batch;
        result = ister_producer_send_batch(producer, many, some, j->timeout_ms, NULL, &j->error);
    }
    for (size_t sent = 0; !batch && sent < messages && result == ISTER_OK; sent++) {
        result = ister_producer_send(producer, &one, j->timeout_ms, NULL, &j->error);
    }
    if (result == ISTER_OK) ister_producer_flush(producer, j->timeout_ms, &j->error);
    add(&j->answer, "\"seconds\":%.9f", seconds() - began);
    free(payload);
    free(many);
}

static void bench_receive(job *j, ister_consumer *consumer) {
    enum { TOGETHER = 4096 };
    size_t messages = (size_t)json_number(j->command, "messages", 0), count = 0, size = 0, some;
    size_t most = json_flag(j->command, "batch") ? TOGETHER : 1;
    ister_message **came = need(calloc(TOGETHER, sizeof *came));
    double began = -1;
    while (count < messages) {
        if (ister_consumer_receive_batch(consumer, most, j->timeout_ms, came, &some, &j->error) != ISTER_OK) break;
        if (began < 0) began = seconds();
        ister_consumer_ack(consumer, came, some, &j->error);
        for (size_t i = 0; i < some; i++) {
            size += came[i]->payload_size;
            ister_message_free(came[i]);
        }
        count += some;
    }
    if (j->error.result == ISTER_OK) ister_consumer_flush(consumer, j->timeout_ms, &j->error);
    add(&j->answer, "\"seconds\":%.9f,\"bytes\":%zu", seconds() - began, size);
    free(came);
}

static int compare_times(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return a < b ? -1 : a > b;
}

static void bench_round_trips(job *j, ister_producer *producer, ister_consumer *consumer) {
    size_t messages = (size_t)json_number(j->command, "messages", 1);
    ister_outgoing one = {.payload_size = (size_t)json_number(j->command, "message_bytes", 0)};
    void *payload = need(calloc(1, one.payload_size + 1));
    double *took = need(calloc(messages, sizeof *took));
    one.payload = payload;
    for (size_t i = 0; i < messages; i++) {
        ister_message *message;
        double began = seconds();
        if (ister_producer_send(producer, &one, j->timeout_ms, NULL, &j->error) != ISTER_OK) break;
        if (ister_consumer_receive(consumer, j->timeout_ms, &message, &j->error) != ISTER_OK) break;
        took[i] = seconds() - began;
        ister_consumer_ack(consumer, &message, 1, &j->error);
        ister_message_free(message);
    }
    qsort(took, messages, sizeof *took, compare_times);
    add(&j->answer, "\"p50_us\":%.3f,\"p99_us\":%.3f", took[messages / 2] * 1e6, took[messages * 99 / 100] * 1e6);
    free(took);
    free(payload);
}

static void bench(job *j) {
    const char *what = j->what;
    thing *producer = find(PRODUCER, json_text(j->command, "producer"));
    thing *consumer = find(CONSUMER, json_text(j->command, "consumer"));
    bool sends = strcmp(what, "bench_receive") != 0, takes = strcmp(what, "bench_publish") != 0;
    if ((sends && !producer) || (takes && !consumer))
        no_name(j);
    else if (!takes)
        bench_publish(j, producer->producer);
    else if (!sends)
        bench_receive(j, consumer->consumer);
    else if (strcmp(what, "bench_round_trips") == 0)
        bench_round_trips(j, producer->producer, consumer->consumer);
    else
        unknown(j);
}

static void carry_out(job *j) {
    const char *what = j->what;
    thing *client = find(CLIENT, json_text(j->command, "client"));
    thing *consumer = find(CONSUMER, json_text(j->command, "consumer"));
    if (strcmp(what, "hello") == 0) {
        add(&j->answer, "\"protocol\":1,\"language\":\"c\",\"client\":\"ister-c/%s\",\"capabilities\":[",
            ISTER_VERSION);
        add_bytes(&j->answer, CAPABILITIES, sizeof CAPABILITIES - 1);
        add(&j->answer, "]");
    } else if (strcmp(what, "connect") == 0) {
        connect_to(j);
    } else if (strcmp(what, "close") == 0) {
        close_it(j);
    } else if (strcmp(what, "decode") == 0 || strcmp(what, "decode_batch") == 0 || strcmp(what, "encode_batch") == 0 ||
               strcmp(what, "producer_id") == 0) {
        codec(j);
    } else if (strcmp(what, "receipt") == 0) {
        wait_for_receipt(j);
    } else if (strncmp(what, "bench_", 6) == 0) {
        bench(j);
    } else if (strncmp(what, "publish", 7) == 0 || (strcmp(what, "flush") == 0 && json_text(j->command, "producer"))) {
        publishing(j);
    } else if (json_text(j->command, "client")) {
        if (client)
            with_client(j, client);
        else
            no_name(j);
    } else if (json_text(j->command, "consumer")) {
        if (consumer)
            with_consumer(j, consumer);
        else
            no_name(j);
    } else {
        unknown(j);
    }
}

int main(void) {
    static const char *const ACTIONS[] = {"retry", "fix", "stop"};
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        json *command = json_read(line);
        if (!command) {
            fprintf(stderr, "this is no JSON: %.200s\n", line);
            return 1;
        }
        job j = {.command = command, .what = json_text(command, "do")};
        j.timeout_ms = (int64_t)json_number(command, "timeout_ms", 10000);
        clock_gettime(CLOCK_MONOTONIC, &j.began);
        if (j.what)
            carry_out(&j);
        else
            unknown(&j);
        text out = {0};
        add(&out, "{\"id\":%" PRIu64 ",", json_number(command, "id", 0));
        if (j.error.result == ISTER_OK) {
            add(&out, "\"ok\":{");
            if (j.answer.size) add_bytes(&out, j.answer.data, j.answer.size);
            add(&out, "}}\n");
        } else {
            add(&out, "\"error\":{\"code\":\"%s\",\"action\":\"%s\",\"text\":", j.error.code, ACTIONS[j.error.action]);
            add_quoted(&out, j.error.text, strlen(j.error.text));
            add(&out, "}}\n");
        }
        fwrite(out.data, 1, out.size, stdout);
        fflush(stdout);
        free(out.data);
        free(j.answer.data);
        json_free(command);
    }
    free(line);
    for (thing *each = things; each; each = each->next) {
        if (each->kind == CLIENT) ister_client_close(each->client, END_WITHIN_MS, NULL);
    }
    while (things) let(things);
    return 0;
}
