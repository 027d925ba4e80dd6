/* What programs call, against a broker: test_api ENDPOINT. The scenarios of tests/conformance_clients hold the rest. */
#define _POSIX_C_SOURCE 200809L
#include "ister.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { WAIT_MS = 20000, MESSAGES = 500, THREADS = 3 };

static int failures;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            failures++;                                                                                                \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition);                                            \
        }                                                                                                              \
    } while (0)

#define WORKS(call)                                                                                                    \
    do {                                                                                                               \
        ister_error told;                                                                                              \
        if ((call) != ISTER_OK) {                                                                                      \
            failures++;                                                                                                \
            fprintf(stderr, "line %d: %s: %s: %s\n", __LINE__, #call, told.code, told.text);                           \
        }                                                                                                              \
    } while (0)

static const char *endpoint;
static ister_client *client;
static ister_producer *producer;
static atomic_int called, refused, logged, waited;

static void log_it(void *user, ister_log_level level, const char *text) {
    (void)level;
    if (user == &logged && *text) atomic_fetch_add(&logged, 1);
}

static void on_receipt(void *user, const ister_published *published, const ister_error *error) {
    ister_error said;
    if (error || !published->has_offset) atomic_fetch_add(&refused, 1);
    ister_producer_next_sequence(producer);                               /* does not wait: allowed */
    ister_result result = ister_producer_flush(producer, WAIT_MS, &said); /* would wait, unless this was the last */
    if (result != ISTER_OK && result != ISTER_INVALID && result != ISTER_CLOSED) atomic_fetch_add(&refused, 1);
    if (ister_client_close(client, WAIT_MS, &said) == ISTER_INVALID) atomic_fetch_add(&waited, 1);
    atomic_fetch_add((atomic_int *)user, 1); /* last: the test goes on, and frees the producer */
}

static void *publish(void *unused) {
    (void)unused;
    for (int i = 0; i < MESSAGES; i++) {
        ister_outgoing one = {.payload = &i, .payload_size = sizeof i};
        ister_receipt *receipt;
        WORKS(ister_producer_send(producer, &one, WAIT_MS, &receipt, &told));
        if (i % 50 == 0) {
            ister_published published;
            WORKS(ister_receipt_wait(receipt, WAIT_MS, &published, &told));
            CHECK(ister_receipt_poll(receipt) && published.has_offset && published.count == 1);
        }
        ister_receipt_free(receipt);
    }
    return NULL;
}

static ister_client *connect_it(void) {
    ister_client *made = NULL;
    ister_client_options options = {.name = "api", .log = log_it, .log_user = &logged};
    WORKS(ister_connect(&endpoint, 1, &options, WAIT_MS, &made, &told));
    return made;
}

static void threads_share_a_producer_and_a_consumer(void) {
    pthread_t threads[THREADS];
    ister_consumer *consumer;
    ister_consumer_options options = {.start = {ISTER_EARLIEST, 0}};
    size_t count, all = 0;
    ister_message *messages[100];
    WORKS(ister_topic_create(client, "shared", NULL, WAIT_MS, NULL, &told));
    WORKS(ister_producer_open(client, "shared", NULL, WAIT_MS, &producer, &told));
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, publish, NULL);
    WORKS(ister_consumer_open(client, "shared", "all", &options, WAIT_MS, &consumer, &told));
    while (all < THREADS * MESSAGES && !failures) {
        WORKS(ister_consumer_receive_batch(consumer, 100, WAIT_MS, messages, &count, &told));
        WORKS(ister_consumer_ack(consumer, messages, count, &told));
        for (size_t i = 0; i < count; i++) ister_message_free(messages[i]);
        all += count;
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    WORKS(ister_consumer_flush(consumer, WAIT_MS, &told));
    WORKS(ister_consumer_close(consumer, WAIT_MS, &told));
    WORKS(ister_consumer_close(consumer, WAIT_MS, &told)); /* again does nothing */
    ister_consumer_free(consumer);
}

static void functions_are_called_once_and_may_not_wait(void) {
    ister_outgoing one = {.payload = "x", .payload_size = 1};
    for (int i = 0; i < MESSAGES; i++) {
        WORKS(ister_producer_send_then(producer, &one, WAIT_MS, on_receipt, &called, &told));
    }
    WORKS(ister_producer_close(producer, WAIT_MS, &told));
    for (int i = 0; i < 1000 && atomic_load(&called) < MESSAGES; i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
    CHECK(atomic_load(&called) == MESSAGES && atomic_load(&refused) == 0);
    CHECK(atomic_load(&waited) == MESSAGES);
    ister_error said;
    CHECK(ister_producer_send(producer, &one, 0, NULL, &said) == ISTER_CLOSED && strcmp(said.code, "closed") == 0);
    ister_producer_free(producer);
}

static void *interrupt_it(void *unused) {
    (void)unused;
    for (int i = 0; i < 20; i++) {
        nanosleep(&(struct timespec){0, 50000000}, NULL);
        ister_client_interrupt(client);
    }
    return NULL;
}

static void a_call_is_interrupted_and_nothing_else_changes(void) {
    pthread_t thread;
    ister_consumer *reader;
    ister_message *message;
    ister_error said;
    WORKS(ister_reader_open(client, "shared", (ister_place){ISTER_LATEST, 0}, 0, WAIT_MS, &reader, &told));
    pthread_create(&thread, NULL, interrupt_it, NULL);
    CHECK(ister_consumer_receive(reader, -1, &message, &said) == ISTER_CANCELLED);
    pthread_join(thread, NULL);
    CHECK(ister_consumer_receive(reader, 50, &message, &said) == ISTER_TIMEOUT);
    CHECK(ister_consumer_receive(reader, 0, &message, &said) == ISTER_TIMEOUT);
    ister_consumer_free(reader); /* without a close */
}

static void what_came_from_a_client_may_outlive_it(void) {
    ister_client *other = connect_it();
    ister_producer *by;
    ister_receipt *receipt, *answered;
    ister_consumer *reader;
    ister_message *message;
    ister_error said;
    ister_outgoing one = {.payload = "last", .payload_size = 4};
    WORKS(ister_topic_create(other, "outlived", NULL, WAIT_MS, NULL, &told));
    WORKS(ister_producer_open(other, "outlived", NULL, WAIT_MS, &by, &told));
    WORKS(ister_producer_send(by, &one, WAIT_MS, &answered, &told));
    WORKS(ister_receipt_wait(answered, WAIT_MS, NULL, &told));
    WORKS(ister_reader_open(other, "outlived", (ister_place){ISTER_EARLIEST, 0}, 0, WAIT_MS, &reader, &told));
    WORKS(ister_consumer_receive(reader, WAIT_MS, &message, &told));
    WORKS(ister_producer_send(by, &one, WAIT_MS, &receipt, &told));
    ister_client_free(other); /* without a close */
    CHECK(memcmp(message->payload, "last", message->payload_size) == 0);
    WORKS(ister_receipt_wait(answered, 0, NULL, &told));
    CHECK(ister_receipt_poll(receipt)); /* answered, or given up: nothing waits for ever */
    CHECK(ister_consumer_receive(reader, 0, &(ister_message *){NULL}, &said) == ISTER_CLOSED);
    ister_receipt_free(answered);
    ister_receipt_free(receipt);
    ister_message_free(message);
    ister_consumer_free(reader);
    ister_producer_free(by);
}

static void calls_that_cannot_be_right_are_refused_here(void) {
    ister_error said;
    ister_producer *by;
    ister_consumer *of;
    ister_client *none;
    char topic[2000];
    memset(topic, 'x', sizeof topic - 1);
    topic[sizeof topic - 1] = 0;
    CHECK(ister_connect(NULL, 0, NULL, WAIT_MS, &none, &said) == ISTER_INVALID && !none);
    CHECK(ister_producer_open(client, topic, NULL, WAIT_MS, &by, &said) == ISTER_INVALID && !by);
    CHECK(ister_producer_open(client, "\xff", NULL, WAIT_MS, &by, NULL) == ISTER_INVALID);
    CHECK(ister_consumer_open(client, "shared", "", NULL, WAIT_MS, &of, &said) == ISTER_INVALID && !of);
    CHECK(ister_producer_open(client, "nowhere", NULL, WAIT_MS, &by, &said) == ISTER_REFUSED);
    CHECK(strcmp(said.code, "unknown-topic") == 0 && said.action == ISTER_FIX);
    ister_map *large = ister_map_new();
    for (int i = 0; i < 100; i++) {
        snprintf(topic, 100, "option-%d-%080d", i, i);
        ister_map_text(large, topic, topic);
    }
    CHECK(ister_topic_create(client, "large", large, WAIT_MS, NULL, &said) == ISTER_INVALID);
    ister_map_free(large);
}

static void publish_text(const char *topic, const char *text) {
    ister_producer *by = NULL;
    ister_attribute color = {"color", "red", 0, 0};
    ister_outgoing one = {
        .payload = text, .payload_size = strlen(text), .key = "k", .key_size = 1, .attributes = &color};
    one.attributes_count = 1;
    WORKS(ister_producer_open(client, topic, NULL, WAIT_MS, &by, &told));
    WORKS(ister_producer_send(by, &one, WAIT_MS, NULL, &told));
    WORKS(ister_producer_close(by, WAIT_MS, &told));
    ister_producer_free(by);
}

static bool is_message(const ister_message *message, const char *topic, const char *text) {
    return strcmp(message->topic, topic) == 0 && message->payload_size == strlen(text) &&
           memcmp(message->payload, text, message->payload_size) == 0;
}

static void a_pattern_follows_its_topics(void) {
    ister_consumer *of = NULL;
    ister_consumer_options options = {.start = {ISTER_EARLIEST, 0}};
    ister_message *messages[3] = {0};
    ister_error said;
    ister_event event;
    WORKS(ister_topic_create(client, "pat/one", NULL, WAIT_MS, NULL, &told));
    WORKS(ister_topic_create(client, "pat/letters.dlq", NULL, WAIT_MS, NULL, &told));
    publish_text("pat/one", "one");
    WORKS(ister_consumer_open(client, "pat/*", "all", &options, WAIT_MS, &of, &told));
    if (!of) return;
    WORKS(ister_consumer_receive(of, WAIT_MS, &messages[0], &told));
    CHECK(is_message(messages[0], "pat/one", "one"));
    WORKS(ister_topic_create(client, "pat/two", NULL, WAIT_MS, NULL, &told));
    publish_text("pat/two", "two"); /* before it is followed: from its first message on */
    WORKS(ister_consumer_receive(of, WAIT_MS, &messages[1], &told));
    CHECK(is_message(messages[1], "pat/two", "two"));
    ister_value *topics = ister_consumer_topics(of);
    CHECK(ister_value_count(topics) == 2 && strcmp(ister_value_text(ister_value_at(topics, 0), NULL), "pat/one") == 0);
    ister_value_free(topics);
    CHECK(ister_consumer_seek(of, (ister_place){ISTER_EARLIEST, 0}, WAIT_MS, NULL, &said) == ISTER_INVALID);
    WORKS(ister_consumer_ack(of, messages, 2, &told));
    WORKS(ister_consumer_flush(of, WAIT_MS, &told));
    WORKS(ister_topic_delete(client, "pat/one", WAIT_MS, &told));
    publish_text("pat/two", "three");
    WORKS(ister_consumer_receive(of, WAIT_MS, &messages[2], &told));
    CHECK(is_message(messages[2], "pat/two", "three"));
    CHECK(ister_consumer_receive(of, 300, &(ister_message *){NULL}, &said) == ISTER_TIMEOUT);
    WORKS(ister_consumer_ack(of, messages, 3, &told)); /* what is about a topic that is gone is passed over */
    WORKS(ister_consumer_nack(of, &messages[2], 1, 0, "again", &told));
    CHECK(!ister_consumer_next_event(of, &event));
    CHECK(ister_consumer_position(of) == 0);
    WORKS(ister_consumer_close(of, WAIT_MS, &told));
    CHECK(ister_consumer_receive(of, 0, &(ister_message *){NULL}, &said) == ISTER_CLOSED);
    ister_consumer_free(of);
    ister_consumer *other;
    WORKS(ister_consumer_open(client, "pat/two", "other", &options, WAIT_MS, &other, &told));
    CHECK(ister_consumer_ack(other, &messages[1], 1, &said) == ISTER_INVALID); /* it came from the pattern's */
    ister_consumer_free(other);
    for (int i = 0; i < 3; i++) ister_message_free(messages[i]);
}

static void a_topic_that_a_pattern_cannot_have_is_told(void) {
    ister_consumer *of = NULL;
    ister_error said;
    WORKS(ister_topic_create(client, "strict/a", NULL, WAIT_MS, NULL, &told));
    WORKS(ister_subscription_create(client, "strict/a", "all", "exclusive", (ister_place){0}, NULL, WAIT_MS, NULL,
                                    &told));
    CHECK(ister_consumer_open(client, "strict/>", "all", NULL, WAIT_MS, &of, &said) == ISTER_REFUSED && !of);
    CHECK(strcmp(said.code, "subscription-type") == 0 && strstr(said.text, "strict/a"));
    CHECK(ister_consumer_open(client, "strict/>/b", "all", NULL, WAIT_MS, &of, &said) == ISTER_REFUSED && !of);
    WORKS(ister_consumer_open(client, "strict/*/none", "all", NULL, WAIT_MS, &of, &told));
    if (!of) return;
    CHECK(ister_consumer_receive(of, 50, &(ister_message *){NULL}, &said) == ISTER_TIMEOUT);
    ister_consumer_free(of); /* without a close */
}

enum { LETTERS = 7 };

static void dead_letters_are_listed_sent_back_and_deleted(void) {
    ister_consumer *of = NULL;
    ister_map *once = ister_map_new();
    ister_message *found[LETTERS], *message;
    ister_dead_letter letter;
    size_t count = 0;
    uint64_t waiting = 0, sent = 0;
    ister_map_number(once, "max_deliveries", 1);
    ister_consumer_options options = {.start = {ISTER_EARLIEST, 0}, .options = once};
    WORKS(ister_topic_create(client, "tasks", NULL, WAIT_MS, NULL, &told));
    WORKS(ister_dead_letters_count(client, "tasks", "workers", WAIT_MS, &waiting, &told));
    CHECK(waiting == 0);
    for (int i = 0; i < LETTERS; i++) publish_text("tasks", "hard");
    WORKS(ister_consumer_open(client, "tasks", "workers", &options, WAIT_MS, &of, &told));
    for (int i = 0; i < LETTERS; i++) {
        WORKS(ister_consumer_receive(of, WAIT_MS, &message, &told));
        WORKS(ister_consumer_nack(of, &message, 1, -1, "too hard", &told));
        ister_message_free(message);
    }
    while (waiting < LETTERS && !failures)
        WORKS(ister_dead_letters_count(client, "tasks", "workers", WAIT_MS, &waiting, &told));
    WORKS(ister_dead_letters_list(client, "tasks", "workers", -1, 4, WAIT_MS, found, &count, &told));
    CHECK(count == 4);
    if (count != 4) return;
    ister_dead_letter_read(found[3], &letter);
    CHECK(strcmp(letter.topic, "tasks") == 0 && strcmp(letter.subscription, "workers") == 0 && letter.offset == 3);
    CHECK(strcmp(letter.reason, "too hard") == 0 && letter.attempts == 1 && letter.dead_lettered_at_ms > 0);
    WORKS(ister_dead_letters_list(client, "tasks", "workers", (int64_t)found[3]->offset, LETTERS, WAIT_MS, found + 4,
                                  &count, &told));
    CHECK(count == 3 && found[6]->offset == 6);
    for (int i = 0; i < LETTERS; i++) ister_message_free(found[i]);
    ister_redrive_options how = {.offsets = (uint64_t[]){2, 4, 5}, .offsets_count = 3, .most = 2};
    WORKS(ister_dead_letters_redrive(client, "tasks", "workers", &how, WAIT_MS, &sent, &told));
    CHECK(sent == 2);
    how = (ister_redrive_options){.most = 3};
    WORKS(ister_dead_letters_redrive(client, "tasks", "workers", &how, WAIT_MS, &sent, &told));
    CHECK(sent == 3);
    WORKS(ister_consumer_receive(of, WAIT_MS, &message, &told));
    ister_attribute attribute;
    CHECK(message->key_size == 1 && ister_message_attribute(message, "color", &attribute));
    CHECK(ister_message_attribute(message, "ister.redriven_from", &attribute) && attribute.value_size == 17);
    CHECK(!ister_message_attribute(message, "ister.reason", &attribute));
    ister_message_free(message);
    WORKS(ister_dead_letters_purge(client, "tasks", "workers", 100, WAIT_MS, &sent, &told));
    CHECK(sent == 2);
    WORKS(ister_dead_letters_list(client, "tasks", "workers", -1, LETTERS, WAIT_MS, found, &count, &told));
    CHECK(count == 0);
    ister_error said;
    how.to = "tasks.workers.dlq";
    CHECK(ister_dead_letters_redrive(client, "tasks", "workers", &how, WAIT_MS, NULL, &said) == ISTER_INVALID);
    WORKS(ister_consumer_blame(of, "the test ends", &told));
    WORKS(ister_consumer_close(of, WAIT_MS, &told));
    CHECK(ister_consumer_blame(of, NULL, &said) == ISTER_CLOSED);
    ister_consumer_free(of);
    ister_map_free(once);
}

int main(int count, char **arguments) {
    ister_event event;
    if (count != 2) return 2;
    endpoint = arguments[1];
    client = connect_it();
    if (failures) return 1;
    threads_share_a_producer_and_a_consumer();
    functions_are_called_once_and_may_not_wait();
    a_call_is_interrupted_and_nothing_else_changes();
    what_came_from_a_client_may_outlive_it();
    calls_that_cannot_be_right_are_refused_here();
    a_pattern_follows_its_topics();
    a_topic_that_a_pattern_cannot_have_is_told();
    dead_letters_are_listed_sent_back_and_deleted();
    CHECK(ister_client_next_event(client, &event) && strcmp(event.code, "connected") == 0);
    CHECK(atomic_load(&logged) >= 2);
    WORKS(ister_client_close(client, WAIT_MS, &told));
    WORKS(ister_client_close(client, WAIT_MS, &told));
    ister_client_free(client);
    ister_client_free(NULL);
    return failures ? 1 : 0;
}
