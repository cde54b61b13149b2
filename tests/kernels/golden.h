/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KERNELS_GOLDEN_H
#define TESTS_KERNELS_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/backend.h"
#include "model/safetensors.h"
#include "model/weights.h"

/*
 * Reference answers and how to compare with them. A gap is that of one row (one position):
 *   relative:  ||got - want|| / ||want|| (2-norms, in double)
 *   KL:        sum softmax(want) * (log softmax(want) - log softmax(got))
 * and a set of rows is summarised by medians.
 */
struct gaps {
    double rel_median, rel_max, kl_median, kl_max, top1;
    int n;
};

void logit_gaps(const float *got, const float *want, int rows, int vocab, struct gaps *g);
double row_gap(const float *got, const float *want, size_t n);
double median(double *v, int n); /* sorts v */

/* A model folder with golden.safetensors (tests/golden/README.md) beside it. */
struct golden {
    char name[32];
    struct model_config c;
    struct weights *w;
    struct safetensors *answers;
    int n_tokens, decode_from;
    uint32_t *tokens;
    double floor_rel[3], floor_kl[3]; /* by enum golden_floor */
};

enum golden_floor { FLOOR_REPEAT, FLOOR_PREFILL, FLOOR_DECODE };

/* The folder of that name: in the tree, or wherever GOLDEN_DIR says. */
void golden_dir(const char *name, char *dir, size_t size);

/* 0, 1 if the folder is not there, -1 with a message printed. */
int golden_open(struct golden *g, const char *name);
void golden_close(struct golden *g);

/* f32 rows of a tensor; NULL if it is not there. */
const float *golden_rows(const struct golden *g, const char *name, int *rows);

/* The backend under test; the CPU's unless a test says otherwise. */
extern const struct backend_ops *golden_ops;

/* One on the golden model, with the draft block; asserts that it opens. */
struct backend *golden_backend(const struct golden *g, const char *isa, uint32_t max_seqs);

/* Runs tokens from..to of sequence 0 in one step; logits of all of them, or of the last. */
void run_tokens(struct backend *b, uint32_t seq, const uint32_t *tokens, int n,
                int n_logits, float *logits, float *mtp);

#endif /* TESTS_KERNELS_GOLDEN_H */
