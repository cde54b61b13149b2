/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans of saves and restores, against a model that knows of each page who has it: random lists of
 * pieces that overlap, leave gaps, fail and are on their way.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/kv_plan.h"
#include "tests/test.h"

enum { PAGES = 4 * KV_BLOCK, TURNS = 3000, ROUND = 7 };

static uint64_t seed = 88172645463325252ull;
static uint32_t next_id;

static uint64_t
dice(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % n;
}

static struct kvfile_id
new_id(void)
{
    struct kvfile_id id = {0};

    next_id++;
    memcpy(id.b, &next_id, sizeof next_id);
    return id;
}

static struct kv_piece *
add(struct kv_pieces *p, enum kvfile_type type, uint64_t pos, uint32_t n_pages)
{
    const struct ledger_file f = {
        .about = {.type = type, .id = new_id(), .pos = pos, .n_tokens = n_pages * KV_PAGE},
        .n_pages = n_pages};
    struct kv_piece *x = kv_pieces_add(p, &f);

    assert_non_null(x);
    x->at = KV_STORED;
    return x;
}

static void
make_pieces(struct kv_pieces *p)
{
    *p = (struct kv_pieces){0};
    for (uint64_t i = dice(40); i > 0; i--) {
        const uint64_t first = dice(PAGES);
        const uint64_t most = KV_BLOCK - first % KV_BLOCK;
        struct kv_piece *x =
            add(p, KVFILE_CHUNK, first * KV_PAGE, (uint32_t)(1 + dice(most)));

        x->file.n_pages -= (uint32_t)dice(4) == 0 ? (uint32_t)dice(x->file.n_pages) : 0;
        x->at = (enum kv_at)dice(3);
        x->failed = dice(6) == 0;
        x->round = dice(6) == 0 ? ROUND : 0;
    }
    for (uint64_t i = dice(14); i > 0; i--) {
        struct kv_piece *x = add(p, KVFILE_STATE, 1 + dice(PAGES * KV_PAGE), 0);

        if (dice(4) == 0)
            x->file.about.pos = KV_STATE_EVERY;
        x->at = (enum kv_at)dice(3);
        x->failed = dice(6) == 0;
        x->round = dice(6) == 0 ? ROUND : 0;
        x->file.turn = dice(2);
    }
}

static bool
counts(const struct kv_piece *x, enum kv_at least, uint32_t round)
{
    return x->at >= least &&
           (round == KV_SOUND ? x->failed == 0 : x->round != round || !round);
}

static bool
has_page(const struct kv_pieces *p, uint64_t page, enum kv_at least, uint32_t round)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct kv_piece *x = &p->v[i];

        if (!kv_is_state(x) && counts(x, least, round) && kv_first_page(x) <= page &&
            page < kv_first_page(x) + x->file.n_pages)
            return true;
    }
    return false;
}

static void
check_order(const struct kv_pieces *p)
{
    for (size_t i = 1; i < p->n; i++) {
        assert_true(kv_is_state(&p->v[i]) >= kv_is_state(&p->v[i - 1]));
        if (kv_is_state(&p->v[i]) == kv_is_state(&p->v[i - 1]) &&
            p->v[i].file.about.pos != KV_STATE_EVERY &&
            p->v[i - 1].file.about.pos != KV_STATE_EVERY)
            assert_true(p->v[i].file.about.pos >= p->v[i - 1].file.about.pos);
    }
}

/* States given another place after they were added: in order again. */
static void
put_in_order(struct kv_pieces *p)
{
    struct kv_pieces q = {0};

    for (size_t i = 0; i < p->n; i++) {
        struct kv_piece x = p->v[i], *y = kv_pieces_add(&q, &x.file);

        assert_non_null(y);
        x.file = y->file;
        *y = x;
    }
    kv_pieces_done(p);
    *p = q;
}

static void
test_cover_and_best(void **state)
{
    static const uint32_t rounds[] = {KV_ALL_COUNT, ROUND, KV_SOUND};
    size_t found = 0;

    (void)state;
    for (int t = 0; t < TURNS; t++) {
        const enum kv_at least = (enum kv_at)dice(3);
        const uint32_t round = rounds[dice(3)];
        const uint64_t len = dice(PAGES * KV_PAGE);
        const struct kv_piece *best, *want = NULL;
        struct kv_pieces p;
        uint64_t covered = 0;

        make_pieces(&p);
        put_in_order(&p);
        check_order(&p);
        while (has_page(&p, covered, least, round))
            covered++;
        assert_int_equal(kv_covered(&p, least, round), covered);
        for (uint64_t page = 0; page < PAGES; page++) {
            const struct kv_piece *c = kv_cover(&p, page, least, round);

            assert_int_equal(c != NULL, has_page(&p, page, least, round));
            for (size_t i = 0; c != NULL && i < p.n; i++) {
                const struct kv_piece *x = &p.v[i];

                if (!kv_is_state(x) && counts(x, least, round) && kv_first_page(x) <= page)
                    assert_true(kv_first_page(x) + x->file.n_pages <=
                                kv_first_page(c) + c->file.n_pages);
            }
        }
        for (size_t i = 0; i < p.n; i++) {
            const struct kv_piece *x = &p.v[i];

            if (kv_is_state(x) && counts(x, least, round) && x->file.about.pos <= len &&
                x->file.about.pos / KV_PAGE <= covered &&
                (want == NULL || x->file.about.pos >= want->file.about.pos))
                want = x;
        }
        best = kv_best(&p, len, least, round);
        assert_int_equal(best != NULL, want != NULL);
        if (best != NULL)
            assert_int_equal(best->file.about.pos, want->file.about.pos);
        found += best != NULL;
        kv_pieces_done(&p);
    }
    assert_true(found > TURNS / 50);
}

/* After its runs are there nothing is missing; none of them was there before, unless the block is
 * written as one; none goes across a block. */
static void
test_runs(void **state)
{
    struct kv_run runs[PAGES];
    size_t merges = 0;

    (void)state;
    for (int t = 0; t < TURNS; t++) {
        const bool whole = dice(2);
        uint64_t pages = dice(PAGES + 1);
        bool there[PAGES];
        struct kv_pieces p;
        size_t n;

        make_pieces(&p);
        for (uint64_t i = 0; i < PAGES; i++)
            there[i] = has_page(&p, i, KV_COMING, KV_SOUND);
        n = kv_plan_runs(&p, pages, whole, runs, PAGES);
        if (whole)
            pages = pages / KV_BLOCK * KV_BLOCK;
        for (size_t i = 0; i < n; i++) {
            assert_true(runs[i].n > 0 && runs[i].first + runs[i].n <= pages);
            assert_int_equal(runs[i].first / KV_BLOCK,
                             (runs[i].first + runs[i].n - 1) / KV_BLOCK);
            merges += runs[i].merge;
            for (uint64_t page = runs[i].first; page < runs[i].first + runs[i].n; page++) {
                assert_true(!there[page] || runs[i].merge);
                there[page] = true;
            }
            if (runs[i].merge)
                assert_true(runs[i].n == KV_BLOCK && runs[i].first % KV_BLOCK == 0);
            if (i > 0)
                assert_true(runs[i].first >= runs[i - 1].first + runs[i - 1].n);
        }
        for (uint64_t i = 0; i < pages; i++)
            assert_true(there[i]);
        /* With less room it is the beginning of the same. */
        if (n > 1) {
            struct kv_run some[PAGES];
            const size_t fewer = kv_plan_runs(&p, pages, whole, some, n - 1);

            assert_true(fewer <= n - 1);
            for (size_t i = 0; i < fewer; i++)
                assert_int_equal(some[i].first, runs[i].first);
        }
        kv_pieces_done(&p);
    }
    assert_true(merges > 20);
}

static void
test_many_small_pieces_become_one(void **state)
{
    struct kv_pieces p = {0};
    struct kv_run runs[4];

    (void)state;
    for (uint64_t page = 0; page + 1 < KV_BLOCK; page++) {
        assert_int_equal(kv_plan_runs(&p, page + 1, false, runs, 4), 1);
        assert_true(runs[0].first == page && runs[0].n == 1 && !runs[0].merge);
        assert_int_equal(kv_plan_runs(&p, page + 1, true, runs, 4), 0);
        add(&p, KVFILE_CHUNK, page * KV_PAGE, 1);
    }
    assert_int_equal(kv_plan_runs(&p, KV_BLOCK, false, runs, 4), 1);
    assert_true(runs[0].first == 0 && runs[0].n == KV_BLOCK && runs[0].merge);
    kv_pieces_done(&p);
    /* Eight are not too many. */
    for (uint64_t i = 0; i + 1 < KV_BLOCK_PIECES; i++)
        add(&p, KVFILE_CHUNK, i * 4 * KV_PAGE, 4);
    assert_int_equal(kv_plan_runs(&p, KV_BLOCK, false, runs, 4), 1);
    assert_true(runs[0].first == 28 && runs[0].n == 4 && !runs[0].merge);
    kv_pieces_done(&p);
}

static bool
is_among(const struct kvfile_id *id, const struct kvfile_id *all, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(id, &all[i], sizeof *id) == 0)
            return true;
    }
    return false;
}

static void
test_states_kept(void **state)
{
    const uint64_t named[] = {301, 5000, 402};
    struct kvfile_id out[64];
    struct kv_pieces p = {0};
    size_t n;

    (void)state;
    for (uint64_t i = 1; i <= 20; i++)
        add(&p, KVFILE_STATE, i * 100, 0)->file.turn = i % 2 == 0;
    add(&p, KVFILE_STATE, KV_STATE_EVERY, 0);
    add(&p, KVFILE_STATE, KV_STATE_EVERY + 77, 0);
    add(&p, KVFILE_STATE, KV_STATE_EVERY + 99, 0)->at = KV_SEALED; /* may come to nothing */
    n = kv_plan_drop(&p, named, 3, out, 64);
    for (size_t i = 0; i < p.n; i++) {
        const uint64_t pos = p.v[i].file.about.pos;
        const bool turn = pos >= 600 && pos <= 2000 && pos % 200 == 0;

        assert_int_equal(is_among(&p.v[i].file.about.id, out, n),
                         pos < KV_STATE_EVERY && !turn && pos != 300);
    }
    assert_int_equal(kv_plan_drop(&p, named, 3, out, 2), 2);
    kv_pieces_done(&p);
    assert_int_equal(kv_plan_drop(&p, NULL, 0, out, 64), 0);
}

/* A chunk that failed goes when others have its pages, and not before. */
static void
test_failed_ones_are_replaced(void **state)
{
    struct kvfile_id out[64];
    struct kv_run runs[8];
    struct kv_pieces p = {0};

    (void)state;
    add(&p, KVFILE_CHUNK, 0, KV_BLOCK);
    add(&p, KVFILE_CHUNK, KV_BLOCK * KV_PAGE, KV_BLOCK);
    p.v[0].failed = 1;
    assert_int_equal(kv_plan_replaced(&p, out, 64), 0);
    assert_int_equal(kv_plan_runs(&p, 2 * KV_BLOCK, true, runs, 8), 1);
    assert_true(runs[0].first == 0 && runs[0].n == KV_BLOCK);
    add(&p, KVFILE_CHUNK, 0, KV_BLOCK)->at = KV_COMING;
    assert_int_equal(kv_plan_replaced(&p, out, 64), 0);
    for (size_t i = 0; i < p.n; i++)
        p.v[i].at = KV_STORED;
    assert_int_equal(kv_plan_replaced(&p, out, 64), 1);
    assert_memory_equal(&out[0], &p.v[p.v[0].failed ? 0 : 1].file.about.id, sizeof out[0]);
    kv_pieces_done(&p);
}

static void
test_find_and_remove(void **state)
{
    struct kv_pieces p = {0};
    struct kvfile_id ids[50], none = new_id();

    (void)state;
    for (int i = 0; i < 50; i++)
        ids[i] = add(&p, i % 3 == 0 ? KVFILE_STATE : KVFILE_CHUNK, dice(PAGES) * KV_PAGE, 1)
                     ->file.about.id;
    assert_null(kv_pieces_find(&p, &none));
    kv_pieces_remove(&p, &none);
    for (int i = 0; i < 50; i++) {
        assert_memory_equal(&kv_pieces_find(&p, &ids[i])->file.about.id, &ids[i],
                            sizeof ids[i]);
        kv_pieces_remove(&p, &ids[i]);
        assert_null(kv_pieces_find(&p, &ids[i]));
        check_order(&p);
    }
    assert_int_equal(p.n, 0);
    kv_pieces_done(&p);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cover_and_best),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_many_small_pieces_become_one),
        cmocka_unit_test(test_states_kept),
        cmocka_unit_test(test_failed_ones_are_replaced),
        cmocka_unit_test(test_find_and_remove),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
