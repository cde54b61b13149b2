/* SPDX-License-Identifier: Apache-2.0 */
/* What a made-up tensor looks like, by its name and shape. Any thread. */
#include <config.h> /* not "": beside this file lies model/config.h */

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/fp.h"
#include "model/synthetic.h"

/* So that codes of root mean square `rms` times 2^(exponent - 127) deviate by 1 / sqrt(k). */
static int
exponent_for(double k, double rms)
{
    return 127 - (int)lround(log2(rms * sqrt(k)) + 0.5);
}

static float
size_of(const struct tensor *t)
{
    if (strstr(t->name, "norm") != NULL)
        return 0.05f;
    if (strcmp(t->name, "embed.weight") == 0)
        return 1.0f;
    if (t->n_dims < 2)
        return strstr(t->name, "bias") != NULL ? 0.02f : 0.3f;
    return strstr(t->name, ".ape") != NULL ? 0.2f : 1.0f / sqrtf((float)t->dims[1]);
}

struct synthetic
synthetic_of(const struct tensor *t, uint64_t seed)
{
    const bool fp4 = strstr(t->name, ".ffn.experts.") != NULL && t->n_dims == 2;
    struct synthetic s = {.key = seed, .most = 1, .row = 1};

    for (const char *p = t->name; *p != '\0'; p++)
        s.key = synthetic_hash(s.key, (uint64_t)(unsigned char)*p);
    s.size = size_of(t);
    s.offset = strstr(t->name, "norm") != NULL ? 1.0f : 0.0f;
    switch (t->dtype) {
    case DTYPE_I8: s.kind = SYNTHETIC_FP4; break;
    case DTYPE_F8_E4M3: s.kind = SYNTHETIC_FP8; break;
    case DTYPE_BF16: s.kind = SYNTHETIC_BF16; break;
    case DTYPE_F32: s.kind = SYNTHETIC_F32; break;
    case DTYPE_F8_E8M0:
        s.kind = SYNTHETIC_E8M0;
        s.exponent = fp4 ? exponent_for(32.0 * (double)t->dims[1], 2.93)
                         : exponent_for(128.0 * (double)t->dims[1], 4.5);
        break;
    default:
        s.kind = SYNTHETIC_IDS;
        s.row = (int)t->dims[t->n_dims - 1];
        break;
    }
    return s;
}

void
synthetic_fill(const struct synthetic *s, uint64_t first, uint64_t n, void *out)
{
    for (uint64_t i = 0; i < n; i++) {
        const float v = s->kind == SYNTHETIC_BF16 || s->kind == SYNTHETIC_F32
                            ? synthetic_number(s, first + i)
                            : 0.0f;
        const int64_t id = s->kind == SYNTHETIC_IDS ? synthetic_id(s, first + i) : 0;
        const uint16_t half = f32_to_bf16(v);

        switch (s->kind) {
        case SYNTHETIC_BF16: memcpy((uint8_t *)out + 2 * i, &half, 2); break;
        case SYNTHETIC_F32: memcpy((uint8_t *)out + 4 * i, &v, 4); break;
        case SYNTHETIC_IDS: memcpy((uint8_t *)out + 8 * i, &id, 8); break;
        default: ((uint8_t *)out)[i] = synthetic_byte(s, first + i);
        }
    }
}
