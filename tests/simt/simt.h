/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SIMT_SIMT_H
#define TESTS_SIMT_SIMT_H

/*
 * CUDA kernels run on the host, for tests: gpu/cuda/x.cu is compiled as C++ with the headers of
 * tests/simt/device before CUDA's own, and linked with this instead of the CUDA runtime.
 *
 * A thread of a kernel is a fiber. Fibers run one at a time and change only where threads wait for
 * each other: barriers, and operations of a warp, which are done once for all lanes when the last
 * one has come. Which of those that could run is next is a rule (enum simt_order), so that code
 * that lacks a barrier gives another answer under another rule. Blocks run one after another, the
 * blocks of a cluster together. Shared memory has 0xff in every byte when a block begins.
 *
 * What it shows: indices (with AddressSanitizer each access that leaves device or shared memory),
 * arithmetic, waiting under the orders that are tried. What it cannot show: what a weaker memory
 * lets threads see, the order in which tensor cores add up, speed.
 *
 * One thread uses all of it, as one thread uses the CUDA backend.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SIMT_WARP = 32,
    SIMT_MAX_THREADS = 1024,
    SIMT_MAX_CLUSTER = 16,
    SIMT_SMS = 4,                  /* a small device: grids made by its size stay small */
    SIMT_SHARED_MOST = 227 * 1024, /* of a block, as compute capability 9.0 has it */
    SIMT_SHARED_PLAIN = 48 * 1024, /* without being allowed more */
};

/* Who is next: warps, lanes and blocks in ascending or descending order, or drawn. */
enum simt_order { SIMT_FORWARD, SIMT_REVERSE, SIMT_RANDOM };

struct simt_dim {
    unsigned x, y, z;
};

struct simt_launch {
    void (*thread)(const void *args); /* what one thread of the kernel does */
    const void *args;
    size_t bytes;     /* of args; they are copied */
    const char *file; /* where it is launched: its name in messages */
    int line;
    struct simt_dim grid;
    unsigned threads, cluster; /* cluster: 1 for none */
    size_t shared;             /* dynamic, bytes */
    bool overlaps;             /* every block must call pdl_wait */
};

/* What threads look at: threadIdx and so on. */
extern struct simt_dim simt_thread_at, simt_block_at, simt_block_size, simt_grid_size;

/* grid.c. Runs all of it; false: it came to no end, and simt_problem() says who waits where. */
bool simt_run(const struct simt_launch *l);
const char *simt_problem(void);
void simt_set_order(enum simt_order order, uint64_t seed);

/* Called by the threads of a kernel. */
void simt_block_barrier(void);
void simt_cluster_barrier(void);
void simt_waited(void); /* pdl_wait */
void *simt_dynamic(void);
void *simt_of_rank(const void *shared, unsigned rank); /* the same place of another block */
unsigned simt_rank(void);
unsigned simt_lane(void);

/* All lanes of mask come here with the same op; it is done once, on what each has brought. */
typedef void simt_op(void *const *brought, uint32_t mask);
void simt_together(simt_op *op, uint32_t mask, void *bring);

/* warp.c: operations of a warp */
struct simt_exchange {
    uint64_t value; /* in: mine; out: that of lane `from` */
    unsigned from;
};

struct simt_match {
    int value;
    uint32_t same; /* out: lanes with that value */
};

struct simt_extremes {
    uint32_t value, least, most; /* out: of all */
};

struct simt_mma { /* as PTX has mma.m16n8k16 */
    float *c;
    const uint32_t *a;
    uint32_t b[2];
};

struct simt_matrices { /* as PTX has ldmatrix.x4 */
    uint32_t *to;
    const void *row;
};

simt_op simt_sync_op, simt_exchange_op, simt_match_op, simt_extremes_op, simt_mma_op,
    simt_ldmatrix_op, simt_ldmatrix_trans_op;
uint32_t simt_ballot(uint32_t mask, bool yes);

/* copies.c: 16 bytes (or zeros) to shared memory, as cp.async does it. Nothing is there before
 * simt_copies_wait, and then all groups of this thread but so many. */
void simt_copy(void *to, const void *from, bool there);
void simt_copies_close(void);
void simt_copies_wait(unsigned groups);
unsigned simt_copies_left(void); /* of this thread, which ends: there must be none */
void simt_copies_begin(unsigned rank, unsigned threads); /* a block's: none yet */

/* runtime.c: put on a stream (a cudaStream_t); a cudaError_t. */
int simt_launch_on(void *stream, const struct simt_launch *l);
int simt_allow_shared(const void *kernel, size_t bytes);
int simt_may_have_shared(const void *kernel, size_t bytes);

/* How streams go on: late, only when somebody waits for them, or at once. */
void simt_set_late(bool late);

/* The n-th piece of work from now on ends the device, as a kernel that traps does; 0: none. */
void simt_set_trap(long n);

#ifdef __cplusplus
}
#endif

#endif /* TESTS_SIMT_SIMT_H */
