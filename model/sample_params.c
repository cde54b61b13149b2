/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parameters of sampling: what they are when nobody says, and which values are refused.
 * The struct comes from a client by way of another process, so every field is checked here,
 * and the sampler itself relies on that.
 */
#include <config.h>

#include <math.h>

#include "base/err.h"
#include "model/sampler.h"

void
sample_params_init(struct sample_params *p)
{
    *p = (struct sample_params){
        .temperature = 1,
        .top_p = 1,
        .repetition = 1,
        .penalty_window = SAMPLER_WINDOW,
        .max_tokens = 256,
    };
}

static int
check_range(const char *name, float v, double lo, double hi, struct err *e)
{
    /* Written so that NaN fails. */
    if ((double)v >= lo && (double)v <= hi)
        return 0;
    return err_set(e, ERR_INVALID, 0, "%s is %g, must be from %g to %g", name, (double)v,
                   lo, hi);
}

static int
check_count(const char *name, uint32_t n, uint32_t max, struct err *e)
{
    if (n <= max)
        return 0;
    return err_set(e, ERR_INVALID, 0, "%s is %u, at most %u are allowed", name, n, max);
}

static int
check_bias(const struct sample_params *p, uint32_t vocab, struct err *e)
{
    if (check_count("number of logit biases", p->n_bias, SAMPLER_MAX_BIAS, e) == -1)
        return -1;
    for (uint32_t i = 0; i < p->n_bias; i++) {
        const uint32_t id = p->bias[i].id;
        const float b = p->bias[i].bias;

        if (id >= vocab)
            return err_set(e, ERR_INVALID, 0,
                           "logit bias or ban: token %u; the vocabulary has %u", id, vocab);
        if (!(b == -INFINITY || (b >= -100 && b <= 100)))
            return err_set(e, ERR_INVALID, 0,
                           "logit bias of token %u: %g, must be -100 to 100 or a ban", id,
                           (double)b);
        for (uint32_t j = 0; j < i; j++) {
            if (p->bias[j].id == id)
                return err_set(e, ERR_INVALID, 0, "logit bias or ban: token %u comes twice",
                               id);
        }
    }
    return 0;
}

static int
check_stops(const struct sample_params *p, uint32_t vocab, struct err *e)
{
    if (check_count("number of stop tokens", p->n_stop_tokens, SAMPLER_MAX_STOP_TOKENS,
                    e) == -1 ||
        check_count("number of stop strings", p->n_stops, SAMPLER_MAX_STOPS, e) == -1)
        return -1;
    for (uint32_t i = 0; i < p->n_stop_tokens; i++) {
        if (p->stop_tokens[i] >= vocab)
            return err_set(e, ERR_INVALID, 0, "stop token %u: token %u of %u", i,
                           p->stop_tokens[i], vocab);
    }
    for (uint32_t i = 0; i < p->n_stops; i++) {
        if (p->stops[i].len < 1 || p->stops[i].len > SAMPLER_MAX_STOP_BYTES)
            return err_set(e, ERR_INVALID, 0, "stop string %u: %u bytes, must be 1 to %d",
                           i, p->stops[i].len, SAMPLER_MAX_STOP_BYTES);
    }
    return 0;
}

int
sample_params_check(const struct sample_params *p, uint32_t vocab, struct err *e)
{
    if (check_range("temperature", p->temperature, 0, 100, e) == -1 ||
        check_range("top_p", p->top_p, 0, 1, e) == -1 ||
        check_range("min_p", p->min_p, 0, 1, e) == -1 ||
        check_range("repetition", p->repetition, 0, 100, e) == -1 ||
        check_range("presence", p->presence, -2, 2, e) == -1 ||
        check_range("frequency", p->frequency, -2, 2, e) == -1 ||
        check_count("penalty_window", p->penalty_window, SAMPLER_MAX_WINDOW, e) == -1 ||
        check_count("n_top", p->n_top, SAMPLER_MAX_TOP, e) == -1)
        return -1;
    /* Ranges that are open at one end. */
    if (p->top_p <= 0)
        return err_set(e, ERR_INVALID, 0, "top_p is 0, must be above it; 1 is off");
    if (p->min_p >= 1)
        return err_set(e, ERR_INVALID, 0, "min_p is 1, must be below it; 0 is off");
    if (p->repetition <= 0)
        return err_set(e, ERR_INVALID, 0, "repetition is 0, must be above it; 1 is off");
    if (p->min_tokens > p->max_tokens)
        return err_set(e, ERR_INVALID, 0, "min_tokens is %u, more than max_tokens, %u",
                       p->min_tokens, p->max_tokens);
    if (check_bias(p, vocab, e) == -1)
        return -1;
    return check_stops(p, vocab, e);
}
