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
#include "kvstore/arena_dir.h"
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

static bool
model_has(struct extent x)
{
    const size_t end = (x.at + x.bytes) / PAGE;

    if (end > PAGES)
        return false;
    for (size_t i = x.at / PAGE; i < end; i++) {
        if (taken[i])
            return false;
    }
    return true;
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
        const struct extent place = {draw() % PAGES * PAGE, (1 + draw() % 20) * PAGE};
        const uint64_t bytes = 1 + draw() % (draw() % 8 == 0 ? 512 * PAGE : 40 * PAGE);
        const size_t n = (bytes + PAGE - 1) / PAGE;

        if (x->bytes > 0) {
            model_set(*x, false);
            used -= x->bytes;
            arena_give(a, x);
            assert_int_equal(x->bytes, 0);
        } else if (draw() % 4 == 0) { /* there and nowhere else */
            const bool free = model_has(place);

            assert_int_equal(arena_take_at(a, place), free);
            if (free) {
                *x = place;
                model_set(place, true);
                used += place.bytes;
            }
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

/* --- the directory ------------------------------------------------------------------------- */

enum { IMAGES = 3, VOCAB = 100, STATE = 5000, HEAD = 112, ENTRY = 80 };

static const struct kvfile_model model = {.fingerprint = {7},
                                          .layout = 9,
                                          .page_bytes = 1000,
                                          .state_most = STATE,
                                          .vocab = VOCAB};

/* An arena with three images of random bytes, and a directory of them; its memfd. */
static int
leave_some(struct arena_image v[IMAGES], struct extent *table)
{
    static const struct kvfile_about about[IMAGES] = {
        {.type = KVFILE_CHUNK, .id = {{1}}, .pos = 4096, .n_tokens = 1024},
        {.type = KVFILE_STATE,
         .id = {{2}},
         .pos = 777,
         .state_bytes = STATE,
         .logits = true},
        {.type = KVFILE_STATE, .id = {{3}}, .pos = 1, .state_bytes = 8}};
    struct arena *a = new_arena(2 * BLOCK, -1);
    struct arena_image *none;
    struct err e;
    size_t n;
    int fd;

    arena_dir_take(a, &model, &none, &n, &e);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_int_equal(n, 0);
    for (int i = 0; i < IMAGES; i++) {
        struct kvfile_plan plan;

        v[i].about = about[i];
        kvfile_plan(&model, &about[i], &plan);
        assert_true(arena_take(a, plan.bytes, &v[i].at));
        memset(arena_at(a, v[i].at), 0x40 + i, plan.bytes);
    }
    *table = (struct extent){v[2].at.at + v[2].at.bytes, IMAGES * ENTRY};
    assert_int_equal(arena_dir_leave(a, &model, v, IMAGES, &e), 0);
    fd = dup(arena_fd(a));
    arena_close(a);
    return fd;
}

static size_t
find(int fd, const struct kvfile_model *m, struct arena_image **v, struct arena **out,
     struct err *e)
{
    size_t n;

    *out = new_arena(2 * BLOCK, fd);
    arena_dir_take(*out, m, v, &n, e);
    return n;
}

static void
test_directory_is_found_once(void **state)
{
    struct arena_image was[IMAGES], *v;
    struct extent table, x;
    struct arena *a;
    struct err e;
    const int fd = leave_some(was, &table);
    const int once_more = dup(fd);
    uint64_t used = PAGE;

    (void)state;
    assert_int_equal(find(fd, &model, &v, &a, &e), IMAGES);
    assert_int_equal(e.code, ERR_NONE);
    for (int i = 0; i < IMAGES; i++) {
        assert_memory_equal(&v[i].about.id, &was[i].about.id, sizeof v[i].about.id);
        assert_int_equal(v[i].about.type, was[i].about.type);
        assert_int_equal(v[i].about.pos, was[i].about.pos);
        assert_int_equal(v[i].about.n_tokens, was[i].about.n_tokens);
        assert_int_equal(v[i].about.state_bytes, was[i].about.state_bytes);
        assert_int_equal(v[i].about.logits, was[i].about.logits);
        assert_int_equal(v[i].at.at, was[i].at.at);
        assert_int_equal(v[i].at.bytes, was[i].at.bytes);
        assert_int_equal(arena_at(a, v[i].at)[v[i].at.bytes - 1], 0x40 + i);
        assert_false(arena_take_at(a, v[i].at));
        used += v[i].at.bytes;
    }
    assert_int_equal(arena_used(a), used);
    assert_true(
        arena_take(a, PAGE, &x)); /* its table is gone, its head's page is not free */
    assert_int_equal(x.at, table.at);
    free(v);
    arena_close(a);
    assert_int_equal(find(once_more, &model, &v, &a, &e), 0);
    assert_int_equal(e.code, ERR_NOT_FOUND); /* whoever took it may have crashed since */
    assert_null(v);
    arena_close(a);
}

/* Nothing of a directory is believed if a byte of it, or of an image's head, is another. */
static void
test_directory_with_a_flip(void **state)
{
    struct arena_image was[IMAGES], *v;
    struct extent table;
    struct arena *a;
    struct err e;

    (void)state;
    for (uint64_t i = 0; i < HEAD + IMAGES * ENTRY + IMAGES; i++) {
        const int fd = leave_some(was, &table);
        const uint64_t at = i < HEAD ? i
                            : i - HEAD < IMAGES * ENTRY
                                ? table.at + i - HEAD
                                : was[i - HEAD - IMAGES * ENTRY].at.at + 99;
        uint8_t byte;

        assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
        byte ^= (uint8_t)(1u << draw() % 8);
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
        assert_int_equal(find(fd, &model, &v, &a, &e), 0);
        assert_int_equal(e.code, i < 8 ? ERR_NOT_FOUND : ERR_DAMAGED);
        assert_int_equal(arena_used(a), PAGE);
        arena_close(a);
    }
}

static void
test_directory_of_another_model(void **state)
{
    struct kvfile_model other = model;
    struct arena_image was[IMAGES], *v;
    struct extent table;
    struct arena *a;
    struct err e;

    (void)state;
    other.fingerprint[31] = 1;
    assert_int_equal(find(leave_some(was, &table), &other, &v, &a, &e), 0);
    assert_int_equal(e.code, ERR_MODEL_MISMATCH);
    arena_close(a);
    other = model;
    other.layout++;
    assert_int_equal(find(leave_some(was, &table), &other, &v, &a, &e), 0);
    assert_int_equal(e.code, ERR_MODEL_MISMATCH);
    arena_close(a);
}

/* Well hashed, and still not so: what could only be made by somebody who wants it. */
static void
test_directory_that_lies(void **state)
{
    struct arena_image v[IMAGES], *found;
    struct extent table;
    struct arena *a;
    struct err e;

    (void)state;
    for (int lie = 0; lie < 6; lie++) {
        const int fd = leave_some(v, &table), copy = dup(fd);

        assert_int_equal(find(fd, &model, &found, &a, &e), IMAGES);
        switch (lie) {
        case 0: v[1].at = v[0].at; break;
        case 1: v[2].at = (struct extent){0, 2 * PAGE}; break;
        case 2: v[0].about.n_tokens = KVFILE_CHUNK_TOKENS; break;
        case 3: v[1].about.state_bytes = STATE + 1; break;
        case 4: v[1].about.type = (enum kvfile_type)9; break;
        default: v[2].at.bytes--;
        }
        assert_int_equal(arena_dir_leave(a, &model, v, IMAGES, &e), 0);
        free(found);
        arena_close(a);
        assert_int_equal(find(copy, &model, &found, &a, &e), 0);
        assert_int_equal(e.code, ERR_DAMAGED);
        assert_int_equal(arena_used(a), PAGE);
        arena_close(a);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_size_seals_and_errors),
        cmocka_unit_test(test_takeover),
        cmocka_unit_test(test_random_against_model),
        cmocka_unit_test(test_directory_is_found_once),
        cmocka_unit_test(test_directory_with_a_flip),
        cmocka_unit_test(test_directory_of_another_model),
        cmocka_unit_test(test_directory_that_lies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
