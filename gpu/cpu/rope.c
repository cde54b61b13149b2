/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rotary frequencies and angles (spec 3.5), in f32 like the reference: at position 1M the f32
 * product of position and frequency is coarse, and the model has learnt with that.
 */
#include "config.h"

#include <math.h>

#include "gpu/cpu/pool.h"
#include "gpu/cpu/rope.h"

/* The pair, as a real number, that turns `turns` times within the original context. */
static double
pair_at(const struct model_config *c, double turns)
{
    return c->rope_dim * log((double)c->yarn_original_positions / (turns * 2.0 * M_PI)) /
           (2.0 * log(c->compress_rope_theta));
}

/* freq f32 [rope_dim/2]. Layers that compress have their own base, stretched by YaRN. */
void
rope_frequencies(const struct model_config *c, bool compressed, float *freq)
{
    const float base = (float)(compressed ? c->compress_rope_theta : c->rope_theta);
    const int pairs = c->rope_dim / 2;

    for (int i = 0; i < pairs; i++)
        freq[i] = 1.0f / powf(base, (float)(2 * i) / (float)c->rope_dim);
    if (!compressed || c->yarn_original_positions <= 0)
        return;

    const double low = fmax(floor(pair_at(c, c->yarn_beta_fast)), 0.0);
    const double high = fmin(ceil(pair_at(c, c->yarn_beta_slow)), c->rope_dim - 1.0);
    const float width = (float)(high > low ? high - low : 0.001);

    for (int i = 0; i < pairs; i++) {
        const float ramp = fminf(fmaxf(((float)i - (float)low) / width, 0.0f), 1.0f);
        const float smooth = 1.0f - ramp;

        freq[i] = freq[i] / (float)c->yarn_factor * (1.0f - smooth) + freq[i] * smooth;
    }
}

struct angles {
    const float *freq;
    const uint64_t *pos;
    float *cs;
    int pairs;
};

static void
fill_angles(const void *arg, int r, int end)
{
    const struct angles *a = arg;

    for (; r < end; r++) {
        for (int i = 0; i < a->pairs; i++) {
            const float angle = (float)a->pos[r] * a->freq[i];

            a->cs[((size_t)r * a->pairs + i) * 2] = cosf(angle);
            a->cs[((size_t)r * a->pairs + i) * 2 + 1] = sinf(angle);
        }
    }
}

/* cs f32 [n][pairs][2]: cos and sin of fp32(pos) * freq. */
void
rope_table(const float *freq, int pairs, const uint64_t *pos, int n, float *cs)
{
    const struct angles a = {.freq = freq, .pos = pos, .cs = cs, .pairs = pairs};

    pool_run(n, 8, fill_angles, &a);
}
