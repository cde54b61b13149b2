/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_LOGITS_H
#define MODEL_LOGITS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Passes over a whole row of logits, eight or sixteen at a time. The bits are the same on every
 * processor: sums run in eight lanes, added up in a fixed tree, and exp is our own, correct to
 * 5e-16 of its value and made of multiplications and additions alone. Everywhere NaN counts as
 * -inf and +inf as the largest float, so that differences are numbers.
 */
enum { LOGITS_BLOCK = 64 };

/* Rows are f32 [n]. clean: out (may be x) gets what counts, block_max [ceil(n / LOGITS_BLOCK)] the
 * largest of each block. Both return the largest, -inf if there is no number. */
float logits_clean(const float *x, uint32_t n, float *out, float *block_max);
float logits_max(const float *x, uint32_t n);
bool logits_finite(const float *x, uint32_t n); /* all of them are numbers */

/* exp((x - max) * scale), and its sum. Below exp(-708), 3e-308, it is 0. (x - max) * scale must
 * not be above 0. w: f64 [n], n at most LOGITS_BLOCK. */
double logits_sum(const float *x, uint32_t n, float max, double scale);
void logits_weights(const float *x, uint32_t n, float max, double scale, double *w);

#endif /* MODEL_LOGITS_H */
