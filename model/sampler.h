/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_SAMPLER_H
#define MODEL_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/draw.h"

struct err;

enum {
    SAMPLER_MAX_BIAS = 1024,
    SAMPLER_MAX_STOP_TOKENS = 16,
    SAMPLER_MAX_STOPS = 16,      /* stop strings */
    SAMPLER_MAX_STOP_BYTES = 64, /* each */
    SAMPLER_MAX_TOP = 20,        /* log-probabilities of the n best */
    SAMPLER_WINDOW = 256,        /* penalty_window if nobody says */
    SAMPLER_MAX_WINDOW = 65536,
};

/*
 * How to choose the next token. Plain data of fixed size, so that it can cross a process
 * border as it is. The order is fixed: bias and bans -> penalties -> min_tokens -> temperature
 * -> top-k -> top-p -> min-p -> draw. docs/SAMPLING.md says why and gives each formula.
 */
struct sample_params {
    uint64_t seed;      /* the draw at position p is Philox4x32-10 keyed by seed, at p */
    float temperature;  /* 0: the largest logit, lowest id wins ties, no draw */
    float top_p, min_p; /* 1 and 0: off */
    float repetition;   /* 1: off */
    float presence, frequency; /* 0: off */
    uint32_t top_k;            /* 0: off */
    uint32_t penalty_window;   /* penalties look at this many last tokens of the session */
    uint32_t n_top;            /* log-probabilities wanted besides the chosen one's */
    uint32_t n_bias, n_stop_tokens, n_stops;
    uint32_t max_tokens; /* 0: draws nothing */
    uint32_t min_tokens; /* before these no stop token can be drawn */

    struct {
        uint32_t id;
        float bias; /* -INFINITY: banned */
    } bias[SAMPLER_MAX_BIAS];

    uint32_t stop_tokens[SAMPLER_MAX_STOP_TOKENS]; /* kept in the session, end the sample */

    struct {
        uint8_t len;
        char s[SAMPLER_MAX_STOP_BYTES];
    } stops[SAMPLER_MAX_STOPS];
};

struct sample_top {
    uint32_t id;
    float logprob;
};

/* A chosen token. Log-probabilities are natural, of the model's own distribution: softmax of
 * the logits before bias, penalties and temperature. */
struct sample_choice {
    double log_sum; /* log of the sum of exp over the logits: what makes them such */
    uint32_t id;
    float logprob;
    uint32_t n_top;
    struct sample_top top[SAMPLER_MAX_TOP]; /* best first; ties: lower id first */
};

/* Temperature 1, 256 tokens at most, all else off. */
void sample_params_init(struct sample_params *p);

/* ERR_INVALID names the field. The functions below rely on checked parameters. */
int sample_params_check(const struct sample_params *p, uint32_t vocab, struct err *e);

struct sampler; /* scratch memory for one thread */

struct sampler *sampler_new(uint32_t vocab, struct err *e);
void sampler_free(struct sampler *s);

/*
 * Chooses the token that goes to position pos.
 *   logits f32 [vocab], not changed; NaN counts as -inf, +inf as the largest float
 *   history u32 [n_history]: the session's last tokens, oldest first (at least
 *           penalty_window of them, or all there are)
 *   n_drawn: tokens this request has drawn already (for min_tokens)
 * ERR_INVALID if bans leave no token.
 */
int sampler_choose(struct sampler *s, const struct sample_params *p, const float *logits,
                   const uint32_t *history, size_t n_history, uint64_t pos,
                   uint32_t n_drawn, struct sample_choice *out, struct err *e);

/*
 * The same in two halves, with a device in between. sampler_draw: how to draw beside the step that
 * makes the row; false: it depends on more than the row (bias, penalties, min_tokens not reached,
 * lists of the best). sampler_drawn: what came back, as sampler_choose would have said it.
 * sampler_draw_row does what the device does.
 */
bool sampler_draw(const struct sample_params *p, uint32_t n_drawn, struct draw *out);
void sampler_draw_row(struct sampler *s, const struct draw *d, uint64_t pos,
                      const float *logits, struct drawn *out);
void sampler_drawn(const struct drawn *d, struct sample_choice *out);

/* Natural log-probability of id under softmax(logits). */
float sampler_logprob(const float *logits, uint32_t vocab, uint32_t id);

/*
 * Stop strings across token borders. Feed each token's bytes; true once one of the strings is
 * complete, with the number of fed bytes, over all calls, in front of it in *at; the first to
 * be complete wins, of several that end at the same byte the longest. Init again after that.
 */
struct stop_matcher {
    const struct sample_params *p;
    uint64_t fed;
    uint32_t n_tail;
    char tail[SAMPLER_MAX_STOP_BYTES];
};

void stop_matcher_init(struct stop_matcher *m, const struct sample_params *p);
bool stop_matcher_feed(struct stop_matcher *m, const char *bytes, size_t len, uint64_t *at);

/* Bytes at the end of what was fed that may yet turn out to be the start of a stop string. */
size_t stop_matcher_held(const struct stop_matcher *m);

#endif /* MODEL_SAMPLER_H */
