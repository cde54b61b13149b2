/* SPDX-License-Identifier: Apache-2.0 */
/* fathom score and tokens: what the model makes of a text. */
#include "config.h"

#include <math.h>

#include "client/client.h"

struct scoring {
    const struct client *c;
    bool each;
    uint64_t n; /* tokens that have a score */
};

static void
on_scores(void *arg, const uint32_t *ids, const float *logprobs, size_t n)
{
    struct scoring *s = arg;

    for (size_t i = 0; i < n; i++) {
        if (!isnan(logprobs[i]))
            s->n++;
        if (!s->each)
            continue;
        if (s->c->json) {
            json_begin(NULL);
            json_u64("id", ids[i]);
            json_f64("logprob", (double)logprobs[i]);
            json_end();
        } else {
            printf("%lu %.6f\n", (unsigned long)ids[i], (double)logprobs[i]);
        }
    }
}

int
cmd_score(struct client *c)
{
    const char *path = c->values.n_args > 0 ? c->values.args[0] : NULL;
    struct scoring s = {.c = c, .each = arg_given(c, "each")};
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = &s, .scores = on_scores};
    const struct fathom_result *r;
    struct input in;
    double mean;

    input_read(c, path, &in);
    client_open(c);
    do {
        s.n = 0;
        r = client_run(c, fathom_score(c->f, arg_value(c, "after"), in.p, in.len,
                                       arg_given(c, "control"), &w, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    mean = s.n > 0 ? r->total / (double)s.n : (double)NAN;
    if (c->json) {
        json_begin(NULL);
        json_u64("n", r->n);
        json_u64("scored", s.n);
        json_f64("total", r->total);
        json_f64("mean", mean);
        json_f64("perplexity", exp(-mean));
        json_end();
    } else if (!s.each) {
        printf("tokens %llu\nscored %llu\ntotal %.6f\nmean %.6f\nperplexity %.4f\n",
               (unsigned long long)r->n, (unsigned long long)s.n, r->total, mean,
               exp(-mean));
    }
    input_done(&in);
    return client_end(c);
}

struct listing {
    const struct client *c;
    bool begun;
};

static void
on_ids(void *arg, const uint32_t *ids, size_t n)
{
    struct listing *l = arg;

    if (l->c->json && !l->begun) {
        json_begin(NULL);
        json_list("tokens");
    }
    l->begun = true;
    for (size_t i = 0; i < n; i++) {
        if (l->c->json)
            json_u64(NULL, ids[i]);
        else
            printf("%lu\n", (unsigned long)ids[i]);
    }
}

int
cmd_tokens(struct client *c)
{
    const char *path = c->values.n_args > 0 ? c->values.args[0] : NULL;
    struct listing l = {.c = c};
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = &l, .ids = on_ids};
    const struct fathom_result *r;
    struct input in;

    input_read(c, path, &in);
    client_open(c);
    do {
        r = client_run(
            c, fathom_tokenize(c->f, in.p, in.len, arg_given(c, "control"), &w, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    if (c->json) {
        if (!l.begun) {
            json_begin(NULL);
            json_list("tokens");
        }
        json_list_end();
        json_u64("n", r->n);
        json_end();
    }
    input_done(&in);
    return client_end(c);
}
