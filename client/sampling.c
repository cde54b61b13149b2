/* SPDX-License-Identifier: Apache-2.0 */
/* The options of sampling, from words to numbers; shared by sample and ask. */
#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/num.h"
#include "client/client.h"

static uint32_t
token_id(const struct client *c, const char *option, const char *s)
{
    struct err e;
    uint64_t v;

    if (num_u64(s, 0, UINT32_MAX, &v, &e) == -1)
        usage_error(c, "--%s: %s", option, e.text);
    return (uint32_t)v;
}

static size_t
token_ids(const struct client *c, const char *option, uint32_t *ids, size_t most)
{
    const char *s;
    size_t n = 0;

    while ((s = arg_nth(c, option, (int)n)) != NULL) {
        if (n == most)
            usage_error(c, "--%s: more than %zu", option, most);
        ids[n++] = token_id(c, option, s);
    }
    return n;
}

static void
biases(struct sampling *s, const struct client *c)
{
    const char *text;

    while ((text = arg_nth(c, "bias", (int)s->a.n_bias)) != NULL) {
        const char *equals = strchr(text, '=');
        char id[24];
        struct err e;
        double v;

        if (equals == NULL || (size_t)(equals - text) >= sizeof id)
            usage_error(c, "--bias: '%s' is not ID=X", text);
        memcpy(id, text, (size_t)(equals - text));
        id[equals - text] = '\0';
        if (num_f64(equals + 1, -1000, 1000, &v, &e) == -1)
            usage_error(c, "--bias: %s", e.text);
        s->bias[s->a.n_bias++] =
            (struct fathom_bias){.id = token_id(c, "bias", id), .bias = (float)v};
    }
}

void
sampling_init(struct sampling *s, const struct client *c, const char *name)
{
    const char *text;

    FATHOM_SAMPLE_INIT(&s->a);
    s->a.name = name;
    s->a.n = arg_u64(c, "max-tokens", UINT32_MAX, 0);
    if (arg_given(c, "max-tokens") && s->a.n == 0)
        usage_error(c, "--max-tokens 0: nothing is to be drawn");
    s->a.min_tokens = arg_u64(c, "min-tokens", UINT32_MAX, 0);
    s->a.temperature = arg_f64(c, "temp", 0, 100, (double)NAN);
    s->a.top_k = arg_u64(c, "top-k", UINT32_MAX, 0);
    s->a.top_p = arg_f64(c, "top-p", 0, 1, (double)NAN);
    s->a.min_p = arg_f64(c, "min-p", 0, 1, (double)NAN);
    s->a.repetition = arg_f64(c, "repetition", 0, 100, (double)NAN);
    s->a.presence = arg_f64(c, "presence", -2, 2, (double)NAN);
    s->a.frequency = arg_f64(c, "frequency", -2, 2, (double)NAN);
    s->a.penalty_window = arg_u64(c, "penalty-window", 65536, 0);
    s->a.has_seed = arg_given(c, "seed");
    s->a.seed = arg_u64(c, "seed", UINT64_MAX, 0);
    s->a.ignore_eos = arg_given(c, "ignore-eos");
    while ((text = arg_nth(c, "stop", (int)s->a.n_stop)) != NULL) {
        if (s->a.n_stop == sizeof s->stop / sizeof *s->stop)
            usage_error(c, "--stop: more than 16");
        s->stop[s->a.n_stop++] = text;
    }
    s->a.stop = s->stop;
    s->a.n_ban = token_ids(c, "ban", s->ban, sizeof s->ban / sizeof *s->ban);
    s->a.ban = s->ban;
    s->a.n_stop_tokens = token_ids(c, "stop-token", s->stop_tokens,
                                   sizeof s->stop_tokens / sizeof *s->stop_tokens);
    s->a.stop_tokens = s->stop_tokens;
    s->a.bias = s->bias;
    biases(s, c);
    op_id(s->op_id);
    s->a.op_id = s->op_id;
}

void
sampling_json(const struct fathom_result *r)
{
    json_u64("pos", r->pos);
    json_u64("n", r->n);
    json_str("reason", r->reason_name);
    json_u64("seed", r->seed);
    json_f64("temperature", r->temperature);
    json_u64("top_k", r->top_k);
    json_f64("top_p", r->top_p);
    json_f64("min_p", r->min_p);
    json_f64("repetition", r->repetition);
    json_f64("presence", r->presence);
    json_f64("frequency", r->frequency);
    json_u64("penalty_window", r->penalty_window);
    json_u64("max_tokens", r->max_tokens);
    json_u64("queue_us", r->queue_us);
    json_u64("first_us", r->first_us);
    json_u64("total_us", r->total_us);
}
