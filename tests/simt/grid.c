/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A grid, block after block (cluster after cluster): who runs next, who waits for whom, and shared
 * memory. A fiber runs until it must wait; pick() then names the next one by the order that is set.
 *
 * `__shared__` variables lie in one section of the program, which belongs to the block that runs;
 * the other blocks of its cluster have theirs in an image, and are mapped there.
 */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/simt/fiber.h"
#include "tests/simt/simt.h"

enum { WARPS = SIMT_MAX_THREADS / SIMT_WARP };

struct warp {
    uint32_t ready, alive, at_block, at_cluster; /* bits of lanes */
    uint32_t waiting, mask;                      /* for op: who has come, who must */
    simt_op *op;
    void *brought[SIMT_WARP];
};

struct block {
    struct warp warp[WARPS];
    uint32_t ready; /* warps with lanes that are */
    unsigned alive, at_barrier, at_cluster;
    struct simt_dim at;
    uint8_t *image, *dynamic;
    bool waited;
};

struct simt_dim simt_thread_at, simt_block_at, simt_block_size, simt_grid_size;

/* The section, as the linker names its ends; there may be no such variable. */
extern uint8_t __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern uint8_t __stop_simt_shared[] __attribute__((weak, visibility("hidden")));

/* Behind a block's dynamic memory; AddressSanitizer sees to that itself. */
#ifdef __SANITIZE_ADDRESS__
enum { GUARD = 0 };
#else
enum { GUARD = 4096 };
#endif

static enum simt_order order;
static uint64_t random_state = 1;
static const struct simt_launch *launch;
static struct block *blocks;   /* of the cluster that runs, [SIMT_MAX_CLUSTER] */
static struct block *block;    /* whose threads run */
static unsigned n_blocks, now; /* now: thread of `block` */
static struct fiber *fibers;   /* [cluster][threads] */
static char problem[512];

void
simt_set_order(enum simt_order o, uint64_t seed)
{
    order = o;
    random_state = seed * 2 + 1;
}

const char *
simt_problem(void)
{
    return problem;
}

static uint64_t
drawn(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 11;
}

/* One of the bits that are set, by the order. */
static unsigned
choose(uint32_t bits)
{
    uint32_t some;

    switch (order) {
    case SIMT_FORWARD: return (unsigned)__builtin_ctz(bits);
    case SIMT_REVERSE: return 31 - (unsigned)__builtin_clz(bits);
    default:
        some = bits & (uint32_t)drawn();
        return (unsigned)__builtin_ctz(some != 0 ? some : bits);
    }
}

static struct fiber *
fiber_of(const struct block *b, unsigned thread)
{
    return &fibers[(size_t)(b - blocks) * launch->threads + thread];
}

/* memcpy and memset would stumble over the gaps that AddressSanitizer keeps between variables. */
__attribute__((no_sanitize("address"), noinline)) static void
copy(volatile uint64_t *to, const volatile uint64_t *from, size_t bytes)
{
    for (size_t i = 0; i < bytes / 8; i++)
        to[i] = from != NULL ? from[i] : UINT64_MAX;
}

static size_t
section_bytes(void)
{
    return (size_t)(__stop_simt_shared - __start_simt_shared) / 8 * 8;
}

static void
enter_block(struct block *b)
{
    if (b == block)
        return;
    if (n_blocks > 1) {
        if (block != NULL)
            copy((uint64_t *)block->image, (uint64_t *)__start_simt_shared,
                 section_bytes());
        copy((uint64_t *)__start_simt_shared, (uint64_t *)b->image, section_bytes());
    }
    block = b;
    simt_block_at = b->at;
}

/* Ends the grid: no fiber of it goes on. */
__attribute__((format(printf, 1, 2))) static void
give_up(const char *format, ...)
{
    struct fiber *self = block != NULL ? fiber_of(block, now) : NULL;
    const char *slash = strrchr(launch->file, '/');
    va_list list;
    int n = snprintf(problem, sizeof problem, "kernel launched at %s:%d, block %u %u %u: ",
                     slash != NULL ? slash + 1 : launch->file, launch->line,
                     simt_block_at.x, simt_block_at.y, simt_block_at.z);

    va_start(list, format);
    vsnprintf(problem + n, sizeof problem - (size_t)n, format, list);
    va_end(list);
    fprintf(stderr, "# simt: %s\n", problem);
    if (self != NULL)
        fiber_switch(self, &fiber_home, 1);
}

/* Nobody can go on: how many wait where, and the first of each. */
__attribute__((noinline)) static void
stuck(void)
{
    unsigned n[3] = {0}, first[3] = {0};

    for (unsigned t = launch->threads; t-- > 0;) {
        const struct warp *w = &block->warp[t / SIMT_WARP];
        const uint32_t at[3] = {w->at_block, w->at_cluster, w->waiting};

        for (int i = 0; i < 3; i++)
            if (at[i] >> t % SIMT_WARP & 1) {
                n[i]++;
                first[i] = t;
            }
    }
    give_up(
        "threads wait for others that do not come: %u at a barrier (%u first), %u at one "
        "of the cluster (%u), %u at an operation of their warp (%u)",
        n[0], first[0], n[1], first[1], n[2], first[2]);
}

/* The next fiber runs, from fiber `self`; home if all are done. This frame and thread()'s are left
 * for good when a thread ends, and must leave no marks of AddressSanitizer's behind. */
__attribute__((no_sanitize("address"))) static void
go_on(struct fiber *self, int ended)
{
    unsigned w;

    if (block->ready == 0) {
        struct block *next = NULL;

        for (unsigned i = 0; i < n_blocks; i++) {
            struct block *b = &blocks[order == SIMT_FORWARD ? i : n_blocks - 1 - i];

            if (b->ready != 0 && (next == NULL || (order == SIMT_RANDOM && drawn() % 2)))
                next = b;
        }
        if (next == NULL) {
            for (unsigned i = 0; i < n_blocks; i++)
                if (blocks[i].alive > 0) {
                    enter_block(&blocks[i]);
                    stuck();
                }
            fiber_switch(self, &fiber_home, ended);
            return;
        }
        enter_block(next);
    }
    /* the warp that runs goes on while it can */
    w = now / SIMT_WARP;
    if (order == SIMT_RANDOM || !(block->ready >> w & 1))
        w = choose(block->ready);
    now = w * SIMT_WARP + choose(block->warp[w].ready);
    simt_thread_at.x = now;
    if (fiber_of(block, now) != self)
        fiber_switch(self, fiber_of(block, now), ended);
}

static void
set_ready(struct block *b, unsigned w, uint32_t lanes)
{
    b->warp[w].ready |= lanes;
    if (b->warp[w].ready != 0)
        b->ready |= 1u << w;
}

static void
not_ready(unsigned w, uint32_t lanes)
{
    block->warp[w].ready &= ~lanes;
    if (block->warp[w].ready == 0)
        block->ready &= ~(1u << w);
}

/* Back when it is this thread's turn again. */
static void
yield(void)
{
    go_on(fiber_of(block, now), 0);
}

static void
open_barrier(struct block *b)
{
    if (b->at_barrier == 0 || b->at_barrier < b->alive)
        return;
    b->at_barrier = 0;
    for (unsigned w = 0; w < WARPS; w++) {
        set_ready(b, w, b->warp[w].at_block);
        b->warp[w].at_block = 0;
    }
}

static void
open_cluster(void)
{
    unsigned alive = 0, come = 0;

    for (unsigned i = 0; i < n_blocks; i++) {
        alive += blocks[i].alive;
        come += blocks[i].at_cluster;
    }
    if (come == 0 || come < alive)
        return;
    for (unsigned i = 0; i < n_blocks; i++) {
        struct block *b = &blocks[i];

        b->at_cluster = 0;
        for (unsigned w = 0; w < WARPS; w++) {
            set_ready(b, w, b->warp[w].at_cluster);
            b->warp[w].at_cluster = 0;
        }
    }
}

void
simt_block_barrier(void)
{
    const unsigned w = now / SIMT_WARP;

    not_ready(w, 1u << now % SIMT_WARP);
    block->warp[w].at_block |= 1u << now % SIMT_WARP;
    block->at_barrier++;
    open_barrier(block);
    yield();
}

void
simt_cluster_barrier(void)
{
    const unsigned w = now / SIMT_WARP;

    not_ready(w, 1u << now % SIMT_WARP);
    block->warp[w].at_cluster |= 1u << now % SIMT_WARP;
    block->at_cluster++;
    open_cluster();
    yield();
}

void
simt_together(simt_op *op, uint32_t mask, void *bring)
{
    struct warp *w = &block->warp[now / SIMT_WARP];
    const uint32_t me = 1u << now % SIMT_WARP;

    if ((mask & w->alive) != mask || !(mask & me))
        give_up("thread %u: lanes %08x shall work together, there are %08x", now, mask,
                w->alive);
    if (w->waiting != 0 && (w->op != op || w->mask != mask))
        give_up("thread %u is at another operation than lanes %08x of its warp", now,
                w->waiting);
    w->op = op;
    w->mask = mask;
    w->brought[now % SIMT_WARP] = bring;
    w->waiting |= me;
    not_ready(now / SIMT_WARP, me);
    if (w->waiting == mask) {
        op(w->brought, mask);
        w->waiting = 0;
        set_ready(block, now / SIMT_WARP, mask);
    }
    yield();
}

static void
thread_ends(void)
{
    struct warp *w = &block->warp[now / SIMT_WARP];
    const uint32_t me = 1u << now % SIMT_WARP;

    if (simt_copies_left() > 0)
        give_up("thread %u ends while copies of it are under way", now);
    if (w->waiting != 0 && (w->mask & me))
        give_up("thread %u ends while lanes %08x of its warp wait for it", now, w->waiting);
    w->alive &= ~me;
    not_ready(now / SIMT_WARP, me);
    block->alive--;
    open_barrier(block);
    open_cluster();
    if (block->alive == 0 && n_blocks > 1) { /* nobody may look at what it had */
        memset(block->dynamic, 0xff, launch->shared);
        copy((uint64_t *)__start_simt_shared, NULL, section_bytes());
    }
}

__attribute__((no_sanitize("address"))) static void
thread(void)
{
    fiber_entered();
    launch->thread(launch->args);
    thread_ends();
    go_on(fiber_of(block, now), 1);
    abort();
}

void
simt_waited(void)
{
    block->waited = true;
}

void *
simt_dynamic(void)
{
    return block->dynamic;
}

unsigned
simt_rank(void)
{
    return (unsigned)(block - blocks);
}

unsigned
simt_lane(void)
{
    return now % SIMT_WARP;
}

void *
simt_of_rank(const void *shared, unsigned rank)
{
    const uint8_t *p = shared;

    if (rank >= n_blocks)
        give_up("thread %u: block %u of a cluster of %u", now, rank, n_blocks);
    if (&blocks[rank] == block)
        return (void *)(uintptr_t)p;
    if (blocks[rank].alive == 0)
        give_up("thread %u looks at a block that has ended", now);
    if (p >= __start_simt_shared && p < __stop_simt_shared)
        return blocks[rank].image + (p - __start_simt_shared);
    if (p < block->dynamic || p >= block->dynamic + launch->shared)
        give_up("thread %u: what it maps to block %u is not shared", now, rank);
    return blocks[rank].dynamic + (p - block->dynamic);
}

/* Block i of the grid begins as number k of those that run. */
static void
begin_block(struct block *b, unsigned k, uint64_t i)
{
    uint8_t *const image = b->image, *const dynamic = b->dynamic;

    *b = (struct block){.image = image, .dynamic = dynamic, .alive = launch->threads};
    b->at.x = (unsigned)(i % launch->grid.x);
    b->at.y = (unsigned)(i / launch->grid.x % launch->grid.y);
    b->at.z = (unsigned)(i / launch->grid.x / launch->grid.y);
    for (unsigned t = 0; t < launch->threads; t++) {
        b->warp[t / SIMT_WARP].alive |= 1u << t % SIMT_WARP;
        fiber_begin(&fibers[(size_t)k * launch->threads + t], thread);
    }
    for (unsigned w = 0; w < WARPS; w++)
        set_ready(b, w, b->warp[w].alive);
    simt_copies_begin(k, launch->threads);
    memset(b->dynamic, 0xff, launch->shared + GUARD);
    if (n_blocks > 1)
        copy((uint64_t *)b->image, NULL, section_bytes());
}

static bool
guarded(const struct block *b)
{
    const uint8_t *guard = b->dynamic + launch->shared;

    for (int i = 0; i < GUARD; i++)
        if (guard[i] != 0xff)
            return false;
    return true;
}

/* Blocks first .. first + n_blocks - 1, in neighbouring places of x. */
static void
run_blocks(uint64_t first)
{
    for (unsigned k = 0; k < n_blocks; k++)
        begin_block(&blocks[k], k, first + k);
    copy((uint64_t *)__start_simt_shared, NULL, section_bytes());
    block = NULL;
    enter_block(&blocks[order == SIMT_FORWARD ? 0 : n_blocks - 1]);
    now = order == SIMT_FORWARD ? 0 : launch->threads - 1;
    go_on(&fiber_home, 0);
    for (unsigned k = 0; k < n_blocks && problem[0] == '\0'; k++) {
        block = NULL;
        simt_block_at = blocks[k].at;
        if (launch->overlaps && !blocks[k].waited)
            give_up("no thread has called pdl_wait");
        else if (!guarded(&blocks[k]))
            give_up("something behind %zu bytes of shared memory is written",
                    launch->shared);
    }
}

static void
run_grid(void)
{
    const uint64_t all = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z;
    const uint64_t groups = all / n_blocks;

    for (uint64_t i = 0; i < groups && problem[0] == '\0'; i++)
        run_blocks((order == SIMT_REVERSE ? groups - 1 - i : i) * n_blocks);
}

bool
simt_run(const struct simt_launch *l)
{
    const size_t n = (size_t)l->threads * l->cluster, room = l->shared > 0 ? l->shared : 1;
    bool ok = true;

    launch = l;
    n_blocks = l->cluster;
    problem[0] = '\0';
    simt_block_size = (struct simt_dim){l->threads, 1, 1};
    simt_grid_size = l->grid;
    simt_thread_at = (struct simt_dim){0, 0, 0};
    fibers = fiber_some(n);
    blocks = calloc(l->cluster, sizeof *blocks);
    if (fibers == NULL || blocks == NULL)
        abort();
    for (unsigned k = 0; k < l->cluster; k++) {
        blocks[k].image = malloc(section_bytes() + 8);
        if (posix_memalign((void **)&blocks[k].dynamic, 128, room + GUARD) != 0 ||
            blocks[k].image == NULL)
            abort();
    }
    run_grid();
    ok = problem[0] == '\0';
    fiber_forget(fibers, n);
    for (unsigned k = 0; k < l->cluster; k++) {
        free(blocks[k].image);
        free(blocks[k].dynamic);
    }
    free(blocks);
    blocks = block = NULL;
    return ok;
}
