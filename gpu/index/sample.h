/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_SAMPLE_H
#define GPU_INDEX_SAMPLE_H

#include "base/index_t.h"

/*
 * The draw (gpu/cuda/sample.cu): a row of logits in slices, a block each; a row's scratch memory;
 * bins of a block's threads. See gpu/index.h for what this text is.
 */
enum {
    SAMPLE_THREADS = 512,
    SAMPLE_BINS = 1024,
    SAMPLE_OWN = SAMPLE_BINS / SAMPLE_THREADS,
    SAMPLE_READERS = 4, /* threads that read a slice's members of a bin */
    SAMPLE_FOUND = 16,  /* bytes of what is known of a slice */
    SAMPLE_TOTALS = 24, /* and of a row */
};

/* A row's scratch memory, by offsets in bytes. */
struct sample_plan {
    INDEX_T sum, part, all, count, end, bytes;
};

/* slice: logits of one. */
INDEX_FN struct sample_plan
sample_plan_for(INDEX_T slices, INDEX_T slice)
{
    struct sample_plan p;

    p.sum = slices * slice * 8;                 /* behind the list: u64 [slices][slice] */
    p.part = p.sum + SAMPLE_BINS * 8;           /* u64 [BINS] */
    p.all = p.part + slices * SAMPLE_FOUND;     /* [slices] */
    p.count = p.all + SAMPLE_TOTALS;            /* one */
    p.end = p.count + SAMPLE_BINS * 4;          /* u32 [BINS] */
    p.bytes = p.end + slices * SAMPLE_BINS * 2; /* u16 [slices][BINS] */
    p.bytes = (p.bytes + 15) / 16 * 16;
    return p;
}

/* Number i of a thread's bins. */
INDEX_FN INDEX_INT
sample_bin(INDEX_INT thread, INDEX_INT i)
{
    return thread * SAMPLE_OWN + i;
}

#endif /* GPU_INDEX_SAMPLE_H */
