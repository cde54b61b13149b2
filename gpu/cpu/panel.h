/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_PANEL_H
#define GPU_CPU_PANEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/ops/linear.h"

/*
 * How the fast tables keep a weight: in panels of 16 outputs (8 of an F32 matrix), so that
 * the lanes of a vector are outputs and each output is one serial sum along the input. No
 * horizontal sums, no order that depends on how many rows share a weight: that is what makes
 * one row and five hundred the same bits.
 *
 * A step is what 64 bytes of a panel hold: 16 outputs by 4 (FP8), 8 (FP4) or 2 (bf16) inputs,
 * 8 outputs by 2 inputs (f32). With n an output and k an input of the step:
 *   bf16  u16 [n][k]                                          vdpbf16ps takes it as it is
 *   FP8   byte 16 (n/4) + 8 (k/2) + 2 (n%4) + k%2             unpack lo, hi: pairs (0,1), (2,3)
 *   FP4   nibble k/2 of the 16-bit word 2 n + k%2             word >> 4 i: pair (2i, 2i+1)
 *   f32   [k][n]
 * Four panels make a group (the last may have fewer), stored step by step, panel by panel: one
 * stream of memory for 64 outputs. Behind all panels: scales, FP8 f32
 * [ceil(out/128)][ceil(in/128)], FP4 e8m0 [group][in/32][panel of the group][16].
 */
enum { PANEL_GROUP = 4, PANEL_BLOCK = 128, PANEL_FP4_BLOCK = 32, PANEL_STEP = 64 };

static inline int
panel_outputs(enum matrix_kind kind)
{
    return kind == MATRIX_F32 ? 8 : 16;
}

/* Inputs of a step. */
static inline int
panel_inputs(enum matrix_kind kind)
{
    return kind == MATRIX_FP8 ? 4 : kind == MATRIX_FP4 ? 8 : 2;
}

static inline int
panel_count(const struct matrix *w)
{
    const int n = panel_outputs(w->kind);

    return (w->out + n - 1) / n;
}

/* One group of panels of a packed matrix, ready to be multiplied. */
struct panel_group {
    const uint8_t *w;      /* [in / inputs][n][64] */
    const uint8_t *scale4; /* FP4: e8m0 [in/32][n][16] */
    const float *scale8;   /* FP8: f32 [ceil(in/128)]; the same for all 64 outputs */
    int n, out0, outs;     /* panels, first output, outputs that exist */
};

/* False for shapes that the layout does not take: those stay with the reference. */
bool panel_takes(const struct matrix *w);
size_t panel_packed_bytes(const struct matrix *w);
void panel_pack(const struct matrix *w, void *dst);
void panel_group_at(const struct matrix *w, int group, struct panel_group *g);

/* Runs tile() on every group of every job, in one parallel region; jobs whose matrix is not
 * packed go to the reference. */
typedef void panel_group_fn(const struct linear_args *a, const struct panel_group *g);
void panel_linear(const struct linear_args *a, int n, panel_group_fn *run);

#endif /* GPU_CPU_PANEL_H */
