/* ister.c - a client of the Ister message broker, written from transport/PROTOCOL.md. See ister.h.
 *
 * Contents: memory and errors; time; CBOR; headers; batches; sessions, producers and consumers without I/O; requests
 * between clients; sockets and the client's thread; what programs call.
 *
 * Everything up to "sockets" knows no socket, clock or thread: it is given the time, and messages, and leaves what is
 * to be sent in an outbox. Whoever calls it holds the client's lock.
 */
#define _DEFAULT_SOURCE
#define _POSIX_C_SOURCE 200809L

#include "ister.h"

#include <cbor.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define CLIENT_TEXT "ister-c/" ISTER_VERSION

#if defined(__GNUC__)
#define FORMAT_LIKE_PRINTF(at, first) __attribute__((__format__(__printf__, at, first)))
#else
#define FORMAT_LIKE_PRINTF(at, first)
#endif

/* ---- memory and errors ---- */

static void no_memory(size_t size) {
    fprintf(stderr, "ister: there is no memory for %zu bytes\n", size);
    abort();
}

static void *allocate(size_t size) {
    void *made = calloc(1, size ? size : 1);
    if (!made) no_memory(size);
    return made;
}

static void *allocate_again(void *old, size_t size) {
    void *made = realloc(old, size ? size : 1);
    if (!made) no_memory(size);
    return made;
}

static char *copy_text(const char *text) {
    size_t size = strlen(text) + 1;
    return memcpy(allocate(size), text, size);
}

/* Bytes that grow. */
typedef struct {
    uint8_t *data;
    size_t size, room;
} bytes;

static uint8_t *reserve(bytes *to, size_t more) {
    if (to->room - to->size < more) {
        size_t room = to->room ? to->room : 64;
        while (room - to->size < more) room *= 2;
        to->data = allocate_again(to->data, room);
        to->room = room;
    }
    return to->data + to->size;
}

static void append(bytes *to, const void *data, size_t size) {
    if (!size) return;
    memcpy(reserve(to, size), data, size);
    to->size += size;
}

static void append_zeros(bytes *to, size_t size) {
    if (!size) return;
    memset(reserve(to, size), 0, size);
    to->size += size;
}

static void append_u32(bytes *to, uint32_t value) {
    uint8_t raw[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24)};
    append(to, raw, sizeof raw);
}

static void append_u64(bytes *to, uint64_t value) {
    append_u32(to, (uint32_t)value);
    append_u32(to, (uint32_t)(value >> 32));
}

static uint32_t read_u32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t read_u64(const uint8_t *at) { return read_u32(at) | (uint64_t)read_u32(at + 4) << 32; }

static void drop_bytes(bytes *old) {
    free(old->data);
    *old = (bytes){0};
}

/* Copies text into a field, cut at a letter's end. */
static void copy_into(char *field, size_t room, const char *text, size_t size) {
    if (size >= room) {
        size = room - 1;
        while (size && ((uint8_t)text[size] & 0xc0) == 0x80) size--;
    }
    memcpy(field, text, size);
    field[size] = 0;
}

FORMAT_LIKE_PRINTF(5, 6)
static void say(ister_error *error, ister_result result, ister_action action, const char *code, const char *format,
                ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    error->result = result;
    error->action = action;
    copy_into(error->code, sizeof error->code, code, strlen(code));
    copy_into(error->text, sizeof error->text, text, strlen(text));
}

#define say_lost(error, ...) say(error, ISTER_LOST, ISTER_RETRY, "connection-lost", __VA_ARGS__)
#define say_invalid(error, ...) say(error, ISTER_INVALID, ISTER_FIX, "invalid-argument", __VA_ARGS__)
#define say_malformed(error, ...) say(error, ISTER_REFUSED, ISTER_STOP, "malformed", __VA_ARGS__)
#define say_closed(error, what) say(error, ISTER_CLOSED, ISTER_STOP, "closed", "the %s is closed", what)

static ister_result tell(ister_error *to, const ister_error *error) {
    if (to) *to = *error;
    return error->result;
}

static bool has_code(const ister_error *error, const char *code) { return strcmp(error->code, code) == 0; }

/* Microseconds of a clock that is never set. */
typedef int64_t us;
#define MS ((us)1000)
#define SECOND ((us)1000000)
#define NEVER (INT64_MAX / 2)

static us earlier(us one, us other) { return one < other ? one : other; }
static uint64_t smaller(uint64_t one, uint64_t other) { return one < other ? one : other; }
static uint64_t larger(uint64_t one, uint64_t other) { return one > other ? one : other; }

static us back_off(int failures, us least, us most) {
    for (; failures > 0 && least < most; failures--) least *= 2;
    return earlier(least, most);
}

static uint64_t random_number(void) {
    uint64_t made;
    if (getentropy(&made, sizeof made) != 0) {
        static atomic_uint_fast64_t counter;
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        made = (uint64_t)now.tv_nsec * 0x9e3779b97f4a7c15U ^ (uint64_t)now.tv_sec << 20 ^ (uint64_t)getpid() << 40 ^
               (atomic_fetch_add(&counter, 1) + 1) * 0xbf58476d1ce4e5b9U;
    }
    return made;
}

/* ---- BLAKE2b, with a digest of 8 bytes (RFC 7693): ids of named producers ---- */

static const uint64_t BLAKE_START[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                        0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
static const uint8_t BLAKE_ORDER[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

static uint64_t turn(uint64_t word, int by) { return word >> by | word << (64 - by); }

static void blake_mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y) {
    v[a] += v[b] + x;
    v[d] = turn(v[d] ^ v[a], 32);
    v[c] += v[d];
    v[b] = turn(v[b] ^ v[c], 24);
    v[a] += v[b] + y;
    v[d] = turn(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = turn(v[b] ^ v[c], 63);
}

static void blake_block(uint64_t *state, const uint8_t *block, uint64_t counted, bool last) {
    uint64_t v[16], words[16];
    for (int i = 0; i < 8; i++) {
        v[i] = state[i];
        v[i + 8] = BLAKE_START[i];
    }
    for (int i = 0; i < 16; i++) words[i] = read_u64(block + 8 * (size_t)i);
    v[12] ^= counted;
    if (last) v[14] = ~v[14];
    for (int round = 0; round < 12; round++) {
        const uint8_t *order = BLAKE_ORDER[round % 10];
        blake_mix(v, 0, 4, 8, 12, words[order[0]], words[order[1]]);
        blake_mix(v, 1, 5, 9, 13, words[order[2]], words[order[3]]);
        blake_mix(v, 2, 6, 10, 14, words[order[4]], words[order[5]]);
        blake_mix(v, 3, 7, 11, 15, words[order[6]], words[order[7]]);
        blake_mix(v, 0, 5, 10, 15, words[order[8]], words[order[9]]);
        blake_mix(v, 1, 6, 11, 12, words[order[10]], words[order[11]]);
        blake_mix(v, 2, 7, 8, 13, words[order[12]], words[order[13]]);
        blake_mix(v, 3, 4, 9, 14, words[order[14]], words[order[15]]);
    }
    for (int i = 0; i < 8; i++) state[i] ^= v[i] ^ v[i + 8];
}

static uint64_t blake2b_8(const uint8_t *data, size_t size) {
    uint64_t state[8];
    uint8_t block[128];
    size_t at = 0;
    memcpy(state, BLAKE_START, sizeof state);
    state[0] ^= 0x01010000U ^ 8U;
    for (; size - at > sizeof block; at += sizeof block) blake_block(state, data + at, at + sizeof block, false);
    memset(block, 0, sizeof block);
    if (size > at) memcpy(block, data + at, size - at);
    blake_block(state, block, size, true);
    return state[0];
}

uint64_t ister_producer_id(const char *topic, const char *name) {
    bytes both = {0};
    append(&both, topic, strlen(topic) + 1);
    append(&both, name, strlen(name));
    uint64_t id = blake2b_8(both.data, both.size) >> 1;
    drop_bytes(&both);
    return id ? id : 1;
}

/* ---- CBOR, item by item ---- */

static void put_number(bytes *to, uint64_t value) { to->size += cbor_encode_uint(value, reserve(to, 9), 9); }

static void put_text(bytes *to, const char *text, size_t size) {
    to->size += cbor_encode_string_start(size, reserve(to, 9), 9);
    append(to, text, size);
}

static void put_bytes(bytes *to, const void *data, size_t size) {
    to->size += cbor_encode_bytestring_start(size, reserve(to, 9), 9);
    append(to, data, size);
}

static void put_flag(bytes *to, bool value) { to->size += cbor_encode_bool(value, reserve(to, 1), 1); }
static void put_list(bytes *to, size_t count) { to->size += cbor_encode_array_start(count, reserve(to, 9), 9); }
static void put_map(bytes *to, size_t count) { to->size += cbor_encode_map_start(count, reserve(to, 9), 9); }

static bool is_utf8(const uint8_t *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        uint8_t first = text[at];
        size_t more = first < 0x80 ? 0 : first < 0xc2 ? 9 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : 9;
        if (more == 9 || more >= size - at) return false;
        for (size_t i = 1; i <= more; i++) {
            if ((text[at + i] & 0xc0) != 0x80) return false;
        }
        uint8_t second = more ? text[at + 1] : 0;
        if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || (first == 0xf0 && second < 0x90) ||
            (first == 0xf4 && second > 0x8f)) {
            return false;
        }
        at += more + 1;
    }
    return true;
}

typedef enum { BAD, NUMBER, NEGATIVE, REAL, FLAG, NOTHING, TEXT, BYTES, LIST, MAP } item_kind;

/* One item: of a list or map its head. */
typedef struct {
    item_kind kind;
    uint64_t number; /* or the count of a list or map */
    double real;
    const uint8_t *data;
    size_t size;
} item;

typedef struct {
    const uint8_t *data;
    size_t size, at;
} cursor;

static void on_number(item *to, uint64_t value) { *to = (item){.kind = NUMBER, .number = value}; }
static void on_negative(item *to, uint64_t value) { *to = (item){.kind = NEGATIVE, .number = value}; }
static void on_u8(void *to, uint8_t value) { on_number(to, value); }
static void on_u16(void *to, uint16_t value) { on_number(to, value); }
static void on_u32(void *to, uint32_t value) { on_number(to, value); }
static void on_u64(void *to, uint64_t value) { on_number(to, value); }
static void on_n8(void *to, uint8_t value) { on_negative(to, value); }
static void on_n16(void *to, uint16_t value) { on_negative(to, value); }
static void on_n32(void *to, uint32_t value) { on_negative(to, value); }
static void on_n64(void *to, uint64_t value) { on_negative(to, value); }
static void on_float(void *to, float value) { *(item *)to = (item){.kind = REAL, .real = (double)value}; }
static void on_double(void *to, double value) { *(item *)to = (item){.kind = REAL, .real = value}; }
static void on_flag(void *to, bool value) { *(item *)to = (item){.kind = FLAG, .number = value}; }
static void on_null(void *to) { *(item *)to = (item){.kind = NOTHING}; }
static void on_list(void *to, size_t count) { *(item *)to = (item){.kind = LIST, .number = count}; }
static void on_map(void *to, size_t count) { *(item *)to = (item){.kind = MAP, .number = count}; }
static void on_refused(void *to) { *(item *)to = (item){.kind = BAD}; }
static void on_tag(void *to, uint64_t tag) {
    (void)tag;
    on_refused(to);
}
static void on_text(void *to, cbor_data data, size_t size) {
    *(item *)to = (item){.kind = is_utf8(data, size) ? TEXT : BAD, .data = data, .size = size};
}
static void on_bytes(void *to, cbor_data data, size_t size) {
    *(item *)to = (item){.kind = BYTES, .data = data, .size = size};
}

/* Every member is set: the decoder calls what it finds. */
static const struct cbor_callbacks CALLBACKS = {
    .uint8 = on_u8,
    .uint16 = on_u16,
    .uint32 = on_u32,
    .uint64 = on_u64,
    .negint64 = on_n64,
    .negint32 = on_n32,
    .negint16 = on_n16,
    .negint8 = on_n8,
    .byte_string_start = on_refused,
    .byte_string = on_bytes,
    .string = on_text,
    .string_start = on_refused,
    .indef_array_start = on_refused,
    .array_start = on_list,
    .indef_map_start = on_refused,
    .map_start = on_map,
    .tag = on_tag,
    .float2 = on_float,
    .float4 = on_float,
    .float8 = on_double,
    .undefined = on_refused,
    .null = on_null,
    .boolean = on_flag,
    .indef_break = on_refused,
};

/* Reads the next item; false where there is none, or one that the protocol has no room for. */
static bool next_item(cursor *from, item *found) {
    found->kind = BAD;
    if (from->at >= from->size) return false;
    struct cbor_decoder_result done =
        cbor_stream_decode(from->data + from->at, from->size - from->at, &CALLBACKS, found);
    /* what the protocol has no room for leaves the kind BAD; result.required says nothing of use: it overflows */
    if (done.status != CBOR_DECODER_FINISHED || done.read == 0 || found->kind == BAD) return false;
    from->at += done.read;
    /* the library tells a count as the head says it, however few bytes follow */
    return !((found->kind == LIST || found->kind == MAP) && found->number > from->size - from->at);
}

struct ister_value {
    item_kind kind;
    uint64_t number;
    double real;
    char *text;
    size_t size; /* of the text; or how many parts */
    ister_value *keys, *parts;
};

static void drop_parts(ister_value *value) {
    free(value->text);
    for (size_t i = 0; (value->kind == LIST || value->kind == MAP) && i < value->size; i++) {
        if (value->keys) drop_parts(&value->keys[i]);
        drop_parts(&value->parts[i]);
    }
    free(value->keys);
    free(value->parts);
    *value = (ister_value){0};
}

static int compare_keys(const void *one, const void *other) {
    const item *a = one, *b = other;
    if (a->kind != b->kind) return a->kind < b->kind ? -1 : 1;
    if (a->kind != TEXT) return a->number < b->number ? -1 : a->number > b->number;
    size_t common = a->size < b->size ? a->size : b->size;
    int order = common ? memcmp(a->data, b->data, common) : 0;
    return order ? order : a->size < b->size ? -1 : a->size > b->size;
}

static bool unique(item *keys, size_t count) {
    if (count > 16) {
        qsort(keys, count, sizeof *keys, compare_keys);
        for (size_t i = 1; i < count; i++) {
            if (compare_keys(&keys[i - 1], &keys[i]) == 0) return false;
        }
        return true;
    }
    for (size_t i = 1; i < count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (compare_keys(&keys[i], &keys[j]) == 0) return false;
        }
    }
    return true;
}

typedef enum { ANY_KEYS, TEXT_KEYS } key_rule;

static void keep_item(ister_value *into, const item *found) {
    into->kind = found->kind;
    into->number = found->number;
    into->real = found->real;
    if (found->kind == TEXT || found->kind == BYTES) {
        into->text = allocate(found->size + 1);
        if (found->size) memcpy(into->text, found->data, found->size);
        into->size = found->size;
    }
}

/* Reads a whole value strictly; keeps it where there is an into (which is to be dropped also after false). */
static bool walk(cursor *from, int level, int levels, key_rule rule, ister_value *into) {
    item found;
    if (!next_item(from, &found)) return false;
    if (into) keep_item(into, &found);
    if (found.kind != LIST && found.kind != MAP) return true;
    size_t count = (size_t)found.number;
    if (level > levels && count) return false;
    if (into) {
        into->parts = allocate(count * sizeof *into->parts);
        if (found.kind == MAP) into->keys = allocate(count * sizeof *into->keys);
        into->size = count;
    }
    if (found.kind == LIST) {
        for (size_t i = 0; i < count; i++) {
            if (!walk(from, level + 1, levels, rule, into ? &into->parts[i] : NULL)) return false;
        }
        return true;
    }
    item few[16];
    item *keys = count > 16 ? allocate(count * sizeof *keys) : few;
    bool good = true;
    for (size_t i = 0; good && i < count; i++) {
        good = next_item(from, &keys[i]) &&
               (keys[i].kind == TEXT || (rule == ANY_KEYS && (keys[i].kind == NUMBER || keys[i].kind == NEGATIVE)));
        if (good && into) keep_item(&into->keys[i], &keys[i]);
        good = good && walk(from, level + 1, levels, rule, into ? &into->parts[i] : NULL);
    }
    good = good && unique(keys, count);
    if (keys != few) free(keys);
    return good;
}

/* ---- headers, sections 2 to 4 of PROTOCOL.md ---- */

enum {
    HELLO = 1,
    BYE,
    PING,
    OPEN_PRODUCER,
    PUBLISH,
    CLOSE,
    OPEN_CONSUMER,
    CREDIT,
    ACK,
    NACK,
    ACK_UNTIL,
    REQUEST,
    EXTEND,
    WELCOME = 33,
    OPENED,
    RECEIPT,
    DELIVER,
    ERROR_FRAME,
    MOVED,
    RESULT,
    DONE,
    PONG,
    EVENT
};

enum {
    K_TYPE,
    K_REF,
    K_HANDLE,
    K_TOPIC,
    K_SUBSCRIPTION,
    K_SEQUENCE,
    K_OFFSET,
    K_COUNT,
    K_COLUMNS,
    K_TIMESTAMPS,
    K_ATTEMPT,
    K_MESSAGES,
    K_BYTES,
    K_RANGES,
    K_DELAY,
    K_REASON,
    K_CODE,
    K_TEXT,
    K_ACTION,
    K_ENDPOINT,
    K_SESSION,
    K_BOOT,
    K_VERSION,
    K_LIMITS,
    K_ARGUMENTS,
    K_PRODUCER,
    K_START,
    K_RECEIPTS,
    K_SUBSCRIPTION_TYPE,
    K_PRIORITY,
    K_OPERATION,
    K_CLIENT,
    K_RESUMED,
    K_HEARTBEAT,
    K_CLOSED,
    K_STRATEGY,
    K_SPARSE,
    K_FORCE,
    K_TAKEN,
    K_SINGLY,
    K_INSTANCE,
    K_SOUGHT,
    KEYS
};

enum {
    COLUMN_KEYS = 1,
    COLUMN_ATTRIBUTES = 2,
    COLUMN_TIMES = 4,
    HEADER_BYTES_MAX = 8192,
    HEADER_LEVELS = 4,
    RESULT_BYTES_MAX = 1 << 20,
    RESULT_LEVELS = 8,
    RANGES_MAX = 400,
    TIMESTAMPS_MAX = 256,
    SESSION_BYTES = 16,
    FRAMES_MAX = 6
};
#define OFFSET_UNKNOWN UINT64_MAX
#define BIT(key) ((uint64_t)1 << (key))

typedef enum { A_NUMBER, A_TEXT, A_SESSION, A_FLAG, PAIRS, NUMBERS, A_MAP, A_START } key_kind;

static key_kind kind_of(unsigned key) {
    switch (key) {
    case K_TOPIC:
    case K_SUBSCRIPTION:
    case K_REASON:
    case K_CODE:
    case K_TEXT:
    case K_ACTION:
    case K_ENDPOINT:
    case K_SUBSCRIPTION_TYPE:
    case K_OPERATION:
    case K_CLIENT:
    case K_STRATEGY:
    case K_INSTANCE: return A_TEXT;
    case K_SESSION: return A_SESSION;
    case K_RESUMED:
    case K_CLOSED:
    case K_SPARSE:
    case K_FORCE:
    case K_SINGLY: return A_FLAG;
    case K_TIMESTAMPS:
    case K_RANGES:
    case K_RECEIPTS: return PAIRS;
    case K_VERSION: return NUMBERS;
    case K_LIMITS:
    case K_ARGUMENTS: return A_MAP;
    case K_START: return A_START;
    default: return A_NUMBER;
    }
}

/* The keys that a frame of a type must have; 0: there is no such type (TYPE itself is always needed). */
static uint64_t needed(uint64_t type) {
    switch (type) {
    case HELLO: return BIT(K_TYPE) | BIT(K_VERSION);
    case BYE:
    case PING:
    case PONG: return BIT(K_TYPE);
    case OPEN_PRODUCER: return BIT(K_TYPE) | BIT(K_REF) | BIT(K_HANDLE) | BIT(K_TOPIC) | BIT(K_PRODUCER);
    case PUBLISH: return BIT(K_TYPE) | BIT(K_HANDLE) | BIT(K_SEQUENCE);
    case CLOSE: return BIT(K_TYPE) | BIT(K_REF) | BIT(K_HANDLE);
    case OPEN_CONSUMER:
        return BIT(K_TYPE) | BIT(K_REF) | BIT(K_HANDLE) | BIT(K_TOPIC) | BIT(K_SUBSCRIPTION) |
               BIT(K_SUBSCRIPTION_TYPE) | BIT(K_MESSAGES) | BIT(K_BYTES);
    case CREDIT: return BIT(K_TYPE) | BIT(K_HANDLE) | BIT(K_MESSAGES) | BIT(K_BYTES);
    case ACK:
    case NACK:
    case EXTEND: return BIT(K_TYPE) | BIT(K_HANDLE) | BIT(K_RANGES);
    case ACK_UNTIL: return BIT(K_TYPE) | BIT(K_HANDLE) | BIT(K_OFFSET);
    case REQUEST: return BIT(K_TYPE) | BIT(K_REF) | BIT(K_OPERATION);
    case WELCOME: return BIT(K_TYPE) | BIT(K_VERSION) | BIT(K_SESSION) | BIT(K_BOOT) | BIT(K_LIMITS) | BIT(K_HEARTBEAT);
    case OPENED: return BIT(K_TYPE) | BIT(K_REF) | BIT(K_HANDLE);
    case RECEIPT: return BIT(K_TYPE) | BIT(K_HANDLE) | BIT(K_RECEIPTS);
    case DELIVER: return BIT(K_TYPE) | BIT(K_HANDLE) | BIT(K_OFFSET) | BIT(K_COUNT) | BIT(K_TIMESTAMPS);
    case ERROR_FRAME: return BIT(K_TYPE) | BIT(K_CODE) | BIT(K_TEXT) | BIT(K_ACTION);
    case MOVED: return BIT(K_TYPE) | BIT(K_REF) | BIT(K_HANDLE) | BIT(K_ENDPOINT);
    case RESULT:
    case DONE: return BIT(K_TYPE) | BIT(K_REF);
    case EVENT: return BIT(K_TYPE) | BIT(K_HANDLE) | BIT(K_CODE);
    default: return 0;
    }
}

/* A decoded header; it points into the frame. */
typedef struct {
    uint64_t has;
    struct {
        uint64_t number; /* or where its numbers begin in flat */
        const uint8_t *data;
        size_t size; /* or how many numbers */
    } keys[KEYS];
    uint64_t flat[HEADER_BYTES_MAX];
    size_t flat_size;
} header;

static bool has(const header *h, unsigned key) { return (h->has & BIT(key)) != 0; }
static uint64_t number_of(const header *h, unsigned key) { return has(h, key) ? h->keys[key].number : 0; }
static const uint64_t *numbers_of(const header *h, unsigned key, size_t *count) {
    *count = has(h, key) ? h->keys[key].size : 0;
    return h->flat + (*count ? h->keys[key].number : 0);
}
static bool text_is(const header *h, unsigned key, const char *text) {
    size_t size = strlen(text);
    return has(h, key) && h->keys[key].size == size && memcmp(h->keys[key].data, text, size) == 0;
}
static void text_of(const header *h, unsigned key, char *field, size_t room) {
    field[0] = 0;
    if (has(h, key)) copy_into(field, room, (const char *)h->keys[key].data, h->keys[key].size);
}

static bool read_numbers(cursor *from, uint64_t count, header *h, unsigned key) {
    h->keys[key].number = h->flat_size;
    h->keys[key].size = (size_t)count;
    for (uint64_t i = 0; i < count; i++) {
        item found;
        if (!next_item(from, &found) || found.kind != NUMBER) return false;
        h->flat[h->flat_size++] = found.number; /* a number is a byte of a header at least: there is room */
    }
    return true;
}

/* Reads the value of a known key; false where it is of another kind than section 3 says. */
static bool read_known(cursor *from, header *h, unsigned key) {
    size_t at = from->at;
    item found;
    if (!next_item(from, &found)) return false;
    h->has |= BIT(key);
    h->keys[key].number = found.number;
    h->keys[key].data = found.data;
    h->keys[key].size = found.size;
    switch (kind_of(key)) {
    case A_NUMBER: return found.kind == NUMBER;
    case A_TEXT: return found.kind == TEXT;
    case A_SESSION: return found.kind == BYTES && found.size == SESSION_BYTES;
    case A_FLAG: return found.kind == FLAG;
    case A_START: return found.kind == TEXT || found.kind == NUMBER;
    case NUMBERS: return found.kind == NUMBER || (found.kind == LIST && read_numbers(from, found.number, h, key));
    case PAIRS:
        return found.kind == LIST && found.number % 2 == 0 &&
               found.number <= (uint64_t)2 * (key == K_TIMESTAMPS ? TIMESTAMPS_MAX : RANGES_MAX) &&
               read_numbers(from, found.number, h, key);
    case A_MAP:
        from->at = at;
        h->keys[key].data = from->data + at;
        if (found.kind != MAP || !walk(from, 2, HEADER_LEVELS, key == K_ARGUMENTS ? TEXT_KEYS : ANY_KEYS, NULL))
            return false;
        h->keys[key].size = from->at - at;
        return true;
    }
    return false;
}

/* Reads a header strictly, as section 2 says. */
static bool read_header(const uint8_t *frame, size_t size, header *h, ister_error *error) {
    cursor from = {frame, size, 0};
    item map, key;
    h->has = 0;
    h->flat_size = 0;
    if (size == 0 || size > HEADER_BYTES_MAX) {
        say_malformed(error, "a header has 1 to %d bytes, not %zu", HEADER_BYTES_MAX, size);
        return false;
    }
    if (!next_item(&from, &map) || map.kind != MAP) {
        say_malformed(error, "a header is a map of definite length");
        return false;
    }
    item few[16];
    size_t others = 0;
    item *unknown = few, *many = NULL;
    bool good = true;
    for (uint64_t i = 0; good && i < map.number; i++) {
        good = next_item(&from, &key) && key.kind == NUMBER;
        if (!good) {
            say_malformed(error, "a key of a header is no unsigned integer");
        } else if (key.number < KEYS) {
            good = !has(h, (unsigned)key.number) && read_known(&from, h, (unsigned)key.number);
            if (!good)
                say_malformed(error, "key %u of a header is of another kind, or there twice", (unsigned)key.number);
        } else {
            if (others == 16 && !many) {
                unknown = many = allocate((size_t)map.number * sizeof *many);
                memcpy(many, few, sizeof few);
            }
            unknown[others++] = key;
            good = walk(&from, 2, HEADER_LEVELS, ANY_KEYS, NULL);
            if (!good) say_malformed(error, "key %" PRIu64 " of a header holds what is not plain CBOR", key.number);
        }
    }
    if (good && !unique(unknown, others)) {
        say_malformed(error, "a header has a key twice");
        good = false;
    }
    free(many);
    if (!good) return false;
    if (from.at != size) {
        say_malformed(error, "%zu bytes are behind a header", size - from.at);
        return false;
    }
    if (!has(h, K_TYPE)) {
        say_malformed(error, "a header has no type");
        return false;
    }
    uint64_t type = h->keys[K_TYPE].number, keys = needed(type);
    if (!keys) {
        say(error, ISTER_REFUSED, ISTER_STOP, "unknown-operation", "there is no frame of type %" PRIu64, type);
        return false;
    }
    if ((h->has & keys) != keys) {
        say_malformed(error, "a frame of type %" PRIu64 " lacks a key", type);
        return false;
    }
    return true;
}

static void error_of(const header *h, ister_error *error) {
    char code[sizeof error->code], text[sizeof error->text];
    text_of(h, K_CODE, code, sizeof code);
    text_of(h, K_TEXT, text, sizeof text);
    ister_action action = text_is(h, K_ACTION, "retry") ? ISTER_RETRY
                          : text_is(h, K_ACTION, "fix") ? ISTER_FIX
                                                        : ISTER_STOP;
    say(error, ISTER_REFUSED, action, code, "%s", text);
}

/* Writes a header: begin, keys, and end, which sets the number of keys. */
typedef struct {
    bytes *to;
    size_t at;
    unsigned count;
} writer;

static writer begin_header(bytes *to, unsigned type) {
    writer w = {to, to->size, 0};
    put_map(to, 0);
    put_number(to, K_TYPE);
    put_number(to, type);
    w.count = 1;
    return w;
}

static void with_number(writer *w, unsigned key, uint64_t value) {
    put_number(w->to, key);
    put_number(w->to, value);
    w->count++;
}

static void with_text(writer *w, unsigned key, const char *text) {
    put_number(w->to, key);
    put_text(w->to, text, strlen(text));
    w->count++;
}

static void with_flag(writer *w, unsigned key, bool value) {
    put_number(w->to, key);
    put_flag(w->to, value);
    w->count++;
}

/* CBOR that is there already. */
static void with_item(writer *w, unsigned key, const uint8_t *data, size_t size) {
    put_number(w->to, key);
    append(w->to, data, size);
    w->count++;
}

static void end_header(writer *w) { cbor_encode_map_start(w->count, w->to->data + w->at, 1); /* fewer than 24 keys */ }

/* ---- arguments ---- */

struct ister_map {
    struct argument {
        char *name, *text;
        uint64_t number;
        item_kind kind;
    } * arguments;
    size_t size, room;
};

ister_map *ister_map_new(void) { return allocate(sizeof(ister_map)); }

static struct argument *argument_of(ister_map *map, const char *name) {
    for (size_t i = 0; i < map->size; i++) {
        if (strcmp(map->arguments[i].name, name) == 0) {
            free(map->arguments[i].text);
            map->arguments[i].text = NULL;
            return &map->arguments[i];
        }
    }
    if (map->size == map->room) {
        map->room = map->room ? 2 * map->room : 8;
        map->arguments = allocate_again(map->arguments, map->room * sizeof *map->arguments);
    }
    map->arguments[map->size] = (struct argument){.name = copy_text(name)};
    return &map->arguments[map->size++];
}

void ister_map_text(ister_map *map, const char *name, const char *value) {
    struct argument *into = argument_of(map, name);
    into->kind = TEXT;
    into->text = copy_text(value);
}

void ister_map_number(ister_map *map, const char *name, uint64_t value) {
    struct argument *into = argument_of(map, name);
    into->kind = NUMBER;
    into->number = value;
}

void ister_map_flag(ister_map *map, const char *name, bool value) {
    struct argument *into = argument_of(map, name);
    into->kind = FLAG;
    into->number = value;
}

void ister_map_free(ister_map *map) {
    if (!map) return;
    for (size_t i = 0; i < map->size; i++) {
        free(map->arguments[i].name);
        free(map->arguments[i].text);
    }
    free(map->arguments);
    free(map);
}

static ister_map *copy_map(const ister_map *map) {
    ister_map *made = ister_map_new();
    for (size_t i = 0; map && i < map->size; i++) {
        const struct argument *each = &map->arguments[i];
        if (each->kind == TEXT)
            ister_map_text(made, each->name, each->text);
        else if (each->kind == NUMBER)
            ister_map_number(made, each->name, each->number);
        else
            ister_map_flag(made, each->name, each->number != 0);
    }
    return made;
}

static bool is_text(const char *text) { return is_utf8((const uint8_t *)text, strlen(text)); }

/* Writes a map as CBOR; false where something in it is not UTF-8. */
static bool put_arguments(bytes *to, const ister_map *map) {
    put_map(to, map ? map->size : 0);
    for (size_t i = 0; map && i < map->size; i++) {
        const struct argument *each = &map->arguments[i];
        if (!is_text(each->name) || (each->text && !is_text(each->text))) return false;
        put_text(to, each->name, strlen(each->name));
        if (each->kind == TEXT)
            put_text(to, each->text, strlen(each->text));
        else if (each->kind == NUMBER)
            put_number(to, each->number);
        else
            put_flag(to, each->number != 0);
    }
    return true;
}

/* ---- batches, section 5 ---- */

/* The body of a PUBLISH; it is kept until it has a receipt, and is never changed. */
typedef struct {
    int references; /* used under the client's lock */
    size_t frames_count;
    ister_slice frames[FRAMES_MAX];
    uint64_t size;
} body;

static void release_body(body *old) {
    if (!old || --old->references) return;
    for (size_t i = 0; i < old->frames_count; i++) free((void *)old->frames[i].data);
    free(old);
}

/* Messages that gather to a batch. */
typedef struct {
    uint64_t columns, count;
    bytes lengths, payloads, key_lengths, keys, attribute_lengths, attributes, times;
} gathering;

static uint64_t attributes_size(const ister_outgoing *message, bytes *into) {
    size_t before = into->size;
    put_map(into, message->attributes_count);
    for (size_t i = 0; i < message->attributes_count; i++) {
        const ister_attribute *each = &message->attributes[i];
        put_text(into, each->name, each->name_size ? each->name_size : strlen(each->name));
        put_text(into, each->value, each->value_size || !each->value ? each->value_size : strlen(each->value));
    }
    return into->size - before;
}

static void gather(gathering *to, const ister_outgoing *message) {
    append_u32(&to->lengths, (uint32_t)message->payload_size);
    append(&to->payloads, message->payload, message->payload_size);
    if (message->key_size && !(to->columns & COLUMN_KEYS)) {
        append_zeros(&to->key_lengths, 4 * (size_t)to->count);
        to->columns |= COLUMN_KEYS;
    }
    if (to->columns & COLUMN_KEYS) {
        append_u32(&to->key_lengths, (uint32_t)message->key_size);
        append(&to->keys, message->key, message->key_size);
    }
    if (message->attributes_count && !(to->columns & COLUMN_ATTRIBUTES)) {
        append_zeros(&to->attribute_lengths, 4 * (size_t)to->count);
        to->columns |= COLUMN_ATTRIBUTES;
    }
    if (to->columns & COLUMN_ATTRIBUTES) {
        uint64_t size = message->attributes_count ? attributes_size(message, &to->attributes) : 0;
        append_u32(&to->attribute_lengths, (uint32_t)size);
    }
    if (message->deliver_at_ms > 0 && !(to->columns & COLUMN_TIMES)) {
        append_zeros(&to->times, 8 * (size_t)to->count);
        to->columns |= COLUMN_TIMES;
    }
    if (to->columns & COLUMN_TIMES) {
        append_u64(&to->times, message->deliver_at_ms > 0 ? (uint64_t)message->deliver_at_ms : 0);
    }
    to->count++;
}

static void add_frame(body *to, bytes *first, bytes *second) {
    if (second) {
        append(first, second->data, second->size);
        drop_bytes(second);
    }
    to->frames[to->frames_count++] = (ister_slice){first->data, first->size};
    to->size += first->size;
    *first = (bytes){0};
}

/* Makes the body of what was gathered, and empties it. */
static body *pack(gathering *from, bool spare_lengths) {
    body *made = allocate(sizeof *made);
    made->references = 1;
    if (spare_lengths && from->count == 1 && !from->columns)
        drop_bytes(&from->lengths);
    else
        add_frame(made, &from->lengths, NULL);
    add_frame(made, &from->payloads, NULL);
    if (from->columns & COLUMN_KEYS) add_frame(made, &from->key_lengths, &from->keys);
    if (from->columns & COLUMN_ATTRIBUTES) add_frame(made, &from->attribute_lengths, &from->attributes);
    if (from->columns & COLUMN_TIMES) add_frame(made, &from->times, NULL);
    *from = (gathering){0};
    return made;
}

static void drop_gathering(gathering *old) {
    drop_bytes(&old->lengths);
    drop_bytes(&old->payloads);
    drop_bytes(&old->key_lengths);
    drop_bytes(&old->keys);
    drop_bytes(&old->attribute_lengths);
    drop_bytes(&old->attributes);
    drop_bytes(&old->times);
    *old = (gathering){0};
}

/* One message from a broker. The frames of a short one lie inside its zmq_msg_t: a parcel never moves. */
typedef struct {
    atomic_int references;
    size_t count;
    ister_slice frames[FRAMES_MAX + 1];
    zmq_msg_t messages[FRAMES_MAX + 1];
} parcel;

static void empty_parcel(parcel *old) {
    for (size_t i = 0; i < old->count; i++) zmq_msg_close(&old->messages[i]);
    old->count = 0;
}

static void release_parcel(parcel *old) {
    if (!old || atomic_fetch_sub(&old->references, 1) != 1) return;
    empty_parcel(old);
    free(old);
}

typedef struct delivery delivery;

/* What a program is handed as an ister_message. */
typedef struct {
    ister_message seen;
    const uint8_t *attributes;
    size_t attributes_size;
    delivery *home;
} handed;

/* One DELIVER, cut into messages: one reference of the queue, and one of each message that was handed out. */
struct delivery {
    atomic_int references;
    bool singly;           /* its messages are handed out one by one */
    uint64_t owner, group; /* the serial number of the consumer, and of its pattern, if it has one */
    uint64_t epoch;
    parcel *parcel;
    char *topic;
    size_t count, at;
    uint64_t bytes;
    handed *messages;
    delivery *next;
};

static void release_delivery(delivery *old) {
    if (!old || atomic_fetch_sub(&old->references, 1) != 1) return;
    release_parcel(old->parcel);
    free(old->topic);
    free(old->messages);
    free(old);
}

static bool mismatch(ister_error *error, const char *what) {
    say(error, ISTER_REFUSED, ISTER_STOP, "lengths-mismatch", "the lengths of %s do not add up", what);
    return false;
}

/* Takes the body of a DELIVER apart, into as many messages as it has. */
static bool cut_batch(uint64_t columns, size_t count, const ister_slice *frames, size_t frames_count, handed *into,
                      ister_error *error) {
    size_t wanted =
        2 + ((columns & COLUMN_KEYS) != 0) + ((columns & COLUMN_ATTRIBUTES) != 0) + ((columns & COLUMN_TIMES) != 0);
    if (columns > 7 || frames_count != wanted || count == 0) {
        say_malformed(error, "%zu messages with columns %" PRIu64 " have %zu body frames", count, columns,
                      frames_count);
        return false;
    }
    if (frames[0].size / 4 != count || frames[0].size % 4) return mismatch(error, "a batch");
    const uint8_t *table = frames[0].data, *items = frames[1].data;
    size_t left = frames[1].size;
    for (size_t i = 0; i < count; i++) {
        size_t size = read_u32(table + 4 * i);
        if (size > left) return mismatch(error, "a batch");
        into[i].seen.payload = items;
        into[i].seen.payload_size = size;
        items += size;
        left -= size;
    }
    if (left) return mismatch(error, "a batch");
    const ister_slice *column = frames + 2;
    for (unsigned bit = COLUMN_KEYS; bit <= COLUMN_ATTRIBUTES; bit <<= 1) {
        if (!(columns & bit)) continue;
        const char *what = bit == COLUMN_KEYS ? "a column of keys" : "a column of attributes";
        if (column->size / 4 < count) return mismatch(error, what);
        table = column->data;
        items = table + 4 * count;
        left = column->size - 4 * count;
        for (size_t i = 0; i < count; i++) {
            size_t size = read_u32(table + 4 * i);
            if (size > left) return mismatch(error, what);
            if (size && bit == COLUMN_KEYS) {
                into[i].seen.key = items;
                into[i].seen.key_size = size;
            } else if (size) {
                into[i].attributes = items;
                into[i].attributes_size = size;
            }
            items += size;
            left -= size;
        }
        if (left) return mismatch(error, what);
        column++;
    }
    if (columns & COLUMN_TIMES) {
        if (column->size / 8 != count || column->size % 8) return mismatch(error, "a column of times");
        for (size_t i = 0; i < count; i++) {
            into[i].seen.deliver_at_ms = (int64_t)read_u64((const uint8_t *)column->data + 8 * i);
        }
    }
    return true;
}

/* ---- attributes of a message ---- */

static bool attributes_valid(const handed *of) {
    cursor from = {of->attributes, of->attributes_size, 0};
    item map;
    if (!of->attributes_size) return true;
    if (!next_item(&from, &map) || map.kind != MAP) return false;
    item few[16];
    size_t count = (size_t)map.number;
    item *names = count > 16 ? allocate(count * sizeof *names) : few;
    bool good = true;
    for (size_t i = 0; good && i < count; i++) {
        item value;
        good = next_item(&from, &names[i]) && names[i].kind == TEXT && next_item(&from, &value) && value.kind == TEXT;
    }
    good = good && from.at == from.size && unique(names, count);
    if (names != few) free(names);
    return good;
}

bool ister_message_attributes_valid(const ister_message *of) { return attributes_valid((const handed *)of); }

bool ister_message_next_attribute(const ister_message *of, size_t *at, ister_attribute *attribute) {
    const handed *m = (const handed *)of;
    cursor from = {m->attributes, m->attributes_size, *at};
    item name, value;
    if (*at == 0 && (!m->attributes_size || !attributes_valid(m) || !next_item(&from, &name))) return false;
    if (!next_item(&from, &name) || !next_item(&from, &value)) return false;
    /* an empty text is one that ends with a NUL, for whoever sends it on */
    attribute->name = name.size ? (const char *)name.data : "";
    attribute->value = value.size ? (const char *)value.data : "";
    attribute->name_size = name.size;
    attribute->value_size = value.size;
    *at = from.at;
    return true;
}

bool ister_message_attribute(const ister_message *of, const char *name, ister_attribute *attribute) {
    size_t at = 0, size = strlen(name);
    while (ister_message_next_attribute(of, &at, attribute)) {
        if (attribute->name_size == size && memcmp(attribute->name, name, size) == 0) return true;
    }
    return false;
}

void ister_message_free(ister_message *old) {
    if (old) release_delivery(((handed *)old)->home);
}

/* ---- a session with one worker, sections 7 and 10 ---- */

#define GREETING_TIME (3 * SECOND)
#define BACK_OFF_MIN (50 * MS)
#define BACK_OFF_MAX (2 * SECOND)
#define REQUEST_BACK_OFF_MAX SECOND
#define PLACE_RETRY (500 * MS)
#define MOVED_WAIT SECOND
#define EVENTS_KEPT 256

typedef enum { IDLE, GREETING, READY, ENDED } session_phase;
typedef enum { H_IDLE, H_OPENING, H_OPEN, H_WAITING, H_CLOSING, H_CLOSED } handle_phase;
typedef enum { A_PRODUCER, A_CONSUMER } handle_kind;

typedef struct session session;
typedef struct handle handle;

/* What producers and consumers have in common. The session in whose list a handle is, is its home; session is set while
 * that one is ready. */
struct handle {
    handle_kind kind;
    handle_phase phase;
    uint64_t number;
    char *topic;
    session *home, *session;
    bool opened;
    uint64_t open_ref; /* of the open that counts */
    ister_error error; /* why it is over, if error.result is not ISTER_OK */
    ister_error trouble;
    us due;
    int failures;
    int moves; /* MOVED in a row */
    us moved_at;
    pthread_cond_t changed;
    pthread_cond_t *watcher; /* of one topic of a pattern: who waits for any of them */
    handle *next;
};

static void tell_waiters(handle *h) {
    pthread_cond_broadcast(&h->changed);
    if (h->watcher) pthread_cond_broadcast(h->watcher);
}

typedef enum { ANSWER_OPEN, ANSWER_CLOSE, ANSWER_CONFIRM, ANSWER_LEAVE, ANSWER_NOBODY } answer_kind;

typedef struct {
    uint64_t ref;
    answer_kind kind;
    handle *of;
} answer;

typedef struct request request;
struct request {
    const char *operation;
    const uint8_t *arguments;
    size_t arguments_size;
    bool over, resent;
    uint64_t ref; /* 0: it waits to be asked */
    us due;
    int tries;
    bytes result;
    ister_error error;
    request *next;
};

typedef struct {
    size_t at, size; /* of the header, in the outbox's bytes */
    body *body;
} outgoing_frame;

typedef struct {
    uint64_t message_bytes_max, batch_bytes_max, batches_in_flight_max, window_bytes, credit_messages_max;
} limits;

typedef struct {
    char code[48];
    uint64_t count;
    int64_t offset;
    char *text, *topic;
} kept_event;

typedef struct {
    kept_event *kept; /* a ring of EVENTS_KEPT */
    size_t first, count;
} event_list;

static void keep_event(event_list *list, const char *code, uint64_t count, int64_t offset, const char *text,
                       const char *topic) {
    if (!list->kept) list->kept = allocate(EVENTS_KEPT * sizeof *list->kept);
    if (list->count == EVENTS_KEPT) {
        free(list->kept[list->first].text);
        free(list->kept[list->first].topic);
        list->first = (list->first + 1) % EVENTS_KEPT;
        list->count--;
    }
    kept_event *into = &list->kept[(list->first + list->count++) % EVENTS_KEPT];
    copy_into(into->code, sizeof into->code, code, strlen(code));
    into->count = count;
    into->offset = offset;
    into->text = copy_text(text);
    into->topic = copy_text(topic);
}

static bool next_event(event_list *list, ister_event *event) {
    if (!list->count) return false;
    kept_event *from = &list->kept[list->first];
    memcpy(event->code, from->code, sizeof event->code);
    event->count = from->count;
    event->offset = from->offset;
    copy_into(event->text, sizeof event->text, from->text, strlen(from->text));
    copy_into(event->topic, sizeof event->topic, from->topic, strlen(from->topic));
    free(from->text);
    free(from->topic);
    list->first = (list->first + 1) % EVENTS_KEPT;
    list->count--;
    return true;
}

static void drop_events(event_list *list) {
    ister_event event;
    while (next_event(list, &event)) {
    }
    free(list->kept);
    list->kept = NULL;
}

struct session {
    session_phase phase;
    const char *text;
    bool has_secret;
    uint8_t secret[SESSION_BYTES];
    limits limits;
    us heartbeat;
    ister_error trouble;
    handle *handles;

    bytes out; /* headers */
    outgoing_frame *outbox;
    size_t out_first, out_count, out_room;

    uint64_t next_ref;
    answer *answers;
    size_t answers_count, answers_room;
    request *requests;
    uint64_t *to_close; /* handles that were closed without a connection */
    size_t to_close_count, to_close_room;
    us greeted, spoke, heard, pinged;
    bool ping_open;
    header incoming; /* the one being read: too large for a stack */

    /* told of MOVED, and of what has changed; may be NULL */
    void (*on_moved)(void *context, handle *of, const char *endpoint, us now);
    void (*on_change)(void *context);
    void *context;
};

static void session_changed(session *s) {
    if (s->on_change) s->on_change(s->context);
}

static void emit(session *s, writer *w, body *with) {
    end_header(w);
    if (s->out_count == s->out_room) {
        s->out_room = s->out_room ? 2 * s->out_room : 16;
        s->outbox = allocate_again(s->outbox, s->out_room * sizeof *s->outbox);
    }
    if (with) with->references++;
    s->outbox[s->out_count++] = (outgoing_frame){w->at, s->out.size - w->at, with};
}

static void sent_first(session *s) {
    release_body(s->outbox[s->out_first++].body);
    if (s->out_first == s->out_count) {
        s->out_first = s->out_count = 0;
        s->out.size = 0;
    }
}

static void clear_outbox(session *s) {
    while (s->out_first < s->out_count) sent_first(s);
}

static uint64_t expect(session *s, answer_kind kind, handle *of) {
    if (s->answers_count == s->answers_room) {
        s->answers_room = s->answers_room ? 2 * s->answers_room : 16;
        s->answers = allocate_again(s->answers, s->answers_room * sizeof *s->answers);
    }
    s->answers[s->answers_count++] = (answer){++s->next_ref, kind, of};
    return s->next_ref;
}

static void finish_request(request *r, const ister_error *error) {
    if (r->over) return;
    r->over = true;
    if (error)
        r->error = *error;
    else
        r->error.result = ISTER_OK;
}

static void handle_ready(handle *h, session *s, bool resumed, us now);
static void handle_lost(handle *h, const ister_error *why);
static bool handle_frame(handle *h, const header *in, parcel *came, us now, ister_error *error);
static bool handle_answer(handle *h, answer_kind kind, uint64_t ref, const header *in, us now, ister_error *error);
static void handle_tick(handle *h, us now);
static us handle_deadline(const handle *h);
static void handle_fail(handle *h, const ister_error *why);

static void keep_in_session(session *s, uint64_t number);

static void attach(session *s, handle *h, us now) {
    keep_in_session(s, h->number);
    h->home = s;
    h->next = s->handles;
    s->handles = h;
    if (s->phase == READY)
        handle_ready(h, s, true, now);
    else if (s->phase == ENDED)
        handle_fail(h, &s->trouble);
}

static void detach(handle *h) {
    session *s = h->home;
    if (!s) return;
    for (handle **at = &s->handles; *at; at = &(*at)->next) {
        if (*at == h) {
            *at = h->next;
            break;
        }
    }
    for (size_t i = 0; i < s->answers_count; i++) {
        if (s->answers[i].of == h) {
            s->answers[i].of = NULL;
            s->answers[i].kind = ANSWER_NOBODY;
        }
    }
    h->home = h->session = NULL;
    h->next = NULL;
}

/* Says HELLO: there is a new socket. */
static void session_connect(session *s, us now) {
    if (s->phase != IDLE) return;
    s->phase = GREETING;
    s->ping_open = false;
    clear_outbox(s);
    s->greeted = s->spoke = s->heard = now;
    writer w = begin_header(&s->out, HELLO);
    put_number(&s->out, K_VERSION);
    put_list(&s->out, 1);
    put_number(&s->out, 1);
    w.count++;
    with_text(&w, K_CLIENT, s->text);
    if (s->has_secret) {
        put_number(&s->out, K_SESSION);
        put_bytes(&s->out, s->secret, SESSION_BYTES);
        w.count++;
    }
    emit(s, &w, NULL);
}

/* The socket is gone, or as good as gone. */
static void session_lost(session *s, const ister_error *why) {
    if (s->phase != GREETING && s->phase != READY) return;
    s->phase = IDLE;
    s->trouble = *why;
    clear_outbox(s);
    s->answers_count = 0;
    for (request *r = s->requests; r; r = r->next) {
        if (r->ref) {
            r->resent = true;
            r->ref = 0;
            r->due = 0;
        }
    }
    for (handle *h = s->handles; h; h = h->next) handle_lost(h, why);
    session_changed(s);
}

/* Fails everything for good. */
static void session_end(session *s, const ister_error *why, bool bye) {
    if (s->phase == ENDED) return;
    if (s->phase == READY && bye) {
        writer w = begin_header(&s->out, BYE);
        emit(s, &w, NULL);
    }
    s->phase = ENDED;
    s->trouble = *why;
    for (request *r = s->requests; r; r = r->next) finish_request(r, why);
    for (handle *h = s->handles; h; h = h->next) handle_fail(h, why);
    session_changed(s);
}

static void send_requests(session *s, us now) {
    if (s->phase != READY) return;
    for (request *r = s->requests; r; r = r->next) {
        if (r->over || r->ref || r->due > now) continue;
        r->ref = ++s->next_ref;
        writer w = begin_header(&s->out, REQUEST);
        with_number(&w, K_REF, r->ref);
        with_text(&w, K_OPERATION, r->operation);
        with_item(&w, K_ARGUMENTS, r->arguments, r->arguments_size);
        emit(s, &w, NULL);
    }
}

static void ask(session *s, request *r, us now) {
    r->next = s->requests;
    s->requests = r;
    if (s->phase == ENDED) finish_request(r, &s->trouble);
    send_requests(s, now);
}

static void withdraw(session *s, request *old) {
    for (request **at = &s->requests; *at; at = &(*at)->next) {
        if (*at == old) {
            *at = old->next;
            return;
        }
    }
}

static bool on_result(session *s, request *r, const header *in, const parcel *came, us now, ister_error *error) {
    uint64_t type = number_of(in, K_TYPE);
    r->ref = 0;
    if (type == ERROR_FRAME) {
        ister_error said;
        error_of(in, &said);
        if (said.action == ISTER_RETRY) {
            r->error = said; /* told if the time runs out */
            r->due = now + back_off(r->tries++, BACK_OFF_MIN, REQUEST_BACK_OFF_MAX);
        } else {
            finish_request(r, &said);
        }
    } else if (type == RESULT && came->count == 2 && came->frames[1].size <= RESULT_BYTES_MAX) {
        append(&r->result, came->frames[1].data, came->frames[1].size);
        finish_request(r, NULL);
    } else {
        say_malformed(error, "a frame of type %" PRIu64 " answered a request", type);
        r->resent = true; /* asked again over the next connection */
        return false;
    }
    session_changed(s);
    return true;
}

static bool on_welcome(session *s, const header *in, us now, ister_error *error) {
    if (s->phase != GREETING) {
        say_malformed(error, "a welcome that nobody asked for");
        return false;
    }
    if (number_of(in, K_VERSION) != 1) {
        say_malformed(error, "the broker welcomes in a version that was not offered");
        return false;
    }
    uint64_t limit[9] = {0, 1 << 20, 1 << 20, 1, 1 << 20, 0, 0, 1 << 16, 1 << 30};
    cursor from = {in->keys[K_LIMITS].data, in->keys[K_LIMITS].size, 0};
    item map, key, value;
    for (uint64_t i = next_item(&from, &map) ? map.number : 0; i > 0; i--) {
        size_t at;
        if (!next_item(&from, &key)) break;
        at = from.at;
        if (!next_item(&from, &value)) break;
        from.at = at;
        if (!walk(&from, 3, HEADER_LEVELS, ANY_KEYS, NULL)) break; /* may be a map, of a later version */
        if (key.kind == NUMBER && key.number < 9 && value.kind == NUMBER) limit[key.number] = value.number;
    }
    s->limits = (limits){limit[1], limit[2], larger(1, limit[3]), limit[4], larger(1, limit[7])};
    s->phase = READY;
    s->trouble.result = ISTER_OK;
    s->has_secret = true;
    memcpy(s->secret, in->keys[K_SESSION].data, SESSION_BYTES);
    s->heartbeat = (us)smaller(larger(1, number_of(in, K_HEARTBEAT)), 1 << 30) * MS;
    bool resumed = number_of(in, K_RESUMED) != 0;
    for (size_t i = 0; resumed && i < s->to_close_count; i++) {
        writer w = begin_header(&s->out, CLOSE);
        with_number(&w, K_REF, expect(s, ANSWER_NOBODY, NULL));
        with_number(&w, K_HANDLE, s->to_close[i]);
        emit(s, &w, NULL);
    }
    s->to_close_count = 0;
    send_requests(s, now);
    for (handle *h = s->handles; h; h = h->next) handle_ready(h, s, resumed, now);
    session_changed(s);
    return true;
}

static bool dispatch(session *s, const header *in, parcel *came, us now, ister_error *error) {
    uint64_t type = number_of(in, K_TYPE);
    if (type < WELCOME) {
        say_malformed(error, "a broker does not send frames of type %" PRIu64, type);
        return false;
    }
    if (type == WELCOME) return on_welcome(s, in, now, error);
    bool expired = type == ERROR_FRAME && text_is(in, K_CODE, "session-expired");
    if (s->phase == GREETING) {
        if (type != ERROR_FRAME) return true; /* for an earlier socket */
        error_of(in, error);
        if (expired) s->has_secret = false;
        if (error->action == ISTER_RETRY) return false;
        session_end(s, error, false);
        return true;
    }
    if (s->phase != READY) return true;
    if (expired || (type == ERROR_FRAME && text_is(in, K_CODE, "hello-required"))) {
        if (expired) s->has_secret = false;
        error_of(in, error);
        return false;
    }
    if (has(in, K_REF)) {
        uint64_t ref = number_of(in, K_REF);
        for (size_t i = 0; i < s->answers_count; i++) {
            if (s->answers[i].ref != ref) continue;
            answer then = s->answers[i];
            memmove(&s->answers[i], &s->answers[i + 1], (s->answers_count - i - 1) * sizeof *s->answers);
            s->answers_count--;
            return then.kind == ANSWER_NOBODY || handle_answer(then.of, then.kind, ref, in, now, error);
        }
        for (request *r = s->requests; r && ref; r = r->next) {
            if (r->ref == ref) return on_result(s, r, in, came, now, error);
        }
        return true; /* nobody waits for it: an ERROR, too, says nothing about its handle then */
    }
    if (has(in, K_HANDLE)) {
        for (handle *h = s->handles; h; h = h->next) {
            if (h->number == number_of(in, K_HANDLE)) return handle_frame(h, in, came, now, error);
        }
        return true;
    }
    if (type == ERROR_FRAME) { /* about the whole connection: all is asked anew over the next */
        error_of(in, error);
        return false;
    }
    return true;
}

/* Takes in one message; what breaks the protocol costs the connection. */
static void session_receive(session *s, parcel *came, us now) {
    ister_error error;
    s->heard = now;
    s->ping_open = false;
    bool good = came->count > 0;
    if (!good)
        say_malformed(&error, "a message without a header, or of more than %d frames", FRAMES_MAX);
    else
        good = read_header(came->frames[0].data, came->frames[0].size, &s->incoming, &error) &&
               dispatch(s, &s->incoming, came, now, &error);
    if (!good) session_lost(s, &error);
}

static void session_tick(session *s, us now) {
    ister_error error;
    if (s->phase == GREETING && now - s->greeted >= GREETING_TIME) {
        say_lost(&error, "no welcome within %d s", (int)(GREETING_TIME / SECOND));
        session_lost(s, &error);
    }
    if (s->phase != READY) return;
    if (s->ping_open) {
        if (now - s->pinged >= 2 * s->heartbeat) {
            say_lost(&error, "the broker has been silent for %" PRId64 " ms", (now - s->heard) / MS);
            session_lost(s, &error);
            return;
        }
    } else if (now - earlier(s->spoke, s->heard) >= s->heartbeat) {
        writer w = begin_header(&s->out, PING);
        emit(s, &w, NULL);
        s->pinged = s->spoke = now;
        s->ping_open = true;
    }
    send_requests(s, now);
    for (handle *h = s->handles; h; h = h->next) handle_tick(h, now);
}

/* When session_tick() is wanted next. */
static us session_deadline(const session *s) {
    if (s->phase == GREETING) return s->greeted + GREETING_TIME;
    if (s->phase != READY) return NEVER;
    us due = s->ping_open ? s->pinged + 2 * s->heartbeat : earlier(s->spoke, s->heard) + s->heartbeat;
    for (const request *r = s->requests; r; r = r->next) {
        if (!r->over && !r->ref) due = earlier(due, r->due);
    }
    for (const handle *h = s->handles; h; h = h->next) due = earlier(due, handle_deadline(h));
    return due;
}

static void drop_session(session *s) {
    clear_outbox(s);
    drop_bytes(&s->out);
    free(s->outbox);
    free(s->answers);
    free(s->to_close);
}

/* Sends CLOSE; what comes of it changes nothing. */
static void say_close(handle *h) {
    session *s = h->session;
    writer w = begin_header(&s->out, CLOSE);
    with_number(&w, K_REF, expect(s, ANSWER_CLOSE, h));
    with_number(&w, K_HANDLE, h->number);
    emit(s, &w, NULL);
}

static void close_in_session(session *s, uint64_t number) {
    if (s->to_close_count == s->to_close_room) {
        s->to_close_room = s->to_close_room ? 2 * s->to_close_room : 8;
        s->to_close = allocate_again(s->to_close, s->to_close_room * sizeof *s->to_close);
    }
    s->to_close[s->to_close_count++] = number;
}

/* The session may be resumed, and would still hold the handle. */
static void close_later(handle *h) {
    session *s = h->home;
    if (s && h->open_ref && s->has_secret) close_in_session(s, h->number);
}

/* A handle that is opened in this session is not to be closed there, though it was left once. */
static void keep_in_session(session *s, uint64_t number) {
    size_t kept = 0;
    for (size_t i = 0; i < s->to_close_count; i++) {
        if (s->to_close[i] != number) s->to_close[kept++] = s->to_close[i];
    }
    s->to_close_count = kept;
}

static bool is_live(const handle *h) {
    return (h->phase == H_OPEN || h->phase == H_OPENING || h->phase == H_WAITING) && h->session;
}

/* Says CLOSE, or that it is over where nobody can be told. */
static void close_handle(handle *h) {
    if (h->phase == H_CLOSED || h->phase == H_CLOSING) return;
    if (is_live(h)) {
        h->phase = H_CLOSING;
        say_close(h);
        return;
    }
    ister_error error;
    say_closed(&error, h->kind == A_PRODUCER ? "producer" : "consumer");
    close_later(h);
    handle_fail(h, &error);
}

/* ---- producers, section 8 ---- */

/* Invariants
 * - a sealed batch is never cut again: what is sent once is sent again byte for byte
 * - what has no receipt fits the window and BATCHES_IN_FLIGHT_MAX, or is one batch alone
 * - a receipt is resolved once */

typedef struct waiter waiter;
struct waiter {
    ister_receipt_function *then;
    void *user;
    uint64_t index;
    waiter *next;
};

/* What becomes of one batch; every receipt of its messages points here. */
typedef struct shipment shipment;
struct shipment {
    atomic_int references;
    ister_client *client; /* NULL in tests */
    bool over, observed, duplicate;
    uint64_t first, count;
    ister_error error;
    waiter *waiters, **last;
    shipment *next; /* whose functions are to be called */
};

typedef struct batch batch;
struct batch {
    uint64_t sequence, count, columns;
    body *body;
    shipment *shipment;
    bool is_refused;
    ister_error refused;
    batch *next;
};

typedef struct {
    handle h;
    uint64_t id;
    bool non_reliable;
    shipment *refused; /* the first refused one, for who looks at no receipts */
    uint64_t batch_bytes, own_window;
    us linger;
    uint64_t next; /* the number of the next message */
    uint64_t window, in_flight;
    batch *batches, **last_batch, *unsent; /* without a receipt, in order; the first that is not sent */
    uint64_t batches_count, bytes;
    gathering gathered;
    uint64_t gathered_bytes;
    us gathered_since;
    shipment *shipment;
    ister_client *client;
    void (*on_resolved)(shipment *of);
} publication;

static void keep_client(ister_client *client);
static void release_client(ister_client *client);

static shipment *new_shipment(ister_client *client) {
    shipment *made = allocate(sizeof *made);
    atomic_init(&made->references, 1);
    made->client = client;
    made->last = &made->waiters;
    if (client) keep_client(client);
    return made;
}

static void release_shipment(shipment *old) {
    if (!old || atomic_fetch_sub(&old->references, 1) != 1) return;
    ister_client *client = old->client;
    while (old->waiters) {
        waiter *next = old->waiters->next;
        free(old->waiters);
        old->waiters = next;
    }
    free(old);
    if (client) release_client(client);
}

static void resolve_shipment(publication *p, shipment *of, uint64_t first, const ister_error *error) {
    if (of->over) return;
    of->over = true;
    of->first = first;
    if (error) of->error = *error;
    of->duplicate = !error && first == OFFSET_UNKNOWN;
    if (p->on_resolved) p->on_resolved(of);
}

static void init_condition(pthread_cond_t *made) {
    pthread_condattr_t how;
    pthread_condattr_init(&how);
    pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
    pthread_cond_init(made, &how);
    pthread_condattr_destroy(&how);
}

static void set_up_publication(publication *p, uint64_t number, const char *topic) {
    p->h.kind = A_PRODUCER;
    p->h.number = number;
    p->h.topic = copy_text(topic);
    init_condition(&p->h.changed);
    p->last_batch = &p->batches;
    p->batch_bytes = 64 << 10;
    p->linger = MS;
}

static uint64_t lowest(const publication *p) { return p->batches ? p->batches->sequence : p->next - p->gathered.count; }

static void open_producer(publication *p) {
    session *s = p->h.session;
    p->h.phase = H_OPENING;
    p->unsent = p->batches;
    for (batch *each = p->batches; each; each = each->next) each->is_refused = false;
    p->h.open_ref = expect(s, ANSWER_OPEN, &p->h);
    writer w = begin_header(&s->out, OPEN_PRODUCER);
    with_number(&w, K_REF, p->h.open_ref);
    with_number(&w, K_HANDLE, p->h.number);
    with_text(&w, K_TOPIC, p->h.topic);
    with_number(&w, K_PRODUCER, p->id);
    with_number(&w, K_SEQUENCE, lowest(p));
    emit(s, &w, NULL);
}

static void send_batches(publication *p) {
    session *s = p->h.session;
    if (p->h.phase != H_OPEN || !s) return;
    for (; p->unsent; p->unsent = p->unsent->next) {
        batch *each = p->unsent;
        writer w = begin_header(&s->out, PUBLISH);
        with_number(&w, K_HANDLE, p->h.number);
        with_number(&w, K_SEQUENCE, each->sequence);
        if (each->columns) with_number(&w, K_COLUMNS, each->columns);
        emit(s, &w, each->body);
    }
}

static void fail_producer(publication *p, const ister_error *why) {
    if (p->h.phase == H_CLOSED) return;
    p->h.phase = H_CLOSED;
    p->h.error = *why;
    while (p->batches) {
        batch *old = p->batches;
        p->batches = old->next;
        resolve_shipment(p, old->shipment, 0, why);
        release_shipment(old->shipment);
        release_body(old->body);
        free(old);
    }
    p->last_batch = &p->batches;
    p->unsent = NULL;
    p->batches_count = p->bytes = 0;
    if (p->shipment) {
        resolve_shipment(p, p->shipment, 0, why);
        release_shipment(p->shipment);
        p->shipment = NULL;
    }
    drop_gathering(&p->gathered);
    p->gathered_bytes = 0;
    tell_waiters(&p->h);
}

static void producer_refused(publication *p, const ister_error *why, us now) {
    if (why->action != ISTER_RETRY) {
        fail_producer(p, why);
        return;
    }
    p->h.phase = H_WAITING;
    p->h.trouble = *why;
    p->h.due = now + back_off(p->h.failures++, BACK_OFF_MIN, BACK_OFF_MAX);
}

static bool producer_opened(publication *p, const header *in, us now, ister_error *error) {
    session *s = p->h.session;
    char endpoint[256];
    switch (number_of(in, K_TYPE)) {
    case MOVED:
        text_of(in, K_ENDPOINT, endpoint, sizeof endpoint);
        if (s->on_moved) s->on_moved(s->context, &p->h, endpoint, now);
        return true;
    case ERROR_FRAME: {
        ister_error said;
        error_of(in, &said);
        producer_refused(p, &said, now);
        return true;
    }
    case OPENED:
        p->h.phase = H_OPEN;
        p->h.failures = p->h.moves = 0;
        p->h.trouble.result = ISTER_OK;
        p->window = has(in, K_BYTES) ? number_of(in, K_BYTES) : s->limits.window_bytes;
        if (p->own_window) p->window = smaller(p->window, p->own_window);
        p->in_flight = s->limits.batches_in_flight_max;
        p->non_reliable = text_is(in, K_STRATEGY, "non-reliable");
        if (!p->h.opened) {
            p->h.opened = true;
            p->next = larger(p->next, number_of(in, K_SEQUENCE));
        }
        send_batches(p);
        tell_waiters(&p->h);
        return true;
    default:
        say_malformed(error, "a frame of type %" PRIu64 " answered OPEN_PRODUCER", number_of(in, K_TYPE));
        return false;
    }
}

static bool has_room(const publication *p, uint64_t size) {
    if (!p->h.opened || p->h.phase == H_CLOSED || p->h.phase == H_CLOSING) return false;
    return (p->bytes == 0 || p->bytes + size <= p->window) && p->batches_count < p->in_flight;
}

static uint64_t batch_limit(const publication *p) {
    uint64_t limit = smaller(p->batch_bytes, p->window);
    return p->h.session ? smaller(limit, p->h.session->limits.batch_bytes_max) : limit;
}

static void enqueue(publication *p, gathering *from, shipment *into, uint64_t sequence) {
    batch *made = allocate(sizeof *made);
    made->sequence = sequence;
    made->count = from->count;
    made->columns = from->columns;
    made->body = pack(from, true);
    made->shipment = into;
    into->count = made->count;
    *p->last_batch = made;
    p->last_batch = &made->next;
    if (!p->unsent) p->unsent = made;
    p->batches_count++;
    p->bytes += made->body->size;
    send_batches(p);
}

/* Makes a batch of what is gathered; false where there is no room for it. */
static bool seal(publication *p) {
    if (!p->gathered.count) return true;
    if (!has_room(p, p->gathered_bytes)) return false;
    shipment *into = p->shipment;
    p->shipment = NULL;
    p->gathered_bytes = 0;
    enqueue(p, &p->gathered, into, p->next - p->gathered.count);
    return true;
}

static void remove_batch(publication *p, batch *old) {
    batch **at = &p->batches;
    while (*at != old) at = &(*at)->next;
    *at = old->next;
    if (p->last_batch == &old->next) p->last_batch = at;
    if (p->unsent == old) p->unsent = old->next;
    p->batches_count--;
    p->bytes -= old->body->size;
    release_shipment(old->shipment);
    release_body(old->body);
    free(old);
}

/* Goes on once something was answered. */
static void after_answers(publication *p) {
    while (p->h.phase == H_OPEN && p->batches && p->batches->is_refused) {
        batch *first = p->batches;
        resolve_shipment(p, first->shipment, 0, &first->refused);
        if (!p->refused) {
            p->refused = first->shipment;
            atomic_fetch_add(&p->refused->references, 1);
        }
        remove_batch(p, first);
        open_producer(p); /* behind it; what follows is sent again */
    }
    if (p->gathered.count && !p->batches) seal(p);
    tell_waiters(&p->h);
}

static void refuse_batch(publication *p, uint64_t sequence, ister_error *error, us now) {
    if (p->h.phase != H_OPEN) return;
    if (has_code(error, "unknown-handle")) error->action = ISTER_RETRY; /* the worker has lost the producer */
    for (batch *each = p->batches; each; each = each->next) {
        if (each->sequence != sequence) {
            if (each->is_refused && each->sequence < sequence) return; /* a gap: it is sent again behind that one */
            continue;
        }
        if (error->action == ISTER_RETRY) {
            producer_refused(p, error, now);
            return;
        }
        each->is_refused = true;
        each->refused = *error;
        after_answers(p);
        return;
    }
}

static void producer_frame(publication *p, const header *in, us now) {
    size_t count;
    ister_error error;
    switch (number_of(in, K_TYPE)) {
    case RECEIPT: {
        const uint64_t *pairs = numbers_of(in, K_RECEIPTS, &count);
        for (size_t i = 0; i + 1 < count; i += 2) {
            for (batch *each = p->batches; each; each = each->next) {
                if (each->sequence != pairs[i]) continue;
                resolve_shipment(p, each->shipment, pairs[i + 1], NULL);
                remove_batch(p, each);
                break;
            }
        }
        after_answers(p);
        break;
    }
    case ERROR_FRAME:
        error_of(in, &error);
        if (number_of(in, K_CLOSED) || !has(in, K_SEQUENCE)) {
            if (has_code(&error, "unknown-handle")) error.action = ISTER_RETRY;
            if (is_live(&p->h)) producer_refused(p, &error, now);
        } else {
            refuse_batch(p, number_of(in, K_SEQUENCE), &error, now);
        }
        break;
    default: break;
    }
}

#define LENGTH_BYTES 4
#define COLUMNS_MAX (2 * LENGTH_BYTES + 8) /* what columns cost that other messages of the batch bring in */

/* What a message takes in a batch, without the columns of others. */
static uint64_t size_of(const ister_outgoing *message) {
    uint64_t size = message->payload_size + LENGTH_BYTES;
    if (message->key_size) size += message->key_size + LENGTH_BYTES;
    if (message->attributes_count) {
        bytes counted = {0};
        size += attributes_size(message, &counted) + LENGTH_BYTES;
        drop_bytes(&counted);
    }
    return message->deliver_at_ms > 0 ? size + 8 : size;
}

/* Adds a message to what is gathered; NULL where it must wait for room. */
static shipment *take(publication *p, const ister_outgoing *message, uint64_t *index, us now) {
    uint64_t size = size_of(message) + COLUMNS_MAX, limit = batch_limit(p);
    if (p->gathered.count && p->gathered_bytes + size > limit && !seal(p)) return NULL;
    if (!p->gathered.count) {
        if (p->bytes && size > limit && !has_room(p, size)) return NULL;
        p->gathered_since = now;
        p->shipment = new_shipment(p->client);
    }
    shipment *into = p->shipment;
    *index = p->gathered.count;
    gather(&p->gathered, message);
    p->gathered_bytes += size;
    p->next++;
    if (!p->batches || p->gathered_bytes >= limit) seal(p);
    return into;
}

/* Sends messages as a batch of their own, which is emptied; NULL where it must wait for room. */
static shipment *take_batch(publication *p, gathering *messages, uint64_t size) {
    if (!seal(p) || !has_room(p, size)) return NULL;
    shipment *into = new_shipment(p->client);
    uint64_t count = messages->count;
    enqueue(p, messages, into, p->next);
    p->next += count;
    return into;
}

static bool answered(const publication *p) { return !p->gathered.count && !p->batches; }

/* The shipment of a number that was used in this run; NULL: it was stored before. */
static shipment *before(publication *p, uint64_t sequence, uint64_t *index) {
    for (batch *each = p->batches; each; each = each->next) {
        if (each->sequence <= sequence && sequence < each->sequence + each->count) {
            *index = sequence - each->sequence;
            return each->shipment;
        }
    }
    if (p->shipment && sequence >= p->next - p->gathered.count) {
        *index = sequence - (p->next - p->gathered.count);
        return p->shipment;
    }
    return NULL;
}

static void drop_publication(publication *p) {
    drop_gathering(&p->gathered);
    release_shipment(p->refused);
    pthread_cond_destroy(&p->h.changed);
    free(p->h.topic);
}

/* ---- consumers, section 9 ---- */

/* Invariants
 * - the broker is never given more credit than the window: what was delivered and not taken, and what may still come
 * - what was delivered before the broker forgot about it, or moved the subscription, is never acknowledged
 * - acknowledgments stay here until a DONE covers them, and are sent again over a resumed session
 * - a message goes to the program after the broker was told so (TAKEN, 9.6); one that was delivered SINGLY, after the
 *   broker has answered that it knows */

#define ACK_DELAY (3 * MS)
#define CONFIRM_RANGES 1000 /* unconfirmed ranges, beyond which the broker is asked what is written */
#define WINDOW_FIRST 16     /* messages of credit for a program whose pace is not known yet */
#define WINDOW_MOST 16384
#define PACE_AIM (500 * MS) /* as much as the program works off in that time is kept ready */
#define CREDIT_BYTES ((uint64_t)8 << 20)
/* As much work is reported as taken at a time: a fast program costs one report for thousands of messages, and one that
   takes longer over a message has that one alone in hand. */
#define AT_ONCE (4 * MS)
#define AT_ONCE_MOST 16384
#define AT_ONCE_GROWTH 4
#define ACK_AT_ONCE                                                                                                    \
    64 /* a program that takes no more at a time has its acknowledgments sent before the next report                   \
        */

typedef struct {
    uint64_t first, end;
} span;

typedef struct {
    span *items;
    size_t count, room;
} spans;

static void push_span(spans *to, uint64_t first, uint64_t end) {
    if (to->count == to->room) {
        to->room = to->room ? 2 * to->room : 16;
        to->items = allocate_again(to->items, to->room * sizeof *to->items);
    }
    to->items[to->count++] = (span){first, end};
}

static void add_span(spans *to, uint64_t first, uint64_t end) {
    if (to->count && to->items[to->count - 1].end == first)
        to->items[to->count - 1].end = end;
    else
        push_span(to, first, end);
}

static void drop_spans(spans *old) {
    free(old->items);
    *old = (spans){0};
}

typedef struct attachment attachment;
struct attachment {
    handle h;
    uint64_t serial;
    char *subscription, *type;
    bool is_reader, force, patient;
    ister_place start;
    uint64_t priority, fixed;
    bytes options; /* CBOR; empty: none */

    bool has_complaint, forgotten, is_standby;
    ister_error complaint;
    uint64_t position;
    char *instance;
    event_list events, *joint_events; /* of a pattern's topic: those of the pattern */
    uint64_t group;                   /* the serial number of its pattern; 0: it is no pattern's */
    uint64_t credit_bytes;

    uint64_t epoch; /* messages of an earlier one are not acknowledged any more */
    bool has_origin;
    uint8_t origin[SESSION_BYTES]; /* the session that knows what was delivered */
    delivery *queue, **last_queued;
    bool handed_out;  /* reached counts */
    uint64_t reached; /* a reader's first offset that was not handed out */
    uint64_t sought;
    uint64_t window, used, used_bytes; /* messages and bytes taken since credit was given back */
    us used_since;
    bool recalled; /* all credit is void until the program asks for something */

    /* what the broker is told of what the program takes, in messages since OPENED */
    bool tells;
    uint64_t came, handed, told; /* told: so many may be the program's */
    size_t singly;               /* deliveries in the queue that are handed out one by one */
    uint64_t asking;             /* the REF of the question whether the next one may be handed out; 0: none */
    bool leave;                  /* it may */
    bool after_singly;           /* the last one was handed out alone, and what became of it may not be known yet */
    uint64_t at_once;            /* how many messages are a moment's work */
    uint64_t run;                /* so many were handed out since it was last looked at, */
    us run_since;                /* from then on; 0: none */
    double fits;                 /* how many would have taken a moment, at the pace of those before */

    spans pending, unconfirmed; /* acknowledgments that are not sent yet; and that are not known to be written */
    bool has_until, confirming, confirms_until;
    uint64_t until, confirmed_until, confirm_ref;
    size_t confirm_covers;
    us ack_due; /* 0: nothing is due */

    /* of an inbox: is given what comes at once */
    void (*on_message)(void *context, ister_message *came);
    void (*on_end)(void *context);
    void *context;
};

static void set_up_attachment(attachment *a, uint64_t number, const char *topic, const char *subscription,
                              const char *type) {
    a->h.kind = A_CONSUMER;
    a->h.number = number;
    a->h.topic = copy_text(topic);
    init_condition(&a->h.changed);
    a->subscription = copy_text(subscription);
    a->type = copy_text(type);
    a->is_reader = strcmp(type, "reader") == 0;
    a->instance = copy_text("");
    a->last_queued = &a->queue;
    a->at_once = 1;
    a->credit_bytes = CREDIT_BYTES;
}

static void drop_queue(attachment *a) {
    while (a->queue) {
        delivery *old = a->queue;
        a->queue = old->next;
        release_delivery(old);
    }
    a->last_queued = &a->queue;
    a->singly = 0;
    a->asking = 0;
    a->leave = false;
}

/* Drops what was not handed out, which the broker has taken back; its credit is free. */
static void drop_waiting(attachment *a) {
    for (delivery *each = a->queue; each; each = each->next) {
        a->used += each->count - each->at;
        a->used_bytes += each->bytes;
    }
    drop_queue(a);
    a->handed = a->came; /* what follows is counted behind it */
}

static bool settled(const attachment *a) { return !a->pending.count && !a->unconfirmed.count && !a->has_until; }

/* Drops acknowledgments: the broker knows no more what they are about. */
static void forget(attachment *a) {
    if (!settled(a)) a->forgotten = true;
    a->epoch++;
    a->pending.count = a->unconfirmed.count = 0;
    a->has_until = a->confirming = false;
    a->ack_due = 0;
    tell_waiters(&a->h);
}

static void put_place(bytes *to, ister_place place) {
    char text[32];
    switch (place.kind) {
    case ISTER_AT_OFFSET: put_number(to, place.value); return;
    case ISTER_AT_TIME:
        snprintf(text, sizeof text, "time:%" PRIu64, place.value);
        put_text(to, text, strlen(text));
        return;
    case ISTER_EARLIEST: put_text(to, "earliest", 8); return;
    default: put_text(to, "latest", 6); return;
    }
}

static void open_consumer(attachment *a) {
    session *s = a->h.session;
    if (!a->window) a->window = a->fixed ? a->fixed : WINDOW_FIRST;
    a->window = larger(1, smaller(a->window, s->limits.credit_messages_max));
    a->h.phase = H_OPENING;
    drop_queue(a);
    a->used = a->used_bytes = 0;
    a->came = a->handed = a->told = 0;
    a->tells = a->recalled = a->after_singly = false;
    a->h.open_ref = expect(s, ANSWER_OPEN, &a->h);
    writer w = begin_header(&s->out, OPEN_CONSUMER);
    with_number(&w, K_REF, a->h.open_ref);
    with_number(&w, K_HANDLE, a->h.number);
    with_text(&w, K_TOPIC, a->h.topic);
    with_text(&w, K_SUBSCRIPTION, a->subscription);
    with_text(&w, K_SUBSCRIPTION_TYPE, a->type);
    with_number(&w, K_MESSAGES, a->window);
    with_number(&w, K_BYTES, a->credit_bytes);
    with_flag(&w, K_SPARSE, true);
    with_number(&w, K_TAKEN, 0);
    with_text(&w, K_INSTANCE, a->instance);
    with_number(&w, K_SOUGHT, 0);
    ister_place start = a->start;
    if (a->is_reader && a->handed_out) start = (ister_place){ISTER_AT_OFFSET, a->reached};
    if (start.kind != ISTER_DEFAULT) {
        put_number(&s->out, K_START);
        put_place(&s->out, start);
        w.count++;
    }
    if (strcmp(a->type, "failover") == 0) with_number(&w, K_PRIORITY, a->priority);
    if (a->force && !a->h.opened) with_flag(&w, K_FORCE, true);
    if (a->options.size) with_item(&w, K_ARGUMENTS, a->options.data, a->options.size);
    emit(s, &w, NULL);
}

/* Writes a frame about ranges, or several; a REF is on the last, whose DONE covers all. */
static void send_ranges(attachment *a, unsigned type, const span *items, size_t count, uint64_t ref, int64_t delay_ms,
                        const char *reason) {
    session *s = a->h.session;
    while (count) {
        size_t some = count < RANGES_MAX ? count : RANGES_MAX;
        size_t before_it = s->out.size;
        writer w;
        for (;;) { /* offsets of many bytes may need a second frame: a header has 8192 bytes at most */
            w = begin_header(&s->out, type);
            with_number(&w, K_HANDLE, a->h.number);
            put_number(&s->out, K_RANGES);
            put_list(&s->out, 2 * some);
            for (size_t i = 0; i < some; i++) {
                put_number(&s->out, items[i].first);
                put_number(&s->out, items[i].end);
            }
            w.count++;
            if (a->sought) with_number(&w, K_SOUGHT, a->sought);
            if (delay_ms >= 0) with_number(&w, K_DELAY, (uint64_t)delay_ms);
            if (reason && *reason) with_text(&w, K_REASON, reason);
            if (some == count && ref) with_number(&w, K_REF, ref);
            if (s->out.size - before_it <= HEADER_BYTES_MAX || some == 1) break;
            s->out.size = before_it;
            some = (some + 1) / 2;
        }
        emit(s, &w, NULL);
        items += some;
        count -= some;
    }
}

static void send_until(attachment *a) {
    session *s = a->h.session;
    if (!a->has_until || !s || a->h.phase == H_CLOSING || a->h.phase == H_CLOSED) return;
    writer w = begin_header(&s->out, ACK_UNTIL);
    with_number(&w, K_HANDLE, a->h.number);
    with_number(&w, K_OFFSET, a->until);
    if (a->sought) with_number(&w, K_SOUGHT, a->sought);
    emit(s, &w, NULL);
}

/* Sends what is not known to be written again. */
static void repeat_acks(attachment *a) {
    send_ranges(a, ACK, a->unconfirmed.items, a->unconfirmed.count, 0, -1, NULL);
    send_until(a);
}

/* Sends what is acknowledged; with confirm, DONE is asked for. */
static void flush_acks(attachment *a, bool confirm) {
    session *s = a->h.session;
    if (a->h.phase != H_OPEN || !s) return;
    a->ack_due = 0;
    for (size_t i = 0; i < a->pending.count; i++) {
        /* never joined with one that a confirmation under way may cover */
        (a->confirming ? push_span : add_span)(&a->unconfirmed, a->pending.items[i].first, a->pending.items[i].end);
    }
    confirm = (confirm || a->unconfirmed.count > CONFIRM_RANGES) && !a->confirming && a->unconfirmed.count;
    uint64_t ref = 0;
    if (confirm) {
        a->confirming = true;
        a->confirm_covers = a->unconfirmed.count;
        a->confirms_until = a->has_until;
        a->confirmed_until = a->until;
        a->confirm_ref = ref = expect(s, ANSWER_CONFIRM, &a->h);
    }
    if (a->pending.count)
        send_ranges(a, ACK, a->pending.items, a->pending.count, ref, -1, NULL);
    else if (confirm)
        send_ranges(a, ACK, a->unconfirmed.items + a->unconfirmed.count - 1, 1, ref, -1, NULL);
    a->pending.count = 0;
}

static void on_confirmed(attachment *a, uint64_t ref, const header *in) {
    if (!a->confirming || a->confirm_ref != ref) return;
    size_t covered = a->confirm_covers;
    a->confirming = false;
    if (number_of(in, K_TYPE) == ERROR_FRAME) {
        ister_error said;
        error_of(in, &said);
        if (!has_code(&said, "closed") && !has_code(&said, "not-active")) {
            a->complaint = said;
            a->has_complaint = true;
        }
        covered = a->unconfirmed.count;
    }
    if (a->has_until && a->confirms_until && a->until == a->confirmed_until) a->has_until = false;
    if (covered > a->unconfirmed.count) covered = a->unconfirmed.count;
    a->unconfirmed.count -= covered;
    memmove(a->unconfirmed.items, a->unconfirmed.items + covered, a->unconfirmed.count * sizeof *a->unconfirmed.items);
    tell_waiters(&a->h);
}

static void fail_consumer(attachment *a, const ister_error *why) {
    if (a->h.phase == H_CLOSED) return;
    a->h.phase = H_CLOSED;
    a->h.error = *why;
    drop_queue(a);
    if (a->on_end) a->on_end(a->context);
    tell_waiters(&a->h);
}

static void consumer_refused(attachment *a, const ister_error *why, us now) {
    ister_error error = *why;
    bool is_busy = has_code(why, "subscription-busy");
    if (has_code(why, "subscription-options") && a->h.opened && a->options.size) {
        drop_bytes(&a->options); /* somebody changed them meanwhile */
        error.action = ISTER_RETRY;
    }
    if (error.action != ISTER_RETRY || (is_busy && !a->h.opened && !a->patient)) {
        fail_consumer(a, why);
        return;
    }
    a->h.due = now + (is_busy ? PLACE_RETRY : back_off(a->h.failures, BACK_OFF_MIN, BACK_OFF_MAX));
    a->h.failures++;
    a->h.phase = H_WAITING;
    a->h.trouble = error;
    drop_queue(a);
    forget(a);
}

static bool consumer_opened(attachment *a, const header *in, us now, ister_error *error) {
    session *s = a->h.session;
    char endpoint[256];
    ister_error said;
    switch (number_of(in, K_TYPE)) {
    case MOVED:
        text_of(in, K_ENDPOINT, endpoint, sizeof endpoint);
        if (s->on_moved) s->on_moved(s->context, &a->h, endpoint, now);
        return true;
    case ERROR_FRAME:
        error_of(in, &said);
        consumer_refused(a, &said, now);
        return true;
    case OPENED: {
        bool another = a->h.opened && has(in, K_INSTANCE) && !text_is(in, K_INSTANCE, a->instance);
        if (has(in, K_INSTANCE)) {
            size_t size = in->keys[K_INSTANCE].size;
            free(a->instance);
            a->instance = allocate(size + 1);
            if (size) memcpy(a->instance, in->keys[K_INSTANCE].data, size);
        }
        if (another && a->is_reader) {
            say(&said, ISTER_REFUSED, ISTER_STOP, "topic-deleted", "topic %s was deleted and made again", a->h.topic);
            say_close(&a->h);
            fail_consumer(a, &said);
            return true;
        }
        if (another) forget(a); /* what was delivered before was of another subscription, or before a move */
        a->h.phase = H_OPEN;
        a->h.opened = true;
        a->h.failures = a->h.moves = 0;
        a->h.trouble.result = ISTER_OK;
        a->position = number_of(in, K_OFFSET);
        a->has_origin = true;
        memcpy(a->origin, s->secret, SESSION_BYTES);
        if (a->is_reader && !a->handed_out) { /* to go on from here, whatever comes meanwhile */
            a->handed_out = true;
            a->reached = a->position;
        }
        a->sought = number_of(in, K_SOUGHT);
        a->tells = has(in, K_TAKEN);
        a->used_since = now;
        a->confirming = false;
        repeat_acks(a); /* a broker that had not finished an earlier open ignored them before */
        tell_waiters(&a->h);
        return true;
    }
    default:
        say_malformed(error, "a frame of type %" PRIu64 " answered OPEN_CONSUMER", number_of(in, K_TYPE));
        return false;
    }
}

/* Gives credit back, and says how many messages the program may have taken (0: nothing); with a REF, DONE is asked for.
 */
static void say_credit(attachment *a, bool back, uint64_t taken, uint64_t ref) {
    session *s = a->h.session;
    uint64_t messages = back ? a->used : 0, size = back ? a->used_bytes : 0;
    if (a->h.phase != H_OPEN || !s || (!messages && !size && !taken)) return;
    writer w = begin_header(&s->out, CREDIT);
    with_number(&w, K_HANDLE, a->h.number);
    with_number(&w, K_MESSAGES, messages);
    with_number(&w, K_BYTES, size);
    if (taken) with_number(&w, K_TAKEN, taken);
    if (ref) with_number(&w, K_REF, ref);
    emit(s, &w, NULL);
    a->used -= messages;
    a->used_bytes -= size;
}

static void grow(attachment *a) {
    uint64_t most = WINDOW_MOST;
    if (a->h.session) most = smaller(most, a->h.session->limits.credit_messages_max);
    uint64_t wider = smaller(2 * a->window, most);
    if (wider > a->window) {
        a->used += wider - a->window;
        a->window = wider;
    }
}

/* The program has nothing to do: all credit goes back, and there may be more of it. */
static void starve(attachment *a, us now) {
    if (!a->used) return;
    if (!a->fixed && a->used >= a->window / 2 && now - a->used_since < PACE_AIM) grow(a);
    say_credit(a, true, 0, 0);
    a->used_since = now;
}

/* Says whether credit is to be given back, which is when half of it is used, and follows the program: as much as it
   works off in a moment. */
static bool pace(attachment *a, us now) {
    bool half = a->used >= (a->window + 1) / 2;
    if (!half && a->used_bytes < a->credit_bytes / 2) return false;
    if (!a->fixed && half) {
        us took = now - a->used_since;
        if (took < PACE_AIM / 4) {
            grow(a);
        } else if (took > PACE_AIM && a->window > 2) {
            uint64_t less = a->window / 2;
            a->used -= smaller(a->used, a->window - less);
            a->window = less;
        }
    }
    a->used_since = now;
    return true;
}

/* The program is done with what it had: says how many messages are a moment's work for it. A single pause of the
   machine does not count. This is looked at when the broker is to be told more, or nothing waits, and not for each
   message. */
static void look_at_run(attachment *a, us now) {
    if (!a->run_since) return;
    us took = now - a->run_since > 1 ? now - a->run_since : 1;
    double before = a->fits;
    a->fits = (double)a->run * (double)AT_ONCE / (double)took;
    a->run = 0;
    a->run_since = 0;
    if (a->fits >= (double)a->at_once) {
        uint64_t most = smaller(AT_ONCE_GROWTH * a->at_once, AT_ONCE_MOST);
        a->at_once = a->fits < (double)most ? (uint64_t)a->fits : most;
    } else if (before < (double)a->at_once) {
        a->at_once = larger(1, (uint64_t)a->fits);
    }
}

/* Says whether the broker knows that the program gets the next message, which may be its end; if not, asks. */
static bool may_have_one(attachment *a) {
    if (a->leave) {
        a->leave = false;
        return true;
    }
    if (!a->asking && a->h.phase == H_OPEN && a->h.session) {
        flush_acks(a, false);
        a->asking = expect(a->h.session, ANSWER_LEAVE, &a->h);
        say_credit(a, true, a->handed + 1, a->asking);
    }
    return false;
}

static void on_leave(attachment *a, uint64_t ref, const header *in) {
    if (!ref || a->asking != ref) return;
    a->asking = 0;
    if (number_of(in, K_TYPE) == DONE) {
        a->leave = true;
        a->told = larger(a->told, a->handed + 1);
    }
    tell_waiters(&a->h);
}

/* So many messages go to the program: the broker is told first, and gets credit back with it. */
static void hand_over(attachment *a, uint64_t count, bool singly, us now) {
    a->used += count;
    a->handed += count;
    a->run += count;
    if (!a->run_since) a->run_since = now;
    bool due = pace(a, now);
    if (a->tells && a->handed > a->told) {
        a->told = singly ? a->handed : larger(a->handed, a->handed - count + a->at_once);
        if (a->at_once <= ACK_AT_ONCE) flush_acks(a, false); /* what is done is not in its hands any more */
        say_credit(a, due, a->told, 0);
    } else if (due) {
        say_credit(a, true, 0, 0);
    }
}

/* Hands out up to most messages that came together, or none. */
static size_t take_messages(attachment *a, ister_message **into, size_t most, us now) {
    delivery *came = a->queue;
    if (a->recalled) {
        a->recalled = false;
        say_credit(a, true, 0, 0);
    }
    if (!came || (a->tells && a->handed >= a->told)) look_at_run(a, now);
    if (!came) {
        starve(a, now);
        return 0;
    }
    if (a->tells && (came->singly || a->after_singly)) {
        if (!may_have_one(a)) return 0;
        a->after_singly = came->singly;
        most = 1;
    }
    size_t count = came->count - came->at < most ? came->count - came->at : most;
    for (size_t i = 0; i < count; i++) into[i] = &came->messages[came->at + i].seen;
    atomic_fetch_add(&came->references, (int)count);
    came->at += count;
    a->reached = came->messages[came->at - 1].seen.offset + 1;
    a->handed_out = true;
    bool singly = a->singly > 0;
    if (came->at == came->count) {
        a->queue = came->next;
        if (!a->queue) a->last_queued = &a->queue;
        a->used_bytes += came->bytes;
        a->singly -= came->singly;
        release_delivery(came);
    }
    hand_over(a, count, singly, now);
    return count;
}

static bool set_offsets(const header *in, delivery *into) {
    size_t ranges, at = 0;
    const uint64_t *flat = numbers_of(in, K_RANGES, &ranges);
    uint64_t first = number_of(in, K_OFFSET), last = 0;
    if (!has(in, K_RANGES)) {
        for (; at < into->count; at++) into->messages[at].seen.offset = first + at;
        return true;
    }
    for (size_t i = 0; i + 1 < ranges; i += 2) {
        if (flat[i] >= flat[i + 1] || (i && flat[i] <= last) || flat[i + 1] - flat[i] > into->count - at) return false;
        for (last = flat[i]; last < flat[i + 1]; last++) into->messages[at++].seen.offset = last;
    }
    return at == into->count && into->messages[0].seen.offset == first;
}

static bool set_times(const header *in, delivery *into) {
    size_t count, at = 0;
    const uint64_t *pairs = numbers_of(in, K_TIMESTAMPS, &count);
    for (size_t i = 0; i + 1 < count; i += 2) {
        if (pairs[i] > into->count - at) return false;
        for (uint64_t n = 0; n < pairs[i]; n++) into->messages[at++].seen.timestamp_ms = (int64_t)pairs[i + 1];
    }
    return at == into->count;
}

static bool on_delivery(attachment *a, const header *in, parcel *came, us now, ister_error *error) {
    uint64_t count = number_of(in, K_COUNT);
    if (!count || came->count < 3 || came->frames[1].size / 4 != count) {
        say_malformed(error, "a delivery does not hold the %" PRIu64 " messages it says", count);
        return false;
    }
    delivery *made = allocate(sizeof *made);
    atomic_init(&made->references, 1);
    made->count = (size_t)count;
    made->messages = allocate(made->count * sizeof *made->messages);
    bool good =
        cut_batch(number_of(in, K_COLUMNS), made->count, came->frames + 1, came->count - 1, made->messages, error);
    if (good && (!set_offsets(in, made) || !set_times(in, made))) {
        say_malformed(error, "the offsets or times of a delivery are not those of its %" PRIu64 " messages", count);
        good = false;
    }
    if (!good) {
        release_delivery(made);
        return false;
    }
    made->parcel = came;
    atomic_fetch_add(&came->references, 1);
    made->topic = copy_text(a->h.topic);
    unsigned attempt = has(in, K_ATTEMPT) ? (unsigned)smaller(number_of(in, K_ATTEMPT), UINT32_MAX) : 1;
    for (size_t i = 0; i < made->count; i++) {
        handed *each = &made->messages[i];
        each->seen.topic = made->topic;
        each->seen.attempt = attempt;
        each->home = made;
    }
    for (size_t i = 1; i < came->count; i++) made->bytes += came->frames[i].size;
    made->owner = a->serial;
    made->group = a->group;
    made->epoch = a->epoch;
    made->singly = number_of(in, K_SINGLY) != 0;
    a->singly += made->singly;
    a->came += made->count;
    *a->last_queued = made;
    a->last_queued = &made->next;
    if (a->on_message) {
        ister_message *each;
        while (take_messages(a, &each, 1, now)) a->on_message(a->context, each);
    }
    tell_waiters(&a->h);
    return true;
}

static void on_event(attachment *a, const header *in) {
    char code[48], text[256];
    text_of(in, K_CODE, code, sizeof code);
    text_of(in, K_TEXT, text, sizeof text);
    a->sought = larger(a->sought, number_of(in, K_SOUGHT));
    if (strcmp(code, "active") == 0)
        a->is_standby = false;
    else if (strcmp(code, "standby") == 0)
        a->is_standby = true;
    else if (strcmp(code, "sought") == 0) {
        drop_waiting(a);
        a->pending.count = a->unconfirmed.count = 0;
        a->has_until = a->confirming = false;
        a->ack_due = 0;
        a->epoch++;
        say_credit(a, true, 0, 0);
    } else if (strcmp(code, "recalled") == 0) { /* what waits here went to others, and all credit with it */
        drop_waiting(a);
        a->recalled = true;
        a->used = a->window;
        a->used_bytes = a->credit_bytes;
    } else if (strcmp(code, "log-damaged") == 0) { /* nothing comes until an operator decides: the program must hear */
        say(&a->complaint, ISTER_REFUSED, ISTER_STOP, code, "%s", text);
        a->has_complaint = true;
    }
    int64_t offset = has(in, K_OFFSET) ? (int64_t)smaller(number_of(in, K_OFFSET), INT64_MAX) : -1;
    keep_event(a->joint_events ? a->joint_events : &a->events, code, number_of(in, K_COUNT), offset, text, a->h.topic);
    tell_waiters(&a->h);
}

static bool consumer_frame(attachment *a, const header *in, parcel *came, us now, ister_error *error) {
    ister_error said;
    switch (number_of(in, K_TYPE)) {
    case DELIVER: return a->h.phase != H_OPEN || on_delivery(a, in, came, now, error);
    case EVENT: on_event(a, in); return true;
    case ERROR_FRAME:
        error_of(in, &said);
        if (has_code(&said, "unknown-handle")) said.action = ISTER_RETRY; /* the worker has lost it */
        if (has_code(&said, "not-active")) {
            /* acknowledged too late: the consumer that is active now gets it again */
        } else if (number_of(in, K_CLOSED) || said.action == ISTER_RETRY) {
            if (is_live(&a->h)) consumer_refused(a, &said, now);
        } else {
            a->complaint = said;
            a->has_complaint = true;
        }
        tell_waiters(&a->h);
        return true;
    default: return true;
    }
}

static void acknowledge(attachment *a, const ister_message *const *messages, size_t count, us now) {
    for (size_t i = 0; i < count; i++) {
        const handed *each = (const handed *)messages[i];
        if (each->home->epoch != a->epoch)
            a->forgotten = true;
        else
            add_span(&a->pending, each->seen.offset, each->seen.offset + 1);
    }
    if (!a->ack_due && a->pending.count) a->ack_due = now + ACK_DELAY;
}

static void acknowledge_until(attachment *a, const ister_message *one, us now) {
    if (((const handed *)one)->home->epoch != a->epoch) {
        a->forgotten = true;
        return;
    }
    flush_acks(a, false);
    a->has_until = true;
    a->until = one->offset;
    send_until(a);
    acknowledge(a, &one, 1, now); /* the message itself as well: what the next confirmation is about */
}

/* NACK or EXTEND. */
static void say_about(attachment *a, unsigned type, ister_message *const *messages, size_t count, int64_t delay_ms,
                      const char *reason) {
    spans some = {0};
    for (size_t i = 0; i < count; i++) {
        if (((handed *)messages[i])->home->epoch == a->epoch)
            add_span(&some, messages[i]->offset, messages[i]->offset + 1);
    }
    if (type == NACK) flush_acks(a, false);
    if (a->h.phase == H_OPEN && a->h.session) send_ranges(a, type, some.items, some.count, 0, delay_ms, reason);
    drop_spans(&some);
}

/* The program failed, and with it all that it has in hand: only the broker knows what that is. */
static void blame(attachment *a, const char *reason) {
    session *s = a->h.session;
    if (a->h.phase != H_OPEN || !s || !a->tells) return;
    flush_acks(a, false);
    writer w = begin_header(&s->out, NACK);
    with_number(&w, K_HANDLE, a->h.number);
    put_number(&s->out, K_RANGES);
    put_list(&s->out, 0);
    w.count++;
    with_number(&w, K_TAKEN, a->handed);
    if (a->sought) with_number(&w, K_SOUGHT, a->sought);
    if (*reason) with_text(&w, K_REASON, reason);
    emit(s, &w, NULL);
}

static void drop_attachment(attachment *a) {
    drop_queue(a);
    drop_events(&a->events);
    drop_bytes(&a->options);
    drop_spans(&a->pending);
    drop_spans(&a->unconfirmed);
    pthread_cond_destroy(&a->h.changed);
    free(a->subscription);
    free(a->type);
    free(a->instance);
    free(a->h.topic);
}

/* ---- either of them ---- */

static void handle_ready(handle *h, session *s, bool resumed, us now) {
    h->session = s;
    if (h->kind == A_CONSUMER) {
        attachment *a = (attachment *)h;
        /* another session knows nothing of it, be it resumed or not: its DONE would confirm nothing */
        if (!resumed || !a->has_origin || memcmp(a->origin, s->secret, SESSION_BYTES) != 0)
            forget(a);
        else if (h->phase == H_IDLE && h->opened)
            repeat_acks(a); /* so that they are not delivered again */
    }
    if (h->phase != H_IDLE && (h->phase != H_WAITING || h->due > now)) return;
    if (h->kind == A_PRODUCER)
        open_producer((publication *)h);
    else
        open_consumer((attachment *)h);
}

static void handle_lost(handle *h, const ister_error *why) {
    h->trouble = *why;
    if (is_live(h)) {
        h->phase = H_IDLE;
        if (h->kind == A_PRODUCER) {
            ((publication *)h)->unsent = NULL;
        } else {
            drop_queue((attachment *)h);
            ((attachment *)h)->confirming = false;
        }
    } else if (h->phase == H_CLOSING) {
        ister_error error;
        say_closed(&error, h->kind == A_PRODUCER ? "producer" : "consumer");
        close_later(h);
        handle_fail(h, &error);
    }
    h->session = NULL;
    tell_waiters(h);
}

static bool handle_frame(handle *h, const header *in, parcel *came, us now, ister_error *error) {
    if (h->kind == A_CONSUMER) return consumer_frame((attachment *)h, in, came, now, error);
    producer_frame((publication *)h, in, now);
    return true;
}

static bool handle_answer(handle *h, answer_kind kind, uint64_t ref, const header *in, us now, ister_error *error) {
    if (kind == ANSWER_CLOSE) {
        ister_error over;
        say_closed(&over, h->kind == A_PRODUCER ? "producer" : "consumer");
        handle_fail(h, &over);
    } else if (kind == ANSWER_CONFIRM) {
        on_confirmed((attachment *)h, ref, in);
    } else if (kind == ANSWER_LEAVE) {
        on_leave((attachment *)h, ref, in);
    } else if (h->phase == H_OPENING && h->open_ref == ref) {
        return h->kind == A_PRODUCER ? producer_opened((publication *)h, in, now, error)
                                     : consumer_opened((attachment *)h, in, now, error);
    }
    return true;
}

static void handle_tick(handle *h, us now) {
    if (h->phase == H_WAITING && h->due <= now && h->session) {
        if (h->kind == A_PRODUCER)
            open_producer((publication *)h);
        else
            open_consumer((attachment *)h);
    }
    if (h->kind == A_PRODUCER) {
        publication *p = (publication *)h;
        if (p->gathered.count && p->gathered_since + p->linger <= now) seal(p);
    } else {
        attachment *a = (attachment *)h;
        if (a->ack_due && a->ack_due <= now) flush_acks(a, false);
    }
}

static us handle_deadline(const handle *h) {
    us due = h->phase == H_WAITING ? h->due : NEVER;
    if (h->kind == A_PRODUCER) {
        const publication *p = (const publication *)h;
        if (p->gathered.count && has_room(p, p->gathered_bytes)) due = earlier(due, p->gathered_since + p->linger);
    } else if (h->phase == H_OPEN && ((const attachment *)h)->ack_due) {
        due = earlier(due, ((const attachment *)h)->ack_due);
    }
    return due;
}

static void handle_fail(handle *h, const ister_error *why) {
    if (h->kind == A_PRODUCER)
        fail_producer((publication *)h, why);
    else
        fail_consumer((attachment *)h, why);
}

/* ---- sockets and the client's thread ---- */

/* Invariants
 * - a socket that has lost its peer is closed, and never left to reconnect: it would lose messages in silence
 * - only the client's thread touches sockets; everything but waiting happens under the client's lock
 * - callbacks are called by that thread, without the lock */

#define FAREWELL_LINGER_MS 500
#define REHOME_FAILURES 3
#define MOVES_MAX 8
#define RECEIVED_MAX 1000 /* messages taken from one socket before the others have their turn */
#define OUTLETS_MAX 64
#define HANDSHAKE_FAILED (0x0800 | 0x2000 | 0x4000)

typedef struct connection connection;
struct connection {
    session s;
    ister_client *client;
    char **endpoints;
    size_t endpoints_count, at;
    void *socket, *monitor;
    us due;
    int failures;
    bool home, up, leaving, bye;
    parcel *spare;
    connection *next;
};

typedef struct secret secret;
struct secret {
    char *endpoint;
    uint8_t bytes[SESSION_BYTES];
    uint64_t next_ref; /* those below were used in it */
    uint64_t *handles; /* that were left open in it */
    size_t handles_count;
    secret *next;
};

typedef struct log_line log_line;
struct log_line {
    char *text;
    ister_log_level level;
    log_line *next;
};

/* A request between clients that waits for its reply. */
typedef struct asking asking;
struct asking {
    char id[17];
    uint64_t inbox;
    ister_message *reply;
    bool lost;
    asking *next;
};

typedef struct outlet outlet;
struct outlet {
    ister_producer *producer;
    int users;
    bool dead;
    outlet *next;
};

struct ister_client {
    atomic_int references;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    char *text;
    void *context;
    connection *connections; /* the first is home */
    secret *secrets;
    uint64_t next_handle, interrupts;
    event_list events;
    bool closing, over, joined;
    pthread_t thread;
    int wake_in, wake_out;
    bool asleep, woken;
    shipment *finished, **last_finished;
    ister_log_function *log;
    void *log_user;
    log_line *lines, **last_line;
    unsigned monitors;

    pthread_mutex_t asking_mutex; /* taken before the other one: about what follows */
    ister_consumer *inbox;
    bool inbox_gone; /* under the other one, as are the askings */
    asking *askings;
    outlet *outlets;
};

struct ister_producer {
    publication p; /* the first member: a handle of this kind is one of these */
    ister_client *client;
};

typedef struct pattern pattern;

struct ister_consumer {
    attachment a; /* of a pattern it is attached to nothing: each topic has a consumer of its own */
    ister_client *client;
    pattern *many;
};

struct ister_receipt {
    shipment *shipment;
    uint64_t index;
    size_t count;
};

static us read_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (us)now.tv_sec * SECOND + now.tv_nsec / 1000;
}

static void keep_client(ister_client *client) { atomic_fetch_add(&client->references, 1); }

static void free_connection(connection *old) {
    drop_session(&old->s);
    for (size_t i = 0; i < old->endpoints_count; i++) free(old->endpoints[i]);
    free(old->endpoints);
    if (old->spare) release_parcel(old->spare);
    free(old);
}

static void release_client(ister_client *client) {
    if (atomic_fetch_sub(&client->references, 1) != 1) return;
    while (client->connections) {
        connection *old = client->connections;
        client->connections = old->next;
        free_connection(old);
    }
    while (client->secrets) {
        secret *old = client->secrets;
        client->secrets = old->next;
        free(old->endpoint);
        free(old->handles);
        free(old);
    }
    drop_events(&client->events);
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->mutex);
    pthread_mutex_destroy(&client->asking_mutex);
    free(client->text);
    free(client);
}

static void lock(ister_client *client) { pthread_mutex_lock(&client->mutex); }
static void unlock(ister_client *client) { pthread_mutex_unlock(&client->mutex); }

/* Has the client's thread look (lock held). */
static void wake(ister_client *client) {
    if (!client->asleep || client->woken) return;
    client->woken = true;
    ssize_t done;
    do done = write(client->wake_out, "", 1);
    while (done < 0 && errno == EINTR); /* a full pipe wakes as well */
}

static const char *endpoint_of(const connection *c) { return c->endpoints[c->at]; }

static secret *secret_of(ister_client *client, const char *endpoint) {
    for (secret *each = client->secrets; each; each = each->next) {
        if (strcmp(each->endpoint, endpoint) == 0) return each;
    }
    return NULL;
}

static void keep_secret(connection *c) {
    if (!c->s.has_secret) return;
    secret *into = secret_of(c->client, endpoint_of(c));
    if (!into) {
        into = allocate(sizeof *into);
        into->endpoint = copy_text(endpoint_of(c));
        into->next = c->client->secrets;
        c->client->secrets = into;
    }
    memcpy(into->bytes, c->s.secret, SESSION_BYTES);
    into->next_ref = c->s.next_ref;
}

/* Goes on with the session that was left at an endpoint, if there is one: no REF is used twice in it, and what was left
   open there is closed. */
static void use_secret(connection *c) {
    secret *known = secret_of(c->client, endpoint_of(c));
    c->s.has_secret = known != NULL;
    if (!known) return;
    memcpy(c->s.secret, known->bytes, SESSION_BYTES);
    c->s.next_ref = larger(c->s.next_ref, known->next_ref);
    for (size_t i = 0; i < known->handles_count; i++) close_in_session(&c->s, known->handles[i]);
    known->handles_count = 0;
}

/* Notes what is open in a session that is left, perhaps for good. */
static void keep_open_handles(connection *c) {
    keep_secret(c);
    secret *into = secret_of(c->client, endpoint_of(c));
    size_t count = 0;
    if (!into || !c->s.has_secret) return;
    for (const handle *h = c->s.handles; h; h = h->next) count++;
    into->handles = allocate_again(into->handles, (count + c->s.to_close_count) * sizeof *into->handles);
    into->handles_count = 0;
    for (const handle *h = c->s.handles; h; h = h->next) into->handles[into->handles_count++] = h->number;
    for (size_t i = 0; i < c->s.to_close_count; i++) into->handles[into->handles_count++] = c->s.to_close[i];
}

static void log_text(ister_client *client, ister_log_level level, const char *text) {
    if (!client->log) return;
    log_line *made = allocate(sizeof *made);
    made->text = copy_text(text);
    made->level = level;
    *client->last_line = made;
    client->last_line = &made->next;
}

static void tell_event(connection *c, const char *code, const char *why) {
    char text[512];
    snprintf(text, sizeof text, "%s%s%s", endpoint_of(c), *why ? ": " : "", why);
    keep_event(&c->client->events, code, 0, -1, text, "");
    bool is_loss = strcmp(code, "lost") == 0;
    if (is_loss && c->client->closing) return;
    snprintf(text, sizeof text, "%s %s%s%s", is_loss ? "the connection was lost, and is made again:" : "connected to",
             endpoint_of(c), *why ? ": " : "", why);
    log_text(c->client, is_loss ? ISTER_LOG_WARNING : ISTER_LOG_INFO, text);
    pthread_cond_broadcast(&c->client->changed);
}

static void on_change(void *context) { pthread_cond_broadcast(&((connection *)context)->client->changed); }
static void on_moved(void *context, handle *h, const char *endpoint, us now);

static connection *new_connection(ister_client *client, const char *const *endpoints, size_t count, bool home) {
    connection *made = allocate(sizeof *made), **last = &client->connections;
    made->client = client;
    made->home = home;
    made->endpoints = allocate(count * sizeof *made->endpoints);
    made->endpoints_count = count;
    for (size_t i = 0; i < count; i++) made->endpoints[i] = copy_text(endpoints[i]);
    made->s.text = client->text;
    made->s.on_moved = on_moved;
    made->s.on_change = on_change;
    made->s.context = made;
    use_secret(made);
    while (*last) last = &(*last)->next;
    *last = made;
    return made;
}

static void close_socket(connection *c, int linger) {
    if (c->socket) {
        zmq_socket_monitor(c->socket, NULL, 0);
        zmq_setsockopt(c->socket, ZMQ_LINGER, &linger, sizeof linger);
        zmq_close(c->socket);
    }
    if (c->monitor) zmq_close(c->monitor);
    c->socket = c->monitor = NULL;
}

static bool set_option(void *socket, int option, int value) {
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

/* Opens a socket; false where that fails, and zmq_errno() says why. */
static bool open_socket(connection *c) {
    char address[64];
    int events = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CONNECT_RETRIED | HANDSHAKE_FAILED;
    snprintf(address, sizeof address, "inproc://ister-monitor-%u", c->client->monitors++);
    c->socket = zmq_socket(c->client->context, ZMQ_DEALER);
    if (!c->socket) return false;
    if (!set_option(c->socket, ZMQ_LINGER, 0) || !set_option(c->socket, ZMQ_SNDHWM, 0) ||
        !set_option(c->socket, ZMQ_RCVHWM, 0) || !set_option(c->socket, ZMQ_IPV6, 1) ||
        !set_option(c->socket, ZMQ_RECONNECT_IVL, 50) || !set_option(c->socket, ZMQ_RECONNECT_IVL_MAX, 1000) ||
        !set_option(c->socket, ZMQ_HEARTBEAT_IVL, 5000) || !set_option(c->socket, ZMQ_HEARTBEAT_TIMEOUT, 15000) ||
        zmq_socket_monitor(c->socket, address, events) != 0) {
        return false;
    }
    c->monitor = zmq_socket(c->client->context, ZMQ_PAIR);
    return c->monitor && set_option(c->monitor, ZMQ_LINGER, 0) && zmq_connect(c->monitor, address) == 0 &&
           zmq_connect(c->socket, endpoint_of(c)) == 0;
}

static void drop_connection(connection *c);

/* Asks the first endpoints again: the one that things were moved to does not come back. */
static void rehome(connection *from, us now) {
    connection *home = from->client->connections;
    ister_error why;
    say_lost(&why, "%s does not come back", endpoint_of(from));
    keep_open_handles(from);
    while (from->s.handles) {
        handle *h = from->s.handles;
        handle_lost(h, &why);
        detach(h);
        attach(&home->s, h, now);
    }
    drop_connection(from);
}

/* Leaves a connection at which nothing lives any more. */
static void drop_connection(connection *c) {
    ister_error why;
    if (c->leaving) return;
    keep_secret(c);
    c->bye = c->s.phase == READY;
    say_lost(&why, "nothing lives there any more");
    session_end(&c->s, &why, true);
    c->leaving = true;
}

/* Closes the socket, and chooses when and where to try again. */
static void hang_up(connection *c, us now) {
    if (c->up) {
        c->up = false;
        tell_event(c, "lost", c->s.trouble.result != ISTER_OK ? c->s.trouble.text : "");
    }
    close_socket(c, 0);
    keep_secret(c);
    us wait = back_off(c->failures, BACK_OFF_MIN, BACK_OFF_MAX);
    c->due = now + wait / 2 + (us)(random_number() % (uint64_t)wait);
    if (c->failures > 0 && c->endpoints_count > 1) {
        c->at = (c->at + 1) % c->endpoints_count;
        use_secret(c);
    }
    c->failures++;
    if (!c->home && c->failures > REHOME_FAILURES) rehome(c, now);
    pthread_cond_broadcast(&c->client->changed);
}

static void on_moved(void *context, handle *h, const char *endpoint, us now) {
    connection *from = context, *target = NULL;
    ister_client *client = from->client;
    ister_error why;
    say_lost(&why, "moved to %s", endpoint);
    if (now - h->moved_at >= MOVED_WAIT) h->moves = 0;
    h->moved_at = now;
    if (++h->moves > MOVES_MAX) {
        say_lost(&h->trouble, "moved %d times in a row, lastly to %s", MOVES_MAX, endpoint);
        h->moves = 0;
        h->phase = H_WAITING;
        h->due = now + MOVED_WAIT;
        return;
    }
    for (connection *each = client->connections; each && !target; each = each->next) {
        if (!each->leaving && strcmp(endpoint_of(each), endpoint) == 0) target = each;
    }
    if (!target) target = new_connection(client, &endpoint, 1, false);
    handle_lost(h, &why);
    detach(h);
    if (h->kind == A_CONSUMER && h->opened) forget((attachment *)h);
    keep_in_session(&target->s, h->number);
    h->home = &target->s;
    h->next = target->s.handles;
    target->s.handles = h;
    if (target->s.phase == READY) handle_ready(h, &target->s, false, now);
    if (!from->home && !from->s.handles) drop_connection(from);
}

static void send_outbox(connection *c, us now) {
    session *s = &c->s;
    while (s->out_first < s->out_count && c->socket) {
        const outgoing_frame *first = &s->outbox[s->out_first];
        size_t frames = first->body ? first->body->frames_count : 0;
        int more = ZMQ_DONTWAIT | ZMQ_SNDMORE;
        bool good = zmq_send(c->socket, s->out.data + first->at, first->size, frames ? more : ZMQ_DONTWAIT) >= 0;
        for (size_t i = 0; good && i < frames; i++) {
            const ister_slice *each = &first->body->frames[i];
            good = zmq_send(c->socket, each->data, each->size, i + 1 < frames ? more : ZMQ_DONTWAIT) >= 0;
        }
        if (!good) { /* with high-water marks of 0 a socket takes everything: this one is broken */
            ister_error error;
            say_lost(&error, "the socket to %s: %s", endpoint_of(c), zmq_strerror(zmq_errno()));
            session_lost(s, &error);
            return;
        }
        sent_first(s);
        s->spoke = now;
    }
}

typedef enum { RECEIVED, RECEIVED_NOTHING, RECEIVED_ERROR } received;

/* Receives one message; of one with too many frames nothing is kept. */
static received receive_parcel(void *socket, parcel *into) {
    bool more = true, too_many = false;
    for (size_t i = 0; more; i++) {
        zmq_msg_t extra, *frame = i <= FRAMES_MAX ? &into->messages[i] : &extra;
        zmq_msg_init(frame);
        if (zmq_msg_recv(frame, socket, ZMQ_DONTWAIT) < 0) {
            bool nothing = i == 0 && (zmq_errno() == EAGAIN || zmq_errno() == EINTR);
            zmq_msg_close(frame);
            empty_parcel(into);
            return nothing ? RECEIVED_NOTHING : RECEIVED_ERROR;
        }
        more = zmq_msg_more(frame) != 0;
        if (frame == &extra) {
            zmq_msg_close(&extra);
            too_many = true;
            continue;
        }
        into->frames[i] = (ister_slice){zmq_msg_data(frame), zmq_msg_size(frame)};
        into->count = i + 1;
    }
    if (too_many) empty_parcel(into);
    return RECEIVED;
}

static void pump(connection *c, us now) {
    send_outbox(c, now);
    for (int i = 0; i < RECEIVED_MAX && (c->s.phase == GREETING || c->s.phase == READY); i++) {
        if (!c->spare) {
            c->spare = allocate(sizeof *c->spare);
            atomic_init(&c->spare->references, 1);
        }
        received done = receive_parcel(c->socket, c->spare);
        if (done == RECEIVED_ERROR) {
            ister_error error;
            say_lost(&error, "the socket to %s: %s", endpoint_of(c), zmq_strerror(zmq_errno()));
            session_lost(&c->s, &error);
        }
        if (done != RECEIVED) break;
        session_receive(&c->s, c->spare, now);
        if (atomic_load(&c->spare->references) == 1) {
            empty_parcel(c->spare);
        } else {
            release_parcel(c->spare);
            c->spare = NULL;
        }
    }
    if (c->s.phase == READY && !c->up) {
        c->up = true;
        tell_event(c, "connected", "");
    }
}

static void read_monitor(connection *c) {
    for (;;) {
        zmq_msg_t frame;
        uint16_t event = 0;
        bool more;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, c->monitor, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            return;
        }
        if (zmq_msg_size(&frame) >= sizeof event) memcpy(&event, zmq_msg_data(&frame), sizeof event);
        more = zmq_msg_more(&frame) != 0;
        zmq_msg_close(&frame);
        if (more) { /* the address */
            zmq_msg_init(&frame);
            zmq_msg_recv(&frame, c->monitor, ZMQ_DONTWAIT);
            zmq_msg_close(&frame);
        }
        ister_error error;
        if (event == ZMQ_EVENT_CONNECT_RETRIED) {
            /* also said of the attempt before one that succeeded */
            if (c->s.phase != GREETING) continue;
            say_lost(&error, "nobody listens at %s", endpoint_of(c));
        } else {
            say_lost(&error, "the connection to %s broke", endpoint_of(c));
        }
        session_lost(&c->s, &error);
    }
}

/* Does everything that is due at one connection. */
static void service(connection *c, us now) {
    if (c->s.phase == ENDED) {
        if (!c->leaving && c->socket) hang_up(c, now);
        return;
    }
    if (!c->socket) {
        if (now < c->due) return;
        if (!open_socket(c)) {
            say_lost(&c->s.trouble, "cannot connect to %s: %s", endpoint_of(c), zmq_strerror(zmq_errno()));
            hang_up(c, now);
            return;
        }
        session_connect(&c->s, now);
    }
    pump(c, now);
    if (c->monitor) read_monitor(c);
    session_tick(&c->s, now);
    if (c->s.phase == READY) c->failures = 0;
    if (c->s.phase == IDLE)
        hang_up(c, now);
    else
        send_outbox(c, now);
}

static void say_farewell(connection *c) {
    if (c->socket && c->s.phase == ENDED) send_outbox(c, 0);
    close_socket(c, c->bye ? FAREWELL_LINGER_MS : 0);
}

static void published_of(const shipment *from, uint64_t index, size_t count, ister_published *to) {
    *to = (ister_published){from->first != OFFSET_UNKNOWN, from->first + index, count, from->duplicate};
    if (!to->has_offset) to->offset = 0;
}

/* Calls the functions that are to be called (lock held; it is given up meanwhile). Returns whether there were any. */
static bool call_back(ister_client *client) {
    shipment *finished = client->finished;
    log_line *lines = client->lines;
    if (!finished && !lines) return false;
    client->finished = NULL;
    client->last_finished = &client->finished;
    client->lines = NULL;
    client->last_line = &client->lines;
    unlock(client);
    while (lines) {
        log_line *old = lines;
        lines = old->next;
        client->log(client->log_user, old->level, old->text);
        free(old->text);
        free(old);
    }
    while (finished) {
        shipment *old = finished;
        finished = old->next;
        for (waiter *each = old->waiters; each; each = each->next) {
            bool good = old->error.result == ISTER_OK;
            ister_published published;
            published_of(old, each->index, 1, &published);
            each->then(each->user, good ? &published : NULL, good ? NULL : &old->error);
        }
        release_shipment(old);
    }
    lock(client);
    return true;
}

static void on_resolved(shipment *of) {
    ister_client *client = of->client;
    pthread_cond_broadcast(&client->changed);
    if (!of->waiters) return;
    of->observed = true;
    atomic_fetch_add(&of->references, 1);
    *client->last_finished = of;
    client->last_finished = &of->next;
    wake(client);
}

static void sweep(ister_client *client) {
    for (connection **at = &client->connections; *at;) {
        connection *each = *at;
        if (!each->leaving || each->home) {
            at = &each->next;
            continue;
        }
        say_farewell(each);
        *at = each->next;
        free_connection(each);
    }
}

static void wait_for_work(ister_client *client, zmq_pollitem_t **items, size_t *room, us now) {
    size_t count = 1;
    us due = NEVER;
    for (connection *c = client->connections; c; c = c->next) count += 2;
    if (count > *room) {
        *room = 2 * count;
        *items = allocate_again(*items, *room * sizeof **items);
    }
    (*items)[0] = (zmq_pollitem_t){NULL, client->wake_in, ZMQ_POLLIN, 0};
    count = 1;
    for (connection *c = client->connections; c; c = c->next) {
        if (c->s.phase == ENDED) continue;
        due = earlier(due, c->socket ? session_deadline(&c->s) : c->due);
        if (!c->socket) continue;
        (*items)[count++] = (zmq_pollitem_t){c->socket, 0, ZMQ_POLLIN, 0};
        (*items)[count++] = (zmq_pollitem_t){c->monitor, 0, ZMQ_POLLIN, 0};
    }
    us wait = due <= now ? 0 : earlier((due - now + MS - 1) / MS, 3600 * SECOND / MS);
    client->asleep = true;
    client->woken = false;
    unlock(client);
    zmq_poll(*items, (int)count, (long)wait);
    if ((*items)[0].revents) {
        char sink[64];
        while (read(client->wake_in, sink, sizeof sink) > 0) {
        }
    }
    lock(client);
    client->asleep = false;
}

static void *run(void *context) {
    ister_client *client = context;
    zmq_pollitem_t *items = NULL;
    size_t room = 0;
    lock(client);
    while (!client->over) {
        us now = read_clock();
        for (connection *c = client->connections; c; c = c->next) service(c, now);
        sweep(client);
        if (client->closing) pthread_cond_broadcast(&client->changed);
        if (call_back(client)) continue;
        if (!client->over) wait_for_work(client, &items, &room, now);
    }
    for (connection *c = client->connections; c; c = c->next) say_farewell(c);
    while (call_back(client)) {
    }
    unlock(client);
    free(items);
    while (zmq_ctx_term(client->context) != 0 && zmq_errno() == EINTR) { /* until what was said last is on its way */
    }
    close(client->wake_in);
    close(client->wake_out);
    release_client(client);
    return NULL;
}

/* ---- what programs call: waiting ---- */

/* A call that may wait. */
typedef struct {
    ister_client *client;
    us deadline;
    uint64_t interrupts;
} call;

static us deadline_in(int64_t timeout_ms) {
    if (timeout_ms < 0 || timeout_ms > NEVER / MS / 2) return NEVER;
    return read_clock() + timeout_ms * MS;
}

static call begin_call(ister_client *client, us deadline) { return (call){client, deadline, client->interrupts}; }

/* Says whether this is the client's thread: it alone can bring about what a call waits for. */
static bool in_callback(ister_client *client, ister_error *error) {
    if (!pthread_equal(pthread_self(), client->thread)) return false;
    say_invalid(error, "a callback must not wait");
    return true;
}

/* Waits for a change (lock held); anything but ISTER_OK ends the call. */
static ister_result pause_call(const call *c, pthread_cond_t *on, const char *what, const ister_error *trouble,
                               ister_error *error) {
    ister_client *client = c->client;
    bool told = trouble && trouble->result != ISTER_OK;
    if (in_callback(client, error)) return error->result;
    if (client->interrupts != c->interrupts) {
        say(error, ISTER_CANCELLED, ISTER_RETRY, "cancelled", "%s: interrupted", what);
    } else if (read_clock() >= c->deadline) {
        say(error, ISTER_TIMEOUT, ISTER_RETRY, "timeout", "%s in time%s%s%s%s", what, told ? " (" : "",
            told ? trouble->code : "", told ? ": " : "", told ? trouble->text : "");
        size_t size = strlen(error->text);
        if (told && size + 1 < sizeof error->text) copy_into(error->text + size, 2, ")", 1);
    } else if (c->deadline >= NEVER) {
        pthread_cond_wait(on, &client->mutex);
        return ISTER_OK;
    } else {
        struct timespec until = {(time_t)(c->deadline / SECOND), (long)(c->deadline % SECOND) * 1000};
        pthread_cond_timedwait(on, &client->mutex, &until);
        return ISTER_OK;
    }
    return error->result;
}

static void wake_if_due(ister_client *client, const handle *h) {
    if (h->session && h->session->out_count) wake(client);
}

/* ---- what programs call: clients ---- */

static void say_system(ister_error *error, const char *what, int code) {
    char why[128];
    if (strerror_r(code, why, sizeof why) != 0) why[0] = 0;
    say(error, ISTER_LOST, ISTER_RETRY, "connection-lost", "%s: %s (%d)", what, why, code);
}

static bool make_pipe(int *in, int *out) {
    int ends[2];
    if (pipe(ends) != 0) return false;
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
    }
    *in = ends[0];
    *out = ends[1];
    return true;
}

ister_result ister_client_open(const char *const *endpoints, size_t count, const ister_client_options *options,
                               ister_client **into, ister_error *error) {
    ister_error why = {0};
    *into = NULL;
    for (size_t i = 0; i < count; i++) {
        if (!endpoints[i]) count = 0;
    }
    if (!count) {
        say_invalid(&why, "an endpoint is needed, like tcp://127.0.0.1:5555");
        return tell(error, &why);
    }
    if (options && options->name && !is_text(options->name)) {
        say_invalid(&why, "the name of a client is UTF-8");
        return tell(error, &why);
    }
    ister_client *client = allocate(sizeof *client);
    if (!make_pipe(&client->wake_in, &client->wake_out)) {
        say_system(&why, "cannot make a pipe", errno);
        free(client);
        return tell(error, &why);
    }
    atomic_init(&client->references, 2); /* the program's, and the thread's */
    pthread_mutex_init(&client->mutex, NULL);
    pthread_mutex_init(&client->asking_mutex, NULL);
    init_condition(&client->changed);
    client->context = zmq_ctx_new();
    client->last_finished = &client->finished;
    client->last_line = &client->lines;
    char text[160];
    if (options && options->name && *options->name) {
        char name[101];
        copy_into(name, sizeof name, options->name, strlen(options->name));
        snprintf(text, sizeof text, "%s %s", name, CLIENT_TEXT);
    } else {
        snprintf(text, sizeof text, "%s", CLIENT_TEXT);
    }
    client->text = copy_text(text);
    if (options) {
        client->log = options->log;
        client->log_user = options->log_user;
    }
    new_connection(client, endpoints, count, true);
    lock(client); /* the thread waits until it is known as such */
    int failed = client->context ? pthread_create(&client->thread, NULL, run, client) : errno;
    unlock(client);
    if (failed) {
        say_system(&why, "cannot begin a thread", failed);
        if (client->context) zmq_ctx_term(client->context);
        close(client->wake_in);
        close(client->wake_out);
        release_client(client);
        release_client(client);
        return tell(error, &why);
    }
    *into = client;
    return ISTER_OK;
}

ister_result ister_client_wait(ister_client *client, int64_t timeout_ms, ister_error *error) {
    ister_error why = {0};
    lock(client);
    call c = begin_call(client, deadline_in(timeout_ms));
    session *home = &client->connections->s;
    while (home->phase != READY) {
        if (home->phase == ENDED) {
            why = home->trouble;
            break;
        }
        char what[300];
        snprintf(what, sizeof what, "no broker answers at %s", endpoint_of(client->connections));
        if (pause_call(&c, &client->changed, what, &home->trouble, &why) != ISTER_OK) break;
    }
    unlock(client);
    return tell(error, &why);
}

ister_result ister_connect(const char *const *endpoints, size_t count, const ister_client_options *options,
                           int64_t timeout_ms, ister_client **into, ister_error *error) {
    ister_result result = ister_client_open(endpoints, count, options, into, error);
    if (!*into) return result;
    result = ister_client_wait(*into, timeout_ms, error);
    if (result != ISTER_OK) {
        ister_client_free(*into);
        *into = NULL;
    }
    return result;
}

void ister_client_interrupt(ister_client *client) {
    lock(client);
    client->interrupts++;
    pthread_cond_broadcast(&client->changed);
    for (connection *c = client->connections; c; c = c->next) {
        for (handle *h = c->s.handles; h; h = h->next) pthread_cond_broadcast(&h->changed);
    }
    unlock(client);
}

bool ister_client_next_event(ister_client *client, ister_event *event) {
    lock(client);
    bool found = next_event(&client->events, event);
    unlock(client);
    return found;
}

void ister_client_drop(ister_client *client) {
    ister_error why;
    say_lost(&why, "the program cut it");
    lock(client);
    for (connection *c = client->connections; c; c = c->next) session_lost(&c->s, &why);
    wake(client);
    unlock(client);
}

/* Goes a step towards the end of a handle; returns whether it is there. */
static bool close_step(handle *h) {
    if (h->phase == H_CLOSED || h->phase == H_CLOSING) return h->phase == H_CLOSED;
    if (h->kind == A_PRODUCER) {
        publication *p = (publication *)h;
        seal(p);
        if (answered(p)) close_handle(h);
    } else {
        attachment *a = (attachment *)h;
        /* what is acknowledged is said first, if the broker still knows what it is about */
        if (h->phase == H_OPEN || settled(a)) {
            flush_acks(a, false);
            close_handle(h);
        }
    }
    return h->phase == H_CLOSED;
}

static bool close_all(ister_client *client) {
    bool all = true;
    for (connection *c = client->connections; c; c = c->next) {
        for (handle *h = c->s.handles; h; h = h->next) all = close_step(h) && all;
    }
    wake(client);
    return all;
}

/* Ends the sessions, and waits for the thread. */
static void end_client(ister_client *client) {
    ister_error closed;
    say_closed(&closed, "client");
    lock(client);
    bool join = !client->joined;
    client->joined = client->closing = true;
    if (!client->over) {
        for (connection *c = client->connections; c; c = c->next) {
            if (!c->leaving) c->bye = c->s.phase == READY;
            session_end(&c->s, &closed, true);
        }
        client->over = true;
        wake(client);
    }
    pthread_cond_broadcast(&client->changed);
    unlock(client);
    if (!join) return;
    if (pthread_equal(pthread_self(), client->thread))
        pthread_detach(client->thread);
    else
        pthread_join(client->thread, NULL);
}

static void drop_outlets(ister_client *client);

ister_result ister_client_close(ister_client *client, int64_t timeout_ms, ister_error *error) {
    ister_error why = {0};
    if (in_callback(client, &why)) return tell(error, &why);
    lock(client);
    call c = begin_call(client, deadline_in(timeout_ms));
    bool again = client->closing;
    client->closing = true;
    while (!again && !client->over && !close_all(client)) {
        if (pause_call(&c, &client->changed, "the broker did not confirm everything", NULL, &why) != ISTER_OK) break;
    }
    unlock(client);
    if (!again) {
        end_client(client);
        drop_outlets(client);
    }
    return tell(error, &why);
}

void ister_client_free(ister_client *client) {
    if (!client) return;
    end_client(client);
    drop_outlets(client);
    release_client(client);
}

/* ---- what programs call: producers ---- */

static bool valid_name(const char *what, const char *name, ister_error *error) {
    if (name && *name && strlen(name) <= 1000 && is_text(name)) return true;
    bool of_the_broker = strcmp(what, "topic") == 0 || strcmp(what, "subscription") == 0;
    say(error, ISTER_INVALID, ISTER_FIX, of_the_broker ? "invalid-name" : "invalid-argument",
        "the name of a %s is UTF-8 of 1 to 1000 bytes", what);
    return false;
}

/* Attaches a handle, and waits until it is open (lock held). */
static ister_result open_handle(ister_client *client, handle *h, us deadline, ister_error *why) {
    call c = begin_call(client, deadline);
    char what[300];
    if (client->closing) {
        say_closed(why, "client");
        return why->result;
    }
    attach(&client->connections->s, h, read_clock());
    wake(client);
    snprintf(what, sizeof what, "the %s of %s was not opened", h->kind == A_PRODUCER ? "producer" : "consumer",
             h->topic);
    while (!h->opened) {
        if (h->phase == H_CLOSED) {
            *why = h->error;
            return why->result;
        }
        if (pause_call(&c, &h->changed, what, &h->trouble, why) != ISTER_OK) {
            if (why->result == ISTER_TIMEOUT && h->trouble.result && has_code(&h->trouble, "subscription-busy"))
                *why = h->trouble;
            return why->result;
        }
    }
    return ISTER_OK;
}

/* Leaves without waiting (lock held). */
static void abandon(ister_client *client, handle *h) {
    ister_error closed;
    say_closed(&closed, h->kind == A_PRODUCER ? "producer" : "consumer");
    if (h->kind == A_CONSUMER) flush_acks((attachment *)h, false);
    close_handle(h);
    wake(client);
    handle_fail(h, &closed);
}

static void free_producer(ister_producer *old) {
    ister_client *client = old->client;
    lock(client);
    if (old->p.h.home) {
        abandon(client, &old->p.h);
        detach(&old->p.h);
    }
    unlock(client);
    drop_publication(&old->p);
    free(old);
    release_client(client);
}

ister_result ister_producer_open(ister_client *client, const char *topic, const ister_producer_options *options,
                                 int64_t timeout_ms, ister_producer **into, ister_error *error) {
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    *into = NULL;
    if (!valid_name("topic", topic, &why)) return tell(error, &why);
    if (options && options->name && *options->name && !valid_name("producer", options->name, &why))
        return tell(error, &why);
    ister_producer *made = allocate(sizeof *made);
    made->client = client;
    keep_client(client);
    lock(client);
    set_up_publication(&made->p, ++client->next_handle, topic);
    made->p.client = client;
    made->p.on_resolved = on_resolved;
    made->p.id = options && options->name && *options->name ? ister_producer_id(topic, options->name)
                                                            : random_number() >> 11 | 1;
    if (options && options->batch_bytes) made->p.batch_bytes = options->batch_bytes;
    if (options && options->linger_us) made->p.linger = options->linger_us;
    if (options) made->p.own_window = options->window_bytes;
    ister_result result = open_handle(client, &made->p.h, deadline, &why);
    unlock(client);
    if (result == ISTER_OK)
        *into = made;
    else
        free_producer(made);
    return tell(error, &why);
}

uint64_t ister_producer_next_sequence(ister_producer *producer) {
    lock(producer->client);
    uint64_t next = producer->p.next;
    unlock(producer->client);
    return next;
}

/* Says whether a handle may be used (lock held). */
static bool usable(const handle *h, ister_error *why) {
    if (h->phase != H_CLOSED && h->phase != H_CLOSING) return true;
    if (h->error.result != ISTER_OK)
        *why = h->error;
    else
        say_closed(why, h->kind == A_PRODUCER ? "producer" : "consumer");
    return false;
}

static bool valid_messages(const ister_outgoing *messages, size_t count, ister_error *why) {
    for (size_t i = 0; i < count; i++) {
        const ister_outgoing *each = &messages[i];
        if (each->payload_size > UINT32_MAX || each->key_size > UINT32_MAX) {
            say(why, ISTER_INVALID, ISTER_FIX, "message-too-large", "a message of %zu bytes is over 4 GiB",
                each->payload_size > each->key_size ? each->payload_size : each->key_size);
            return false;
        }
        if (each->deliver_at_ms < 0) {
            say_invalid(why, "a time of delivery of %" PRId64 " lies before 1970", each->deliver_at_ms);
            return false;
        }
        for (size_t j = 0; j < each->attributes_count; j++) {
            const ister_attribute *one = &each->attributes[j];
            const char *value = one->value ? one->value : "";
            if (!one->name ||
                !is_utf8((const uint8_t *)one->name, one->name_size ? one->name_size : strlen(one->name)) ||
                !is_utf8((const uint8_t *)value, one->value_size ? one->value_size : strlen(value))) {
                say_invalid(why, "the name and the value of an attribute are UTF-8");
                return false;
            }
        }
    }
    return true;
}

/* Compares with the broker's limits, before anything is sent (lock held). */
static bool fits(const publication *p, const ister_outgoing *messages, size_t count, ister_error *why) {
    const session *s = p->h.home;
    if (!s || !s->limits.message_bytes_max) return true;
    uint64_t total = 0, around = 0, most = s->limits.batch_bytes_max;
    for (size_t i = 0; i < count; i++) {
        uint64_t size = messages[i].payload_size;
        if (size > s->limits.message_bytes_max) {
            say(why, ISTER_INVALID, ISTER_FIX, "message-too-large",
                "a message of %" PRIu64 " bytes is over message_bytes_max (%" PRIu64 ") of topic %s", size,
                s->limits.message_bytes_max, p->h.topic);
            return false;
        }
        total += size;
        around += size_of(&messages[i]) - size;
    }
    uint64_t beside = smaller(larger(most / 16, 64), 65536);
    if (total + around > most && (count > 1 || around > beside)) {
        say(why, ISTER_INVALID, ISTER_FIX, "batch-too-large",
            "a batch of %" PRIu64 " bytes is over batch_bytes_max (%" PRIu64 ") of topic %s", total + around, most,
            p->h.topic);
        return false;
    }
    return true;
}

static ister_receipt *new_receipt(shipment *of, uint64_t index, size_t count) {
    ister_receipt *made = allocate(sizeof *made);
    atomic_fetch_add(&of->references, 1);
    *made = (ister_receipt){of, index, count};
    return made;
}

/* Has one message taken (lock held); the shipment is borrowed, unless *is_new. NULL: why says why not. */
static shipment *take_one(ister_producer *producer, const ister_outgoing *m, us deadline, uint64_t *index, bool *is_new,
                          ister_error *why) {
    ister_client *client = producer->client;
    publication *p = &producer->p;
    call c = begin_call(client, deadline);
    char what[300];
    *is_new = false;
    for (;;) {
        if (!usable(&p->h, why) || !fits(p, m, 1, why)) return NULL;
        if (m->deliver_at_ms && p->non_reliable) {
            say_invalid(why, "topic %s is non-reliable: it can delay no message", p->h.topic);
            return NULL;
        }
        bool ready = true;
        if (m->has_sequence && m->sequence < p->next) {
            shipment *known = before(p, m->sequence, index);
            if (!known) {
                known = new_shipment(client);
                *index = 0;
                *is_new = true;
                known->first = OFFSET_UNKNOWN;
                known->over = known->duplicate = true;
                known->count = 1;
            }
            return known;
        }
        if (m->has_sequence && m->sequence > p->next) {
            ready = answered(p);
            if (ready) { /* numbers are left out */
                p->next = m->sequence;
                if (p->h.phase == H_OPEN) open_producer(p);
            } else {
                seal(p);
            }
        }
        shipment *into = ready ? take(p, m, index, read_clock()) : NULL;
        if (p->gathered.count == 1)
            wake(client); /* the others are waited for already */
        else
            wake_if_due(client, &p->h);
        if (into) return into;
        snprintf(what, sizeof what, "the window of the producer for topic %s was full, and had no room", p->h.topic);
        if (pause_call(&c, &p->h.changed, what, &p->h.trouble, why) != ISTER_OK) return NULL;
    }
}

ister_result ister_producer_send(ister_producer *producer, const ister_outgoing *m, int64_t timeout_ms,
                                 ister_receipt **receipt, ister_error *error) {
    ister_error why = {0};
    uint64_t index;
    bool is_new;
    if (receipt) *receipt = NULL;
    if (!valid_messages(m, 1, &why)) return tell(error, &why);
    us deadline = deadline_in(timeout_ms);
    lock(producer->client);
    shipment *into = take_one(producer, m, deadline, &index, &is_new, &why);
    if (into && receipt) *receipt = new_receipt(into, index, 1);
    unlock(producer->client);
    if (into && is_new) release_shipment(into);
    return into ? ISTER_OK : tell(error, &why);
}

ister_result ister_producer_send_then(ister_producer *producer, const ister_outgoing *m, int64_t timeout_ms,
                                      ister_receipt_function *then, void *user, ister_error *error) {
    ister_error why = {0};
    uint64_t index;
    bool is_new;
    if (!valid_messages(m, 1, &why)) return tell(error, &why);
    us deadline = deadline_in(timeout_ms);
    lock(producer->client);
    shipment *into = take_one(producer, m, deadline, &index, &is_new, &why);
    if (into) {
        waiter *made = allocate(sizeof *made);
        *made = (waiter){then, user, index, NULL};
        *into->last = made;
        into->last = &made->next;
        if (into->over) on_resolved(into); /* known from before */
    }
    unlock(producer->client);
    if (into && is_new) release_shipment(into);
    return into ? ISTER_OK : tell(error, &why);
}

ister_result ister_producer_send_batch(ister_producer *producer, const ister_outgoing *messages, size_t count,
                                       int64_t timeout_ms, ister_receipt **receipt, ister_error *error) {
    ister_error why = {0};
    ister_client *client = producer->client;
    publication *p = &producer->p;
    us deadline = deadline_in(timeout_ms);
    if (receipt) *receipt = NULL;
    if (!count) say_invalid(&why, "a batch holds at least one message");
    if (!count || !valid_messages(messages, count, &why)) return tell(error, &why);
    gathering made = {0};
    for (size_t i = 0; i < count; i++) gather(&made, &messages[i]);
    uint64_t size = made.lengths.size + made.payloads.size + made.key_lengths.size + made.keys.size +
                    made.attribute_lengths.size + made.attributes.size + made.times.size;
    bool delays = (made.columns & COLUMN_TIMES) != 0;
    char what[300];
    lock(client);
    call c = begin_call(client, deadline);
    for (;;) {
        if (!usable(&p->h, &why) || !fits(p, messages, count, &why)) break;
        if (delays && p->non_reliable) {
            say_invalid(&why, "topic %s is non-reliable: it can delay no message", p->h.topic);
            break;
        }
        shipment *into = take_batch(p, &made, size);
        wake_if_due(client, &p->h);
        if (into) {
            if (receipt) *receipt = new_receipt(into, 0, count);
            break;
        }
        snprintf(what, sizeof what, "the window of the producer for topic %s was full, and had no room", p->h.topic);
        if (pause_call(&c, &p->h.changed, what, &p->h.trouble, &why) != ISTER_OK) break;
    }
    unlock(client);
    drop_gathering(&made);
    return tell(error, &why);
}

/* Waits until everything is answered (lock held). */
static ister_result flush_producer(ister_producer *producer, us deadline, ister_error *why) {
    publication *p = &producer->p;
    call c = begin_call(producer->client, deadline);
    char what[300];
    for (;;) {
        if (p->h.phase == H_CLOSED) {
            *why = p->h.error;
            return why->result;
        }
        seal(p);
        wake_if_due(producer->client, &p->h);
        if (answered(p)) break;
        snprintf(what, sizeof what, "topic %s gave no receipts", p->h.topic);
        if (pause_call(&c, &p->h.changed, what, &p->h.trouble, why) != ISTER_OK) return why->result;
    }
    shipment *refused = p->refused;
    p->refused = NULL;
    if (refused && !refused->observed) *why = refused->error;
    release_shipment(refused);
    return why->result;
}

ister_result ister_producer_flush(ister_producer *producer, int64_t timeout_ms, ister_error *error) {
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    lock(producer->client);
    flush_producer(producer, deadline, &why);
    unlock(producer->client);
    return tell(error, &why);
}

ister_result ister_producer_close(ister_producer *producer, int64_t timeout_ms, ister_error *error) {
    ister_error why = {0}, late = {0};
    ister_client *client = producer->client;
    handle *h = &producer->p.h;
    us deadline = deadline_in(timeout_ms);
    if (in_callback(client, &why)) return tell(error, &why);
    lock(client);
    if (h->phase != H_CLOSED) {
        flush_producer(producer, deadline, &why);
        bool in_time = why.result != ISTER_TIMEOUT && why.result != ISTER_CANCELLED;
        call c = begin_call(client, deadline);
        close_handle(h);
        wake(client);
        while (h->phase != H_CLOSED && late.result == ISTER_OK && in_time) {
            pause_call(&c, &h->changed, "the broker did not confirm the close of a producer", NULL, &late);
        }
        abandon(client, h);
    }
    unlock(client);
    return tell(error, why.result != ISTER_OK ? &why : &late);
}

void ister_producer_free(ister_producer *producer) {
    if (producer) free_producer(producer);
}

bool ister_receipt_poll(ister_receipt *receipt) {
    ister_client *client = receipt->shipment->client;
    lock(client);
    bool over = receipt->shipment->over;
    unlock(client);
    return over;
}

ister_result ister_receipt_wait(ister_receipt *receipt, int64_t timeout_ms, ister_published *published,
                                ister_error *error) {
    ister_error why = {0};
    shipment *of = receipt->shipment;
    ister_client *client = of->client;
    us deadline = deadline_in(timeout_ms);
    lock(client);
    call c = begin_call(client, deadline);
    while (!of->over) {
        if (pause_call(&c, &client->changed, "the broker gave no receipt", NULL, &why) != ISTER_OK) break;
    }
    if (of->over) {
        why = of->error;
        of->observed = true;
        if (published && why.result == ISTER_OK) published_of(of, receipt->index, receipt->count, published);
    }
    unlock(client);
    return tell(error, &why);
}

void ister_receipt_free(ister_receipt *receipt) {
    if (!receipt) return;
    release_shipment(receipt->shipment);
    free(receipt);
}

/* ---- what programs call: consumers ---- */

/* Leaves without waiting, and frees (lock held; the client has another reference). */
static void leave_consumer(ister_consumer *old) {
    if (old->a.h.home) {
        abandon(old->client, &old->a.h);
        detach(&old->a.h);
    }
}

static void drop_consumer(ister_consumer *old) {
    drop_attachment(&old->a);
    free(old);
}

static void drop_pattern(ister_consumer *of);

static void free_consumer(ister_consumer *old) {
    ister_client *client = old->client;
    lock(client);
    if (old->many) drop_pattern(old);
    leave_consumer(old);
    unlock(client);
    drop_consumer(old);
    release_client(client);
}

/* Lock held. */
static ister_consumer *make_consumer(ister_client *client, const char *topic, const char *subscription,
                                     const char *type) {
    static atomic_uint_fast64_t serials;
    ister_consumer *made = allocate(sizeof *made);
    made->client = client;
    made->a.serial = atomic_fetch_add(&serials, 1) + 1;
    set_up_attachment(&made->a, ++client->next_handle, topic, subscription, type);
    return made;
}

static ister_consumer *new_consumer(ister_client *client, const char *topic, const char *subscription,
                                    const char *type) {
    keep_client(client);
    lock(client);
    ister_consumer *made = make_consumer(client, topic, subscription, type);
    unlock(client);
    return made;
}

static ister_result start_consumer(ister_consumer *made, us deadline, ister_consumer **into, ister_error *error) {
    ister_error why = {0};
    lock(made->client);
    ister_result result = open_handle(made->client, &made->a.h, deadline, &why);
    unlock(made->client);
    *into = result == ISTER_OK ? made : NULL;
    if (result != ISTER_OK) free_consumer(made);
    return tell(error, &why);
}

static ister_result start_pattern(ister_consumer *made, us deadline, ister_consumer **into, ister_error *error);

static bool is_pattern(const char *topic) { return strpbrk(topic, "*>") != NULL; }

ister_result ister_consumer_open(ister_client *client, const char *topic, const char *subscription,
                                 const ister_consumer_options *options, int64_t timeout_ms, ister_consumer **into,
                                 ister_error *error) {
    static const ister_consumer_options DEFAULTS;
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    bytes arguments = {0};
    *into = NULL;
    if (!options) options = &DEFAULTS;
    const char *type = options->type ? options->type : options->force ? "exclusive" : "shared";
    bool good = valid_name("topic", topic, &why) && valid_name("subscription", subscription, &why) &&
                valid_name("type", type, &why);
    if (good && options->options && options->options->size) {
        good = put_arguments(&arguments, options->options) && arguments.size < HEADER_BYTES_MAX / 2;
        if (!good) say_invalid(&why, "the options of a subscription are UTF-8, of less than 4 KiB");
    }
    if (!good) {
        drop_bytes(&arguments);
        return tell(error, &why);
    }
    ister_consumer *made = new_consumer(client, topic, subscription, type);
    made->a.start = options->start;
    made->a.priority = options->priority;
    made->a.force = options->force;
    made->a.patient = options->wait_for_place;
    made->a.fixed = options->credit_messages;
    made->a.options = arguments;
    return is_pattern(topic) ? start_pattern(made, deadline, into, error) : start_consumer(made, deadline, into, error);
}

static ister_consumer *new_reader(ister_client *client, const char *topic, ister_place start, uint64_t credit) {
    char name[40];
    snprintf(name, sizeof name, "reader-%016" PRIx64, random_number());
    ister_consumer *made = new_consumer(client, topic, name, "reader");
    made->a.start = start.kind == ISTER_DEFAULT ? (ister_place){ISTER_EARLIEST, 0} : start;
    made->a.fixed = credit;
    return made;
}

ister_result ister_reader_open(ister_client *client, const char *topic, ister_place start, uint64_t credit,
                               int64_t timeout_ms, ister_consumer **into, ister_error *error) {
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    *into = NULL;
    if (!valid_name("topic", topic, &why)) return tell(error, &why);
    return start_consumer(new_reader(client, topic, start, credit), deadline, into, error);
}

uint64_t ister_consumer_position(ister_consumer *consumer) {
    lock(consumer->client);
    uint64_t position = consumer->a.position;
    unlock(consumer->client);
    return position;
}

/* Says whether a consumer may be used, and tells what the broker complained of, once (lock held). */
static bool fine(attachment *a, ister_error *why) {
    if (a->h.phase == H_CLOSED && a->h.error.result != ISTER_OK) {
        *why = a->h.error;
        return false;
    }
    if (a->has_complaint) {
        a->has_complaint = false;
        *why = a->complaint;
        return false;
    }
    return usable(&a->h, why);
}

/* ---- consumers of a pattern ---- */

/* Invariants
 * - topics take turns, one delivery each: none starves another
 * - whoever receives follows topics as well: nothing runs in the background
 * - dead-letter topics are not followed: what a consumer refuses would come to it again
 * - a topic that refused is not tried again until it was deleted and made again */

#define MEMBER_BYTES_MIN ((uint64_t)64 << 10)

typedef struct member member;
struct member {
    ister_consumer *consumer;
    uint64_t created; /* by which a topic that was made again is told from the one before */
    member *next;
};

typedef struct refusal refusal;
struct refusal {
    char *topic;
    uint64_t created;
    bool suspected; /* its subscription was deleted: by itself, or with the topic? */
    ister_error error;
    refusal *next;
};

struct pattern {
    member *members, **last;
    size_t count;
    uint64_t turn; /* the serial number of the consumer that was received from last */
    refusal *refused;
    char *left_out; /* a topic that takes dead letters */
    request watch;
    bytes asked;
    bool is_asked, plain; /* plain: an older broker does not say what was made meanwhile */
    bool has_version;
    uint64_t version;
};

static void ask_for_topics(ister_consumer *of, us now) {
    pattern *p = of->many;
    session *home = &of->client->connections->s;
    if (p->is_asked) withdraw(home, &p->watch);
    drop_bytes(&p->watch.result);
    p->asked.size = 0;
    put_map(&p->asked, p->has_version || !p->plain ? 2 : 1);
    put_text(&p->asked, "pattern", 7);
    put_text(&p->asked, of->a.h.topic, strlen(of->a.h.topic));
    if (p->has_version) {
        put_text(&p->asked, "version", 7);
        put_number(&p->asked, p->version);
    } else if (!p->plain) {
        put_text(&p->asked, "subscription", 12);
        put_text(&p->asked, of->a.subscription, strlen(of->a.subscription));
    }
    p->watch = (request){.operation = "topic.watch", .arguments = p->asked.data, .arguments_size = p->asked.size};
    p->is_asked = true;
    ask(home, &p->watch, now);
    wake(of->client);
}

static void complain_about(ister_consumer *of, const char *topic, const ister_error *why) {
    attachment *a = &of->a;
    if (a->has_complaint) return; /* the first one is told */
    a->has_complaint = true;
    a->complaint = *why;
    if (why->result == ISTER_REFUSED)
        say(&a->complaint, why->result, why->action, why->code, "topic %s: %s", topic, why->text);
}

static void refuse_topic(pattern *p, const char *topic, uint64_t created, bool suspected, const ister_error *why) {
    refusal *made = allocate(sizeof *made);
    *made = (refusal){copy_text(topic), created, suspected, *why, p->refused};
    p->refused = made;
}

static void drop_refusal(refusal **at) {
    refusal *old = *at;
    *at = old->next;
    free(old->topic);
    free(old);
}

static void leave_member(pattern *p, member **at) {
    member *old = *at;
    ister_client *client = old->consumer->client;
    *at = old->next;
    if (p->last == &old->next) p->last = at;
    p->count--;
    leave_consumer(old->consumer);
    drop_consumer(old->consumer);
    release_client(client);
    free(old);
}

static void join_topic(ister_consumer *of, const char *topic, uint64_t created, bool later, us now) {
    pattern *p = of->many;
    ister_client *client = of->client;
    member *made = allocate(sizeof *made);
    keep_client(client);
    made->consumer = make_consumer(client, topic, of->a.subscription, of->a.type);
    made->created = created;
    attachment *a = &made->consumer->a;
    a->start = later ? (ister_place){ISTER_EARLIEST, 0} : of->a.start;
    a->priority = of->a.priority;
    a->force = of->a.force;
    a->patient = true;
    a->fixed = of->a.fixed;
    append(&a->options, of->a.options.data, of->a.options.size);
    a->joint_events = &of->a.events;
    a->group = of->a.serial;
    a->h.watcher = &client->changed;
    p->count++;
    a->credit_bytes = larger(MEMBER_BYTES_MIN, CREDIT_BYTES / p->count);
    *p->last = made;
    p->last = &made->next;
    attach(&client->connections->s, &a->h, now);
    wake(client);
}

static bool ends_with(const char *text, const char *end) {
    size_t size = strlen(text), of_end = strlen(end);
    return size >= of_end && strcmp(text + size - of_end, end) == 0;
}

/* When a topic was made, by what the broker told; false: it is not there. */
static bool is_listed(const ister_value *topics, const char *topic, uint64_t *created) {
    for (size_t i = 0; i < ister_value_count(topics); i++) {
        const ister_value *each = ister_value_at(topics, i);
        const char *name = ister_value_text(ister_value_get(each, "topic"), NULL);
        if (!name || strcmp(name, topic) != 0) continue;
        *created = ister_value_number(ister_value_get(each, "created_ms"), 0);
        return true;
    }
    return false;
}

static void follow_topics(ister_consumer *of, const ister_value *topics, us now) {
    pattern *p = of->many;
    uint64_t created;
    for (member **at = &p->members; *at;) {
        if (is_listed(topics, (*at)->consumer->a.h.topic, &created) && created == (*at)->created)
            at = &(*at)->next;
        else
            leave_member(p, at);
    }
    for (refusal **at = &p->refused; *at;) {
        refusal *each = *at;
        if (!is_listed(topics, each->topic, &created) || created != each->created) {
            drop_refusal(at);
            continue;
        }
        if (each->suspected) complain_about(of, each->topic, &each->error);
        each->suspected = false;
        at = &each->next;
    }
    for (size_t i = 0; i < ister_value_count(topics); i++) {
        const ister_value *each = ister_value_at(topics, i);
        const char *name = ister_value_text(ister_value_get(each, "topic"), NULL);
        bool known = !name || ends_with(name, ".dlq") || (p->left_out && strcmp(name, p->left_out) == 0);
        for (const member *one = p->members; one && !known; one = one->next)
            known = strcmp(one->consumer->a.h.topic, name) == 0;
        for (const refusal *one = p->refused; one && !known; one = one->next) known = strcmp(one->topic, name) == 0;
        if (known) continue;
        bool later = p->has_version || ister_value_flag(ister_value_get(each, "later"), false);
        join_topic(of, name, ister_value_number(ister_value_get(each, "created_ms"), 0), later, now);
    }
}

/* Handles what the broker told of the topics, and asks on. */
static void on_topics(ister_consumer *of, us now) {
    pattern *p = of->many;
    ister_value told = {0};
    ister_error why = p->watch.error;
    if (why.result == ISTER_OK) {
        cursor from = {p->watch.result.data, p->watch.result.size, 0};
        if (walk(&from, 1, RESULT_LEVELS, TEXT_KEYS, &told) && from.at == from.size && told.kind == MAP) {
            follow_topics(of, ister_value_get(&told, "topics"), now);
            p->version = ister_value_number(ister_value_get(&told, "version"), 0);
            p->has_version = true;
        } else {
            say_malformed(&why, "the result of topic.watch is not what PROTOCOL.md says");
        }
    }
    drop_parts(&told);
    if (why.result != ISTER_OK) {
        if (!p->plain && !p->has_version && has_code(&why, "invalid-argument"))
            p->plain = true;
        else
            complain_about(of, of->a.h.topic, &why);
        p->has_version = false; /* the next look is at all there are */
    }
    ask_for_topics(of, now);
}

/* Sees which topics there are, and which are over (lock held). */
static void follow(ister_consumer *of, us now) {
    pattern *p = of->many;
    bool look_again = false;
    if (p->watch.over) on_topics(of, now);
    for (member **at = &p->members; *at;) {
        attachment *a = &(*at)->consumer->a;
        if (a->has_complaint && !a->queue) {
            a->has_complaint = false;
            complain_about(of, a->h.topic, &a->complaint);
        }
        if (a->h.phase != H_CLOSED) {
            at = &(*at)->next;
            continue;
        }
        ister_error why = a->h.error;
        bool deleted = has_code(&why, "topic-deleted") || has_code(&why, "unknown-topic");
        bool suspected = has_code(&why, "subscription-deleted");
        if (!deleted) refuse_topic(p, a->h.topic, (*at)->created, suspected, &why);
        if (!deleted && !suspected) complain_about(of, a->h.topic, &why);
        look_again = look_again || deleted || suspected;
        leave_member(p, at);
    }
    if (look_again) {
        p->has_version = false;
        ask_for_topics(of, now);
    }
}

/* Hands out messages of the topic whose turn it is (lock held). */
static size_t take_of_many(ister_consumer *of, ister_message **into, size_t most, us now) {
    pattern *p = of->many;
    member *first = NULL;
    follow(of, now);
    if (!p->members) return 0;
    for (member *each = p->members; each; each = each->next) {
        const attachment *a = &each->consumer->a;
        if (a->serial != p->turn) continue;
        /* what is left of its delivery, or the next one's turn */
        first = a->queue && a->queue->at ? each : each->next;
        break;
    }
    if (!first) first = p->members;
    member *each = first;
    do {
        size_t count = take_messages(&each->consumer->a, into, most, now);
        if (count) {
            p->turn = each->consumer->a.serial;
            return count;
        }
        each = each->next ? each->next : p->members;
    } while (each != first);
    return 0;
}

/* Has the client's thread send what is to be sent about a consumer (lock held). */
static void wake_for(const ister_consumer *consumer) {
    if (!consumer->many) {
        wake_if_due(consumer->client, &consumer->a.h);
        return;
    }
    for (const member *each = consumer->many->members; each; each = each->next)
        wake_if_due(consumer->client, &each->consumer->a.h);
}

static pthread_cond_t *signal_of(ister_consumer *consumer) {
    return consumer->many ? &consumer->client->changed : &consumer->a.h.changed;
}

/* Whether every topic there is has answered. */
static bool is_followed(const ister_consumer *of) {
    if (!of->many->has_version) return false;
    for (const member *each = of->many->members; each; each = each->next) {
        const attachment *a = &each->consumer->a;
        /* a place that somebody has is waited for, while the others are received from */
        bool is_busy = a->h.phase == H_WAITING && has_code(&a->h.trouble, "subscription-busy");
        if (!a->h.opened && !is_busy) return false;
    }
    return true;
}

static ister_result start_pattern(ister_consumer *made, us deadline, ister_consumer **into, ister_error *error) {
    ister_error why = {0};
    ister_client *client = made->client;
    attachment *a = &made->a;
    char what[300];
    cursor from = {a->options.data, a->options.size, 0};
    ister_value options = {0};
    made->many = allocate(sizeof *made->many);
    made->many->last = &made->many->members;
    if (a->options.size && walk(&from, 1, 1, TEXT_KEYS, &options)) {
        const char *letters = ister_value_text(ister_value_get(&options, "dead_letter_topic"), NULL);
        made->many->left_out = letters ? copy_text(letters) : NULL;
    }
    drop_parts(&options);
    snprintf(what, sizeof what, "the topics of %s were not opened", a->h.topic);
    lock(client);
    call c = begin_call(client, deadline);
    if (client->closing)
        say_closed(&why, "client");
    else
        ask_for_topics(made, read_clock());
    while (why.result == ISTER_OK) {
        follow(made, read_clock());
        if (a->has_complaint) why = a->complaint;
        if (a->has_complaint || is_followed(made)) break;
        pause_call(&c, &client->changed, what, &client->connections->s.trouble, &why);
    }
    unlock(client);
    if (why.result == ISTER_OK)
        *into = made;
    else
        free_consumer(made);
    return tell(error, &why);
}

/* Leaves every topic without waiting (lock held). */
static void drop_pattern(ister_consumer *of) {
    pattern *p = of->many;
    if (p->is_asked) withdraw(&of->client->connections->s, &p->watch);
    while (p->members) leave_member(p, &p->members);
    while (p->refused) drop_refusal(&p->refused);
    drop_bytes(&p->watch.result);
    drop_bytes(&p->asked);
    free(p->left_out);
    free(p);
    of->many = NULL;
}

ister_value *ister_consumer_topics(ister_consumer *consumer) {
    ister_value *made = allocate(sizeof *made);
    made->kind = LIST;
    lock(consumer->client);
    member alone = {.consumer = consumer};
    const member *first = consumer->many ? consumer->many->members : &alone;
    made->parts = allocate((consumer->many ? consumer->many->count : 1) * sizeof *made->parts);
    for (const member *each = first; each; each = each->next) {
        const char *topic = each->consumer->a.h.topic;
        made->parts[made->size++] = (ister_value){.kind = TEXT, .text = copy_text(topic), .size = strlen(topic)};
    }
    unlock(consumer->client);
    return made;
}

/* ---- receiving and acknowledging ---- */

ister_result ister_consumer_receive_batch(ister_consumer *consumer, size_t most, int64_t timeout_ms,
                                          ister_message **messages, size_t *count, ister_error *error) {
    ister_error why = {0};
    ister_client *client = consumer->client;
    attachment *a = &consumer->a;
    us deadline = timeout_ms > 0 ? deadline_in(timeout_ms) : timeout_ms ? NEVER : 0;
    char what[300];
    *count = 0;
    if (!most) {
        say_invalid(&why, "at least one message is to be received");
        return tell(error, &why);
    }
    lock(client);
    call c = begin_call(client, deadline);
    while (!(*count = consumer->many ? take_of_many(consumer, messages, most, read_clock())
                                     : take_messages(a, messages, most, read_clock()))) {
        wake_for(consumer);
        if (!fine(a, &why)) break;
        snprintf(what, sizeof what, "no message came from topic %s", a->h.topic);
        if (pause_call(&c, signal_of(consumer), what, &a->h.trouble, &why) != ISTER_OK) break;
    }
    wake_for(consumer);
    unlock(client);
    return why.result == ISTER_OK ? ISTER_OK : tell(error, &why);
}

ister_result ister_consumer_receive(ister_consumer *consumer, int64_t timeout_ms, ister_message **message,
                                    ister_error *error) {
    size_t count;
    *message = NULL;
    return ister_consumer_receive_batch(consumer, 1, timeout_ms, message, &count, error);
}

#define REASON_ROOM 804 /* 200 letters */

/* Copies a reason, cut at 200 letters; NULL is an empty one. */
static bool cut_reason(const char *reason, char *cut, ister_error *why) {
    size_t letters = 0, at = 0;
    if (reason && !is_text(reason)) {
        say_invalid(why, "a reason is UTF-8");
        return false;
    }
    for (; reason && reason[at] && at + 4 < REASON_ROOM; at++) {
        if (((uint8_t)reason[at] & 0xc0) != 0x80 && ++letters > 200) break;
        cut[at] = reason[at];
    }
    cut[at] = 0;
    return true;
}

/* The consumer that messages came from: this one, or that of one of its topics; NULL: of a topic that is gone (lock
   held). */
static ister_consumer *owner_of(ister_consumer *consumer, const ister_message *message) {
    uint64_t owner = ((const handed *)message)->home->owner;
    if (!consumer->many) return owner == consumer->a.serial ? consumer : NULL;
    for (member *each = consumer->many->members; each; each = each->next) {
        if (each->consumer->a.serial == owner) return each->consumer;
    }
    return NULL;
}

/* What a program says about messages of one consumer (lock held). */
static void say_of(ister_consumer *consumer, unsigned type, const ister_message *const *messages, size_t count,
                   int64_t delay_ms, const char *reason) {
    attachment *a = &consumer->a;
    if (a->is_reader || a->h.phase == H_CLOSED) return;
    bool waited = a->ack_due != 0;
    switch (type) {
    case ACK: acknowledge(a, messages, count, read_clock()); break;
    case ACK_UNTIL: acknowledge_until(a, messages[0], read_clock()); break;
    default: say_about(a, type, (ister_message *const *)messages, count, delay_ms, reason); break;
    }
    if (!waited && a->ack_due)
        wake(consumer->client);
    else
        wake_if_due(consumer->client, &a->h);
}

static ister_result about(ister_consumer *consumer, unsigned type, const ister_message *const *messages, size_t count,
                          int64_t delay_ms, const char *reason, ister_error *error) {
    ister_error why = {0};
    ister_client *client = consumer->client;
    attachment *a = &consumer->a;
    for (size_t i = 0; i < count; i++) {
        const handed *each = (const handed *)messages[i];
        if ((consumer->many ? each->home->group : each->home->owner) != a->serial) {
            say_invalid(&why, "a message of topic %s came from another consumer: acknowledge it there",
                        messages[i]->topic);
            return tell(error, &why);
        }
    }
    char cut[REASON_ROOM];
    if (!cut_reason(reason, cut, &why)) return tell(error, &why);
    lock(client);
    for (size_t i = 0, end; i < count && fine(a, &why); i = end) {
        uint64_t owner = ((const handed *)messages[i])->home->owner;
        for (end = i + 1; end < count && ((const handed *)messages[end])->home->owner == owner;) end++;
        ister_consumer *of = owner_of(consumer, messages[i]);
        if (of) say_of(of, type, messages + i, end - i, delay_ms, cut);
    }
    unlock(client);
    return tell(error, &why);
}

ister_result ister_consumer_ack(ister_consumer *consumer, ister_message *const *messages, size_t count,
                                ister_error *error) {
    return about(consumer, ACK, (const ister_message *const *)messages, count, -1, NULL, error);
}

ister_result ister_consumer_ack_until(ister_consumer *consumer, const ister_message *message, ister_error *error) {
    return about(consumer, ACK_UNTIL, &message, 1, -1, NULL, error);
}

ister_result ister_consumer_nack(ister_consumer *consumer, ister_message *const *messages, size_t count,
                                 int64_t delay_ms, const char *reason, ister_error *error) {
    return about(consumer, NACK, (const ister_message *const *)messages, count, delay_ms, reason, error);
}

ister_result ister_consumer_extend(ister_consumer *consumer, ister_message *const *messages, size_t count,
                                   ister_error *error) {
    return about(consumer, EXTEND, (const ister_message *const *)messages, count, -1, NULL, error);
}

ister_result ister_consumer_blame(ister_consumer *consumer, const char *reason, ister_error *error) {
    ister_error why = {0};
    char cut[REASON_ROOM];
    if (!cut_reason(reason, cut, &why)) return tell(error, &why);
    lock(consumer->client);
    if (usable(&consumer->a.h, &why)) {
        blame(&consumer->a, cut);
        for (member *each = consumer->many ? consumer->many->members : NULL; each; each = each->next)
            blame(&each->consumer->a, cut);
        wake_for(consumer);
    }
    unlock(consumer->client);
    return tell(error, &why);
}

/* Sends what is acknowledged, and says whether all of it is written (lock held). */
static bool is_written(attachment *a) {
    if (settled(a) || a->h.phase == H_CLOSED) return true;
    flush_acks(a, true);
    return false;
}

static bool take_forgotten(attachment *a) {
    bool forgotten = a->forgotten;
    a->forgotten = false;
    return forgotten;
}

ister_result ister_consumer_flush(ister_consumer *consumer, int64_t timeout_ms, ister_error *error) {
    ister_error why = {0};
    ister_client *client = consumer->client;
    attachment *a = &consumer->a;
    us deadline = deadline_in(timeout_ms);
    lock(client);
    call c = begin_call(client, deadline);
    while (fine(a, &why)) {
        bool written = is_written(a);
        if (consumer->many) follow(consumer, read_clock());
        for (member *each = consumer->many ? consumer->many->members : NULL; each; each = each->next)
            written = is_written(&each->consumer->a) && written;
        if (written) break;
        wake_for(consumer);
        if (pause_call(&c, signal_of(consumer), "acknowledgments were not confirmed", &a->h.trouble, &why) != ISTER_OK)
            break;
    }
    if (why.result == ISTER_OK) {
        bool forgotten = take_forgotten(a);
        for (member *each = consumer->many ? consumer->many->members : NULL; each; each = each->next)
            forgotten = take_forgotten(&each->consumer->a) || forgotten;
        if (forgotten)
            say_lost(&why, "the broker forgot what some acknowledgments were about; it delivers those messages again");
    }
    unlock(client);
    return tell(error, &why);
}

static int64_t rest_of(us deadline) {
    if (deadline >= NEVER) return -1;
    us now = read_clock();
    return now >= deadline ? 0 : (deadline - now + MS - 1) / MS;
}

ister_result ister_consumer_seek(ister_consumer *consumer, ister_place to, int64_t timeout_ms, uint64_t *position,
                                 ister_error *error) {
    ister_error why = {0};
    ister_client *client = consumer->client;
    attachment *a = &consumer->a;
    us deadline = deadline_in(timeout_ms);
    if (a->is_reader || consumer->many) {
        say_invalid(&why, a->is_reader ? "a reader has no subscription to be moved: open another one"
                                       : "a consumer of many topics cannot be moved: use ister_subscription_seek()");
        return tell(error, &why);
    }
    lock(client);
    uint64_t epoch = a->epoch;
    flush_acks(a, false);
    wake_if_due(client, &a->h);
    unlock(client);
    ister_result result =
        ister_subscription_seek(client, a->h.topic, a->subscription, to, rest_of(deadline), position, error);
    if (result != ISTER_OK) return result;
    lock(client);
    call c = begin_call(client, deadline);
    while (a->epoch == epoch && a->h.phase == H_OPEN && !a->is_standby) {
        if (pause_call(&c, &a->h.changed, "the news of the move did not come", NULL, &why) != ISTER_OK) break;
    }
    unlock(client);
    return tell(error, &why);
}

bool ister_consumer_next_event(ister_consumer *consumer, ister_event *event) {
    lock(consumer->client);
    bool found = next_event(&consumer->a.events, event);
    unlock(consumer->client);
    return found;
}

/* Goes a step towards the end; returns whether it is there (lock held). */
static bool close_consumer(ister_consumer *consumer) {
    bool all = true;
    if (!consumer->many) return close_step(&consumer->a.h);
    for (member *each = consumer->many->members; each; each = each->next) all = close_step(&each->consumer->a.h) && all;
    return all;
}

ister_result ister_consumer_close(ister_consumer *consumer, int64_t timeout_ms, ister_error *error) {
    ister_error why = {0}, closed;
    ister_client *client = consumer->client;
    us deadline = deadline_in(timeout_ms);
    if (in_callback(client, &why)) return tell(error, &why);
    say_closed(&closed, "consumer");
    lock(client);
    call c = begin_call(client, deadline);
    while (!close_consumer(consumer)) {
        wake(client);
        if (pause_call(&c, signal_of(consumer), "the broker did not confirm the close of a consumer", NULL, &why) !=
            ISTER_OK)
            break;
    }
    if (consumer->many) {
        drop_pattern(consumer);
        fail_consumer(&consumer->a, &closed);
    } else {
        abandon(client, &consumer->a.h);
    }
    unlock(client);
    return tell(error, &why);
}

void ister_consumer_free(ister_consumer *consumer) {
    if (consumer) free_consumer(consumer);
}

/* ---- what programs call: request and reply ---- */

#define REPLY_TO "ister.reply_to"
#define CORRELATION_ID "ister.correlation_id"
#define INBOX_CREDIT 1024

/* The client's thread gives what comes to an inbox to whoever waits for it (lock held). */
static void on_reply(void *context, ister_message *came) {
    ister_client *client = context;
    ister_attribute id;
    if (ister_message_attribute(came, CORRELATION_ID, &id)) {
        for (asking *each = client->askings; each; each = each->next) {
            if (each->reply || id.value_size != strlen(each->id) || memcmp(id.value, each->id, id.value_size) != 0)
                continue;
            each->reply = came;
            pthread_cond_broadcast(&client->changed);
            return;
        }
    }
    ister_message_free(came); /* nobody waits for it */
}

static void on_inbox_end(void *context) {
    ister_client *client = context;
    client->inbox_gone = true;
    for (asking *each = client->askings; each; each = each->next) each->lost = true;
    pthread_cond_broadcast(&client->changed);
}

static ister_result open_inbox(ister_client *client, us deadline, char **topic, ister_error *error) {
    ister_result result = ISTER_OK;
    pthread_mutex_lock(&client->asking_mutex);
    lock(client);
    bool gone = client->inbox_gone;
    unlock(client);
    if (client->inbox && gone) {
        ister_consumer_free(client->inbox);
        client->inbox = NULL;
    }
    if (!client->inbox) {
        char name[48];
        snprintf(name, sizeof name, "_inbox/%016" PRIx64 "%016" PRIx64, random_number(), random_number());
        ister_map *options = ister_map_new();
        ister_map_text(options, "dispatch", "non-reliable");
        ister_map_number(options, "ephemeral", 1);
        result = ister_topic_create(client, name, options, rest_of(deadline), NULL, error);
        ister_map_free(options);
        if (result == ISTER_OK) {
            ister_consumer *made = new_reader(client, name, (ister_place){ISTER_LATEST, 0}, INBOX_CREDIT);
            made->a.on_message = on_reply;
            made->a.on_end = on_inbox_end;
            made->a.context = client;
            lock(client);
            client->inbox_gone = false;
            unlock(client);
            result = start_consumer(made, deadline, &client->inbox, error);
        }
    }
    if (client->inbox && result == ISTER_OK) *topic = copy_text(client->inbox->a.h.topic);
    pthread_mutex_unlock(&client->asking_mutex);
    return result;
}

static void let_outlet(ister_client *client, outlet *old, bool forget_it) {
    pthread_mutex_lock(&client->asking_mutex);
    if (forget_it && !old->dead) {
        old->dead = true;
        for (outlet **at = &client->outlets; *at; at = &(*at)->next) {
            if (*at == old) {
                *at = old->next;
                break;
            }
        }
    }
    bool last = --old->users == 0 && old->dead;
    pthread_mutex_unlock(&client->asking_mutex);
    if (last) {
        ister_producer_free(old->producer);
        free(old);
    }
}

/* Sends with a producer that is kept for the next message to the topic. */
static ister_result send_by(ister_client *client, const char *topic, const ister_outgoing *m, us deadline,
                            ister_receipt **receipt, ister_error *error) {
    outlet *by = NULL, *surplus = NULL;
    size_t count = 0;
    pthread_mutex_lock(&client->asking_mutex);
    for (outlet *each = client->outlets; each; each = each->next, count++) {
        if (strcmp(each->producer->p.h.topic, topic) == 0) by = each;
    }
    for (outlet **at = &client->outlets; !by && count >= OUTLETS_MAX && *at; at = &(*at)->next) {
        if ((*at)->users) continue;
        surplus = *at;
        *at = surplus->next;
        break;
    }
    if (by) by->users++;
    pthread_mutex_unlock(&client->asking_mutex);
    if (surplus) {
        ister_producer_close(surplus->producer, 1000, NULL);
        ister_producer_free(surplus->producer);
        free(surplus);
    }
    if (!by) {
        ister_producer *made;
        ister_result result = ister_producer_open(client, topic, NULL, rest_of(deadline), &made, error);
        if (result != ISTER_OK) return result;
        by = allocate(sizeof *by);
        by->producer = made;
        by->users = 1;
        pthread_mutex_lock(&client->asking_mutex);
        by->next = client->outlets;
        client->outlets = by;
        pthread_mutex_unlock(&client->asking_mutex);
    }
    ister_result result = ister_producer_send(by->producer, m, rest_of(deadline), receipt, error);
    let_outlet(client, by, result != ISTER_OK && result != ISTER_TIMEOUT && result != ISTER_CANCELLED);
    return result;
}

static void drop_outlets(ister_client *client) {
    pthread_mutex_lock(&client->asking_mutex);
    outlet *outlets = client->outlets;
    ister_consumer *inbox = client->inbox;
    client->outlets = NULL;
    client->inbox = NULL;
    pthread_mutex_unlock(&client->asking_mutex);
    while (outlets) {
        outlet *old = outlets;
        outlets = old->next;
        ister_producer_free(old->producer);
        free(old);
    }
    ister_consumer_free(inbox);
}

/* A copy of a message's attributes, with two more in front that it may set otherwise. */
static ister_attribute *more_attributes(const ister_outgoing *m, const ister_attribute *first, size_t extra,
                                        size_t *count) {
    ister_attribute *made = allocate((m->attributes_count + extra) * sizeof *made);
    *count = 0;
    for (size_t i = 0; i < extra; i++) {
        bool own = false;
        for (size_t j = 0; j < m->attributes_count; j++) {
            const ister_attribute *each = &m->attributes[j];
            size_t size = each->name_size ? each->name_size : each->name ? strlen(each->name) : 0;
            own = own || (size == strlen(first[i].name) && memcmp(each->name, first[i].name, size) == 0);
        }
        if (!own) made[(*count)++] = first[i];
    }
    for (size_t j = 0; j < m->attributes_count; j++) made[(*count)++] = m->attributes[j];
    return made;
}

ister_result ister_request(ister_client *client, const char *topic, const ister_outgoing *m, int64_t timeout_ms,
                           ister_message **reply, ister_error *error) {
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    char *inbox = NULL;
    *reply = NULL;
    ister_result result = open_inbox(client, deadline, &inbox, error);
    if (result != ISTER_OK) return result;
    asking mine = {0};
    snprintf(mine.id, sizeof mine.id, "%016" PRIx64, random_number());
    lock(client);
    mine.lost = client->inbox_gone;
    mine.next = client->askings;
    client->askings = &mine;
    unlock(client);
    ister_attribute first[2] = {{REPLY_TO, inbox, 0, 0}, {CORRELATION_ID, mine.id, 0, 0}};
    ister_outgoing with = *m;
    ister_attribute *attributes = more_attributes(m, first, 2, &with.attributes_count);
    with.attributes = attributes;
    ister_receipt *receipt = NULL;
    result = send_by(client, topic, &with, deadline, &receipt, &why);
    lock(client);
    call c = begin_call(client, deadline);
    while (result == ISTER_OK && !mine.reply) {
        const shipment *sent = receipt->shipment;
        if (sent->over && sent->error.result != ISTER_OK)
            why = sent->error;
        else if (client->closing)
            say_closed(&why, "client");
        else if (mine.lost)
            say_lost(&why, "the session was lost, and with it the reply to a request to %s", topic);
        else
            pause_call(&c, &client->changed, "nobody answered the request", NULL, &why);
        result = why.result;
    }
    for (asking **at = &client->askings; *at; at = &(*at)->next) {
        if (*at == &mine) {
            *at = mine.next;
            break;
        }
    }
    unlock(client);
    ister_receipt_free(receipt);
    free(attributes);
    free(inbox);
    *reply = mine.reply;
    return mine.reply ? ISTER_OK : tell(error, &why);
}

ister_result ister_reply(ister_client *client, const ister_message *to, const ister_outgoing *m, int64_t timeout_ms,
                         ister_error *error) {
    ister_error why = {0};
    ister_attribute topic_of, id = {0};
    us deadline = deadline_in(timeout_ms);
    if (!ister_message_attribute(to, REPLY_TO, &topic_of) || !topic_of.value_size) {
        say_invalid(&why, "this message of topic %s asks for no reply", to->topic);
        return tell(error, &why);
    }
    char *topic = allocate(topic_of.value_size + 1);
    memcpy(topic, topic_of.value, topic_of.value_size);
    ister_attribute first[1] = {{CORRELATION_ID, "", 0, 0}};
    if (ister_message_attribute(to, CORRELATION_ID, &id)) {
        first[0].value = id.value;
        first[0].value_size = id.value_size;
    }
    ister_outgoing with = *m;
    ister_attribute *attributes = more_attributes(m, first, 1, &with.attributes_count);
    with.attributes = attributes;
    ister_result result = send_by(client, topic, &with, deadline, NULL, &why);
    if (result != ISTER_OK && (has_code(&why, "unknown-topic") || has_code(&why, "topic-deleted"))) result = ISTER_OK;
    free(attributes);
    free(topic);
    return result == ISTER_OK ? ISTER_OK : tell(error, &why);
}

/* ---- what programs call: administration ---- */

ister_kind ister_value_kind(const ister_value *value) {
    static const ister_kind KINDS[] = {ISTER_NOTHING, ISTER_NUMBER, ISTER_NEGATIVE, ISTER_REAL, ISTER_FLAG,
                                       ISTER_NOTHING, ISTER_TEXT,   ISTER_BYTES,    ISTER_LIST, ISTER_MAP};
    return value ? KINDS[value->kind] : ISTER_NOTHING;
}
uint64_t ister_value_number(const ister_value *value, uint64_t otherwise) {
    return value && (value->kind == NUMBER || value->kind == NEGATIVE) ? value->number : otherwise;
}
double ister_value_real(const ister_value *value, double otherwise) {
    if (!value) return otherwise;
    if (value->kind == NUMBER) return (double)value->number;
    if (value->kind == NEGATIVE) return -1.0 - (double)value->number;
    return value->kind == REAL ? value->real : otherwise;
}
bool ister_value_flag(const ister_value *value, bool otherwise) {
    return value && (value->kind == FLAG || value->kind == NUMBER) ? value->number != 0 : otherwise;
}
const char *ister_value_text(const ister_value *value, size_t *size) {
    bool is_one = value && (value->kind == TEXT || value->kind == BYTES);
    if (size) *size = is_one ? value->size : 0;
    return is_one ? value->text : NULL;
}
size_t ister_value_count(const ister_value *value) {
    return value && (value->kind == LIST || value->kind == MAP) ? value->size : 0;
}
const ister_value *ister_value_at(const ister_value *value, size_t index) {
    return index < ister_value_count(value) ? &value->parts[index] : NULL;
}
const ister_value *ister_value_key(const ister_value *value, size_t index) {
    return value && value->kind == MAP && index < value->size ? &value->keys[index] : NULL;
}
const ister_value *ister_value_get(const ister_value *value, const char *name) {
    size_t size = strlen(name);
    for (size_t i = 0; value && value->kind == MAP && i < value->size; i++) {
        const ister_value *key = &value->keys[i];
        if (key->kind == TEXT && key->size == size && memcmp(key->text, name, size) == 0) return &value->parts[i];
    }
    return NULL;
}
void ister_value_free(ister_value *value) {
    if (!value) return;
    drop_parts(value);
    free(value);
}

/* Asks, and says whether the question was sent twice. */
static ister_result ask_broker(ister_client *client, const char *operation, const ister_map *arguments, us deadline,
                               ister_value **result, bool *resent, ister_error *why) {
    bytes encoded = {0};
    *why = (ister_error){0};
    *resent = false;
    if (result) *result = NULL;
    if (!put_arguments(&encoded, arguments) || !is_text(operation) ||
        encoded.size + strlen(operation) > HEADER_BYTES_MAX - 64) {
        say_invalid(why, "the arguments of %.40s are UTF-8, and together less than 8 KiB",
                    is_text(operation) ? operation : "?");
        drop_bytes(&encoded);
        return why->result;
    }
    request r = {.operation = operation, .arguments = encoded.data, .arguments_size = encoded.size};
    char what[100];
    snprintf(what, sizeof what, "%s was not answered", operation);
    lock(client);
    session *home = &client->connections->s;
    if (client->closing) {
        say_closed(why, "client");
    } else {
        call c = begin_call(client, deadline);
        ask(home, &r, read_clock());
        wake(client);
        while (!r.over) {
            const ister_error *trouble = r.error.result ? &r.error : &home->trouble;
            if (pause_call(&c, &client->changed, what, trouble, why) != ISTER_OK) break;
        }
        withdraw(home, &r);
        if (r.over) *why = r.error;
        *resent = r.resent;
    }
    unlock(client);
    if (why->result == ISTER_OK && result) {
        cursor from = {r.result.data, r.result.size, 0};
        *result = allocate(sizeof **result);
        if (!walk(&from, 1, RESULT_LEVELS, TEXT_KEYS, *result) || from.at != from.size || (*result)->kind != MAP) {
            ister_value_free(*result);
            *result = NULL;
            say_malformed(why, "the result of %s is not what PROTOCOL.md says", operation);
        }
    }
    drop_bytes(&r.result);
    drop_bytes(&encoded);
    return why->result;
}

ister_result ister_admin(ister_client *client, const char *operation, const ister_map *arguments, int64_t timeout_ms,
                         ister_value **result, ister_error *error) {
    ister_error why;
    bool resent;
    ask_broker(client, operation, arguments, deadline_in(timeout_ms), result, &resent, &why);
    return tell(error, &why);
}

static bool named(ister_map *map, const char *name, const char *value, ister_error *why) {
    if (!valid_name(name, value, why)) return false;
    ister_map_text(map, name, value);
    return true;
}

typedef struct {
    const char *operation, *topic, *subscription;
    const char *exists, *show; /* of a creation */
    const char *gone[2];       /* of a deletion */
} errand;

/* Asks about a topic or subscription; arguments are freed. */
static ister_result operate(ister_client *client, errand what, ister_map *arguments, int64_t timeout_ms,
                            ister_value **result, ister_error *error) {
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    bool resent;
    if (result) *result = NULL;
    if ((!what.topic || named(arguments, "topic", what.topic, &why)) &&
        (!what.subscription || named(arguments, "subscription", what.subscription, &why))) {
        ask_broker(client, what.operation, arguments, deadline, result, &resent, &why);
        if (why.result != ISTER_OK && resent) { /* it may have been done the first time */
            for (int i = 0; i < 2; i++) {
                if (what.gone[i] && has_code(&why, what.gone[i])) why.result = ISTER_OK;
            }
            if (what.exists && has_code(&why, what.exists)) {
                ister_map *which = ister_map_new();
                ister_map_text(which, "topic", what.topic);
                if (what.subscription) ister_map_text(which, "subscription", what.subscription);
                ask_broker(client, what.show, which, deadline, result, &resent, &why);
                ister_map_free(which);
            }
        }
    }
    ister_map_free(arguments);
    return tell(error, &why);
}

/* Asks page by page; the result is one list. */
static ister_result list_all(ister_client *client, const char *operation, const char *many, const char *one,
                             const char *topic, int64_t timeout_ms, ister_value **result, ister_error *error) {
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    ister_map *arguments = ister_map_new();
    ister_value *all = allocate(sizeof *all), *page = NULL;
    bool resent, more = !topic || named(arguments, "topic", topic, &why);
    all->kind = LIST;
    while (more && ask_broker(client, operation, arguments, deadline, &page, &resent, &why) == ISTER_OK) {
        ister_value *entries = (ister_value *)ister_value_get(page, many);
        size_t count = ister_value_count(entries);
        more = ister_value_flag(ister_value_get(page, "more"), false) && count;
        if (count && entries->kind == LIST) {
            const char *last = ister_value_text(ister_value_get(&entries->parts[count - 1], one), NULL);
            if (last)
                ister_map_text(arguments, "after", last);
            else
                more = false;
            all->parts = allocate_again(all->parts, (all->size + count) * sizeof *all->parts);
            memcpy(all->parts + all->size, entries->parts, count * sizeof *all->parts);
            all->size += count;
            entries->size = 0; /* they are moved */
        }
        ister_value_free(page);
        page = NULL;
    }
    ister_map_free(arguments);
    if (why.result == ISTER_OK && result) {
        *result = all;
        return ISTER_OK;
    }
    if (result) *result = NULL;
    ister_value_free(all);
    return tell(error, &why);
}

static void set_place(ister_map *map, const char *name, ister_place place) {
    char text[32];
    switch (place.kind) {
    case ISTER_AT_OFFSET: ister_map_number(map, name, place.value); break;
    case ISTER_AT_TIME:
        snprintf(text, sizeof text, "time:%" PRIu64, place.value);
        ister_map_text(map, name, text);
        break;
    case ISTER_EARLIEST: ister_map_text(map, name, "earliest"); break;
    default: ister_map_text(map, name, "latest"); break;
    }
}

ister_result ister_topic_create(ister_client *client, const char *topic, const ister_map *options, int64_t timeout_ms,
                                ister_value **result, ister_error *error) {
    errand what = {.operation = "topic.create", .topic = topic, .exists = "topic-exists", .show = "topic.show"};
    return operate(client, what, copy_map(options), timeout_ms, result, error);
}

ister_result ister_topic_update(ister_client *client, const char *topic, const ister_map *options, int64_t timeout_ms,
                                ister_value **result, ister_error *error) {
    errand what = {.operation = "topic.update", .topic = topic};
    return operate(client, what, copy_map(options), timeout_ms, result, error);
}

ister_result ister_topic_show(ister_client *client, const char *topic, int64_t timeout_ms, ister_value **result,
                              ister_error *error) {
    errand what = {.operation = "topic.show", .topic = topic};
    return operate(client, what, ister_map_new(), timeout_ms, result, error);
}

ister_result ister_topic_list(ister_client *client, int64_t timeout_ms, ister_value **result, ister_error *error) {
    return list_all(client, "topic.list", "topics", "topic", NULL, timeout_ms, result, error);
}

ister_result ister_topic_delete(ister_client *client, const char *topic, int64_t timeout_ms, ister_error *error) {
    errand what = {.operation = "topic.delete", .topic = topic, .gone = {"unknown-topic", NULL}};
    return operate(client, what, ister_map_new(), timeout_ms, NULL, error);
}

ister_result ister_subscription_create(ister_client *client, const char *topic, const char *subscription,
                                       const char *type, ister_place start, const ister_map *options,
                                       int64_t timeout_ms, ister_value **result, ister_error *error) {
    errand what = {.operation = "subscription.create",
                   .topic = topic,
                   .subscription = subscription,
                   .exists = "subscription-exists",
                   .show = "subscription.show"};
    ister_map *arguments = copy_map(options);
    if (type) ister_map_text(arguments, "type", type);
    if (start.kind != ISTER_DEFAULT) set_place(arguments, "start", start);
    return operate(client, what, arguments, timeout_ms, result, error);
}

ister_result ister_subscription_update(ister_client *client, const char *topic, const char *subscription,
                                       const ister_map *options, int64_t timeout_ms, ister_value **result,
                                       ister_error *error) {
    errand what = {.operation = "subscription.update", .topic = topic, .subscription = subscription};
    return operate(client, what, copy_map(options), timeout_ms, result, error);
}

ister_result ister_subscription_show(ister_client *client, const char *topic, const char *subscription,
                                     int64_t timeout_ms, ister_value **result, ister_error *error) {
    errand what = {.operation = "subscription.show", .topic = topic, .subscription = subscription};
    return operate(client, what, ister_map_new(), timeout_ms, result, error);
}

ister_result ister_subscription_list(ister_client *client, const char *topic, int64_t timeout_ms, ister_value **result,
                                     ister_error *error) {
    return list_all(client, "subscription.list", "subscriptions", "subscription", topic, timeout_ms, result, error);
}

ister_result ister_subscription_explain(ister_client *client, const char *topic, const char *subscription,
                                        int64_t timeout_ms, ister_value **result, ister_error *error) {
    errand what = {.operation = "subscription.explain", .topic = topic, .subscription = subscription};
    return operate(client, what, ister_map_new(), timeout_ms, result, error);
}

ister_result ister_subscription_unblock(ister_client *client, const char *topic, const char *subscription,
                                        const char *action, int64_t timeout_ms, uint64_t *messages,
                                        ister_error *error) {
    errand what = {.operation = "subscription.unblock", .topic = topic, .subscription = subscription};
    ister_map *arguments = ister_map_new();
    ister_value *told;
    ister_map_text(arguments, "action", action);
    ister_result result = operate(client, what, arguments, timeout_ms, &told, error);
    if (messages) *messages = ister_value_number(ister_value_get(told, "messages"), 0);
    ister_value_free(told);
    return result;
}

ister_result ister_subscription_seek(ister_client *client, const char *topic, const char *subscription, ister_place to,
                                     int64_t timeout_ms, uint64_t *position, ister_error *error) {
    errand what = {.operation = "subscription.seek", .topic = topic, .subscription = subscription};
    ister_map *arguments = ister_map_new();
    ister_value *told;
    set_place(arguments, "to", to);
    ister_result result = operate(client, what, arguments, timeout_ms, &told, error);
    if (position) *position = ister_value_number(ister_value_get(told, "position"), 0);
    ister_value_free(told);
    return result;
}

ister_result ister_subscription_delete(ister_client *client, const char *topic, const char *subscription,
                                       int64_t timeout_ms, ister_error *error) {
    errand what = {.operation = "subscription.delete",
                   .topic = topic,
                   .subscription = subscription,
                   .gone = {"unknown-subscription", "unknown-topic"}};
    return operate(client, what, ister_map_new(), timeout_ms, NULL, error);
}

ister_result ister_status(ister_client *client, int64_t timeout_ms, ister_value **result, ister_error *error) {
    errand what = {.operation = "status"};
    return operate(client, what, ister_map_new(), timeout_ms, result, error);
}

/* ---- what programs call: dead letters ---- */

/* Invariants
 * - a letter is acknowledged once the topic it went to has it, and never before: an interruption loses nothing
 * - what fails again meanwhile waits for the next call: no letter loops for ever
 * - a dead-letter topic may serve several subscriptions: only this one's letters are listed and touched */

#define REDRIVE "redrive"      /* the subscription of a dead-letter topic that its letters are taken through */
#define LETTERS_TOGETHER 200   /* are settled together */
#define LETTERS_SILENCE_MS 300 /* after which the broker is asked whether any are left */
#define GAP_READ_OVER 1000     /* a longer one between letters is not read through */

static const char *const ADDED[] = {
    "ister.topic",     "ister.subscription", "ister.offset", "ister.producer",
    "ister.timestamp", "ister.attempts",     "ister.reason", "ister.dead_lettered_at",
};
enum { ADDED_COUNT = sizeof ADDED / sizeof *ADDED };

typedef struct {
    char *from; /* the dead-letter topic */
    ister_value *shown;
    const ister_value *pending; /* the first runs of letters */
    uint64_t count, end;
} letters;

static void drop_letters(letters *old) {
    free(old->from);
    ister_value_free(old->shown);
    *old = (letters){0};
}

static bool is_unknown(const ister_error *error) {
    return has_code(error, "unknown-topic") || has_code(error, "unknown-subscription");
}

static ister_result find_letter_topic(ister_client *client, const char *topic, const char *subscription, us deadline,
                                      char **into, ister_error *why) {
    ister_value *shown;
    size_t size;
    *into = NULL;
    *why = (ister_error){0};
    if (!valid_name("topic", topic, why) || !valid_name("subscription", subscription, why)) return why->result;
    ister_subscription_show(client, topic, subscription, rest_of(deadline), &shown, why);
    if (why->result != ISTER_OK && !is_unknown(why)) return why->result;
    *why = (ister_error){0};
    const char *told = ister_value_text(ister_value_get(shown, "dead_letter_topic"), &size);
    if (told && size) {
        *into = copy_text(told);
    } else { /* of a subscription that was deleted: the usual name */
        size = strlen(topic) + strlen(subscription) + sizeof "..dlq";
        *into = allocate(size);
        snprintf(*into, size, "%s.%s.dlq", topic, subscription);
    }
    ister_value_free(shown);
    return ISTER_OK;
}

/* Looks at what waits in the dead-letter topic; drop it, whatever the answer. */
static ister_result look_at_letters(ister_client *client, const char *topic, const char *subscription, us deadline,
                                    letters *into, ister_error *why) {
    if (!into->from && find_letter_topic(client, topic, subscription, deadline, &into->from, why) != ISTER_OK)
        return why->result;
    ister_value_free(into->shown);
    *why = (ister_error){0};
    ister_subscription_show(client, into->from, REDRIVE, rest_of(deadline), &into->shown, why);
    if (is_unknown(why)) *why = (ister_error){0}; /* there never was one */
    into->pending = ister_value_get(into->shown, "pending");
    into->count = ister_value_number(ister_value_get(into->shown, "unacknowledged"), 0);
    into->end = ister_value_number(ister_value_get(into->shown, "durable_end"), 0);
    return why->result;
}

/* The first run of letters that ends behind an offset; false: there is none. */
static bool next_run(const letters *of, uint64_t from, span *run) {
    for (size_t i = 0; i < ister_value_count(of->pending); i++) {
        const ister_value *pair = ister_value_at(of->pending, i);
        run->first = larger(from, ister_value_number(ister_value_at(pair, 0), 0));
        run->end = ister_value_number(ister_value_at(pair, 1), 0);
        if (run->end > from) return true;
    }
    return false;
}

static bool attribute_is(const ister_message *of, const char *name, const char *value) {
    ister_attribute found;
    if (!ister_message_attribute(of, name, &found)) return true; /* published by hand: it belongs to all */
    return found.value_size == strlen(value) && memcmp(found.value, value, found.value_size) == 0;
}

static bool is_letter_of(const ister_message *letter, const char *topic, const char *subscription) {
    return attribute_is(letter, ADDED[0], topic) && attribute_is(letter, ADDED[1], subscription);
}

static uint64_t attribute_number(const ister_message *of, const char *name, bool *there) {
    ister_attribute found;
    uint64_t value = 0;
    *there = ister_message_attribute(of, name, &found) && found.value_size && found.value_size < 20;
    for (size_t i = 0; *there && i < found.value_size; i++) {
        *there = found.value[i] >= '0' && found.value[i] <= '9';
        value = 10 * value + (uint64_t)(found.value[i] - '0');
    }
    return *there ? value : 0;
}

static void attribute_text(const ister_message *of, const char *name, char *field, size_t room) {
    ister_attribute found;
    field[0] = 0;
    if (ister_message_attribute(of, name, &found)) copy_into(field, room, found.value, found.value_size);
}

void ister_dead_letter_read(const ister_message *letter, ister_dead_letter *into) {
    bool there;
    attribute_text(letter, "ister.topic", into->topic, sizeof into->topic);
    attribute_text(letter, "ister.subscription", into->subscription, sizeof into->subscription);
    attribute_text(letter, "ister.reason", into->reason, sizeof into->reason);
    attribute_text(letter, "ister.producer", into->producer, sizeof into->producer);
    uint64_t offset = attribute_number(letter, "ister.offset", &there);
    into->offset = there && offset <= INT64_MAX ? (int64_t)offset : -1;
    into->attempts = attribute_number(letter, "ister.attempts", &there);
    into->timestamp_ms = (int64_t)smaller(attribute_number(letter, "ister.timestamp", &there), INT64_MAX);
    into->dead_lettered_at_ms = (int64_t)smaller(attribute_number(letter, "ister.dead_lettered_at", &there), INT64_MAX);
}

ister_result ister_dead_letters_count(ister_client *client, const char *topic, const char *subscription,
                                      int64_t timeout_ms, uint64_t *count, ister_error *error) {
    ister_error why = {0};
    letters found = {0};
    look_at_letters(client, topic, subscription, deadline_in(timeout_ms), &found, &why);
    *count = found.count;
    drop_letters(&found);
    return tell(error, &why);
}

ister_result ister_dead_letters_list(ister_client *client, const char *topic, const char *subscription, int64_t after,
                                     size_t most, int64_t timeout_ms, ister_message **into, size_t *count,
                                     ister_error *error) {
    ister_error why = {0};
    us deadline = deadline_in(timeout_ms);
    letters found = {0};
    span run;
    uint64_t at = after < 0 ? 0 : (uint64_t)after + 1, known = 0, last = 0;
    ister_consumer *reader = NULL;
    *count = 0;
    look_at_letters(client, topic, subscription, deadline, &found, &why);
    while (why.result == ISTER_OK && *count < most && next_run(&found, at, &run)) {
        ister_message *message = NULL;
        if (reader && run.first - at > GAP_READ_OVER) {
            ister_consumer_free(reader);
            reader = NULL;
        }
        ister_place start = {ISTER_AT_OFFSET, run.first};
        if (!reader)
            ister_reader_open(client, found.from, start, smaller(run.end - run.first, LETTERS_TOGETHER),
                              rest_of(deadline), &reader, &why);
        if (!reader) break;
        ister_consumer_receive(reader, rest_of(deadline), &message, &why);
        if (!message) break;
        bool waits = next_run(&found, message->offset, &run) && run.first == message->offset;
        at = message->offset + 1;
        if (waits && is_letter_of(message, topic, subscription))
            into[(*count)++] = message;
        else
            ister_message_free(message);
    }
    ister_consumer_free(reader);
    for (size_t i = 0; i < ister_value_count(found.pending); i++) {
        const ister_value *pair = ister_value_at(found.pending, i);
        last = ister_value_number(ister_value_at(pair, 1), 0);
        known += last - smaller(last, ister_value_number(ister_value_at(pair, 0), 0));
    }
    if (why.result == ISTER_OK && most && !*count && found.count > known && known)
        say_invalid(&why,
                    "%" PRIu64 " letters of %s cannot be listed: they lie behind offset %" PRIu64
                    ", up to which the broker tells; redrive or purge some, then list again",
                    found.count - known, found.from, last - 1);
    if (why.result != ISTER_OK) {
        for (size_t i = 0; i < *count; i++) ister_message_free(into[i]);
        *count = 0;
    }
    drop_letters(&found);
    return tell(error, &why);
}

/* A pass over the letters that wait. */
typedef struct {
    ister_client *client;
    const char *topic, *subscription;
    ister_redrive_options how;
    ister_producer *producer; /* NULL: they are deleted */
    letters found;
    ister_consumer *consumer;
    uint64_t done, passed; /* passed: were looked at, and stay */
    uint64_t reached;      /* behind the last one that was looked at: those below come again */
    uint64_t *gone;        /* settled, and not known to be acknowledged */
    size_t gone_count;
    ister_error refused;
    us deadline;
} settling;

/* Sends a letter to where it was, with its attributes but those about the failure. */
static ister_result send_letter(const settling *s, const ister_message *letter, ister_receipt **receipt,
                                ister_error *why) {
    ister_attribute each;
    size_t cursor_at = 0, count = 0;
    char offset[24];
    while (ister_message_next_attribute(letter, &cursor_at, &each)) count++;
    ister_attribute *attributes = allocate((count + 3) * sizeof *attributes);
    snprintf(offset, sizeof offset, "%" PRIu64, letter->offset);
    attributes[0] = (ister_attribute){"ister.redriven_from", letter->topic, 0, 0};
    attributes[1] = (ister_attribute){"ister.redriven_offset", offset, 0, 0};
    attributes[2] = (ister_attribute){"ister.redriven_for", s->subscription, 0, 0};
    cursor_at = 0;
    count = 3;
    while (ister_message_next_attribute(letter, &cursor_at, &each)) {
        bool kept = true;
        for (size_t i = 0; i < ADDED_COUNT + 3; i++) {
            const char *name = i < ADDED_COUNT ? ADDED[i] : attributes[i - ADDED_COUNT].name;
            kept = kept && !(each.name_size == strlen(name) && memcmp(each.name, name, each.name_size) == 0);
        }
        if (kept) attributes[count++] = each;
    }
    ister_outgoing sent = {.payload = letter->payload,
                           .payload_size = letter->payload_size,
                           .key = letter->key,
                           .key_size = letter->key_size,
                           .attributes = attributes,
                           .attributes_count = count};
    *why = (ister_error){0};
    ister_producer_send(s->producer, &sent, rest_of(s->deadline), receipt, why);
    free(attributes);
    return why->result;
}

static bool is_gone(const settling *s, uint64_t offset) {
    for (size_t i = 0; i < s->gone_count; i++) {
        if (s->gone[i] == offset) return true;
    }
    return false;
}

/* Settles letters, and has their acknowledgments written; what fails for good stays. */
static void settle_some(settling *s, ister_message **came, size_t count, ister_error *why) {
    ister_receipt *receipts[LETTERS_TOGETHER] = {0};
    ister_error errors[LETTERS_TOGETHER];
    ister_message *settled_ones[LETTERS_TOGETHER];
    size_t settled_count = 0;
    for (size_t i = 0; s->producer && i < count; i++) {
        errors[i] = (ister_error){0};
        if (!is_gone(s, came[i]->offset)) send_letter(s, came[i], &receipts[i], &errors[i]);
    }
    for (size_t i = 0; i < count; i++) {
        bool again = is_gone(s, came[i]->offset);
        if (s->producer && receipts[i]) ister_receipt_wait(receipts[i], rest_of(s->deadline), NULL, &errors[i]);
        ister_receipt_free(receipts[i]);
        if (s->producer && !again && errors[i].result != ISTER_OK) {
            bool is_its_own = errors[i].action == ISTER_FIX;
            if (is_its_own && s->refused.result == ISTER_OK) s->refused = errors[i];
            if (is_its_own)
                s->passed++;
            else if (why->result == ISTER_OK)
                *why = errors[i];
            continue;
        }
        settled_ones[settled_count++] = came[i];
        if (again) continue;
        s->done++;
        s->gone = allocate_again(s->gone, (s->gone_count + 1) * sizeof *s->gone);
        s->gone[s->gone_count++] = came[i]->offset;
    }
    ister_error told = {0};
    if (!settled_count || ister_consumer_ack(s->consumer, settled_ones, settled_count, &told) != ISTER_OK ||
        ister_consumer_flush(s->consumer, rest_of(s->deadline), &told) != ISTER_OK) {
        if (told.result != ISTER_OK && told.result != ISTER_LOST && why->result == ISTER_OK) *why = told;
        return; /* at ISTER_LOST they come again */
    }
    s->gone_count = 0;
}

static bool is_wanted(const settling *s, const ister_message *letter) {
    for (size_t i = 0; i < s->how.offsets_count; i++) {
        if (s->how.offsets[i] == letter->offset) return true;
    }
    return !s->how.offsets && is_letter_of(letter, s->topic, s->subscription);
}

static void settle_all(settling *s, ister_error *why) {
    uint64_t most = s->how.most ? s->how.most : UINT64_MAX;
    if (s->how.offsets) most = smaller(most, s->how.offsets_count);
    ister_message *came[LETTERS_TOGETHER], *mine[LETTERS_TOGETHER];
    bool over = false;
    while (!over && why->result == ISTER_OK && (s->done < most || s->gone_count)) {
        ister_error told = {0};
        size_t count = 0, mine_count = 0;
        size_t wanted = (size_t)smaller(LETTERS_TOGETHER, larger(1, most - smaller(most, s->done)));
        int64_t patience = rest_of(s->deadline);
        bool out_of_time = patience == 0;
        if (patience < 0 || patience > LETTERS_SILENCE_MS) patience = LETTERS_SILENCE_MS;
        ister_consumer_receive_batch(s->consumer, wanted, patience, came, &count, &told);
        if (told.result == ISTER_TIMEOUT && !out_of_time) {
            span run;
            letters now = {.from = s->found.from};
            look_at_letters(s->client, s->topic, s->subscription, s->deadline, &now, why);
            over = !next_run(&now, 0, &run) || run.first >= s->found.end || now.count <= s->passed;
            if (ister_value_flag(ister_value_get(now.shown, "paused"), false) && why->result == ISTER_OK && !over)
                say(why, ISTER_REFUSED, ISTER_RETRY, "paused", "subscription %s of %s is paused", REDRIVE,
                    s->found.from);
            ister_value_free(now.shown);
            continue;
        }
        if (told.result != ISTER_OK) *why = told;
        for (size_t i = 0; i < count; i++) {
            uint64_t offset = came[i]->offset;
            bool again = offset < s->reached; /* it was settled, or stays */
            s->reached = larger(s->reached, offset + 1);
            if (offset >= s->found.end)
                over = true; /* it failed meanwhile */
            else if (again ? is_gone(s, offset) : is_wanted(s, came[i]) && s->done + mine_count < most)
                mine[mine_count++] = came[i];
            else if (!again)
                s->passed++;
        }
        if (mine_count) settle_some(s, mine, mine_count, why);
        for (size_t i = 0; i < count; i++) ister_message_free(came[i]);
    }
}

static ister_result settle(ister_client *client, const char *topic, const char *subscription,
                           const ister_redrive_options *how, bool deletes, int64_t timeout_ms, uint64_t *count,
                           ister_error *error) {
    ister_error why = {0}, closed = {0};
    settling s = {client, topic, subscription, .how = *how, .deadline = deadline_in(timeout_ms)};
    ister_consumer_options options = {.type = "exclusive", .start = {ISTER_EARLIEST, 0}};
    const char *to = how->to ? how->to : topic;
    options.credit_messages = LETTERS_TOGETHER;
    if (count) *count = 0;
    look_at_letters(client, topic, subscription, s.deadline, &s.found, &why);
    if (why.result == ISTER_OK && !deletes && strcmp(to, s.found.from) == 0)
        say_invalid(&why, "%s is the dead-letter topic: letters would loop for ever", to);
    if (why.result == ISTER_OK && s.found.count &&
        (deletes || ister_producer_open(client, to, NULL, rest_of(s.deadline), &s.producer, &why) == ISTER_OK)) {
        if (s.producer && s.producer->p.non_reliable)
            say_invalid(&why, "topic %s is non-reliable: it stores nothing, so letters would be lost", to);
        else if (ister_consumer_open(client, s.found.from, REDRIVE, &options, rest_of(s.deadline), &s.consumer, &why) ==
                     ISTER_OK &&
                 s.consumer)
            settle_all(&s, &why);
    }
    if (s.consumer) ister_consumer_close(s.consumer, 1000, &closed);
    ister_consumer_free(s.consumer);
    if (s.producer) ister_producer_close(s.producer, 1000, &closed);
    ister_producer_free(s.producer);
    if (why.result == ISTER_OK && s.refused.result != ISTER_OK)
        say(&why, s.refused.result, s.refused.action, s.refused.code,
            "%" PRIu64 " letters were settled, others stay in %s: the first is not taken: %s", s.done, s.found.from,
            s.refused.text);
    if (count) *count = s.done;
    drop_letters(&s.found);
    free(s.gone);
    return tell(error, &why);
}

ister_result ister_dead_letters_redrive(ister_client *client, const char *topic, const char *subscription,
                                        const ister_redrive_options *options, int64_t timeout_ms, uint64_t *count,
                                        ister_error *error) {
    static const ister_redrive_options ALL;
    return settle(client, topic, subscription, options ? options : &ALL, false, timeout_ms, count, error);
}

ister_result ister_dead_letters_purge(ister_client *client, const char *topic, const char *subscription, uint64_t most,
                                      int64_t timeout_ms, uint64_t *count, ister_error *error) {
    ister_redrive_options how = {.most = most};
    return settle(client, topic, subscription, &how, true, timeout_ms, count, error);
}

/* ---- the codec alone ---- */

ister_result ister_codec_header(const void *frame, size_t size, ister_value **into, ister_error *error) {
    ister_error why = {0};
    header *h = allocate(sizeof *h);
    *into = NULL;
    if (read_header(frame, size, h, &why)) {
        cursor from = {frame, size, 0};
        *into = allocate(sizeof **into);
        walk(&from, 1, HEADER_LEVELS, ANY_KEYS, *into);
    }
    free(h);
    return tell(error, &why);
}

ister_result ister_codec_cut(uint64_t columns, const ister_slice *frames, size_t frames_count,
                             ister_message ***messages, size_t *count, ister_error *error) {
    ister_error why = {0};
    *messages = NULL;
    *count = 0;
    if (!frames_count || frames_count > FRAMES_MAX || frames[0].size % 4) {
        say_malformed(&why, "%zu frames are no batch", frames_count);
        return tell(error, &why);
    }
    size_t found = frames[0].size / 4;
    delivery *made = allocate(sizeof *made);
    atomic_init(&made->references, (int)found + 1);
    made->messages = allocate(found * sizeof *made->messages);
    if (cut_batch(columns, found, frames, frames_count, made->messages, &why)) {
        *messages = allocate(found * sizeof **messages);
        *count = found;
        for (size_t i = 0; i < found && why.result == ISTER_OK; i++) {
            made->messages[i].home = made;
            (*messages)[i] = &made->messages[i].seen;
            if (!attributes_valid(&made->messages[i])) say_malformed(&why, "attributes are a map of text to text");
        }
        if (why.result != ISTER_OK) {
            free(*messages);
            *messages = NULL;
        }
    }
    if (why.result != ISTER_OK) atomic_init(&made->references, 1);
    release_delivery(made);
    return tell(error, &why);
}

void ister_codec_messages_free(ister_message **messages, size_t count) {
    for (size_t i = 0; messages && i < count; i++) ister_message_free(messages[i]);
    free(messages);
}

ister_result ister_codec_pack(const ister_outgoing *messages, size_t count, uint64_t *columns, ister_slice *frames,
                              size_t *frames_count, ister_error *error) {
    ister_error why = {0};
    gathering made = {0};
    *frames_count = 0;
    if (!valid_messages(messages, count, &why)) return tell(error, &why);
    for (size_t i = 0; i < count; i++) gather(&made, &messages[i]);
    *columns = made.columns;
    body *packed = pack(&made, false);
    *frames_count = packed->frames_count;
    memcpy(frames, packed->frames, packed->frames_count * sizeof *frames);
    free(packed);
    return ISTER_OK;
}
