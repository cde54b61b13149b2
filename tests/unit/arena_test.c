/* SPDX-License-Identifier: Apache-2.0 */
/* The arena against a model that knows of each 4,096 bytes whether they are taken. */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/arena.h"
#include "tests/test.h"

enum { PAGE = 4096, BLOCK = 2 << 20, PAGES = 8 * BLOCK / PAGE, SLOTS = 200, TURNS = 60000 };

static struct arena *
new_arena(uint64_t bytes, int fd)
{
    struct arena *a = NULL;
    struct err e;

    assert_int_equal(arena_open(bytes, fd, &a, &e), 0);
    assert_non_null(a);
    return a;
}

static void
test_size_seals_and_errors(void **state)
{
    struct arena *a = new_arena(BLOCK + 1, -1), *none = NULL;
    struct extent x = {0};
    struct err e;

    (void)state;
    assert_int_equal(arena_bytes(a), 2 * BLOCK);
    assert_int_equal(arena_used(a), 0);
    assert_int_equal(ftruncate(arena_fd(a), BLOCK), -1);
    assert_int_equal(ftruncate(arena_fd(a), 4 * (off_t)BLOCK), -1);
    assert_int_equal(fcntl(arena_fd(a), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(fcntl(arena_fd(a), F_ADD_SEALS, F_SEAL_WRITE), -1);
    assert_false(arena_take(a, 0, &x));
    assert_false(arena_take(a, 2 * BLOCK + 1, &x));
    assert_false(arena_take(a, UINT64_MAX, &x));
    arena_give(a, &x); /* none is fine */
    assert_true(arena_take(a, 2 * BLOCK, &x));
    memset(arena_at(a, x), 0x5a, 2 * BLOCK);
    arena_give(a, &x);
    assert_int_equal(x.bytes, 0);
    arena_close(a);
    arena_close(NULL);
    assert_int_equal(arena_open(0, -1, &none, &e), -1);
    assert_int_equal(arena_open(UINT64_MAX, -1, &none, &e), -1);
    assert_int_equal(arena_open(UINT64_C(1) << 62, -1, &none, &e), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    assert_null(none);
}

/* What an earlier daemon left is taken over with what is in it; anything else is not. */
static void
test_takeover(void **state)
{
    struct arena *a = new_arena(2 * BLOCK, -1), *b;
    struct extent x;
    int fd, other;

    (void)state;
    assert_true(arena_take(a, PAGE, &x));
    memcpy(arena_at(a, x), "still here", 11);
    fd = dup(arena_fd(a));
    arena_close(a);
    b = new_arena(2 * BLOCK, fd);
    assert_int_equal(arena_fd(b), fd);
    assert_string_equal((char *)arena_at(b, (struct extent){0, PAGE}), "still here");
    fd = dup(arena_fd(b));
    arena_close(b);

    b = new_arena(4 * BLOCK,
                  fd); /* of another size: a new one, and the old one is closed */
    assert_int_equal(arena_bytes(b), 4 * BLOCK);
    assert_int_equal(arena_at(b, (struct extent){0, PAGE})[0], 0);
    arena_close(b);

    other = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(other, 2 * BLOCK), 0);
    b = new_arena(2 * BLOCK, other);
    assert_int_equal(fcntl(arena_fd(b), F_GET_SEALS) & F_SEAL_SHRINK, F_SEAL_SHRINK);
    arena_close(b);
}

static uint64_t seed = 88172645463325252ull;

static uint64_t
draw(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static bool taken[PAGES];

/* Where first fit puts it; PAGES: nowhere. */
static size_t
model_fit(size_t n)
{
    size_t run = 0;

    for (size_t i = 0; i < PAGES; i++) {
        run = taken[i] ? 0 : run + 1;
        if (run == n)
            return i + 1 - n;
    }
    return PAGES;
}

static void
model_set(struct extent x, bool to)
{
    for (size_t i = x.at / PAGE; i < (x.at + x.bytes) / PAGE; i++) {
        assert_int_equal(taken[i], !to);
        taken[i] = to;
    }
}

static void
test_random_against_model(void **state)
{
    struct arena *a = new_arena((uint64_t)PAGES * PAGE, -1);
    struct extent slots[SLOTS] = {0};
    uint64_t used = 0;
    size_t refused = 0;

    (void)state;
    for (int i = 0; i < TURNS; i++) {
        struct extent *x = &slots[draw() % SLOTS];
        const uint64_t bytes = 1 + draw() % (draw() % 8 == 0 ? 512 * PAGE : 40 * PAGE);
        const size_t n = (bytes + PAGE - 1) / PAGE;

        if (x->bytes > 0) {
            model_set(*x, false);
            used -= x->bytes;
            arena_give(a, x);
            assert_int_equal(x->bytes, 0);
        } else {
            const size_t at = model_fit(n);

            assert_int_equal(arena_take(a, bytes, x), at < PAGES);
            if (at == PAGES) {
                refused++;
                continue;
            }
            assert_int_equal(x->at, at * PAGE);
            assert_int_equal(x->bytes, n * PAGE);
            model_set(*x, true);
            used += x->bytes;
        }
        assert_int_equal(arena_used(a), used);
    }
    assert_true(refused > 100); /* it was full at times */
    for (size_t i = 0; i < SLOTS; i++)
        arena_give(a, &slots[i]);
    assert_int_equal(arena_used(a), 0);
    assert_true(arena_take(a, (uint64_t)PAGES * PAGE, &slots[0])); /* one hole again */
    arena_close(a);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_size_seals_and_errors),
        cmocka_unit_test(test_takeover),
        cmocka_unit_test(test_random_against_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
