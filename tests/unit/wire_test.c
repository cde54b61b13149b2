/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The codec against its own tables. Every message of messages.def makes the round trip with all
 * of its fields and with the required ones only, filled from a counter, so that two fields
 * mixed up show; every way in which a key can be wrong is refused by the key's name.
 */
#include "config.h"

#include <fcntl.h>
#include <math.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "proto/frame.h"
#include "proto/wire.h"
#include "tests/test.h"

static struct frame_out out;
static struct frame_in in;

static int
set_up(void **state)
{
    (void)state;
    frame_out_init(&out, 8 << 20);
    frame_in_init(&in);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    frame_out_done(&out);
    frame_in_done(&in);
    return 0;
}

static void
deliver(struct wire_in *w)
{
    struct err e = {0};
    const uint8_t *p;
    size_t len;
    int fd = -1;

    if (out.n_fds > 0) {
        fd = out.fds[0].fd;
        out.n_fds = 0;
    }
    assert_int_equal(frame_in_feed(&in, out.b.p, out.b.len, fd, &e), 0);
    buf_drop(&out.b, out.b.len);
    assert_int_equal(frame_in_next(&in, &p, &len, &e), 1);
    if (wire_open(w, &in, p, len, &e) == -1)
        fail_msg("wire_open: %s", e.text);
}

static char pool[1 << 20];
static size_t pooled;

/* A value for field f that no other field has, as large as a few hundred bytes at most. */
static void
fill(const struct wire_message *m, void *body, int all, uint64_t *counter)
{
    uint64_t has = 0;

    memset(body, 0, m->size);
    for (uint32_t i = 0; i < m->n_fields; i++) {
        const struct wire_field *f = &m->fields[i];
        char *to = (char *)body + f->offset;
        const uint64_t c = ++*counter;

        if (!f->required && !all)
            continue;
        has |= UINT64_C(1) << i;
        if (f->type == WIRE_TYPE_u64) {
            uint64_t v = f->limit != 0 && c > f->limit ? f->limit : c;
            memcpy(to, &v, sizeof v);
        } else if (f->type == WIRE_TYPE_i64) {
            int64_t v = -(int64_t)c;
            memcpy(to, &v, sizeof v);
        } else if (f->type == WIRE_TYPE_f64) {
            double v = (double)c + 0.25;
            memcpy(to, &v, sizeof v);
        } else if (f->type == WIRE_TYPE_flag) {
            bool v = true;
            memcpy(to, &v, sizeof v);
        } else if (f->type == WIRE_TYPE_fd) {
            int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
            memcpy(to, &fd, sizeof fd);
        } else if (f->type == WIRE_TYPE_strs) {
            struct wire_strs v = {(void *)(pool + (pooled + 7) / 8 * 8), 2};
            pooled = (pooled + 7) / 8 * 8 + 2 * sizeof *v.v;
            v.v[0] = wire_str("one");
            v.v[1] = wire_str("");
            memcpy(to, &v, sizeof v);
        } else if (f->type == WIRE_TYPE_list) {
            struct {
                char *v;
                uint32_t n;
            } v = {pool + (pooled + 15) / 16 * 16, 2};

            pooled = (pooled + 15) / 16 * 16 + 2 * f->item->size;
            fill(f->item, v.v, all, counter);
            fill(f->item, v.v + f->item->size, all, counter);
            memcpy(to, &v, sizeof v);
        } else {
            struct wire_str s = {pool + pooled, 0};
            s.len = (uint32_t)sprintf(pool + pooled, "%llu", (unsigned long long)c);
            pooled += s.len + 1;
            memcpy(to, &s, sizeof s);
        }
    }
    memcpy(body, &has, sizeof has);
}

/* Equal in all fields that are set. Descriptors only have to be there. */
static void
same(const struct wire_message *m, const void *a, const void *b)
{
    uint64_t has_a, has_b;

    memcpy(&has_a, a, sizeof has_a);
    memcpy(&has_b, b, sizeof has_b);
    assert_int_equal(has_a, has_b);
    for (uint32_t i = 0; i < m->n_fields; i++) {
        const struct wire_field *f = &m->fields[i];
        const char *pa = (const char *)a + f->offset, *pb = (const char *)b + f->offset;
        struct wire_str sa, sb;
        int fd;

        if (!(has_a >> i & 1))
            continue;
        switch (f->type) {
        case WIRE_TYPE_u64:
        case WIRE_TYPE_i64:
        case WIRE_TYPE_f64: assert_memory_equal(pa, pb, 8); break;
        case WIRE_TYPE_flag: assert_memory_equal(pa, pb, sizeof(bool)); break;
        case WIRE_TYPE_fd:
            memcpy(&fd, pb, sizeof fd);
            assert_int_equal(close(fd), 0);
            break;
        default:
            memcpy(&sa, pa, sizeof sa); /* p and a count, whatever it is */
            memcpy(&sb, pb, sizeof sb);
            assert_int_equal(sa.len, sb.len);
            for (uint32_t k = 0; k < sa.len && f->type == WIRE_TYPE_list; k++)
                same(f->item, sa.p + (size_t)k * f->item->size,
                     sb.p + (size_t)k * f->item->size);
            if (f->type == WIRE_TYPE_str || f->type == WIRE_TYPE_text ||
                f->type == WIRE_TYPE_bin)
                assert_memory_equal(sa.p, sb.p, sa.len);
        }
    }
}

static void
test_every_message_round_trip(void **state)
{
    static char body[1 << 12], back[1 << 12];
    uint64_t counter = 0;

    (void)state;
    for (int all = 0; all < 2; all++) {
        for (int i = 0; i < WIRE_METHODS; i++) {
            const struct wire_method *m = &wire_methods[i];
            struct err e = {0};
            struct wire_in w;
            char key[WIRE_METHOD_BYTES];

            assert_true(m->request->size <= sizeof body && m->result->size <= sizeof body);
            pooled = 0;
            fill(m->request, body, all, &counter);
            assert_int_equal(wire_request(&out, 77, (enum wire_method_id)i, body, &e), 0);
            deliver(&w);
            assert_int_equal(w.shape, WIRE_REQUEST);
            assert_int_equal(w.id, 77);
            assert_ptr_equal(w.method, m);
            if (wire_decode(&w, m->request, back, key, &e) == -1)
                fail_msg("%s: %s", m->name, e.text);
            same(m->request, body, back);
            wire_close(&w);

            fill(m->result, body, all, &counter);
            assert_int_equal(wire_response(&out, 78, m->result, body, &e), 0);
            deliver(&w);
            assert_int_equal(w.shape, WIRE_RESPONSE);
            assert_false(w.failed);
            if (wire_decode(&w, m->result, back, NULL, &e) == -1)
                fail_msg("%s: %s", m->name, e.text);
            same(m->result, body, back);
            wire_close(&w);

            fill(m->item, body, all, &counter);
            assert_int_equal(wire_stream(&out, 79, 5, m->item, body, 1, &e), 0);
            deliver(&w);
            assert_int_equal(w.shape, WIRE_STREAM);
            assert_int_equal(w.n, 5);
            assert_int_equal(w.n_items, 1);
            assert_int_equal(wire_decode_item(&w, 0, m->item, back, &e), 0);
            same(m->item, body, back);
            assert_int_equal(wire_decode_item(&w, 1, m->item, back, &e), -1);
            wire_close(&w);
        }
    }
    assert_int_equal(in.n_fds, 0);
}

static void
test_small_shapes(void **state)
{
    struct err e = {0}, got;
    struct wire_in w;
    struct wire_error we;

    (void)state;
    assert_int_equal(wire_credit(&out, 4000000000u, 12, &e), 0);
    deliver(&w);
    assert_int_equal(w.shape, WIRE_CREDIT);
    assert_int_equal(w.id, 4000000000u);
    assert_int_equal(w.n, 12);
    assert_int_equal(wire_decode(&w, WIRE_MSG(name), &we, NULL, &e), -1);
    wire_close(&w);
    assert_int_equal(wire_cancel(&out, 3, &e), 0);
    deliver(&w);
    assert_int_equal(w.shape, WIRE_CANCEL);
    wire_close(&w);

    err_set(&e, ERR_CONFLICT, 0, "at 12, not at 10");
    wire_error_from(&we, &e);
    wire_put(&we, error, pos, 12);
    assert_int_equal(wire_fail(&out, 9, &we, &got), 0);
    assert_int_equal(wire_notify(&out, WIRE_METHOD_bye, &we, &got), 0);
    deliver(&w);
    assert_true(w.failed);
    memset(&we, 0, sizeof we);
    assert_int_equal(wire_decode(&w, WIRE_MSG(error), &we, NULL, &got), 0);
    assert_true(wire_has(&we, error, pos));
    assert_false(wire_has(&we, error, max));
    assert_int_equal(we.pos, 12);
    wire_error_to(&we, &got);
    assert_int_equal(got.code, ERR_CONFLICT);
    assert_string_equal(got.text, e.text);
    wire_close(&w);
}

/* Packs [0, 1, method, [{...}]] by hand; `map` packs what is inside the braces. */
static void
by_hand(const char *method, uint32_t n, void (*map)(msgpack_packer *, const void *),
        const void *arg)
{
    msgpack_sbuffer sb;
    msgpack_packer pk;
    struct err e = {0};
    size_t mark;

    msgpack_sbuffer_init(&sb);
    msgpack_packer_init(&pk, &sb, msgpack_sbuffer_write);
    msgpack_pack_array(&pk, 4);
    msgpack_pack_int(&pk, 0);
    msgpack_pack_int(&pk, 1);
    msgpack_pack_str(&pk, strlen(method));
    msgpack_pack_str_body(&pk, method, strlen(method));
    msgpack_pack_array(&pk, 1);
    msgpack_pack_map(&pk, n);
    map(&pk, arg);
    assert_int_equal(frame_begin(&out, &mark, &e), 0);
    assert_int_equal(buf_add(&out.b, sb.data, sb.size, &e), 0);
    assert_int_equal(frame_end(&out, mark, -1, &e), 0);
    msgpack_sbuffer_destroy(&sb);
}

struct pair {
    const char *key;

    enum {
        A_STR,
        A_BIN,
        AN_INT,
        NEGATIVE,
        A_FLOAT,
        A_BOOL,
        A_NIL,
        ARRAY_OF_INT,
        BIG_STR
    } what;

    uint64_t u;
};

static void
pack_pairs(msgpack_packer *pk, const void *arg)
{
    static const char big[2000] = {0};

    for (const struct pair *p = arg; p->key != NULL; p++) {
        msgpack_pack_str(pk, strlen(p->key));
        msgpack_pack_str_body(pk, p->key, strlen(p->key));
        switch (p->what) {
        case A_STR: msgpack_pack_str(pk, 1), msgpack_pack_str_body(pk, "s", 1); break;
        case A_BIN:
            msgpack_pack_bin(pk, 4), msgpack_pack_bin_body(pk, "\1\0\0\0", 4);
            break;
        case AN_INT: msgpack_pack_uint64(pk, p->u); break;
        case NEGATIVE: msgpack_pack_int(pk, -1); break;
        case A_FLOAT: msgpack_pack_double(pk, p->u == 0 ? 0.5 : (double)INFINITY); break;
        case A_BOOL: msgpack_pack_true(pk); break;
        case A_NIL: msgpack_pack_nil(pk); break;
        case ARRAY_OF_INT: msgpack_pack_array(pk, 1), msgpack_pack_int(pk, 7); break;
        case BIG_STR:
            msgpack_pack_str(pk, p->u), msgpack_pack_str_body(pk, big, p->u);
            break;
        }
    }
}

static void
test_wrong_keys_are_named(void **state)
{
    static const struct {
        const char *method;
        struct pair pairs[4];
        const char *key, *says; /* NULL: it is right */
    } cases[] = {
        {"sample", {{"name", A_STR, 0}, {"temperature", A_FLOAT, 0}}, NULL, NULL},
        {"sample", {{"name", A_STR, 0}, {"temperature", AN_INT, 1}}, NULL, NULL},
        {"sample", {{"name", A_STR, 0}, {"temperature", NEGATIVE, 1}}, NULL, NULL},
        {"sample",
         {{"name", A_STR, 0}, {"temprature", A_FLOAT, 0}},
         "temprature",
         "unknown"},
        {"sample",
         {{"name", A_STR, 0}, {"temperature", A_FLOAT, 1}},
         "temperature",
         "finite"},
        {"sample",
         {{"name", A_STR, 0}, {"temperature", A_STR, 0}},
         "temperature",
         "number"},
        {"sample", {{"temperature", A_FLOAT, 0}}, "name", "missing"},
        {"sample", {{"name", A_STR, 0}, {"name", A_STR, 0}}, "name", "twice"},
        {"sample", {{"name", A_BIN, 0}}, "name", "string"},
        {"sample", {{"name", A_NIL, 0}}, "name", "string"},
        {"sample", {{"name", BIG_STR, 129}}, "name", "more than 128"},
        {"sample", {{"name", BIG_STR, 128}}, NULL, NULL},
        {"sample", {{"name", A_STR, 0}, {"n", AN_INT, 4294967296}}, "n", "more than"},
        {"sample", {{"name", A_STR, 0}, {"n", NEGATIVE, 0}}, "n", "from 0 on"},
        {"sample", {{"name", A_STR, 0}, {"n", A_FLOAT, 0}}, "n", "whole"},
        {"sample", {{"name", A_STR, 0}, {"stop", ARRAY_OF_INT, 0}}, "stop", "strings"},
        {"sample", {{"name", A_STR, 0}, {"bias", ARRAY_OF_INT, 0}}, "bias", "maps"},
        {"sample", {{"name", A_STR, 0}, {"bias", A_STR, 0}}, "bias", "maps"},
        {"sample", {{"name", A_STR, 0}, {"parse", AN_INT, 1}}, "parse", "true"},
        {"sample", {{"name", A_STR, 0}, {"ban", A_STR, 0}}, "ban", "bin"},
        {"append", {{"name", A_STR, 0}, {"text", A_BIN, 0}}, NULL, NULL},
        {"append", {{"name", A_STR, 0}, {"text", AN_INT, 0}}, "text", "neither"},
        {"append", {{"name", A_STR, 0}, {"document", A_BOOL, 0}}, "document", "descriptor"},
        {"append", {{"name", A_STR, 0}, {"document", AN_INT, 1}}, "document", "descriptor"},
        {"append", {{"name", A_STR, 0}, {"op_id", BIG_STR, 5}}, "op_id", "bin"},
        {"status", {{"name", A_STR, 0}}, "name", "unknown"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[1024], key[WIRE_METHOD_BYTES];
        struct err e = {0};
        struct wire_in w;
        uint32_t n = 0;
        int r;

        while (cases[i].pairs[n].key != NULL)
            n++;
        by_hand(cases[i].method, n, pack_pairs, cases[i].pairs);
        deliver(&w);
        assert_true(w.method->request->size <= sizeof body);
        r = wire_decode(&w, w.method->request, body, key, &e);
        if (cases[i].key == NULL ? r != 0 : r != -1)
            fail_msg("case %zu: %d %s", i, r, e.text);
        if (cases[i].key != NULL) {
            assert_string_equal(key, cases[i].key);
            assert_int_equal(e.code, ERR_INVALID);
            assert_non_null(strstr(e.text, cases[i].key));
            if (strstr(e.text, cases[i].says) == NULL)
                fail_msg("case %zu: '%s' lacks '%s'", i, e.text, cases[i].says);
        }
        wire_close(&w);
    }
}

static void
test_encoder_keeps_the_limits(void **state)
{
    static char big[FRAME_MAX];
    struct wire_append a = {.name = wire_str("s")};
    struct wire_sample s = {.name = wire_str("s")};
    struct err e = {0};
    struct wire_in w;

    (void)state;
    memset(big, 'x', sizeof big);
    wire_put(&a, append, text, wire_strn(big, sizeof big));
    assert_int_equal(wire_request(&out, 1, WIRE_METHOD_append, &a, &e), -1);
    assert_non_null(strstr(e.text, "'text'"));
    assert_int_equal(frame_out_waiting(&out), 0);
    a.text.len = 1044480;
    assert_int_equal(wire_request(&out, 1, WIRE_METHOD_append, &a, &e), 0);
    deliver(&w);
    wire_close(&w);

    a = (struct wire_append){.name = wire_str("\xff")};
    assert_int_equal(wire_request(&out, 1, WIRE_METHOD_append, &a, &e), -1);
    assert_non_null(strstr(e.text, "UTF-8"));
    a = (struct wire_append){.name = wire_str("s")};
    wire_put(&a, append, text, wire_str("a\xff"));
    assert_int_equal(wire_request(&out, 1, WIRE_METHOD_append, &a, &e), 0);
    deliver(&w);
    assert_int_equal(wire_decode(&w, WIRE_MSG(append), &a, NULL, &e), 0);
    assert_true(wire_is(a.text, "a\xff"));
    wire_close(&w);

    wire_put(&s, sample, top_logprobs, 21);
    assert_int_equal(wire_request(&out, 1, WIRE_METHOD_sample, &s, &e), -1);
    assert_non_null(strstr(e.text, "'top_logprobs'"));
    assert_int_equal(wire_stream(&out, 1, 0, WIRE_MSG(token), &s, 0, &e), -1);
    assert_int_equal(frame_out_waiting(&out), 0);
}

/* A response from a newer daemon: more keys than we know. */
static void
test_responses_may_have_more(void **state)
{
    static const uint8_t bytes[] = "\x94\x01\x05\xc0\x84\xa3new\xc0\xa4name\xa1s\xa3pos\x07"
                                   "\x05\xa1x";
    struct wire_pos_result r;
    struct err e = {0};
    struct wire_in w;

    (void)state;
    assert_int_equal(wire_open(&w, NULL, bytes, sizeof bytes - 1, &e), 0);
    assert_int_equal(wire_decode(&w, WIRE_MSG(pos_result), &r, NULL, &e), 0);
    assert_int_equal(r.pos, 7);
    wire_close(&w);
}

static void
test_what_is_no_message(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
    } cases[] = {
        {"\xc0", 1},                          /* nil */
        {"\x90", 1},                          /* [] */
        {"\x92\x05\x01\x00", 4},              /* a byte behind it */
        {"\x92\x06\x01", 3},                  /* no such shape */
        {"\x93\x05\x01\x01", 4},              /* a cancel of three */
        {"\x92\x05\xff", 3},                  /* id -1 */
        {"\x92\x05\xcf\0\0\0\1\0\0\0\0", 11}, /* id 2^32 */
        {"\x94\0\1\xa1m\x80", 6},             /* parameters are no array */
        {"\x94\0\1\xa1m\x90", 6},             /* ... of one map */
        {"\x94\0\1\x05\x91\x80", 6},          /* method is a number */
        {"\x94\1\1\xc0\xc0", 5},              /* neither error nor result */
        {"\x94\1\1\x80\x80", 5},              /* both */
        {"\x94\3\1\0\x90", 5},                /* no items */
        {"\x94\3\1\0\x91\xc0", 6},            /* an item that is no map */
        {"\x94\0\1\xa1\xff\x91\x80", 7},      /* not UTF-8 */
        {"\x92\xdd\xff\xff\xff\xff", 6},      /* four billion items */
        {"\x94\0\1\xdb\xff\xff\xff\xff", 8},  /* a string of 4 GiB */
    };

    static const uint8_t good[] = "\x94\0\1\xa1m\x91\x80";
    struct wire_in w;
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (wire_open(&w, NULL, (const uint8_t *)cases[i].bytes, cases[i].len, &e) != -1)
            fail_msg("case %zu passed", i);
        assert_int_equal(e.code, ERR_PROTOCOL);
        wire_close(&w);
    }
    assert_int_equal(wire_open(&w, NULL, good, sizeof good - 1, &e), 0);
    assert_null(w.method); /* a well-formed request for a method that is not ours */
    wire_close(&w);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_message_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_small_shapes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_keys_are_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_encoder_keeps_the_limits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_responses_may_have_more, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_is_no_message, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
