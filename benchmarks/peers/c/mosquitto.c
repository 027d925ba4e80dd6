/* mosquitto through libmosquitto: QoS 0, or QoS 1 whose PUBACK is the receipt. See ../README.md. */
#include <mosquitto.h>
#include <pthread.h>
#include <semaphore.h>

#include "common.h"

#define IN_FLIGHT 1000 /* QoS 1: messages without a PUBACK */

static load with;
static int qos;
static struct mosquitto *client;
static sem_t answered, room, connected, over;
static int64_t *took, began;
static long count, bytes, done;
static int is_paced;

static void check(int code, const char *what) {
    if (code != MOSQ_ERR_SUCCESS) fail(what, mosquitto_strerror(code));
}

static void on_connect(struct mosquitto *m, void *o, int code) {
    (void)m, (void)o;
    if (code) fail("connect", mosquitto_connack_string(code));
    sem_post(&connected);
}

static void on_subscribe(struct mosquitto *m, void *o, int id, int n, const int *granted) {
    (void)m, (void)o, (void)id, (void)n, (void)granted;
    sem_post(&connected);
}

static void on_publish(struct mosquitto *m, void *o, int id) {
    (void)m, (void)o, (void)id;
    if (is_paced && done < with.messages) took[done] = now_ns() - (began + (int64_t)(done * 1e9 / with.rate));
    done++;
    sem_post(&room);
    sem_post(&answered);
    if (done == with.messages) sem_post(&over);
}

static void on_message(struct mosquitto *m, void *o, const struct mosquitto_message *message) {
    (void)m, (void)o;
    if (count >= with.messages) return;
    if (with.rate > 0) {
        int64_t due;
        memcpy(&due, message->payload, sizeof due);
        took[count] = now_ns() - due;
    }
    bytes += message->payloadlen;
    if (++count == with.messages) sem_post(&over);
}

static void wait_for(sem_t *one) {
    while (sem_wait(one)) {
    }
}

static void send_one(const char *payload) {
    wait_for(&room);
    check(mosquitto_publish(client, NULL, with.topic, (int)with.size, payload, qos, false), "publish");
}

int main(int argc, char **argv) {
    with = arguments(argc, argv);
    qos = !strcmp(argv[1], "mosquitto-qos1");
    took = malloc(sizeof *took * (with.messages + 1));
    sem_init(&answered, 0, 0), sem_init(&connected, 0, 0), sem_init(&over, 0, 0);
    sem_init(&room, 0, qos ? IN_FLIGHT : 1 << 30);
    mosquitto_lib_init();
    client = mosquitto_new(NULL, true, NULL);
    mosquitto_int_option(client, MOSQ_OPT_TCP_NODELAY, 1);
    mosquitto_max_inflight_messages_set(client, IN_FLIGHT);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_subscribe_callback_set(client, on_subscribe);
    mosquitto_publish_callback_set(client, on_publish);
    mosquitto_message_callback_set(client, on_message);
    check(mosquitto_connect(client, with.host, with.port, 60), "connect");
    check(mosquitto_loop_start(client), "thread");
    wait_for(&connected);
    char *payload = calloc(1, with.size + 1);
    if (!strcmp(with.role, "consume")) {
        check(mosquitto_subscribe(client, NULL, with.topic, qos), "subscribe");
        wait_for(&connected);
        say_ready();
        wait_for(&over);
        printf("{\"messages\": %ld, \"bytes\": %ld, \"ended\": %lld, ", count, bytes, (long long)now_ns());
        say_took(took, with.rate > 0 ? count : 0);
    } else if (!strcmp(with.role, "publish")) {
        wait_for_go();
        began = now_ns();
        for (long i = 0; i < with.messages; i++) send_one(payload);
        wait_for(&over);
        printf("{\"began\": %lld, \"ended\": %lld}\n", (long long)began, (long long)now_ns());
    } else if (!strcmp(with.role, "lone")) {
        wait_for_go();
        int64_t last = began = now_ns();
        for (long i = 0; i < with.messages; i++) {
            send_one(payload);
            wait_for(&answered);
            int64_t at = now_ns();
            took[i] = at - last, last = at;
        }
        printf("{\"began\": %lld, \"ended\": %lld, ", (long long)began, (long long)last);
        say_took(took, with.messages);
    } else if (!strcmp(with.role, "paced")) {
        is_paced = 1;
        wait_for_go();
        began = now_ns() + 1000000;
        for (long i = 0; i < with.messages; i++) {
            int64_t due = began + (int64_t)(i * 1e9 / with.rate), wait = due - now_ns() - WATCH_NS;
            if (wait > 0) nanosleep(&(struct timespec){wait / 1000000000, wait % 1000000000}, NULL);
            while (now_ns() < due) {
            }
            memcpy(payload, &due, sizeof due);
            send_one(payload);
        }
        wait_for(&over);
        printf("{");
        say_took(took, with.messages);
    } else fail(with.role, "is no role");
    mosquitto_disconnect(client);
    mosquitto_loop_stop(client, false);
    return 0;
}
