/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings and pages in shared memory: nothing is read that was not written as a whole, what is lost
 * is seen to be lost. The writer's and the reader's stores and loads are few, so their orders are
 * tried out: the writer is stopped between any two of its steps while the reader reads. And two
 * threads at full speed, against a reader that forgets to look again and must be caught.
 */
#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proto/page.h"
#include "proto/ring.h"
#include "tests/test.h"

enum { RECORDS = 4, PAYLOAD = 40 };

static uint64_t next_random;

static uint64_t
dice(uint64_t n)
{
    next_random = next_random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (next_random >> 33) % n;
}

static uint8_t *
make(struct ring_out *out, uint64_t n, uint64_t payload)
{
    uint8_t *map = calloc(1, ring_bytes(n, payload));

    assert_non_null(map);
    ring_init(out, map, RING_TOKEN, n, payload, 7);
    return map;
}

/* Record `pos` is that many bytes of that value. */
static uint64_t
size_of(uint64_t pos, uint64_t most)
{
    return pos * 7 % (most + 1);
}

static void
put(struct ring_out *out, uint64_t pos, uint64_t most)
{
    const uint64_t n = size_of(pos, most);

    memset(ring_begin(out, n), (int)(pos & 0xff), n);
    ring_end(out, RING_TOKEN, pos, n);
}

static bool
is_whole(const struct ring_record *rec, const uint8_t *p, uint64_t most)
{
    if (rec->kind != RING_TOKEN || rec->bytes != size_of(rec->pos, most))
        return false;
    for (uint32_t i = 0; i < rec->bytes; i++) {
        if (p[i] != (uint8_t)rec->pos)
            return false;
    }
    return true;
}

static void
test_all_in_order(void **state)
{
    struct ring_out out;
    uint8_t *map = make(&out, RECORDS, PAYLOAD);
    struct ring_in in;
    struct ring_record rec;
    const uint8_t *p;

    (void)state;
    assert_true(ring_open(&in, map, ring_bytes(RECORDS, PAYLOAD)));
    assert_int_equal(ring_next(&in, &rec, &p), 0);
    /* As many as it was made for are never pushed out, wherever it stands. */
    for (uint64_t pos = 0; pos < 5000;) {
        const uint64_t n = 1 + dice(RECORDS);

        for (uint64_t i = 0; i < n; i++)
            put(&out, pos + i, PAYLOAD);
        for (uint64_t i = 0; i < n; i++) {
            assert_int_equal(ring_next(&in, &rec, &p), 1);
            assert_int_equal(rec.pos, pos + i);
            assert_true(is_whole(&rec, p, PAYLOAD));
        }
        assert_int_equal(ring_next(&in, &rec, &p), 0);
        pos += n;
    }
    assert_int_equal(in.lost, 0);
    ring_close(&in);
    free(map);
}

static void
test_slow_reader(void **state)
{
    struct ring_out out;
    uint8_t *map = make(&out, RECORDS, PAYLOAD);
    struct ring_in in;
    struct ring_record rec;
    const uint8_t *p;
    uint64_t last = 0;

    (void)state;
    assert_true(ring_open(&in, map, ring_bytes(RECORDS, PAYLOAD)));
    for (uint64_t pos = 1; pos < 100; pos++)
        put(&out, pos, PAYLOAD);
    while (ring_next(&in, &rec, &p) == 1) {
        assert_true(is_whole(&rec, p, PAYLOAD));
        assert_true(last == 0 || rec.pos == last + 1);
        last = rec.pos;
    }
    assert_int_equal(last, 99);
    assert_int_equal(in.lost, 1);
    ring_close(&in);
    free(map);
}

/* What a reader would see with the writer stopped anywhere: ring_begin() alone, and payload half
 * written, must leave only whole records, or none. */
static void
test_writer_stops(void **state)
{
    (void)state;
    for (uint64_t before = 0; before < 40; before++) {
        for (int half = 0; half < 3; half++) {
            struct ring_out out;
            uint8_t *map = make(&out, RECORDS, PAYLOAD), *room;
            struct ring_in in;
            struct ring_record rec;
            const uint8_t *p;
            uint64_t n = 0;

            for (uint64_t pos = 0; pos < before; pos++)
                put(&out, pos, PAYLOAD);
            room = ring_begin(&out, PAYLOAD);
            memset(room, 0xee, half == 0 ? 0 : half == 1 ? PAYLOAD / 2 : PAYLOAD);
            assert_true(ring_open(&in, map, ring_bytes(RECORDS, PAYLOAD)));
            while (ring_next(&in, &rec, &p) == 1) {
                assert_true(is_whole(&rec, p, PAYLOAD));
                n++;
            }
            assert_true(n >= (before < RECORDS ? before : RECORDS - 1));
            /* And it goes on as if nothing had been begun. */
            put(&out, before, PAYLOAD);
            assert_int_equal(ring_next(&in, &rec, &p), 1);
            assert_int_equal(rec.pos, before);
            assert_true(is_whole(&rec, p, PAYLOAD));
            ring_close(&in);
            free(map);
        }
    }
}

/* The reader stands with a copy that the writer goes over: it must throw it away. This is what the
 * second look at tail is for; `looks` false leaves it out. */
static int
torn_reads(bool looks)
{
    int torn = 0;

    for (uint64_t more = 0; more < 3 * RECORDS; more++) {
        struct ring_out out;
        uint8_t *map = make(&out, RECORDS, PAYLOAD);
        const struct ring_head *h = (const struct ring_head *)(const void *)map;
        uint8_t copy[sizeof(struct ring_record) + PAYLOAD];
        struct ring_record rec;
        uint64_t at;

        for (uint64_t pos = 0; pos < 9; pos++)
            put(&out, pos, PAYLOAD);
        at = h->tail;
        memcpy(&rec, map + RING_DATA_AT + at % h->data_bytes, sizeof rec);
        for (uint64_t pos = 0; pos < more; pos++)
            put(&out, 9 + pos, PAYLOAD);
        if (rec.kind != RING_SKIP) {
            memcpy(copy, map + RING_DATA_AT + at % h->data_bytes, sizeof rec + rec.bytes);
            if (!looks || h->tail <= at)
                torn += !is_whole(&rec, copy + sizeof rec, PAYLOAD);
        }
        free(map);
    }
    return torn;
}

static void
test_second_look(void **state)
{
    (void)state;
    assert_int_equal(torn_reads(true), 0);
    assert_true(torn_reads(false) > 0);
}

struct race {
    struct ring_out out;
    uint64_t n;
    volatile int over;
};

static void *
write_fast(void *arg)
{
    struct race *race = arg;

    for (uint64_t pos = 0; pos < race->n; pos++)
        put(&race->out, pos, PAYLOAD);
    __atomic_store_n(&race->over, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void
test_two_threads(void **state)
{
    struct race race = {.n = 300000};
    uint8_t *map = make(&race.out, RECORDS, PAYLOAD);
    struct ring_in in;
    struct ring_record rec;
    const uint8_t *p;
    pthread_t thread;
    uint64_t last = 0, seen = 0;
    int over = 0, got;

    (void)state;
    assert_true(ring_open(&in, map, ring_bytes(RECORDS, PAYLOAD)));
    assert_int_equal(pthread_create(&thread, NULL, write_fast, &race), 0);
    for (;;) {
        while ((got = ring_next(&in, &rec, &p)) == 1) {
            assert_true(is_whole(&rec, p, PAYLOAD));
            assert_true(seen == 0 || rec.pos > last);
            last = rec.pos;
            seen++;
        }
        assert_int_equal(got, 0);
        if (over)
            break;
        over = __atomic_load_n(&race.over, __ATOMIC_ACQUIRE);
    }
    pthread_join(thread, NULL);
    assert_int_equal(last, race.n - 1);
    assert_true(seen >= RECORDS - 1);
    ring_close(&in);
    free(map);
}

/* What is no ring of ours is refused, and one that is damaged is not followed out of bounds. */
static void
test_nonsense(void **state)
{
    const uint64_t bytes = ring_bytes(RECORDS, PAYLOAD);
    struct ring_out out;
    uint8_t *map = make(&out, RECORDS, PAYLOAD);
    struct ring_head *h = (struct ring_head *)(void *)map;
    struct ring_in in;
    struct ring_record rec;
    const uint8_t *p;

    (void)state;
    assert_false(ring_open(&in, map, RING_DATA_AT - 1));
    assert_false(ring_open(&in, map, bytes - 8));
    h->version++;
    assert_false(ring_open(&in, map, bytes));
    h->version--;
    h->record_most = h->data_bytes + 8;
    assert_false(ring_open(&in, map, bytes));
    h->record_most = out.record_most;
    for (int i = 0; i < 20000; i++) {
        uint64_t *word = (uint64_t *)(void *)map;
        int limit = 100;

        if (!ring_open(&in, map, bytes))
            fail();
        for (int k = 0; k < 8; k++)
            word[8 + dice(bytes / 8 - 8)] = dice(4) > 0 ? dice(400) : next_random;
        while (ring_next(&in, &rec, &p) == 1 && limit-- > 0)
            assert_true(rec.bytes + sizeof rec <= out.record_most);
        ring_close(&in);
    }
    free(map);
}

/* ---- Pages --------------------------------------------------------------------------- */

struct page_race {
    uint64_t page[PAGE_WORDS];
    volatile int over;
};

static void *
write_pages(void *arg)
{
    struct page_race *race = arg;

    for (uint64_t i = 1; i < 200000; i++) {
        uint64_t w[PAGE_DAEMON_END] = {0};

        for (int k = PAGE_HEAD_END; k < PAGE_DAEMON_END; k++)
            w[k] = i;
        page_write(race->page, PAGE_OF_DAEMON, w, PAGE_DAEMON_END);
    }
    __atomic_store_n(&race->over, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void
test_pages(void **state)
{
    static struct page_race race;
    uint64_t w[PAGE_WORDS], first[PAGE_DAEMON_END] = {0}, last = 0, torn = 0;
    pthread_t thread;
    int over = 0;

    (void)state;
    assert_int_equal(page_read(race.page, w, 1), -1);
    page_write(race.page, PAGE_OF_DAEMON, first, PAGE_DAEMON_END);
    assert_int_equal(pthread_create(&thread, NULL, write_pages, &race), 0);
    while (!over) {
        over = __atomic_load_n(&race.over, __ATOMIC_ACQUIRE);
        if (page_read(race.page, w, PAGE_WORDS) == -1)
            continue; /* never between two of its writes, for 10,000 times */
        for (int k = PAGE_HEAD_END + 1; k < PAGE_DAEMON_END; k++)
            torn += w[k] != w[PAGE_HEAD_END];
        assert_true(w[PAGE_HEAD_END] >= last);
        assert_int_equal(w[PAGE_DAEMON_END], 0); /* what this writer does not know */
        last = w[PAGE_HEAD_END];
    }
    pthread_join(thread, NULL);
    assert_int_equal(torn, 0);
    assert_int_equal(last, 199999);
    /* A writer that died in the middle. */
    race.page[PAGE_HEAD_SEQ]++;
    assert_int_equal(page_read(race.page, w, PAGE_WORDS), -1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_in_order), cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_writer_stops), cmocka_unit_test(test_second_look),
        cmocka_unit_test(test_two_threads),  cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_pages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
