/* What the drivers of Redis and mosquitto share: arguments, the clock, the answers. See ../README.md. */
#ifndef COMMON_H
#define COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define WATCH_NS 80000 /* before a message is due: the clock is watched, not slept through */

typedef struct {
    const char *role, *host, *topic;
    int port;
    long messages, size;
    double rate;
} load;

static inline int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static inline void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why ? why : "failed");
    exit(1);
}

static inline void say_ready(void) {
    puts("\"ready\"");
    fflush(stdout);
}

static inline void wait_for_go(void) {
    char line[16];
    say_ready();
    if (!fgets(line, sizeof line, stdin)) exit(1);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
}

static inline void say_took(const int64_t *took, long count) {
    printf("\"took\": [");
    for (long i = 0; i < count; i++) printf("%s%lld", i ? "," : "", (long long)took[i]);
    puts("]}");
    fflush(stdout);
}

/* driver SYSTEM ROLE HOST:PORT TOPIC MESSAGES BYTES RATE */
static inline load arguments(int count, char **given) {
    static char host[256];
    load with = {0};
    if (count != 8) {
        fprintf(stderr, "usage: driver SYSTEM ROLE HOST:PORT TOPIC MESSAGES BYTES RATE\n");
        exit(2);
    }
    snprintf(host, sizeof host, "%s", given[3]);
    char *colon = strrchr(host, ':');
    if (!colon) fail(given[3], "has no port");
    *colon = 0;
    with.role = given[2], with.host = host, with.port = atoi(colon + 1), with.topic = given[4];
    with.messages = atol(given[5]), with.size = atol(given[6]), with.rate = atof(given[7]);
    return with;
}
#endif
