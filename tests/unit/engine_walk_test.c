/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few thousand jobs as they come, over four sequences whose tokens we know and two places to
 * save to, with copies that are now done at once and now take a while. What a sequence says is
 * always what its tokens say. The walk is the same in every run.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "tests/engine_rig.h"
#include "tests/test.h"

enum { WALK_SEQS = 4, WALK_SLOTS = 2, WALK_MOST = 1500, SLOT = 1 << 20, WALK_KINDS = 6 };

struct walk {
    struct rig *r;
    uint64_t random;

    struct {
        bool open;
        uint32_t tokens[WALK_MOST], n;
    } seq[WALK_SEQS], slot[WALK_SLOTS];

    int done[WALK_KINDS];
};

static uint32_t
any(struct walk *w, uint32_t below)
{
    w->random = w->random * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)(w->random >> 33) % below;
}

static void
walk_save(struct walk *w, uint32_t seq, uint32_t slot)
{
    const uint64_t at = (uint64_t)slot * SLOT;
    const struct link_kv_run run = {
        .first = 0, .n = w->seq[seq].n / 128, .at = at + SLOT / 2};
    const struct peer_job *j;

    if (w->seq[seq].n == 0)
        return;
    j = peer_ok(w->r->p, peer_kv_out(w->r->p, seq, at, at + SLOT / 4, &run, 1));
    assert_in_range(j->saved.pos, w->seq[seq].n - 1, w->seq[seq].n);
    w->slot[slot] = w->seq[seq];
    w->slot[slot].n = (uint32_t)j->saved.pos;
    w->done[0]++;
}

static void
walk_restore(struct walk *w, uint32_t seq, uint32_t slot)
{
    const uint64_t at = (uint64_t)slot * SLOT;
    struct peer *p = w->r->p;

    if (w->slot[slot].n == 0)
        return;
    if (w->seq[seq].open)
        peer_close(p, seq);
    peer_open(p, seq, 1);
    for (uint32_t from = 0; from < w->slot[slot].n; from += 384)
        peer_kv_in(p, seq, from, at + SLOT / 2 + from / 128 * w->r->layout.page_bytes,
                   w->slot[slot].tokens + from,
                   w->slot[slot].n - from < 384 ? w->slot[slot].n - from : 384);
    peer_ok(p, peer_kv_set(p, seq, w->slot[slot].n, at, at + SLOT / 4));
    w->seq[seq] = w->slot[slot];
    w->done[1]++;
}

static void
walk_on(struct walk *w, uint32_t seq)
{
    struct peer *p = w->r->p;
    const uint32_t n = w->seq[seq].n, room = WALK_MOST - n;
    const struct sample_params params = rig_params(any(w, 1000), 1 + any(w, 6));
    const uint32_t other = any(w, WALK_SEQS);
    const struct peer_job *j;
    uint32_t more;

    switch (any(w, 4)) {
    case 0:
        if (n < 1 || room < 6)
            return;
        j = peer_ok(p, peer_sample(p, seq, n, 0, &params));
        memcpy(w->seq[seq].tokens + n, j->tokens, j->n_tokens * sizeof *j->tokens);
        w->seq[seq].n += (uint32_t)j->n_tokens;
        w->done[2]++;
        return;
    case 1:
        w->seq[seq].n -= any(w, 3) == 0 ? any(w, n + 1) : n < 8 ? 0 : any(w, 9);
        peer_ok(p, peer_rewind(p, seq, w->seq[seq].n));
        w->done[3]++;
        return;
    case 2:
        if (other == seq)
            return;
        if (w->seq[other].open)
            peer_close(p, other);
        peer_ok(p, peer_fork(p, seq, other));
        w->seq[other] = w->seq[seq];
        w->done[4]++;
        return;
    default:
        if (room < 200)
            return;
        more = 1 + any(w, 199);
        rig_tokens(w->seq[seq].tokens + n, more, any(w, 1 << 30));
        peer_ok(p, peer_feed(p, seq, n, w->seq[seq].tokens + n, more, false));
        w->seq[seq].n += more;
        w->done[5]++;
    }
}

static int
sometimes_slowly(void *arg, enum toy_kv what, uint64_t number, uint32_t seq, struct err *e)
{
    struct walk *w = arg;

    (void)number;
    (void)seq;
    (void)e;
    return what == TOY_KV_BUSY ? any(w, 3) > 0 : (int)any(w, 2);
}

static void
test_a_long_walk(void **state)
{
    static struct walk w;

    w = (struct walk){.r = *state, .random = 5};
    toy_on_kv(sometimes_slowly, &w);
    for (int i = 0; i < 1500; i++) {
        const uint32_t seq = any(&w, WALK_SEQS), slot = any(&w, WALK_SLOTS);

        if (any(&w, 6) == 0 || (!w.seq[seq].open && w.slot[slot].n > 0)) {
            walk_restore(&w, seq, slot);
        } else if (!w.seq[seq].open) {
            peer_ok(w.r->p, peer_open(w.r->p, seq, 1));
            w.seq[seq].open = true;
            w.seq[seq].n = 0;
        } else if (any(&w, 8) == 0) {
            peer_ok(w.r->p, peer_close(w.r->p, seq));
            w.seq[seq].open = false;
        } else if (any(&w, 4) == 0) {
            walk_save(&w, seq, slot);
        } else {
            walk_on(&w, seq);
        }
        if (w.seq[seq].open && w.seq[seq].n > 0 && any(&w, 3) == 0)
            rig_check_logits(w.r->p, seq, w.seq[seq].tokens, w.seq[seq].n);
    }
    for (int i = 0; i < WALK_KINDS; i++)
        assert_in_range(w.done[i], 20, 1500);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_long_walk, rig_setup, rig_teardown),
    };

    log_init("engine_walk_test", 0);
    return cmocka_run_group_tests_name("engine walk", tests, NULL, NULL);
}
