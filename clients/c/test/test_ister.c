/* Tests of what knows no socket, clock or thread, and one of sockets. ister.c is included: most of it is static. */
#include "../ister.c"

static int failures;
static const char *running;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            failures++;                                                                                                \
            fprintf(stderr, "%s, line %d: not so: %s\n", running, __LINE__, #condition);                               \
        }                                                                                                              \
    } while (0)

/* ---- a session without a socket: look at what was said, and answer ---- */

typedef struct {
    session s;
    us now;
    header *said;
    bool tells, singly; /* OPENED has TAKEN; DELIVER has SINGLY */
    uint8_t frame[HEADER_BYTES_MAX];
} talk;

static talk *new_talk(void) {
    talk *t = allocate(sizeof *t);
    t->s.text = "test";
    t->now = 1000 * SECOND;
    t->said = allocate(sizeof *t->said);
    return t;
}

static void free_talk(talk *t) {
    drop_session(&t->s);
    free(t->said);
    free(t);
}

/* The next frame that was said, decoded; false: there is none. */
static bool next_said(talk *t) {
    if (t->s.out_first == t->s.out_count) return false;
    const outgoing_frame *first = &t->s.outbox[t->s.out_first];
    ister_error error;
    memcpy(t->frame, t->s.out.data + first->at, first->size);
    CHECK(read_header(t->frame, first->size, t->said, &error));
    sent_first(&t->s);
    return true;
}

static size_t hush(talk *t) {
    size_t count = 0;
    while (next_said(t)) count++;
    return count;
}

/* Passes frames until one of a type. */
static bool said(talk *t, uint64_t type) {
    while (next_said(t)) {
        if (number_of(t->said, K_TYPE) == type) return true;
    }
    return false;
}

static parcel *new_parcel(const ister_slice *frames, size_t count) {
    parcel *made = allocate(sizeof *made);
    atomic_init(&made->references, 1);
    for (; made->count < count; made->count++) {
        zmq_msg_t *into = &made->messages[made->count];
        zmq_msg_init_size(into, frames[made->count].size);
        if (frames[made->count].size) memcpy(zmq_msg_data(into), frames[made->count].data, frames[made->count].size);
        made->frames[made->count] = (ister_slice){zmq_msg_data(into), frames[made->count].size};
    }
    return made;
}

static void hear_frames(talk *t, const ister_slice *frames, size_t count) {
    parcel *came = new_parcel(frames, count);
    session_receive(&t->s, came, t->now);
    release_parcel(came);
}

static void hear(talk *t, bytes *raw, writer *w) {
    end_header(w);
    hear_frames(t, &(ister_slice){raw->data, raw->size}, 1);
    drop_bytes(raw);
}

static void welcome(talk *t, bool resumed) {
    bytes raw = {0};
    session_connect(&t->s, t->now);
    hush(t);
    writer w = begin_header(&raw, WELCOME);
    with_number(&w, K_VERSION, 1);
    put_number(&raw, K_SESSION);
    put_bytes(&raw, "0123456789abcdef", 16);
    with_number(&w, K_BOOT, 1);
    with_number(&w, K_HEARTBEAT, 1000);
    with_flag(&w, K_RESUMED, resumed);
    put_number(&raw, K_LIMITS);
    put_map(&raw, 5);
    for (uint64_t key = 1; key <= 4; key++) {
        put_number(&raw, key);
        put_number(&raw, (const uint64_t[]){0, 1000, 4000, 2, 300}[key]);
    }
    put_number(&raw, 7);
    put_number(&raw, 1000);
    w.count += 2;
    hear(t, &raw, &w);
    CHECK(t->s.phase == READY);
}

static void lose(talk *t) {
    ister_error why;
    say_lost(&why, "a test");
    session_lost(&t->s, &why);
}

static publication *new_producer(talk *t) {
    publication *p = allocate(sizeof *p);
    set_up_publication(p, 1, "orders");
    p->id = 7;
    p->batch_bytes = 1000;
    attach(&t->s, &p->h, t->now);
    return p;
}

static void free_publication(publication *p) {
    ister_error why;
    say_closed(&why, "producer");
    detach(&p->h);
    fail_producer(p, &why);
    drop_publication(p);
    free(p);
}

static attachment *new_attachment(talk *t, uint64_t fixed) {
    attachment *a = allocate(sizeof *a);
    set_up_attachment(a, 2, "orders", "all", "shared");
    a->fixed = fixed;
    a->serial = 9;
    attach(&t->s, &a->h, t->now);
    return a;
}

static void free_attachment(attachment *a) {
    detach(&a->h);
    drop_attachment(a);
    free(a);
}

static void open_it(talk *t, uint64_t type, uint64_t sequence, uint64_t window) {
    bytes raw = {0};
    CHECK(said(t, type));
    writer w = begin_header(&raw, OPENED);
    with_number(&w, K_REF, number_of(t->said, K_REF));
    with_number(&w, K_HANDLE, number_of(t->said, K_HANDLE));
    with_text(&w, K_STRATEGY, "reliable");
    if (type == OPEN_PRODUCER) {
        with_number(&w, K_SEQUENCE, sequence);
        with_number(&w, K_BYTES, window);
    } else {
        with_number(&w, K_OFFSET, 0);
        with_number(&w, K_SOUGHT, sequence);
        if (t->tells) with_number(&w, K_TAKEN, 0);
        with_text(&w, K_INSTANCE, "one");
    }
    hear(t, &raw, &w);
}

static void refuse(talk *t, const char *code, const char *action, uint64_t sequence) {
    bytes raw = {0};
    writer w = begin_header(&raw, ERROR_FRAME);
    with_text(&w, K_CODE, code);
    with_text(&w, K_TEXT, code);
    with_text(&w, K_ACTION, action);
    with_number(&w, K_HANDLE, 1);
    with_number(&w, K_SEQUENCE, sequence);
    hear(t, &raw, &w);
}

static void receipt(talk *t, uint64_t sequence, uint64_t offset) {
    bytes raw = {0};
    writer w = begin_header(&raw, RECEIPT);
    with_number(&w, K_HANDLE, 1);
    put_number(&raw, K_RECEIPTS);
    put_list(&raw, 2);
    put_number(&raw, sequence);
    put_number(&raw, offset);
    w.count++;
    hear(t, &raw, &w);
}

static shipment *send_one(talk *t, publication *p, const char *payload) {
    uint64_t index;
    ister_outgoing one = {.payload = payload, .payload_size = strlen(payload)};
    shipment *into = take(p, &one, &index, t->now);
    CHECK(into != NULL);
    if (into) atomic_fetch_add(&into->references, 1);
    return into;
}

static void deliver(talk *t, uint64_t first, uint64_t count) {
    bytes raw = {0}, lengths = {0}, payloads = {0};
    writer w = begin_header(&raw, DELIVER);
    with_number(&w, K_HANDLE, 2);
    with_number(&w, K_OFFSET, first);
    with_number(&w, K_COUNT, count);
    if (t->singly) with_flag(&w, K_SINGLY, true);
    put_number(&raw, K_TIMESTAMPS);
    put_list(&raw, 2);
    put_number(&raw, count);
    put_number(&raw, 5);
    w.count++;
    end_header(&w);
    for (uint64_t i = 0; i < count; i++) {
        append_u32(&lengths, 1);
        append(&payloads, "x", 1);
    }
    ister_slice frames[3] = {{raw.data, raw.size}, {lengths.data, lengths.size}, {payloads.data, payloads.size}};
    hear_frames(t, frames, 3);
    drop_bytes(&raw);
    drop_bytes(&lengths);
    drop_bytes(&payloads);
}

static void take_and_free(talk *t, attachment *a, size_t count, bool ack) {
    ister_message *messages[16];
    size_t found = take_messages(a, messages, count, t->now);
    CHECK(found == count);
    if (ack) acknowledge(a, (const ister_message *const *)messages, found, t->now);
    for (size_t i = 0; i < found; i++) ister_message_free(messages[i]);
}

/* ---- the tests ---- */

static void what_has_no_receipt_is_sent_again_in_order(void) {
    talk *t = new_talk();
    welcome(t, false);
    publication *p = new_producer(t);
    open_it(t, OPEN_PRODUCER, 0, 1000);
    shipment *first = send_one(t, p, "one"), *second = send_one(t, p, "two");
    seal(p);
    CHECK(said(t, PUBLISH) && number_of(t->said, K_SEQUENCE) == 0);
    CHECK(said(t, PUBLISH) && number_of(t->said, K_SEQUENCE) == 1);
    receipt(t, 0, 40);
    CHECK(first->over && first->first == 40 && !second->over);
    lose(t);
    welcome(t, true);
    CHECK(p->h.phase == H_OPENING);
    lose(t);
    session_connect(&t->s, t->now);
    hush(t);
    lose(t);
    welcome(t, true);
    open_it(t, OPEN_PRODUCER, 1, 1000);
    CHECK(said(t, PUBLISH) && number_of(t->said, K_SEQUENCE) == 1 && !said(t, PUBLISH));
    receipt(t, 1, 41);
    receipt(t, 0, 99);
    CHECK(answered(p) && first->first == 40 && second->first == 41);
    release_shipment(first);
    release_shipment(second);
    free_publication(p);
    free_talk(t);
}

static void the_window_is_kept(void) {
    talk *t = new_talk();
    char payload[31] = "123456789012345678901234567890";
    int taken = 0;
    welcome(t, false);
    publication *p = new_producer(t);
    open_it(t, OPEN_PRODUCER, 0, 100);
    for (; taken < 100; taken++) {
        uint64_t index;
        ister_outgoing one = {.payload = payload, .payload_size = 30};
        if (!take(p, &one, &index, t->now)) break;
        seal(p);
        CHECK(p->bytes <= 100 && p->batches_count <= 2);
    }
    CHECK(taken > 1 && taken < 100);
    free_publication(p);
    free_talk(t);
}

static void a_refused_batch_is_left_out_once_it_is_the_oldest(void) {
    talk *t = new_talk();
    welcome(t, false);
    publication *p = new_producer(t);
    open_it(t, OPEN_PRODUCER, 0, 1000);
    shipment *bad = send_one(t, p, "bad"), *good = send_one(t, p, "good");
    seal(p);
    hush(t);
    refuse(t, "invalid-argument", "fix", 0);
    refuse(t, "sequence-gap", "retry", 1);
    CHECK(bad->over && has_code(&bad->error, "invalid-argument") && !good->over);
    open_it(t, OPEN_PRODUCER, 1, 1000);
    CHECK(said(t, PUBLISH) && number_of(t->said, K_SEQUENCE) == 1);
    release_shipment(bad);
    release_shipment(good);
    free_publication(p);
    free_talk(t);
}

static void a_worker_that_lost_the_producer_is_given_it_again(void) {
    talk *t = new_talk();
    welcome(t, false);
    publication *p = new_producer(t);
    open_it(t, OPEN_PRODUCER, 0, 1000);
    shipment *one = send_one(t, p, "one");
    hush(t);
    refuse(t, "unknown-handle", "fix", 0); /* 8.4-4 */
    CHECK(!one->over && hush(t) == 0);
    t->now += SECOND;
    session_tick(&t->s, t->now);
    open_it(t, OPEN_PRODUCER, 0, 1000);
    CHECK(said(t, PUBLISH) && number_of(t->said, K_SEQUENCE) == 0);
    release_shipment(one);
    free_publication(p);
    free_talk(t);
}

static void credit_comes_back_as_the_program_takes(void) {
    talk *t = new_talk();
    uint64_t given = 0;
    welcome(t, false);
    attachment *a = new_attachment(t, 4);
    open_it(t, OPEN_CONSUMER, 0, 0);
    deliver(t, 0, 4);
    CHECK(hush(t) == 0);
    for (uint64_t taken = 1; taken <= 4; taken++) {
        take_and_free(t, a, 1, false);
        while (next_said(t)) given += number_of(t->said, K_MESSAGES);
        CHECK(given <= taken);
    }
    CHECK(given >= 2);
    free_attachment(a);
    free_talk(t);
}

static void event(talk *t, const char *code, uint64_t moved) {
    bytes raw = {0};
    writer w = begin_header(&raw, EVENT);
    with_number(&w, K_HANDLE, 2);
    with_text(&w, K_CODE, code);
    if (moved) with_number(&w, K_SOUGHT, moved);
    hear(t, &raw, &w);
}

static void done(talk *t, uint64_t ref) {
    bytes raw = {0};
    writer w = begin_header(&raw, DONE);
    with_number(&w, K_REF, ref);
    hear(t, &raw, &w);
}

static attachment *new_teller(talk *t, uint64_t fixed) {
    welcome(t, false);
    attachment *a = new_attachment(t, fixed);
    t->tells = true;
    open_it(t, OPEN_CONSUMER, 0, 0);
    CHECK(a->tells && number_of(t->said, K_TAKEN) == 0 && has(t->said, K_TAKEN));
    return a;
}

/* 9.6-2: a program that takes its time over a message has that one alone in hand; a fast one costs few reports. */
static void the_broker_is_told_what_the_program_takes(void) {
    talk *t = new_talk();
    attachment *a = new_teller(t, 1000);
    deliver(t, 0, 200);
    for (uint64_t taken = 1; taken <= 5; taken++) {
        take_and_free(t, a, 1, false);
        CHECK(said(t, CREDIT) && number_of(t->said, K_TAKEN) == taken);
        t->now += 10 * MS;
    }
    uint64_t told = 5;
    size_t reports = 0;
    for (uint64_t taken = 6; taken <= 200; taken++) {
        take_and_free(t, a, 1, false);
        while (next_said(t)) {
            CHECK(number_of(t->said, K_TAKEN) > told);
            told = number_of(t->said, K_TAKEN);
            reports++;
        }
        CHECK(told >= taken);
        t->now += 50; /* 80 a moment */
    }
    CHECK(reports < 12 && told <= 200 + 80);
    t->now += 20 * MS;
    ister_message *one;
    CHECK(take_messages(a, &one, 1, t->now) == 0);
    free_attachment(a);
    free_talk(t);
}

static void a_broker_that_does_not_ask_is_not_told_what_the_program_takes(void) {
    talk *t = new_talk();
    welcome(t, false);
    attachment *a = new_attachment(t, 4);
    open_it(t, OPEN_CONSUMER, 0, 0);
    t->singly = true;
    deliver(t, 0, 4);
    take_and_free(t, a, 4, false);
    CHECK(said(t, CREDIT) && !has(t->said, K_TAKEN) && !next_said(t));
    free_attachment(a);
    free_talk(t);
}

/* 9.6-5 and 9.6-9: also of the first message behind those. */
static void a_message_that_may_not_fail_again_waits_for_the_brokers_word(void) {
    talk *t = new_talk();
    ister_message *one;
    attachment *a = new_teller(t, 100);
    t->singly = true;
    deliver(t, 0, 2);
    t->singly = false;
    deliver(t, 2, 2);
    for (uint64_t taken = 1; taken <= 3; taken++) {
        CHECK(take_messages(a, &one, 1, t->now) == 0 && take_messages(a, &one, 1, t->now) == 0);
        if (taken > 1) CHECK(said(t, ACK)); /* what became of the one before, first */
        CHECK(said(t, CREDIT) && number_of(t->said, K_TAKEN) == taken && has(t->said, K_REF));
        uint64_t ref = number_of(t->said, K_REF);
        CHECK(!next_said(t));
        done(t, ref + 100);
        CHECK(take_messages(a, &one, 1, t->now) == 0);
        done(t, ref);
        take_and_free(t, a, 1, true);
        CHECK(!said(t, CREDIT));
        t->now += 10 * MS;
    }
    take_and_free(t, a, 1, true);
    CHECK(said(t, CREDIT) && number_of(t->said, K_TAKEN) == 4 && !has(t->said, K_REF));
    free_attachment(a);
    free_talk(t);
}

static void a_leave_is_void_once_the_connection_is_lost(void) {
    talk *t = new_talk();
    ister_message *one;
    attachment *a = new_teller(t, 100);
    t->singly = true;
    deliver(t, 0, 1);
    CHECK(take_messages(a, &one, 1, t->now) == 0 && said(t, CREDIT));
    done(t, number_of(t->said, K_REF));
    lose(t);
    welcome(t, true);
    open_it(t, OPEN_CONSUMER, 0, 0);
    deliver(t, 0, 1);
    CHECK(take_messages(a, &one, 1, t->now) == 0 && said(t, CREDIT) && number_of(t->said, K_TAKEN) == 1);
    free_attachment(a);
    free_talk(t);
}

/* 9.6-6: what was not handed out is dropped and counts, and credit is given anew when the program asks for more. */
static void what_was_recalled_is_not_handed_out(void) {
    talk *t = new_talk();
    ister_message *one;
    attachment *a = new_teller(t, 10);
    deliver(t, 0, 6);
    take_and_free(t, a, 1, false);
    hush(t);
    t->now += 10 * MS;
    event(t, "recalled", 0);
    CHECK(!next_said(t) && !a->queue);
    CHECK(take_messages(a, &one, 1, t->now) == 0);
    CHECK(said(t, CREDIT) && number_of(t->said, K_MESSAGES) == 10 && number_of(t->said, K_BYTES) == CREDIT_BYTES);
    deliver(t, 1, 1);
    take_and_free(t, a, 1, false);
    CHECK(said(t, CREDIT) && number_of(t->said, K_TAKEN) == 7);
    t->now += 10 * MS;
    event(t, "sought", 1);
    deliver(t, 1, 1);
    take_and_free(t, a, 1, false);
    CHECK(said(t, CREDIT) && said(t, CREDIT) && number_of(t->said, K_TAKEN) == 8);
    free_attachment(a);
    free_talk(t);
}

/* 9.6-7 */
static void a_program_that_fails_says_so_of_all_it_has_in_hand(void) {
    talk *t = new_talk();
    size_t count;
    attachment *a = new_teller(t, 10);
    deliver(t, 0, 3);
    take_and_free(t, a, 1, true);
    take_and_free(t, a, 1, false);
    blame(a, "it fell");
    CHECK(said(t, ACK) && said(t, NACK) && number_of(t->said, K_TAKEN) == 2 && has(t->said, K_RANGES));
    numbers_of(t->said, K_RANGES, &count);
    CHECK(count == 0 && text_is(t->said, K_REASON, "it fell"));
    free_attachment(a);
    free_talk(t);
}

/* 9.2-5 and 9.9: about an acknowledgment, about the consumer, and of damage. */
static void errors_about_a_consumer_are_told_apart(void) {
    talk *t = new_talk();
    attachment *a = new_teller(t, 10);
    for (int i = 0; i < 2; i++) {
        bytes raw = {0};
        writer w = begin_header(&raw, ERROR_FRAME);
        with_number(&w, K_HANDLE, 2);
        with_text(&w, K_CODE, i ? "unavailable" : "not-active");
        with_text(&w, K_TEXT, "a test");
        with_text(&w, K_ACTION, "retry");
        hear(t, &raw, &w);
        CHECK(!a->has_complaint && a->h.phase == (i ? H_WAITING : H_OPEN));
    }
    t->now += SECOND;
    session_tick(&t->s, t->now);
    open_it(t, OPEN_CONSUMER, 0, 0);
    event(t, "log-damaged", 0);
    CHECK(a->has_complaint && has_code(&a->complaint, "log-damaged"));
    free_attachment(a);
    free_talk(t);
}

static void acknowledgments_are_repeated_in_a_resumed_session_alone(void) {
    for (int resumed = 0; resumed < 2; resumed++) {
        talk *t = new_talk();
        welcome(t, false);
        attachment *a = new_attachment(t, 10);
        open_it(t, OPEN_CONSUMER, 0, 0);
        deliver(t, 0, 2);
        take_and_free(t, a, 2, true);
        flush_acks(a, true);
        lose(t);
        welcome(t, resumed);
        CHECK(a->forgotten != resumed);
        free_attachment(a);
        free_talk(t);
    }
}

static void an_acknowledgment_made_while_another_is_confirmed_is_not_lost(void) {
    talk *t = new_talk();
    bytes raw = {0};
    welcome(t, false);
    attachment *a = new_attachment(t, 10);
    open_it(t, OPEN_CONSUMER, 0, 0);
    deliver(t, 0, 4);
    take_and_free(t, a, 2, true);
    flush_acks(a, true);
    CHECK(said(t, ACK) && has(t->said, K_REF));
    uint64_t ref = number_of(t->said, K_REF);
    take_and_free(t, a, 2, true);
    flush_acks(a, false);
    writer w = begin_header(&raw, DONE);
    with_number(&w, K_REF, ref);
    hear(t, &raw, &w);
    CHECK(a->unconfirmed.count == 1 && a->unconfirmed.items[0].first == 2 && a->unconfirmed.items[0].end == 4);
    free_attachment(a);
    free_talk(t);
}

static void another_instance_is_not_acknowledged(void) {
    talk *t = new_talk();
    bytes raw = {0};
    welcome(t, false);
    attachment *a = new_attachment(t, 10);
    open_it(t, OPEN_CONSUMER, 0, 0);
    deliver(t, 0, 2);
    take_and_free(t, a, 2, true);
    flush_acks(a, false);
    lose(t);
    session_connect(&t->s, t->now);
    lose(t);
    welcome(t, true);
    CHECK(a->h.phase == H_OPENING);
    writer w = begin_header(&raw, OPENED);
    with_number(&w, K_REF, a->h.open_ref);
    with_number(&w, K_HANDLE, 2);
    with_number(&w, K_OFFSET, 0);
    with_text(&w, K_INSTANCE, "another");
    hush(t);
    hear(t, &raw, &w);
    CHECK(a->h.phase == H_OPEN && settled(a) && a->forgotten && !said(t, ACK)); /* 9.3-2 */
    free_attachment(a);
    free_talk(t);
}

/* A consumer may be taken to another session, which may be a resumed one: at its worker nobody knows these deliveries,
   and DONE would confirm what was never written. */
static void another_session_is_told_no_acknowledgments(void) {
    talk *t = new_talk(), *other = new_talk();
    ister_error why;
    say_lost(&why, "it does not come back");
    welcome(t, false);
    welcome(other, true);
    other->s.secret[0]++;
    attachment *a = new_attachment(t, 10);
    open_it(t, OPEN_CONSUMER, 0, 0);
    deliver(t, 0, 2);
    take_and_free(t, a, 2, true);
    flush_acks(a, false);
    handle_lost(&a->h, &why);
    detach(&a->h);
    attach(&other->s, &a->h, other->now);
    open_it(other, OPEN_CONSUMER, 0, 0);
    CHECK(a->h.phase == H_OPEN && settled(a) && a->forgotten && !said(other, ACK));
    free_attachment(a);
    free_talk(t);
    free_talk(other);
}

static void many_ranges_are_split(void) {
    talk *t = new_talk();
    span *items = allocate(1001 * sizeof *items);
    size_t frames = 0, ranges = 0, refs = 0, count;
    welcome(t, false);
    attachment *a = new_attachment(t, 10);
    open_it(t, OPEN_CONSUMER, 0, 0);
    for (uint64_t i = 0; i < 1001; i++) items[i] = (span){UINT64_MAX - 5000 + 2 * i, UINT64_MAX - 4999 + 2 * i};
    send_ranges(a, ACK, items, 1001, 5, -1, NULL);
    while (next_said(t)) { /* decoding checks that a header has 8192 bytes and 400 ranges at most */
        numbers_of(t->said, K_RANGES, &count);
        frames++;
        ranges += count / 2;
        refs += has(t->said, K_REF);
    }
    CHECK(frames >= 3 && ranges == 1001 && refs == 1 && has(t->said, K_REF));
    free(items);
    free_attachment(a);
    free_talk(t);
}

static void a_handle_closed_without_a_connection_is_closed_in_the_resumed_session(void) {
    talk *t = new_talk();
    welcome(t, false);
    attachment *a = new_attachment(t, 10);
    open_it(t, OPEN_CONSUMER, 0, 0);
    lose(t);
    close_handle(&a->h);
    free_attachment(a);
    session_connect(&t->s, t->now);
    lose(t);
    bytes raw = {0};
    session_connect(&t->s, t->now);
    hush(t);
    writer w = begin_header(&raw, WELCOME);
    with_number(&w, K_VERSION, 1);
    put_number(&raw, K_SESSION);
    put_bytes(&raw, "0123456789abcdef", 16);
    with_number(&w, K_BOOT, 1);
    with_number(&w, K_HEARTBEAT, 1000);
    with_flag(&w, K_RESUMED, true);
    put_number(&raw, K_LIMITS);
    put_map(&raw, 0);
    w.count += 2;
    hear(t, &raw, &w);
    CHECK(said(t, CLOSE) && number_of(t->said, K_HANDLE) == 2); /* 7.4-7 */
    free_talk(t);
}

static void a_reader_that_handed_out_nothing_goes_on_where_it_began(void) {
    talk *t = new_talk();
    bytes raw = {0};
    welcome(t, false);
    attachment *a = allocate(sizeof *a);
    set_up_attachment(a, 2, "orders", "reader-1", "reader");
    a->start = (ister_place){ISTER_LATEST, 0};
    attach(&t->s, &a->h, t->now);
    CHECK(said(t, OPEN_CONSUMER) && has(t->said, K_START));
    writer w = begin_header(&raw, OPENED);
    with_number(&w, K_REF, number_of(t->said, K_REF));
    with_number(&w, K_HANDLE, 2);
    with_number(&w, K_OFFSET, 77);
    hear(t, &raw, &w);
    lose(t);
    t->s.phase = READY; /* as if welcomed: what is said then stays to be looked at */
    handle_ready(&a->h, &t->s, false, t->now);
    CHECK(said(t, OPEN_CONSUMER) && number_of(t->said, K_START) == 77); /* 9.2-9 */
    free_attachment(a);
    free_talk(t);
}

static void an_error_that_answers_nobody_says_nothing_about_its_handle(void) {
    talk *t = new_talk();
    bytes raw = {0};
    welcome(t, false);
    publication *p = new_producer(t);
    open_it(t, OPEN_PRODUCER, 0, 1000);
    writer w = begin_header(&raw, ERROR_FRAME);
    with_text(&w, K_CODE, "closed");
    with_text(&w, K_TEXT, "closed");
    with_text(&w, K_ACTION, "stop");
    with_number(&w, K_REF, 4000000000);
    with_number(&w, K_HANDLE, 1);
    hear(t, &raw, &w);
    CHECK(p->h.phase == H_OPEN); /* 4.1-8 */
    free_publication(p);
    free_talk(t);
}

static void a_handle_closed_while_it_was_opening_is_closed_in_the_resumed_session(void) {
    talk *t = new_talk();
    welcome(t, false);
    attachment *a = new_attachment(t, 10);
    CHECK(said(t, OPEN_CONSUMER));
    lose(t);
    close_handle(&a->h);
    CHECK(t->s.to_close_count == 1);
    free_attachment(a);
    free_talk(t);
}

static void one_ping_a_heartbeat_and_then_the_connection_is_lost(void) {
    talk *t = new_talk();
    size_t pings = 0;
    welcome(t, false);
    for (int i = 0; i < 60 && t->s.phase == READY; i++) {
        t->now += 100 * MS;
        session_tick(&t->s, t->now);
        pings += hush(t);
    }
    CHECK(pings == 1 && t->s.phase == IDLE);
    free_talk(t);
}

static void garbage_costs_the_connection(void) {
    static const struct {
        const char *bytes;
        size_t size;
    } GARBAGE[] = {
        {"", 0},
        {"\xff", 1},
        {"\xa1\x00\x01", 3},                                                  /* HELLO, of a broker */
        {"\xa1\x00\x18\x3f", 4},                                              /* an unknown frame */
        {"\xbf\x00\x18\x29\xff", 5},                                          /* indefinite length */
        {"\xa2\x00\x18\x29\x00\x18\x29", 7},                                  /* a key twice */
        {"\xa2\x00\x18\x29\x18\xc8\xf7", 7},                                  /* undefined */
        {"\xa2\x00\x18\x29\x18\xc8\xe0", 7},                                  /* a simple value that is nothing */
        {"\xa2\x00\x18\x29\x18\xc8\xf8\x20", 8},                              /* the same, in two bytes */
        {"\xa2\x00\x18\x29\x01\xf9\x3c\x00", 8},                              /* a float for a number */
        {"\xa2\x00\x18\x29\x18\xc8\x61\xff", 8},                              /* text that is not UTF-8 */
        {"\xa2\x00\x18\x29\x18\xc8\x5b\xff\xff\xff\xff\xff\xff\xff\xff", 15}, /* more bytes than there are */
        {"\xa2\x00\x18\x29\x18\xc8\x9b\xff\xff\xff\xff\xff\xff\xff\xff", 15}, /* more items than there are */
        {"\xa2\x00\x18\x29\x18\xc8\xa2\x61\x61\x01\x61\x61\x02", 13},         /* a key twice, further in */
        {"\xa2\x00\x18\x29\x18\xc8\x81\x81\x81\x81\x01", 11},                 /* too deep */
    };
    for (size_t i = 0; i < sizeof GARBAGE / sizeof *GARBAGE; i++) {
        talk *t = new_talk();
        welcome(t, false);
        hear_frames(t, &(ister_slice){GARBAGE[i].bytes, GARBAGE[i].size}, 1);
        if (t->s.phase != IDLE) fprintf(stderr, "garbage %zu was taken\n", i);
        CHECK(t->s.phase == IDLE);
        free_talk(t);
    }
}

static void numbers_of_any_width_and_unknown_keys_are_taken(void) {
    talk *t = new_talk();
    welcome(t, false);
    static const char WIDE[] = "\xa1\x1b\0\0\0\0\0\0\0\0\x1b\0\0\0\0\0\0\0\x29";
    static const char UNKNOWN[] = "\xa2\x00\x18\x29\x18\xc8\xa1\x01\x84\x41x\xf6\x61y\x24";
    hear_frames(t, &(ister_slice){WIDE, sizeof WIDE - 1}, 1);
    hear_frames(t, &(ister_slice){UNKNOWN, sizeof UNKNOWN - 1}, 1);
    CHECK(t->s.phase == READY);
    free_talk(t);
}

static void random_bytes_never_do_harm(void) {
    uint64_t seed = 88172645463325252U;
    header *h = allocate(sizeof *h);
    ister_error error;
    for (int round = 0; round < 20000; round++) {
        uint8_t raw[64];
        for (size_t i = 0; i < sizeof raw; i++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            raw[i] = (uint8_t)(i == 0 ? 0xa0 | seed % 6 : seed >> 11);
        }
        size_t size = 1 + seed % sizeof raw;
        uint8_t *exact = memcpy(allocate(size), raw, size); /* so that a sanitizer sees what is read behind it */
        read_header(exact, size, h, &error);
        cursor from = {exact, size, 0};
        ister_value value = {0};
        walk(&from, 1, RESULT_LEVELS, TEXT_KEYS, &value);
        drop_parts(&value);
        free(exact);
    }
    free(h);
}

static void columns_that_come_late_are_filled_up(void) {
    ister_attribute attribute = {"name", "", 0, 0};
    ister_outgoing messages[3] = {{.payload = "a", .payload_size = 1},
                                  {.key = "k", .key_size = 1, .attributes = &attribute, .attributes_count = 1},
                                  {.payload = "ccc", .payload_size = 3, .deliver_at_ms = 7}};
    ister_slice frames[FRAMES_MAX];
    size_t frames_count, count = 0, at = 0;
    uint64_t columns;
    ister_message **cut;
    ister_error error;
    ister_attribute found;
    CHECK(ister_codec_pack(messages, 3, &columns, frames, &frames_count, &error) == ISTER_OK && columns == 7);
    CHECK(ister_codec_cut(columns, frames, frames_count, &cut, &count, &error) == ISTER_OK && count == 3);
    CHECK(!cut[0]->key && cut[1]->key_size == 1 && !cut[2]->key && cut[1]->payload_size == 0);
    CHECK(cut[0]->deliver_at_ms == 0 && cut[2]->deliver_at_ms == 7);
    CHECK(!ister_message_attribute(cut[0], "name", &found) && ister_message_attribute(cut[1], "name", &found));
    CHECK(found.value_size == 0 && found.value[0] == 0); /* may be sent on as it is */
    CHECK(ister_message_next_attribute(cut[1], &at, &found) && !ister_message_next_attribute(cut[1], &at, &found));
    ister_codec_messages_free(cut, count);
    for (size_t i = 0; i < frames_count; i++) free((void *)frames[i].data);
}

static void a_first_message_may_have_every_column(void) {
    ister_attribute attribute = {"name", "value", 0, 0};
    ister_outgoing one = {
        .key = "k", .key_size = 1, .attributes = &attribute, .attributes_count = 1, .deliver_at_ms = 7};
    ister_slice frames[FRAMES_MAX];
    size_t frames_count;
    uint64_t columns;
    CHECK(ister_codec_pack(&one, 1, &columns, frames, &frames_count, NULL) == ISTER_OK && columns == 7);
    CHECK(frames_count == 5 && frames[1].size == 0 && frames[2].size == 5 && frames[4].size == 8);
    for (size_t i = 0; i < frames_count; i++) free((void *)frames[i].data);
}

static void wrong_attributes_fail_the_attributes_alone(void) {
    handed one = {.attributes = (const uint8_t *)"\xa1\x61\x61\x01", .attributes_size = 4};
    size_t at = 0;
    ister_attribute found;
    CHECK(!ister_message_attributes_valid(&one.seen) && !ister_message_next_attribute(&one.seen, &at, &found));
}

static void a_name_makes_the_id_that_the_document_says(void) {
    CHECK(ister_producer_id("orders", "loader") == 70219652783341418U);
}

static void text_is_cut_at_a_letters_end(void) {
    char field[4];
    copy_into(field, sizeof field, "aa\xc3\xa9", 4);
    CHECK(strcmp(field, "aa") == 0);
}

/* 4.1-1 and 7.4-8: an endpoint that does not come back is left; if things are there after all, its session goes on. */
static void a_session_that_was_left_goes_on_with_other_refs_and_closes_what_was_open(void) {
    ister_client client = {.text = copy_text("test")};
    pthread_cond_init(&client.changed, NULL);
    const char *home = "tcp://127.0.0.1:1", *away = "tcp://127.0.0.1:2";
    connection *first = new_connection(&client, &home, 1, true), *left = new_connection(&client, &away, 1, false);
    publication *stays = allocate(sizeof *stays), *returns = allocate(sizeof *returns);
    set_up_publication(stays, 3, "orders");
    set_up_publication(returns, 4, "orders");
    attach(&left->s, &stays->h, 0);
    attach(&left->s, &returns->h, 0);
    left->s.has_secret = true;
    left->s.secret[0] = 9;
    left->s.next_ref = 50;
    rehome(left, 0);
    CHECK(stays->h.home == &first->s && returns->h.home == &first->s && left->leaving);
    connection *again = new_connection(&client, &away, 1, false);
    CHECK(again->s.has_secret && again->s.secret[0] == 9 && again->s.next_ref == 50 && again->s.to_close_count == 2);
    detach(&returns->h);
    attach(&again->s, &returns->h, 0);
    CHECK(again->s.to_close_count == 1 && again->s.to_close[0] == 3);
    free_publication(stays);
    free_publication(returns);
    atomic_init(&client.references, 2);
    while (client.connections) {
        connection *old = client.connections;
        client.connections = old->next;
        free_connection(old);
    }
    while (client.secrets) {
        secret *old = client.secrets;
        client.secrets = old->next;
        free(old->endpoint);
        free(old->handles);
        free(old);
    }
    drop_events(&client.events);
    pthread_cond_destroy(&client.changed);
    free(client.text);
}

/* libzmq's own thread waits for ever where it has something to tell a monitor whose reader is gone: then no socket of
   the context connects, sends or receives again. */
static void sockets_that_are_closed_while_things_happen_to_them_stop_no_other(void) {
    char endpoint[64];
    size_t size = sizeof endpoint;
    ister_client client = {.context = zmq_ctx_new()};
    const char *endpoints[] = {"tcp://127.0.0.1:1"}; /* where nobody listens: each try is refused, which is told */
    connection *c = new_connection(&client, endpoints, 1, true);
    for (int round = 0; round < 300; round++) {
        CHECK(open_socket(c));
        usleep((useconds_t)(round % 20 * 100));
        close_socket(c, 0);
    }
    void *broker = zmq_socket(client.context, ZMQ_ROUTER);
    CHECK(set_option(broker, ZMQ_LINGER, 0) && set_option(broker, ZMQ_RCVTIMEO, 30000));
    CHECK(zmq_bind(broker, "tcp://127.0.0.1:*") == 0);
    CHECK(zmq_getsockopt(broker, ZMQ_LAST_ENDPOINT, endpoint, &size) == 0);
    free(c->endpoints[0]);
    c->endpoints[0] = copy_text(endpoint);
    CHECK(open_socket(c) && zmq_send(c->socket, "still there", 11, 0) == 11);
    char heard[16];
    if (zmq_recv(broker, heard, sizeof heard, 0) < 0) abort(); /* the context cannot be ended: this would never be */
    close_socket(c, 0);
    zmq_close(broker);
    zmq_ctx_term(client.context);
    free(c->endpoints[0]);
    free(c->endpoints);
    free(c);
}

int main(void) {
#define RUN(test) (running = #test, test())
    RUN(what_has_no_receipt_is_sent_again_in_order);
    RUN(the_window_is_kept);
    RUN(a_refused_batch_is_left_out_once_it_is_the_oldest);
    RUN(a_worker_that_lost_the_producer_is_given_it_again);
    RUN(credit_comes_back_as_the_program_takes);
    RUN(the_broker_is_told_what_the_program_takes);
    RUN(a_broker_that_does_not_ask_is_not_told_what_the_program_takes);
    RUN(a_message_that_may_not_fail_again_waits_for_the_brokers_word);
    RUN(a_leave_is_void_once_the_connection_is_lost);
    RUN(what_was_recalled_is_not_handed_out);
    RUN(a_program_that_fails_says_so_of_all_it_has_in_hand);
    RUN(errors_about_a_consumer_are_told_apart);
    RUN(acknowledgments_are_repeated_in_a_resumed_session_alone);
    RUN(an_acknowledgment_made_while_another_is_confirmed_is_not_lost);
    RUN(another_instance_is_not_acknowledged);
    RUN(another_session_is_told_no_acknowledgments);
    RUN(many_ranges_are_split);
    RUN(a_handle_closed_without_a_connection_is_closed_in_the_resumed_session);
    RUN(a_reader_that_handed_out_nothing_goes_on_where_it_began);
    RUN(an_error_that_answers_nobody_says_nothing_about_its_handle);
    RUN(a_handle_closed_while_it_was_opening_is_closed_in_the_resumed_session);
    RUN(one_ping_a_heartbeat_and_then_the_connection_is_lost);
    RUN(garbage_costs_the_connection);
    RUN(numbers_of_any_width_and_unknown_keys_are_taken);
    RUN(random_bytes_never_do_harm);
    RUN(columns_that_come_late_are_filled_up);
    RUN(a_first_message_may_have_every_column);
    RUN(wrong_attributes_fail_the_attributes_alone);
    RUN(a_name_makes_the_id_that_the_document_says);
    RUN(text_is_cut_at_a_letters_end);
    RUN(a_session_that_was_left_goes_on_with_other_refs_and_closes_what_was_open);
    RUN(sockets_that_are_closed_while_things_happen_to_them_stop_no_other);
    if (failures) fprintf(stderr, "%d checks failed\n", failures);
    return failures ? 1 : 0;
}
