/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libfathom against a server that we play by hand on the other end of a socketpair, with the
 * same codec. What the server will answer is written before the library looks, as its request
 * numbers are known: 1 is hello, then one more for each.
 */
#include "config.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "lib/fathom.h"
#include "proto/frame.h"
#include "proto/page.h"
#include "proto/ring.h"
#include "proto/wire.h"
#include "tests/test.h"

static struct fathom *f;
static struct frame_in in;
static struct frame_out out;
static int sock;

static void
flush(void)
{
    struct err e;

    assert_int_equal(frame_out_send(&out, sock, &e), 1);
}

static void
respond(uint32_t id, const struct wire_message *m, const void *body)
{
    struct err e = {0};

    if (wire_response(&out, id, m, body, &e) == -1)
        fail_msg("%s", e.text);
    flush();
}

/* The next request that the library has sent, decoded. */
static void
receive(struct wire_in *w, void *body)
{
    struct err e = {0};
    const uint8_t *p;
    size_t len;
    int r;

    for (int tries = 0; (r = frame_in_next(&in, &p, &len, &e)) == 0; tries++) {
        struct fathom_error fe;

        /* A large one has to be sent in parts, as we make room for them. */
        if (frame_in_recv(&in, sock, &e) == -1 || tries == 1000)
            fail_msg("no request came: %s", e.text);
        (void)fathom_process(f, &fe);
    }
    assert_int_equal(r, 1);
    assert_int_equal(wire_open(w, &in, p, len, &e), 0);
    if (w->shape == WIRE_REQUEST &&
        wire_decode(w, w->method->request, body, NULL, &e) == -1)
        fail_msg("%s", e.text);
}

static void
greet(void)
{
    const struct wire_hello_result r = {.proto = 1,
                                        .server = wire_str("test"),
                                        .instance = wire_str("i"),
                                        .model = wire_str("toy"),
                                        .max_frame = FRAME_MAX,
                                        .max_requests = 64};
    struct wire_hello hello;
    struct fathom_error e;
    struct wire_in w;

    assert_null(fathom_info(f));
    assert_int_equal(fathom_process(f, &e), 0);
    receive(&w, &hello);
    assert_true(w.id == 1 && w.method == &wire_methods[WIRE_METHOD_hello]);
    wire_close(&w);
    respond(1, WIRE_MSG(hello_result), &r);
    assert_int_equal(fathom_wait(f, 1000, &e), 1);
    assert_string_equal(fathom_info(f)->model, "toy");
}

static int
set_up(void **state)
{
    struct fathom_error e;
    int pair[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    sock = pair[1];
    frame_in_init(&in);
    frame_out_init(&out, 4 << 20);
    f = fathom_open_fd(pair[0], &e);
    assert_non_null(f);
    greet();
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    fathom_close(f);
    frame_in_done(&in);
    frame_out_done(&out);
    if (sock != -1)
        close(sock);
    return 0;
}

static void
test_a_short_request(void **state)
{
    const struct wire_pos_result r = {.name = wire_str("b"), .pos = 7};
    const struct fathom_result *got;
    struct wire_fork sent;
    struct fathom_error e;
    struct wire_in w;

    (void)state;
    respond(2, WIRE_MSG(pos_result), &r);
    got = fathom_finish(f, fathom_fork(f, "a", "b", "turn-1", FATHOM_ANY_POS, &e), &e);
    assert_non_null(got);
    assert_int_equal(got->pos, 7);
    receive(&w, &sent);
    assert_int_equal(w.id, 2);
    assert_true(wire_is(sent.to, "b") && wire_is(sent.at, "turn-1"));
    assert_false(wire_has(&sent, fork, pos));
    wire_close(&w);
}

static void
test_errors_arrive_whole(void **state)
{
    struct err ours, ignored;
    struct wire_error we;
    struct fathom_error e;

    (void)state;
    err_set(&ours, ERR_CONFLICT, 0, "at 12, not at 10");
    wire_error_from(&we, &ours);
    wire_put(&we, error, pos, 12);
    wire_put(&we, error, key, wire_str("if_pos"));
    wire_put(&we, error, retry_ms, 5);
    assert_int_equal(wire_fail(&out, 2, &we, &ignored), 0);
    flush();
    assert_null(fathom_finish(f, fathom_delete(f, "s", &e), &e));
    assert_int_equal(e.code, FATHOM_CONFLICT);
    assert_string_equal(e.name, "conflict");
    assert_string_equal(e.text, "at 12, not at 10");
    assert_string_equal(e.key, "if_pos");
    assert_true(e.has_pos && e.pos == 12 && e.retry_ms == 5);
    assert_int_equal(fathom_error_exit_status(&e), 75);
    assert_true(fathom_error_is_retryable(&e));

    /* What cannot be sent fails at once, and names the key. */
    assert_int_equal(fathom_delete(f, "\xff", &e), 0);
    assert_int_equal(e.code, FATHOM_INVALID);
    assert_non_null(strstr(e.text, "'name'"));
    assert_null(fathom_finish(f, 0, &e));
    assert_non_null(strstr(e.text, "'name'"));
    assert_null(fathom_finish(f, 77, &e));
}

struct seen {
    char text[4096];
    size_t n_tokens, stop_after, n_sessions, n_done;
    uint64_t pos;
    double logprob;
    size_t n_top;
    int code;
};

static int
on_token(void *arg, const struct fathom_token *t)
{
    struct seen *s = arg;

    s->pos = t->pos;
    s->logprob = t->logprob;
    s->n_top = t->n_top;
    if (s->n_tokens < 100)
        strncat(s->text, t->text, sizeof s->text - strlen(s->text) - 1);
    assert_int_equal(strlen(t->text), t->len);
    return ++s->n_tokens == s->stop_after;
}

static void
on_done(void *arg, const struct fathom_result *r, const struct fathom_error *e)
{
    struct seen *s = arg;

    assert_true((r == NULL) != (e == NULL));
    s->n_done++;
    s->code = e != NULL ? e->code : 0;
    if (r != NULL)
        s->pos = r->pos;
}

static void
test_sample_streams(void **state)
{
    struct wire_top top = {.id = 5, .logprob = -0.5};
    struct wire_token t[2] = {{.pos = 10, .id = 5, .text = wire_str("a")},
                              {.pos = 11, .id = 6, .text = wire_str("\xc3\xa9")}};
    struct wire_sample_result r = {.pos = 12, .n = 2, .reason = wire_str("stop-string")};
    struct seen seen = {.pos = 0};
    const float bias = -1.5f;
    const struct fathom_bias biases[] = {{9, bias}};
    const char *const stops[] = {"END", "\n"};
    const uint32_t ban[] = {1, 0x01020304};
    const struct fathom_result *got;
    struct fathom_sample a;
    struct wire_sample sent;
    struct fathom_watch w = {.struct_size = sizeof w, .arg = &seen, .token = on_token};
    struct fathom_error fe;
    struct wire_in win;
    struct err e;

    (void)state;
    wire_put(&t[1], token, logprob, -0.25);
    t[1].top.v = &top;
    t[1].top.n = 1;
    t[1].has |= UINT64_C(1) << WIRE_token_top;
    assert_int_equal(wire_stream(&out, 2, 0, WIRE_MSG(token), t, 2, &e), 0);
    wire_put(&r, sample_result, seed, 99);
    respond(2, WIRE_MSG(sample_result), &r);

    FATHOM_SAMPLE_INIT(&a);
    a.name = "s";
    a.temperature = 0;
    a.n = 16;
    a.stop = stops;
    a.n_stop = 2;
    a.ban = ban;
    a.n_ban = 2;
    a.bias = biases;
    a.n_bias = 1;
    got = fathom_finish(f, fathom_sample(f, &a, &w, &fe), &fe);
    assert_non_null(got);
    assert_int_equal(got->reason, FATHOM_REASON_STOP_STRING);
    assert_int_equal(got->seed, 99);
    assert_int_equal(got->pos, 12);
    assert_string_equal(seen.text, "a\xc3\xa9");
    assert_true(seen.n_top == 1 && seen.logprob < -0.2);

    receive(&win, &sent);
    assert_true(wire_has(&sent, sample, temperature) && wire_has(&sent, sample, n));
    assert_false(wire_has(&sent, sample, top_p) || wire_has(&sent, sample, seed));
    assert_true(sent.stop.n == 2 && wire_is(sent.stop.v[0], "END"));
    assert_true(sent.bias.n == 1 && sent.bias.v[0].id == 9);
    assert_int_equal(sent.ban.len, 8);
    assert_memory_equal(sent.ban.p, "\1\0\0\0\4\3\2\1", 8);
    wire_close(&win);
}

/* More tokens than the window: credit is given as they are taken; then the callback stops it. */
static void
test_credit_and_cancel(void **state)
{
    struct seen seen = {.stop_after = 1100};
    struct fathom_watch w = {
        .struct_size = sizeof w, .arg = &seen, .token = on_token, .done = on_done};
    struct seen end = {.pos = 0};
    const struct wire_sample_result r = {
        .pos = 1200, .n = 1200, .reason = wire_str("novel")};
    struct fathom_sample a;
    struct wire_sample sent;
    struct fathom_error fe;
    struct wire_in win;
    uint32_t credit = 0;
    struct err e;

    (void)state;
    FATHOM_SAMPLE_INIT(&a);
    a.name = "s";
    assert_int_equal(fathom_sample(f, &a, &w, &fe), 2);
    assert_null(fathom_finish(f, 2, &fe)); /* it has a done of its own */
    assert_int_equal(fathom_on_done(f, 2, on_done, &end), 0);
    for (uint64_t i = 0; i < 1200; i++) {
        const struct wire_token t = {.pos = i, .id = 3, .text = wire_str("x")};

        assert_int_equal(wire_stream(&out, 2, (uint32_t)i, WIRE_MSG(token), &t, 1, &e), 0);
    }
    respond(2, WIRE_MSG(sample_result), &r);
    while (end.n_done == 0)
        assert_int_not_equal(fathom_wait(f, 1000, &fe), -1);
    assert_int_equal(seen.n_tokens, 1100);
    assert_true(seen.n_done == 0 && end.n_tokens == 0 && end.code == 0);
    receive(&win, &sent);
    wire_close(&win);
    receive(&win, NULL);
    assert_int_equal(win.shape, WIRE_CREDIT);
    credit += win.n;
    wire_close(&win);
    receive(&win, NULL);
    credit += win.n;
    wire_close(&win);
    assert_in_range(credit, 512, 1200);
    receive(&win, NULL);
    assert_int_equal(win.shape, WIRE_CANCEL);
    assert_int_equal(win.id, 2);
    wire_close(&win);
    assert_int_equal(fathom_cancel(f, 2, &fe), 0); /* over: nothing to do */
}

static void
test_large_text_is_a_document(void **state)
{
    static char text[(512 << 10) + 1];
    const struct wire_append_result r = {.pos = 5, .appended = 5};
    struct wire_append sent;
    struct fathom_error fe;
    struct wire_in win;
    uint64_t pos = 0;
    struct stat st;

    (void)state;
    memset(text, 'x', sizeof text);
    for (uint32_t big = 0; big < 2; big++) {
        struct seen seen = {.pos = 0};
        struct fathom_append a;

        FATHOM_APPEND_INIT(&a);
        a.name = "s";
        a.text = text;
        a.len = sizeof text - !big;
        assert_int_equal(fathom_append(f, &a, NULL, &fe), 2 + big);
        assert_int_equal(fathom_on_done(f, 2 + big, on_done, &seen), 0);
        receive(&win, &sent);
        assert_int_equal(wire_has(&sent, append, document), big);
        assert_int_equal(wire_has(&sent, append, text), !big);
        wire_close(&win);
        respond(2 + big, WIRE_MSG(append_result), &r);
        assert_int_equal(fathom_wait(f, 1000, &fe), 1);
        assert_true(seen.n_done == 1 && seen.code == 0);
        assert_int_equal(seen.pos, 5);
    }
    respond(4, WIRE_MSG(append_result), &r);
    assert_int_equal(fathom_append_text(f, "s", "x", 1, &pos, &fe), 0);
    assert_int_equal(pos, 5);
    assert_int_equal(fstat(sent.document, &st), 0);
    assert_int_equal(st.st_size, sizeof text);
    assert_int_equal(fcntl(sent.document, F_GET_SEALS),
                     F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    close(sent.document);
}

static void
on_session(void *arg, const struct fathom_session *s)
{
    struct seen *seen = arg;

    seen->n_sessions++;
    strcat(seen->text, s->name);
}

/* Two pages look like one answer. */
static void
test_list_pages(void **state)
{
    struct seen seen = {.pos = 0};
    struct fathom_watch w = {.struct_size = sizeof w, .arg = &seen, .session = on_session};
    struct wire_session s[2] = {
        {.name = wire_str("a"), .owner = wire_str("me"), .state = wire_str("idle")},
        {.name = wire_str("b"), .owner = wire_str("me"), .state = wire_str("idle")}};
    struct wire_list_result r = {.more = true};
    const struct fathom_result *got;
    struct wire_list sent;
    struct fathom_error fe;
    struct wire_in win;

    (void)state;
    r.sessions.v = s;
    r.sessions.n = 2;
    respond(2, WIRE_MSG(list_result), &r);
    r.more = false;
    s[0].name = wire_str("c");
    r.sessions.n = 1;
    respond(2, WIRE_MSG(list_result), &r);
    got = fathom_finish(f, fathom_list(f, 1, &w, &fe), &fe);
    assert_non_null(got);
    assert_int_equal(got->n, 3);
    assert_int_equal(seen.n_sessions, 3);
    assert_string_equal(seen.text, "abc");
    receive(&win, &sent);
    assert_true(sent.all && !wire_has(&sent, list, after));
    wire_close(&win);
    receive(&win, &sent);
    assert_true(sent.all && wire_is(sent.after, "b"));
    wire_close(&win);
}

static void
test_logits_bring_a_descriptor(void **state)
{
    struct wire_logits_result r = {.vocab = 3, .pos = 4};
    const struct fathom_result *got;
    const float row[3] = {1, 2, 3};
    float back[3];
    struct fathom_error fe;

    (void)state;
    r.logits = memfd_create("logits", MFD_CLOEXEC);
    assert_int_equal(write(r.logits, row, sizeof row), sizeof row);
    respond(2, WIRE_MSG(logits_result), &r);
    got = fathom_finish(f, fathom_logits(f, "s", &fe), &fe);
    assert_non_null(got);
    assert_int_equal(got->vocab, 3);
    assert_int_equal(pread(got->fd, back, sizeof back, 0), sizeof back);
    assert_memory_equal(row, back, sizeof row);
    assert_int_equal(close(got->fd), 0);
}

/* The daemon says why and goes: everything under way ends with its words, once each. */
static void
test_lost_connection(void **state)
{
    struct seen seen[2] = {{.pos = 0}, {.pos = 0}};
    struct err why, ignored;
    struct wire_error we;
    struct fathom_error fe;

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(fathom_on_done(f, fathom_delete(f, "s", &fe), on_done, &seen[i]),
                         0);
    err_set(&why, ERR_UNAVAILABLE, 0, "the daemon stops");
    wire_error_from(&we, &why);
    assert_int_equal(wire_notify(&out, WIRE_METHOD_bye, &we, &ignored), 0);
    flush();
    close(sock);
    sock = -1;
    assert_int_equal(fathom_wait(f, 1000, &fe), -1);
    assert_string_equal(fe.text, "the daemon stops");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(seen[i].n_done, 1);
        assert_int_equal(seen[i].code, FATHOM_UNAVAILABLE);
    }
    assert_int_equal(fathom_delete(f, "s", &fe), 0);
    assert_int_equal(fe.code, FATHOM_UNAVAILABLE);
    assert_int_equal(fathom_process(f, &fe), -1);
}

/* A server that talks nonsense: an error, not a crash or a wait for ever. */
static void
test_nonsense_from_the_server(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
    } cases[] = {
        {"HTTP/1.1 400 Bad Request\r\n", 26},      {"\0\0\0\1\xc0", 5}, /* nil */
        {"\0\0\0\5\x94\1\x63\xc0\x80", 9},         /* an answer to nothing */
        {"\0\0\0\6\x94\0\1\xa1m\x91", 10},         /* cut short within */
        {"\0\0\0\7\x94\0\1\xa1m\x91\x80", 11},     /* a request */
        {"\0\0\0\5\x94\1\2\x80\xc0", 9},           /* an error that says nothing */
        {"\0\0\0\x09\x94\1\2\xc0\x81\xa1x\1", 12}, /* frame longer than its bytes */
    };
    struct fathom_error fe;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (i > 0) {
            tear_down(state);
            set_up(state);
        }
        assert_int_equal(write(sock, cases[i].bytes, cases[i].len), cases[i].len);
        shutdown(sock, SHUT_WR);
        assert_null(fathom_finish(f, fathom_delete(f, "s", &fe), &fe));
        assert_int_equal(fe.code, FATHOM_PROTOCOL);
    }
}

static void
test_structs_of_another_size(void **state)
{
    struct fathom_watch w = {.struct_size = 0};
    struct fathom_sample a;
    struct fathom_error fe;

    (void)state;
    assert_int_equal(fathom_status(f, &w, &fe), 0);
    assert_int_equal(fe.code, FATHOM_INVALID);
    memset(&a, 0, sizeof a);
    a.name = "s";
    assert_int_equal(fathom_sample(f, &a, NULL, &fe), 0);
    assert_int_equal(fe.code, FATHOM_INVALID);

    /* An older, shorter one: what it lacks is the default. */
    fathom_sample_init(&a, offsetof(struct fathom_sample, top_p));
    a.name = "s";
    a.n = 3;
    a.min_tokens = 0;
    assert_int_not_equal(fathom_sample(f, &a, NULL, &fe), 0);
}

/* The public names are the page's own, word for word. */
static void
test_page_words(void **state)
{
    (void)state;
#define DAEMON(id, doc)  assert_int_equal(FATHOM_DAEMON_##id, PAGE_DAEMON_##id);
#define SESSION(id, doc) assert_int_equal(FATHOM_SESSION_##id, PAGE_SESSION_##id);
#include "proto/page.def"
    assert_int_equal(FATHOM_DAEMON_WORDS, PAGE_DAEMON_END);
    assert_int_equal(FATHOM_SESSION_WORDS, PAGE_SESSION_END);
    assert_int_equal(FATHOM_PAGE_KIND, PAGE_HEAD_KIND);
    assert_int_equal(FATHOM_PAGE_UPDATED_MS, PAGE_HEAD_UPDATED_MS);
}

/* Memory as the daemon makes it, mapped for writing before the seal. */
static int
shared(size_t bytes, void **map, int seals)
{
    const int fd = memfd_create("shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd != -1 && ftruncate(fd, (off_t)bytes) == 0);
    *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(*map != MAP_FAILED);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void
test_shared_memory(void **state)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    const size_t bytes = ring_bytes(4, 64);
    struct wire_ring_result ring = {.ring = 3, .bytes = bytes};
    struct wire_stats_result page = {.bytes = PAGE_BYTES};
    const struct fathom_result *got;
    uint64_t words[PAGE_SESSION_END] = {0}, seen[600];
    struct ring_token token = {.id = 42, .logprob = -0.5};
    struct fathom_reader *reader;
    struct fathom_page *p;
    struct fathom_record rec;
    struct fathom_error fe;
    struct ring_out writer;
    void *map, *loose;
    int fd;

    (void)state;
    ring.memory = shared(bytes, &map, seals);
    ring_init(&writer, map, RING_TOKEN, 4, 64, 0);
    respond(2, WIRE_MSG(ring_result), &ring);
    got = fathom_finish(f, fathom_ring(f, FATHOM_RING_TOKENS, 4, &fe), &fe);
    assert_true(got != NULL && got->ring == 3 && got->fd != -1);
    fd = got->fd;
    reader = fathom_reader_open(fd, &fe);
    assert_non_null(reader);
    close(fd);
    assert_int_equal(fathom_reader_next(reader, &rec, &fe), 0);
    for (uint64_t pos = 0; pos < 40; pos++) {
        uint8_t *at = ring_begin(&writer, sizeof token + 2);

        memcpy(at, &token, sizeof token);
        memcpy(at + sizeof token, "hi", 2);
        ring_end(&writer, RING_TOKEN, pos, sizeof token + 2);
    }
    assert_int_equal(fathom_reader_next(reader, &rec, &fe), 1);
    assert_true(rec.gap && rec.pos > 0 && rec.id == 42 && rec.len == 2 && !rec.over);
    assert_memory_equal(rec.text, "hi", 2);
    while (fathom_reader_next(reader, &rec, &fe) == 1)
        assert_false(rec.gap);
    assert_int_equal(rec.pos, 39);
    fathom_reader_close(reader);
    munmap(map, bytes);

    page.page = shared(PAGE_BYTES, &map, seals);
    words[PAGE_SESSION_POS] = 77;
    page_write(map, PAGE_OF_SESSION, words, PAGE_SESSION_END);
    respond(3, WIRE_MSG(stats_result), &page);
    got = fathom_finish(f, fathom_stats(f, "s", &fe), &fe);
    assert_true(got != NULL && got->fd != -1);
    fd = got->fd;
    p = fathom_page_open(fd, &fe);
    assert_non_null(p);
    assert_int_equal(fathom_page_read(p, seen, 512), 0);
    assert_int_equal(seen[FATHOM_SESSION_POS], 77);
    assert_int_equal(seen[PAGE_SESSION_END], 0);
    assert_int_equal(fathom_page_read(p, seen, 513), -1);
    fathom_page_close(p);
    assert_null(fathom_reader_open(fd, &fe)); /* a page is no ring */
    assert_int_equal(fe.code, FATHOM_PROTOCOL);
    close(fd);
    munmap(map, PAGE_BYTES);

    /* What could shrink under us is not mapped. */
    fd = shared(PAGE_BYTES, &loose, 0);
    page_write(loose, PAGE_OF_SESSION, words, PAGE_SESSION_END);
    assert_null(fathom_page_open(fd, &fe));
    assert_int_equal(fe.code, FATHOM_INVALID);
    close(fd);
    munmap(loose, PAGE_BYTES);
}

struct found {
    struct fathom_verified v;
    char problem[64];
};

static void
on_verified(void *arg, const struct fathom_verified *v)
{
    struct found *x = arg;

    x->v = *v;
    snprintf(x->problem, sizeof x->problem, "%s", v->problems[0]);
}

static void
test_the_disk(void **state)
{
    static const uint8_t digest[16] = {1, 2, 3};
    const struct wire_park_result parked = {.name = wire_str("s"),
                                            .pos = 9,
                                            .tier = wire_str("memory"),
                                            .memory_bytes = 4096,
                                            .replay = 1};
    const struct wire_export_result exported = {
        .tokens = 5, .bytes = 10240, .files = 2, .digest = wire_bin(digest, 16)};
    const struct wire_import_result imported = {.name = wire_str("s.2"),
                                                .tokens = 5,
                                                .left_out = 2,
                                                .digest = wire_bin(digest, 16)};
    struct wire_problem problem = {.text = wire_str("c/x: bad")};
    struct wire_verify_result verified = {.wrong = 1, .tokens = 3, .files = 2};
    struct found found = {.problem = ""};
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = &found, .verified = on_verified};
    const struct fathom_result *got;
    struct wire_import in_sent;
    struct wire_export sent;
    struct fathom_error fe;
    struct wire_in win;
    char byte;
    int fd;

    (void)state;
    respond(2, WIRE_MSG(park_result), &parked);
    got = fathom_finish(f, fathom_park(f, "s", 1, &fe), &fe);
    assert_true(got != NULL && got->memory_bytes == 4096 && got->replay == 1);
    assert_string_equal(got->tier, "memory");
    receive(&win, &(struct wire_park){.has = 0});
    wire_close(&win);

    /* Our end and the daemon's are the two of one pair. */
    assert_int_equal(fathom_export(f, "s", 1, &fd, &fe), 3);
    receive(&win, &sent);
    assert_true(sent.tokens_only && fd != -1 && sent.to != -1);
    wire_close(&win);
    assert_int_equal(write(sent.to, "x", 1), 1);
    close(sent.to);
    respond(3, WIRE_MSG(export_result), &exported);
    got = fathom_finish(f, 3, &fe);
    assert_true(got != NULL && got->n == 5 && got->bytes == 10240 && got->files == 2);
    assert_memory_equal(got->digest, digest, 16);
    assert_int_equal(read(fd, &byte, 1), 1);
    assert_int_equal(read(fd, &byte, 1), 0);
    close(fd);

    assert_int_equal(fathom_import(f, NULL, &fd, &fe), 4);
    receive(&win, &in_sent);
    assert_false(wire_has(&in_sent, import, name));
    wire_close(&win);
    close(in_sent.from);
    respond(4, WIRE_MSG(import_result), &imported);
    got = fathom_finish(f, 4, &fe);
    assert_true(got != NULL && got->left_out == 2 && got->n == 5);
    assert_string_equal(got->name, "s.2");
    close(fd);

    verified.problems.v = &problem;
    verified.problems.n = 1;
    respond(5, WIRE_MSG(verify_result), &verified);
    assert_non_null(fathom_finish(f, fathom_verify(f, "s", &w, &fe), &fe));
    assert_true(!found.v.good && found.v.wrong == 1 && found.v.n_problems == 1);
    assert_string_equal(found.problem, "c/x: bad");

    /* A name that cannot be sent: no descriptor is left. */
    assert_int_equal(fathom_export(f, "\xff", 0, &fd, &fe), 0);
    assert_int_equal(fd, -1);
}

static void
on_any_session(void *arg, const struct fathom_session *s)
{
    assert_string_equal(s->tier, "");
    assert_int_equal(s->disk_bytes, 0);
    ++*(int *)arg;
}

/* A daemon from before these keys: what it does not say is empty. */
static void
test_an_older_daemon(void **state)
{
    struct wire_session s = {
        .name = wire_str("s"), .owner = wire_str("me"), .state = wire_str("idle")};
    struct wire_list_result list = {.more = true};
    const struct wire_pos_result pos = {.name = wire_str("s"), .pos = 7};
    struct err no;
    struct wire_error we;
    const struct fathom_result *got;
    struct fathom_error fe;
    int n = 0;
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = &n, .session = on_any_session};

    (void)state;
    list.sessions.v = &s;
    list.sessions.n = 1;
    respond(2, WIRE_MSG(list_result), &list);
    /* The list of the last used is one page, whatever it says. */
    assert_non_null(fathom_finish(f, fathom_list_recent(f, 0, 1, &w, &fe), &fe));
    assert_int_equal(n, 1);
    respond(3, WIRE_MSG(pos_result), &pos);
    got = fathom_finish(f, fathom_rollback(f, "s", NULL, 7, &fe), &fe);
    assert_true(got != NULL && got->restored == 0 && got->replay == 0);
    err_set(&no, ERR_INVALID, 0, "no method 'park'");
    wire_error_from(&we, &no);
    assert_int_equal(wire_fail(&out, 4, &we, &no), 0);
    flush();
    assert_null(fathom_finish(f, fathom_park(f, "s", 0, &fe), &fe));
    assert_int_equal(fe.code, FATHOM_INVALID);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_short_request, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_errors_arrive_whole, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_sample_streams, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_credit_and_cancel, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_large_text_is_a_document, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_list_pages, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_logits_bring_a_descriptor, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lost_connection, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_nonsense_from_the_server, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_structs_of_another_size, set_up, tear_down),
        cmocka_unit_test(test_page_words),
        cmocka_unit_test_setup_teardown(test_shared_memory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_an_older_daemon, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("lib", tests, NULL, NULL);
}
