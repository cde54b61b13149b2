/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Caches out of the engine and back, by the rules of proto/link.h, on the toy backend: it makes
 * up what leaves, checks every byte of what comes, and answers differently for ever if one was
 * wrong. Here every interleaving is the same in each run.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "model/kvsize.h"
#include "tests/engine_rig.h"
#include "tests/test.h"

/* Where the tests put things in the arena. */
enum { STATE_AT = 0, ROW_AT = 1 << 20, PAGES_AT = 2 << 20 };

static uint32_t t[4000]; /* the tokens of nearly all tests */

static int
setup(void **state)
{
    rig_tokens(t, 4000, 77);
    return rig_setup(state);
}

/* All whole pages, one behind the other, and the state: where the engine says it is. */
static uint64_t
save(struct peer *p, uint32_t seq, uint64_t pages)
{
    const struct link_kv_run run = {.first = 0, .n = pages, .at = PAGES_AT};

    return peer_ok(p, peer_kv_out(p, seq, STATE_AT, ROW_AT, &run, 1))->saved.pos;
}

/* Tokens and pages in portions of so many tokens; the last job. */
static uint32_t
bring(struct rig *r, uint32_t seq, const uint32_t *tokens, uint64_t n, uint32_t portion)
{
    uint32_t job = 0;

    for (uint64_t at = 0; at < n; at += portion) {
        const uint32_t some = n - at < portion ? (uint32_t)(n - at) : portion;

        job = peer_kv_in(r->p, seq, at, PAGES_AT + at / 128 * r->layout.page_bytes,
                         tokens + at, some);
    }
    return job;
}

static void
restore(struct rig *r, uint32_t seq, const uint32_t *tokens, uint64_t n, uint32_t portion)
{
    bring(r, seq, tokens, n, portion);
    assert_int_equal(peer_ok(r->p, peer_kv_set(r->p, seq, n, STATE_AT, ROW_AT))->end.pos,
                     n);
}

/* Saved at a place, brought back under another number: rows and draws are the same. */
static void
test_there_and_back(void **state)
{
    static const uint32_t places[] = {1,   3,   4,   5,   127, 128,  129,
                                      130, 255, 256, 257, 511, 2047, 2048};
    struct rig *r = *state;
    struct peer *p = r->p;
    const struct sample_params params = rig_params(9, 30);

    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const uint32_t n = places[i];
        const struct peer_job *a, *b;

        peer_open(p, 0, 1);
        peer_open(p, 1, 1);
        peer_feed(p, 0, 0, t, n, false);
        assert_int_equal(save(p, 0, n / 128), n);
        restore(r, 1, t, n, 256);
        a = peer_ok(p, peer_sample(p, 0, n, 0, &params));
        b = peer_ok(p, peer_sample(p, 1, n, 0, &params));
        assert_int_equal(a->n_tokens, 30);
        assert_memory_equal(a->choices, b->choices, 30 * sizeof *a->choices);
        peer_ok(p, peer_close(p, 0));
        peer_ok(p, peer_close(p, 1));
    }
}

int
main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        T(test_there_and_back),
    };
#undef T

    log_init("engine_kv_test", 0);
    return cmocka_run_group_tests_name("engine kv", tests, NULL, NULL);
}
