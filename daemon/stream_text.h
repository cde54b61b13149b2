/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_STREAM_TEXT_H
#define DAEMON_STREAM_TEXT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/sampler.h"

struct err;
struct tokenizer;

/*
 * Drawn tokens to the text that a reader sees: whole characters, nothing that may yet turn out
 * to be a stop string, and nothing from a stop string on. Bytes that can never be UTF-8 pass as
 * they are. One owner.
 */
struct stream_text {
    const struct tokenizer *t;
    const struct sample_params *params; /* stop strings; must outlive it */
    struct stop_matcher matcher;
    bool control; /* show control tokens, written out */
    bool stopped; /* a stop string has begun in `held` */
    struct buf held;
    uint64_t shown; /* bytes of the stop strings' kind, without control tokens */
};

void stream_text_init(struct stream_text *x, const struct tokenizer *t,
                      const struct sample_params *params, bool control);
void stream_text_done(struct stream_text *x);

/* Appends to out what the token completes. */
int stream_text_add(struct stream_text *x, uint32_t id, struct buf *out, struct err *e);

/* Would text be left that only the next token, or the end, can release? Changes nothing; true too
 * if there is no memory to find out. */
bool stream_text_would_hold(const struct stream_text *x, uint32_t id);

/* The end: appends what is left, up to byte stop_at of all drawn text (UINT64_MAX: all). */
int stream_text_end(struct stream_text *x, uint64_t stop_at, struct buf *out,
                    struct err *e);

#endif /* DAEMON_STREAM_TEXT_H */
