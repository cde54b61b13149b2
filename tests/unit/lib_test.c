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
    };

    return cmocka_run_group_tests_name("lib", tests, NULL, NULL);
}
