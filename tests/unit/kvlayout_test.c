/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The form of the caches outside the engine: its sizes are those of the specification (spec 15.3,
 * systems 1.2 and 1.5), its parts agree with each other and with kvsize.h at every position, and
 * whatever a row to come looks at is in it.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "model/config.h"
#include "model/kvlayout.h"
#include "model/kvsize.h"
#include "tests/paths.h"
#include "tests/test.h"

static void
load(struct model_config *c, const char *dir)
{
    char path[TEST_PATH];
    struct err e;

    if (model_config_load(c, src_path(path, dir), &e) == -1)
        fail_msg("%s", e.text);
}

static void
make(struct kv_layout *l, const struct model_config *c, bool draft)
{
    struct err e;

    if (kv_layout_init(l, c, draft, &e) == -1)
        fail_msg("%s", e.text);
}

static uint64_t
bytes_of(const struct kv_layout *l, enum kv_kind kind, uint64_t pos)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < l->n_parts; i++)
        if (l->parts[i].kind == kind)
            sum += kv_state_rows(&l->parts[i], pos) * l->parts[i].row_bytes;
    return sum;
}

/* Of both published models, from the specification's tables. */
static void
test_published_sizes(void **state)
{
    static const struct {
        const char *dir;
        uint64_t page, per_token, window, seed, tail, at_1m;
    } want[] = {
        /* The seed has both halves of each row, twice the 430,080 and 614,400 of systems 1.5:
         * there only the first half is counted, and rows of two widths would be one part more. */
        {"tests/data/flash", 449824, 3514, 43 * 128 * 584, 860160, 20 * 127 * 4096,
         3700378624},
        {"tests/data/pro", 644024, 5031, 61 * 128 * 584, 1228800, 31 * 127 * 4096,
         5299115008},
    };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        const uint64_t million = 1048576;
        struct model_config c;
        struct kv_layout l;
        int64_t frontiers = 0;

        load(&c, want[i].dir);
        make(&l, &c, false);
        assert_int_equal(l.page_bytes, want[i].page);
        assert_int_equal((l.page_bytes + 64) / 128, want[i].per_token);
        assert_int_equal(bytes_of(&l, KV_PART_WINDOW, million), want[i].window);
        assert_int_equal(bytes_of(&l, KV_PART_FRONTIER, million) +
                             bytes_of(&l, KV_PART_INDEX_FRONTIER, million),
                         want[i].seed);
        assert_int_equal(kv_state_bytes(&l, million), want[i].window + want[i].seed);
        /* One token in front of a page's end: what HCA has not compressed yet. */
        assert_int_equal(bytes_of(&l, KV_PART_FRONTIER, million - 1) -
                             want[i].seed * 512 / 640 / 4 * 7,
                         want[i].tail);
        for (int n = 0; n < c.n_layers; n++)
            frontiers += kv_frontier_bytes(&c, n);
        assert_int_equal(million / 128 * l.page_bytes + kv_state_bytes(&l, million) -
                             want[i].seed + (uint64_t)frontiers,
                         want[i].at_1m);
        kv_layout_done(&l);
    }
}

/* The draft block: its window, and four streams of bf16. */
static void
test_the_draft_block(void **state)
{
    struct model_config c;
    struct kv_layout plain, draft;

    (void)state;
    load(&c, "tests/data/flash");
    make(&plain, &c, false);
    make(&draft, &c, true);
    assert_int_equal(draft.page_bytes, plain.page_bytes);
    assert_int_equal(draft.n_parts, plain.n_parts + 2);
    assert_true(draft.hash != plain.hash);
    assert_int_equal(kv_state_bytes(&draft, 0), 0);
    assert_int_equal(kv_state_bytes(&draft, 1) - kv_state_bytes(&plain, 1), 4 * 4096 * 2);
    assert_int_equal(kv_state_bytes(&draft, 129) - kv_state_bytes(&plain, 129),
                     128 * 584 + 4 * 4096 * 2);
    kv_layout_done(&plain);
    kv_layout_done(&draft);
}

/* Position by position: sizes agree with kvsize.h, pages take over what leaves the state. */
static void
check_positions(const struct kv_layout *l, const struct model_config *c, bool draft)
{
    int64_t frontiers = 0;
    uint64_t most = 0;

    for (int n = 0; n < c->n_layers; n++)
        frontiers += kv_frontier_bytes(c, n);
    assert_int_equal(l->page_bytes, kv_page_bytes(c));
    for (uint64_t pos = 0; pos < 1100; pos++) {
        const uint64_t all = pos / 128 * l->page_bytes + kv_state_bytes(l, pos);
        const uint64_t moving = bytes_of(l, KV_PART_FRONTIER, pos) +
                                bytes_of(l, KV_PART_INDEX_FRONTIER, pos) +
                                bytes_of(l, KV_PART_DRAFT_WINDOW, pos) +
                                bytes_of(l, KV_PART_DRAFT_STREAMS, pos);

        assert_int_equal(all - moving + (uint64_t)frontiers,
                         kv_session_bytes(c, (int64_t)pos));
        assert_true(draft || bytes_of(l, KV_PART_DRAFT_STREAMS, pos) == 0);
        assert_true(kv_state_bytes(l, pos) <= l->state_most);
        most = kv_state_bytes(l, pos) > most ? kv_state_bytes(l, pos) : most;
    }
    assert_int_equal(most, l->state_most);
}

/* What the token at pos, or the block that it is in, looks back at (spec 5.4, 6.1). */
static void
check_reach(const struct kv_part *p, const struct model_config *c)
{
    for (uint64_t pos = 1; pos < 700; pos++) {
        const uint64_t first = kv_state_first(p, pos), end = first + kv_state_rows(p, pos);
        uint64_t from;

        switch (p->kind) {
        case KV_PART_WINDOW:
            assert_int_equal(end, pos);
            from = pos > (uint64_t)c->window - 1 ? pos - (uint64_t)(c->window - 1) : 0;
            assert_true(first <= from);
            break;
        case KV_PART_FRONTIER:
        case KV_PART_INDEX_FRONTIER:
            from = pos - pos % p->ratio;
            if (p->ratio == 4)
                from -= from >= 4 ? 4 : 0;
            assert_int_equal(first, from);
            assert_int_equal(end, pos);
            break;
        case KV_PART_MAIN:
        case KV_PART_INDEX:
            assert_int_equal(first * p->ratio, pos / 128 * 128);
            assert_int_equal(end, pos / p->ratio);
            break;
        case KV_PART_DRAFT_WINDOW:
            assert_int_equal(end, pos - 1);
            from = pos > (uint64_t)c->window ? pos - (uint64_t)c->window : 0;
            assert_true(first <= from);
            break;
        default: assert_int_equal(first, pos - 1); assert_int_equal(end, pos);
        }
    }
}

static void
test_every_position(void **state)
{
    static const char *const dirs[] = {"tests/data/flash", "tests/data/pro",
                                       "models/fathom-mini", "tests/golden/flash-tiny"};

    (void)state;
    for (size_t i = 0; i < 2 * sizeof dirs / sizeof *dirs; i++) {
        struct model_config c;
        struct kv_layout l;

        load(&c, dirs[i / 2]);
        make(&l, &c, i % 2 == 1);
        check_positions(&l, &c, i % 2 == 1);
        for (size_t k = 0; k < l.n_parts; k++)
            check_reach(&l.parts[k], &c);
        kv_layout_done(&l);
    }
}

/* Rows in a page: each part's behind the other, without gaps, all of the page. */
static void
test_pages_are_full(void **state)
{
    struct model_config c;
    struct kv_layout l;
    uint64_t at = 0;

    (void)state;
    load(&c, "tests/data/flash");
    make(&l, &c, true);
    for (size_t i = 0; i < l.n_parts; i++)
        if (l.parts[i].kind == KV_PART_MAIN || l.parts[i].kind == KV_PART_INDEX) {
            assert_int_equal(l.parts[i].page_at, at);
            at += 128u / l.parts[i].ratio * l.parts[i].row_bytes;
        }
    assert_int_equal(at, l.page_bytes);
    kv_layout_done(&l);
}

/* Whatever changes the bytes or their meaning changes the hash; nothing else does. */
static void
test_the_hash_tells_layouts_apart(void **state)
{
    struct model_config c, d;
    struct kv_layout l[8];

    (void)state;
    load(&c, "tests/golden/flash-tiny");
    make(&l[0], &c, false);
    make(&l[1], &c, true);
    d = c, d.window = 64;
    make(&l[2], &d, false);
    d = c, d.ratio[2] = 8;
    make(&l[3], &d, false);
    d = c, d.ratio[3] = 4, d.ratio[2] = 128; /* the same parts elsewhere */
    make(&l[4], &d, false);
    d = c, d.head_dim = 64, d.rope_dim = 32;
    make(&l[5], &d, false);
    d = c, d.n_layers--;
    make(&l[6], &d, false);
    for (int i = 0; i < 7; i++)
        for (int k = 0; k < i; k++)
            assert_true(l[i].hash != l[k].hash);
    d = c, d.vocab_size = 77, d.max_positions = 5, d.n_heads = 2;
    make(&l[7], &d, false);
    assert_true(l[7].hash == l[0].hash);
    for (int i = 0; i < 8; i++)
        kv_layout_done(&l[i]);
}

static void
test_a_ratio_that_does_not_fit(void **state)
{
    struct model_config c;
    struct kv_layout l;
    struct err e;

    (void)state;
    load(&c, "tests/golden/flash-tiny");
    c.ratio[2] = 24;
    assert_int_equal(kv_layout_init(&l, &c, false, &e), -1);
    assert_int_equal(e.code, ERR_MODEL_MISMATCH);
    kv_layout_done(&l);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_sizes),
        cmocka_unit_test(test_the_draft_block),
        cmocka_unit_test(test_every_position),
        cmocka_unit_test(test_pages_are_full),
        cmocka_unit_test(test_the_hash_tells_layouts_apart),
        cmocka_unit_test(test_a_ratio_that_does_not_fit),
    };

    return cmocka_run_group_tests_name("kvlayout", tests, NULL, NULL);
}
