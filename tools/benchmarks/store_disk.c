/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the store's results are shares of. The disk is measured by the store's own calls
 * (kvstore/io.h), past the page cache, in pieces so large that only the disk matters.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "tools/benchmarks/samples.h"
#include "tools/benchmarks/store.h"

enum {
    PIECE = 128 << 20,
    PIECES = 4,
    STREAMS = 2, /* one alone does not get all out of a virtual disk */
    ROUNDS = 3,
    SYNCS = 100,
    BLOCK = 4096
};

struct stream {
    struct io *io;
    uint8_t *p;
    pthread_t thread;
    int h;
    bool writes;
    bool failed;
    struct err err;
};

static void *
run_stream(void *arg)
{
    struct stream *s = arg;

    for (uint64_t i = 0; i < PIECES && !s->failed; i++) {
        const uint64_t at = i * PIECE;

        if (s->writes)
            s->failed = s->io->ops->write_bulk(s->io, s->h, s->p, PIECE, at, &s->err) == -1;
        else
            s->failed = s->io->ops->read_bulk(s->io, s->h, s->p, PIECE, at, &s->err) == -1;
    }
    if (s->writes && !s->failed)
        s->failed = s->io->ops->sync(s->io, s->h, &s->err) == -1;
    return NULL;
}

/* n streams, each with a file and memory of its own, write or read all of it. */
static int
measure_streams(struct stream *all, int n, bool writes, struct samples *out, struct err *e)
{
    const double began = bench_now();
    int made = 0, rc = 0;

    for (; made < n; made++) {
        all[made].writes = writes;
        if (pthread_create(&all[made].thread, NULL, run_stream, &all[made]) != 0) {
            rc = err_set(e, ERR_QUOTA, 0, "no thread for a benchmark");
            break;
        }
    }
    for (int i = 0; i < made; i++) {
        pthread_join(all[i].thread, NULL);
        if (all[i].failed) {
            *e = all[i].err;
            rc = -1;
        }
    }
    samples_add(out, (double)PIECE * PIECES * n / (bench_now() - began));
    return rc;
}

/* The best of all rounds, with one stream and with more: shares of it are the least they can be. */
static int
measure_bulk(struct io *io, uint8_t *p, double *write, double *read, struct err *e)
{
    struct stream all[STREAMS] = {0};
    struct samples writes = {.n = 0}, reads = {.n = 0};
    char name[16];
    int rc = 0;

    for (int i = 0; i < STREAMS && rc == 0; i++) {
        snprintf(name, sizeof name, "bulk-%d", i);
        all[i].io = io;
        all[i].p = p + (size_t)i * PIECE;
        all[i].h =
            io->ops->open(io, name, IO_WRITE | IO_CREATE | IO_EXCLUSIVE | IO_DIRECT, e);
        rc = all[i].h == -1 ? -1
                            : io->ops->reserve(io, all[i].h, (uint64_t)PIECE * PIECES, e);
    }
    for (int i = 0; i < ROUNDS * STREAMS && rc == 0; i++) {
        rc = measure_streams(all, 1 + i % STREAMS, true, &writes, e);
        if (rc == 0)
            rc = measure_streams(all, 1 + i % STREAMS, false, &reads, e);
    }
    for (int i = 0; i < STREAMS; i++) {
        struct err ignored;

        snprintf(name, sizeof name, "bulk-%d", i);
        if (all[i].io != NULL && all[i].h != -1)
            io->ops->close(io, all[i].h);
        io->ops->unlink(io, name, &ignored);
    }
    *write = samples_max(&writes);
    *read = samples_max(&reads);
    return rc;
}

static int
measure_sync(struct io *io, const uint8_t *p, double *median, struct err *e)
{
    const int h = io->ops->open(io, "syncs", IO_WRITE | IO_CREATE | IO_EXCLUSIVE, e);
    struct samples s = {.n = 0};
    int rc = 0;

    if (h == -1)
        return -1;
    for (int i = 0; i < SYNCS && rc == 0; i++) {
        const double t = bench_now();

        rc = io->ops->write(io, h, p, BLOCK, (uint64_t)i * BLOCK, e);
        if (rc == 0)
            rc = io->ops->sync(io, h, e);
        samples_add(&s, bench_now() - t);
    }
    io->ops->close(io, h);
    *median = samples_median(&s);
    return rc == 0 ? io->ops->unlink(io, "syncs", e) : -1;
}

static double
measure_copy(uint8_t *p, size_t bytes)
{
    struct samples s = {.n = 0};

    for (int i = 0; i < 9; i++) {
        const double t = bench_now();

        memcpy(p + (i % 2 == 0 ? bytes / 2 : 0), p + (i % 2 == 0 ? 0 : bytes / 2),
               bytes / 2);
        samples_add(&s, (double)(bytes / 2) / (bench_now() - t));
    }
    return samples_max(&s);
}

int
disk_measure(const char *dir, struct disk_rates *out, struct err *e)
{
    const size_t bytes = 512 << 20;
    struct io *io = io_open_root(dir, true, e);
    uint8_t *p = aligned_alloc(1 << 21, bytes);
    uint64_t x = 88172645463325252;
    int rc = io == NULL ? -1 : 0;

    if (p == NULL)
        rc = err_set(e, ERR_QUOTA, errno, "no memory for a benchmark");
    /* Into scattered pages of 4 KiB a disk behind virtio reads at a third of its rate. */
    if (rc == 0)
        madvise(p, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; rc == 0 && i < bytes; i += sizeof x) { /* no disk can squeeze it */
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(p + i, &x, sizeof x);
    }
    if (rc == 0)
        rc = measure_bulk(io, p, &out->write, &out->read, e);
    if (rc == 0)
        rc = measure_sync(io, p, &out->sync, e);
    if (rc == 0) {
        snprintf(out->how, sizeof out->how, "%s", io_bulk_name(io));
        out->copy = measure_copy(p, bytes);
    }
    free(p);
    io_close_root(io);
    return rc;
}
