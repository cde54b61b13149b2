/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/err.h"
#include "daemon/sample_params.h"

static int
read_stops(struct sample_params *p, const struct wire_sample *q, struct err *e)
{
    for (uint32_t i = 0; i < q->stop.n; i++) {
        const struct wire_str s = q->stop.v[i];

        if (s.len == 0 || s.len > SAMPLER_MAX_STOP_BYTES)
            return err_set(e, ERR_INVALID, 0,
                           "key 'stop': a string of %u bytes, not 1 to %d", s.len,
                           SAMPLER_MAX_STOP_BYTES);
        p->stops[i].len = (uint8_t)s.len;
        memcpy(p->stops[i].s, s.p, s.len);
    }
    p->n_stops = q->stop.n;
    return 0;
}

static int
read_ids(struct wire_bin b, const char *key, uint32_t *n, struct err *e)
{
    if (b.len % sizeof(uint32_t) != 0)
        return err_set(e, ERR_INVALID, 0,
                       "key '%s': %u bytes are no list of 32-bit numbers", key, b.len);
    *n = b.len / (uint32_t)sizeof(uint32_t);
    return 0;
}

static uint32_t
id_at(struct wire_bin b, uint32_t i)
{
    uint32_t id;

    memcpy(&id, b.p + i * sizeof id, sizeof id);
    return le32toh(id);
}

static int
read_tokens(struct sample_params *p, const struct wire_sample *q, uint32_t eos,
            struct err *e)
{
    uint32_t n_stop = 0, n_ban = 0;

    if (read_ids(q->stop_tokens, "stop_tokens", &n_stop, e) == -1 ||
        read_ids(q->ban, "ban", &n_ban, e) == -1)
        return -1;
    if (n_stop + !q->ignore_eos > SAMPLER_MAX_STOP_TOKENS)
        return err_set(e, ERR_INVALID, 0,
                       "key 'stop_tokens': at most %d with the "
                       "end-of-sentence token",
                       SAMPLER_MAX_STOP_TOKENS);
    if (q->bias.n + n_ban > SAMPLER_MAX_BIAS)
        return err_set(e, ERR_INVALID, 0, "keys 'bias' and 'ban': at most %d together",
                       SAMPLER_MAX_BIAS);
    if (!q->ignore_eos)
        p->stop_tokens[p->n_stop_tokens++] = eos;
    for (uint32_t i = 0; i < n_stop; i++)
        p->stop_tokens[p->n_stop_tokens++] = id_at(q->stop_tokens, i);
    for (uint32_t i = 0; i < q->bias.n; i++) {
        p->bias[p->n_bias].id = (uint32_t)q->bias.v[i].id;
        p->bias[p->n_bias++].bias = (float)q->bias.v[i].bias;
    }
    for (uint32_t i = 0; i < n_ban; i++) {
        p->bias[p->n_bias].id = id_at(q->ban, i);
        p->bias[p->n_bias++].bias = -INFINITY;
    }
    return 0;
}

int
sample_params_read(struct sample_params *p, const struct wire_sample *q, uint32_t eos,
                   struct err *e)
{
    sample_params_init(p);
    if (wire_has(q, sample, temperature))
        p->temperature = (float)q->temperature;
    if (wire_has(q, sample, top_p))
        p->top_p = (float)q->top_p;
    if (wire_has(q, sample, min_p))
        p->min_p = (float)q->min_p;
    if (wire_has(q, sample, repetition))
        p->repetition = (float)q->repetition;
    if (wire_has(q, sample, penalty_window))
        p->penalty_window = (uint32_t)q->penalty_window;
    p->presence = (float)q->presence;
    p->frequency = (float)q->frequency;
    p->top_k = (uint32_t)q->top_k;
    p->n_top = (uint32_t)q->top_logprobs;
    p->max_tokens = wire_has(q, sample, n) ? (uint32_t)q->n : UINT32_MAX;
    p->min_tokens = (uint32_t)q->min_tokens;
    p->seed = q->seed;
    if (wire_has(q, sample, n) && q->n == 0)
        return err_set(e, ERR_INVALID, 0, "key 'n': at least 1");
    if (!wire_has(q, sample, seed) &&
        getrandom(&p->seed, sizeof p->seed, 0) != sizeof p->seed)
        return err_set(e, ERR_INTERNAL, errno, "getrandom: %s", strerror(errno));
    if (read_stops(p, q, e) == -1)
        return -1;
    return read_tokens(p, q, eos, e);
}

void
sample_params_tell(const struct sample_params *p, struct wire_sample_result *res)
{
    wire_put(res, sample_result, seed, p->seed);
    wire_put(res, sample_result, temperature, (double)p->temperature);
    wire_put(res, sample_result, top_k, p->top_k);
    wire_put(res, sample_result, top_p, (double)p->top_p);
    wire_put(res, sample_result, min_p, (double)p->min_p);
    wire_put(res, sample_result, repetition, (double)p->repetition);
    wire_put(res, sample_result, presence, (double)p->presence);
    wire_put(res, sample_result, frequency, (double)p->frequency);
    wire_put(res, sample_result, penalty_window, p->penalty_window);
    wire_put(res, sample_result, max_tokens, p->max_tokens);
}

uint32_t *
sample_tokens_le(const uint32_t *ids, size_t n)
{
    uint32_t *p = malloc((n + 1) * sizeof *p);

    for (size_t i = 0; p != NULL && i < n; i++)
        p[i] = htole32(ids[i]);
    return p;
}
