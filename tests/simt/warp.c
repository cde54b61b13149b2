/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations of a warp, done once for all lanes on what they have brought. Layouts of fragments are
 * those of the PTX manual (mma.m16n8k16 with bf16, ldmatrix with 8 x 8 elements of 16 bits): in lane
 * 4 g + t, g names a row of a result or a column of b, t a pair.
 */
#include "config.h"

#include "base/fp.h"
#include "tests/simt/simt.h"

void
simt_sync_op(void *const *brought, uint32_t mask)
{
    (void)brought;
    (void)mask;
}

/* From a lane that takes no part comes no number. */
void
simt_exchange_op(void *const *brought, uint32_t mask)
{
    uint64_t value[SIMT_WARP];

    for (unsigned i = 0; i < SIMT_WARP; i++)
        value[i] = mask >> i & 1 ? ((const struct simt_exchange *)brought[i])->value
                                 : UINT64_MAX;
    for (unsigned i = 0; i < SIMT_WARP; i++)
        if (mask >> i & 1) {
            struct simt_exchange *x = brought[i];

            x->value = value[x->from];
        }
}

void
simt_match_op(void *const *brought, uint32_t mask)
{
    for (unsigned i = 0; i < SIMT_WARP; i++)
        for (unsigned j = 0; j < SIMT_WARP; j++)
            if (mask >> i & mask >> j & 1)
                ((struct simt_match *)brought[i])->same |=
                    (uint32_t)(((const struct simt_match *)brought[j])->value ==
                               ((const struct simt_match *)brought[i])->value)
                    << j;
}

void
simt_extremes_op(void *const *brought, uint32_t mask)
{
    uint32_t least = UINT32_MAX, most = 0;

    for (unsigned i = 0; i < SIMT_WARP; i++)
        if (mask >> i & 1) {
            const uint32_t v = ((const struct simt_extremes *)brought[i])->value;

            least = v < least ? v : least;
            most = v > most ? v : most;
        }
    for (unsigned i = 0; i < SIMT_WARP; i++)
        if (mask >> i & 1) {
            ((struct simt_extremes *)brought[i])->least = least;
            ((struct simt_extremes *)brought[i])->most = most;
        }
}

struct ballot {
    bool yes;
    uint32_t all;
};

static void
ballot_op(void *const *brought, uint32_t mask)
{
    uint32_t all = 0;

    for (unsigned i = 0; i < SIMT_WARP; i++)
        if (mask >> i & 1)
            all |= (uint32_t)((const struct ballot *)brought[i])->yes << i;
    for (unsigned i = 0; i < SIMT_WARP; i++)
        if (mask >> i & 1)
            ((struct ballot *)brought[i])->all = all;
}

uint32_t
simt_ballot(uint32_t mask, bool yes)
{
    struct ballot b = {.yes = yes};

    simt_together(ballot_op, mask, &b);
    return b.all;
}

/* The low and the high half of a register, bf16. */
static void
pair(uint32_t u, double *lo, double *hi)
{
    *lo = (double)bf16_to_f32((uint16_t)u);
    *hi = (double)bf16_to_f32((uint16_t)(u >> 16));
}

/* Sums of 16 products in double, rounded once: one of the orders that a tensor core may have. */
void
simt_mma_op(void *const *brought, uint32_t mask)
{
    double a[16][16], b[16][8];

    (void)mask;
    for (int lane = 0; lane < SIMT_WARP; lane++) {
        const struct simt_mma *m = brought[lane];
        const int g = lane / 4, k = lane % 4 * 2;

        pair(m->a[0], &a[g][k], &a[g][k + 1]);
        pair(m->a[1], &a[g + 8][k], &a[g + 8][k + 1]);
        pair(m->a[2], &a[g][k + 8], &a[g][k + 9]);
        pair(m->a[3], &a[g + 8][k + 8], &a[g + 8][k + 9]);
        pair(m->b[0], &b[k][g], &b[k + 1][g]);
        pair(m->b[1], &b[k + 8][g], &b[k + 9][g]);
    }
    for (int i = 0; i < 16; i++) {
        double sum[8] = {0};

        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                sum[j] += a[i][k] * b[k][j];
        for (int j = 0; j < 8; j++) {
            const struct simt_mma *m = brought[i % 8 * 4 + j / 2];
            float *c = &m->c[i / 8 * 2 + j % 2];

            *c = (float)((double)*c + sum[j]);
        }
    }
}

/* Element (row, col) of matrix i; rows must be aligned to 16 bytes. */
static uint32_t
element(void *const *brought, int i, int row, int col)
{
    return (
        (const uint16_t *)((const struct simt_matrices *)brought[8 * i + row])->row)[col];
}

void
simt_ldmatrix_op(void *const *brought, uint32_t mask)
{
    (void)mask;
    for (int lane = 0; lane < SIMT_WARP; lane++)
        for (int i = 0; i < 4; i++)
            ((const struct simt_matrices *)brought[lane])->to[i] =
                element(brought, i, lane / 4, lane % 4 * 2) |
                element(brought, i, lane / 4, lane % 4 * 2 + 1) << 16;
}

void
simt_ldmatrix_trans_op(void *const *brought, uint32_t mask)
{
    (void)mask;
    for (int lane = 0; lane < SIMT_WARP; lane++)
        for (int i = 0; i < 4; i++)
            ((const struct simt_matrices *)brought[lane])->to[i] =
                element(brought, i, lane % 4 * 2, lane / 4) |
                element(brought, i, lane % 4 * 2 + 1, lane / 4) << 16;
}
