/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_LOGITS_H
#define MODEL_LOGITS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Passes over a whole row of logits, eight or sixteen at a time. The bits are the same on every
 * processor: exp is our own, correct to 5e-16 of its value and made of multiplications and
 * additions alone. Everywhere NaN counts as -inf and +inf as the
 * largest float, so that differences are numbers.
 *
 * A weight is exp((x - max) * scale) in units of 2^-44, to the nearest integer: 0 from 31 below the
 * best on. Integers can be added in any order, by anybody, and nothing is lost.
 */
enum {
    LOGITS_BLOCK = 64,
    LOGITS_MOST = 1 << 19 /* whose weights add up to less than 2^64 */
};

#define LOGITS_UNIT 0x1p44

/* Rows are f32 [n]. clean: out (may be x) gets what counts, block_max [ceil(n / LOGITS_BLOCK)] the
 * largest of each block. Both return the largest, -inf if there is no number. */
float logits_clean(const float *x, uint32_t n, float *out, float *block_max);
float logits_max(const float *x, uint32_t n);
bool logits_finite(const float *x, uint32_t n); /* all of them are numbers */

/* Weights, and their sum; (x - max) * scale must not be above 0. w u64 [n], n at most
 * LOGITS_BLOCK. */
uint64_t logits_sum(const float *x, uint32_t n, float max, double scale);
void logits_weights(const float *x, uint32_t n, float max, double scale, uint64_t *w);

#endif /* MODEL_LOGITS_H */
