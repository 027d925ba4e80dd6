/* Redis streams through hiredis: XADD in pipelines, XREADGROUP and XACK in groups. See ../README.md. */
#define _GNU_SOURCE /* ppoll */
#include <errno.h>
#include <hiredis/hiredis.h>
#include <poll.h>

#include "common.h"

#define PIPELINE 1000 /* commands without an answer */
#define READ_COUNT "500"

static redisContext *context;
static load with;

static redisReply *answer(void) {
    redisReply *reply;
    if (redisGetReply(context, (void **)&reply) != REDIS_OK) fail("redis", context->errstr);
    if (reply->type == REDIS_REPLY_ERROR) fail("redis", reply->str);
    return reply;
}

static void add(const char *payload) {
    const char *parts[] = {"XADD", with.topic, "*", "p", payload};
    const size_t lengths[] = {4, strlen(with.topic), 1, 1, (size_t)with.size};
    if (redisAppendCommandArgv(context, 5, parts, lengths) != REDIS_OK) fail("XADD", context->errstr);
}

static void publish(void) {
    char *payload = calloc(1, with.size + 1);
    wait_for_go();
    int64_t began = now_ns();
    for (long sent = 0, answered = 0; answered < with.messages;) {
        /* half a pipeline is refilled at once, so that writes are large and the server never waits */
        while (sent < with.messages && sent - answered < PIPELINE) add(payload), sent++;
        for (long half = sent - answered > PIPELINE / 2 ? PIPELINE / 2 : sent - answered; half > 0; half--)
            freeReplyObject(answer()), answered++;
    }
    printf("{\"began\": %lld, \"ended\": %lld}\n", (long long)began, (long long)now_ns());
}

static void lone(void) {
    char *payload = calloc(1, with.size + 1);
    int64_t *took = malloc(sizeof *took * with.messages);
    wait_for_go();
    int64_t began = now_ns(), last = began;
    for (long i = 0; i < with.messages; i++) {
        add(payload);
        freeReplyObject(answer());
        int64_t at = now_ns();
        took[i] = at - last, last = at;
    }
    printf("{\"began\": %lld, \"ended\": %lld, ", (long long)began, (long long)last);
    say_took(took, with.messages);
}

static void write_out(void) {
    int done = 0;
    while (!done)
        if (redisBufferWrite(context, &done) != REDIS_OK) fail("redis", context->errstr);
}

/* One thread: between messages it waits for answers, so that neither waits for the other. */
static void paced(void) {
    char *payload = calloc(1, with.size + 1);
    int64_t *took = malloc(sizeof *took * with.messages);
    wait_for_go();
    int64_t began = now_ns() + 1000000;
    for (long sent = 0, answered = 0; answered < with.messages;) {
        int64_t due = began + (int64_t)(sent * 1e9 / with.rate), wait = due - now_ns();
        if (sent < with.messages && wait <= 0) {
            memcpy(payload, &due, sizeof due);
            add(payload);
            write_out();
            sent++;
            continue;
        }
        if (sent < with.messages && wait <= WATCH_NS && sent == answered) continue;
        struct pollfd ready = {context->fd, POLLIN, 0};
        struct timespec left = {wait / 1000000000, wait % 1000000000};
        if (sent < with.messages && wait > WATCH_NS) left.tv_nsec = (wait - WATCH_NS) % 1000000000;
        else if (sent < with.messages) left = (struct timespec){0, 0};
        if (ppoll(&ready, 1, sent < with.messages ? &left : NULL, NULL) <= 0) continue;
        if (redisBufferRead(context) != REDIS_OK) fail("redis", context->errstr);
        redisReply *reply;
        while (redisGetReplyFromReader(context, (void **)&reply) == REDIS_OK && reply) {
            if (reply->type == REDIS_REPLY_ERROR) fail("redis", reply->str);
            took[answered] = now_ns() - (began + (int64_t)(answered * 1e9 / with.rate));
            answered++;
            freeReplyObject(reply);
        }
    }
    printf("{");
    say_took(took, with.messages);
}

static void consume(void) {
    int64_t *took = malloc(sizeof *took * (with.messages + 1));
    redisReply *made = redisCommand(context, "XGROUP CREATE %s g 0 MKSTREAM", with.topic);
    if (!made || made->type == REDIS_REPLY_ERROR) fail("XGROUP", made ? made->str : context->errstr);
    say_ready();
    long count = 0, bytes = 0;
    while (count < with.messages) {
        redisReply *got = redisCommand(
            context, "XREADGROUP GROUP g c COUNT " READ_COUNT " BLOCK 5000 STREAMS %s >", with.topic);
        if (!got) fail("XREADGROUP", context->errstr);
        if (got->type != REDIS_REPLY_ARRAY) {
            freeReplyObject(got);
            continue;
        }
        redisReply *entries = got->element[0]->element[1];
        const char **ids = malloc(sizeof *ids * (entries->elements + 3));
        size_t *lengths = malloc(sizeof *lengths * (entries->elements + 3));
        ids[0] = "XACK", ids[1] = with.topic, ids[2] = "g";
        lengths[0] = 4, lengths[1] = strlen(with.topic), lengths[2] = 1;
        for (size_t i = 0; i < entries->elements; i++) {
            redisReply *entry = entries->element[i], *payload = entry->element[1]->element[1];
            if (with.rate > 0) {
                int64_t due;
                memcpy(&due, payload->str, sizeof due);
                took[count] = now_ns() - due;
            }
            bytes += payload->len, count++;
            ids[i + 3] = entry->element[0]->str, lengths[i + 3] = entry->element[0]->len;
        }
        redisReply *done = redisCommandArgv(context, (int)entries->elements + 3, ids, lengths);
        if (!done || done->type == REDIS_REPLY_ERROR) fail("XACK", done ? done->str : context->errstr);
        freeReplyObject(done);
        free(ids), free(lengths);
        freeReplyObject(got);
    }
    printf("{\"messages\": %ld, \"bytes\": %ld, \"ended\": %lld, ", count, bytes, (long long)now_ns());
    say_took(took, with.rate > 0 ? count : 0);
}

int main(int count, char **given) {
    with = arguments(count, given);
    context = redisConnect(with.host, with.port);
    if (!context || context->err) fail("redis", context ? context->errstr : "out of memory");
    if (!strcmp(with.role, "publish")) publish();
    else if (!strcmp(with.role, "lone")) lone();
    else if (!strcmp(with.role, "paced")) paced();
    else if (!strcmp(with.role, "consume")) consume();
    else fail(with.role, "is no role");
    redisFree(context);
    return 0;
}
