/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_CANDIDATES_H
#define MODEL_CANDIDATES_H

#include <stdbool.h>
#include <stdint.h>

/*
 * The best tokens of a row, as many as somebody asks for. Better is: the larger logit, or the same
 * and the lower id. Sorting 129,280 of them for one that is drawn would cost more than the model's
 * own step: those far below the best are not even looked at until they count, and of the others
 * only the few around the one that is asked for are put in order. Weights are integers, so their
 * sums do not depend on the order in which they are added.
 */
struct candidate {
    uint64_t w; /* logits_weights, not 0 */
    float x;
    uint32_t id;
};

struct candidates {
    /* The row, by the caller: f32 [vocab] as logits_clean leaves it, with the largest of each block
     * (or more), the largest of all, a finite number, and 1 / temperature. */
    const float *x, *block_max;
    uint32_t vocab;
    float max;
    double scale;
    struct candidate *c; /* [vocab] */

    uint32_t n;   /* in c; none of the others is better */
    uint64_t sum; /* of their w */
    bool all;     /* gathered: there are no others */
};

/* Puts those with w >= least into c, in place of what is there; 1: all that have any. */
void candidates_gather(struct candidates *k, uint64_t least);

/* Leaves the fewest best ones in c whose w come to `sum`; at least one; all if they do not. The
 * worst of them is the last; the others are in no order. */
void candidates_cut(struct candidates *k, uint64_t sum);
void candidates_keep(struct candidates *k, uint32_t n);     /* the n best, likewise */
void candidates_drop(struct candidates *k, uint64_t least); /* those with w < least */

#endif /* MODEL_CANDIDATES_H */
