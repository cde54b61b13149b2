/* SPDX-License-Identifier: Apache-2.0 */
/* From streams to logits (spec 9): mix, norm, and the widest matrix of the model. */
#include "config.h"

#include <string.h>

#include "gpu/cpu/cpu.h"

void
head_forward(struct backend *b, const struct mixer *hc, const float *norm,
             const uint16_t *x, int n, float *const *out)
{
    const struct model_config *c = &b->c;
    const size_t vocab = (size_t)c->vocab_size;
    struct scratch *s = &b->s;

    mix_in(b, hc, x, n, s->y);
    b->ops->rmsnorm(&(struct rmsnorm_args){
        .x = s->y, .w = norm, .out = s->y, .rows = n, .dim = c->hidden, .eps = c->rms_eps});

    /* The caller's rows lie anywhere, so a few at a time go by way of scratch. */
    for (int i = 0; i < n; i += LOGIT_ROWS) {
        const int m = n - i < LOGIT_ROWS ? n - i : LOGIT_ROWS;
        const struct linear_args a = {.w = &b->net.head,
                                      .x = s->y + (size_t)i * c->hidden,
                                      .y = s->logits,
                                      .rows = m,
                                      .x_stride = c->hidden,
                                      .y_stride = c->vocab_size,
                                      .y_f32 = 1};

        b->ops->linear(&a, 1);
        for (int t = 0; t < m; t++)
            memcpy(out[i + t], s->logits + (size_t)t * vocab, vocab * sizeof **out);
    }
}
