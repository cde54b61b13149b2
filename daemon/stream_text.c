/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "daemon/stream_text.h"
#include "model/tokenizer.h"

enum { MOST_HELD = 1 << 20 };

void
stream_text_init(struct stream_text *x, const struct tokenizer *t,
                 const struct sample_params *params, bool control)
{
    *x = (struct stream_text){.t = t, .params = params, .control = control};
    stop_matcher_init(&x->matcher, params);
    buf_init(&x->held, MOST_HELD);
}

void
stream_text_done(struct stream_text *x)
{
    buf_done(&x->held);
}

/* How many bytes the character that begins with c has; 1 for what begins none. */
static size_t
char_bytes(uint8_t c)
{
    return c >= 0xf0 && c < 0xf5 ? 4 : c >= 0xe0 ? 3 : c >= 0xc2 && c < 0xe0 ? 2 : 1;
}

/* Bytes at the end that are the start of a character whose rest may still come. */
static size_t
unfinished(const uint8_t *p, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const uint8_t c = p[n - back];

        if ((c & 0xc0) == 0x80)
            continue;
        return c < 0xf5 && char_bytes(c) > back ? back : 0;
    }
    return 0;
}

static int
release(struct stream_text *x, size_t n, struct buf *out, struct err *e)
{
    if (buf_add(out, x->held.p, n, e) == -1)
        return -1;
    buf_drop(&x->held, n);
    x->shown += n;
    return 0;
}

int
stream_text_add(struct stream_text *x, uint32_t id, struct buf *out, struct err *e)
{
    size_t len, keep;
    uint64_t at;
    const char *p = tokenizer_bytes(x->t, id, &len);

    if (x->stopped || len == 0)
        return 0;
    if (tokenizer_is_control(x->t, id)) {
        /* Not part of any stop string; what was held comes first. */
        if (!x->control)
            return 0;
        if (release(x, x->held.len, out, e) == -1)
            return -1;
        return buf_add(out, p, len, e);
    }
    if (buf_add(&x->held, p, len, e) == -1)
        return -1;
    if (x->params->n_stops > 0) {
        x->stopped = stop_matcher_feed(&x->matcher, p, len, &at);
        if (x->stopped) {
            keep = at > x->shown ? (size_t)(at - x->shown) : 0;
            return release(x, keep < x->held.len ? keep : x->held.len, out, e);
        }
        keep = stop_matcher_held(&x->matcher);
    } else {
        keep = 0;
    }
    if (keep > x->held.len)
        keep = x->held.len;
    keep += unfinished(x->held.p, x->held.len - keep);
    return release(x, x->held.len - keep, out, e);
}

bool
stream_text_would_hold(const struct stream_text *x, uint32_t id)
{
    struct stream_text copy = *x;
    struct buf out;
    struct err e;
    bool holds = true;

    buf_init(&copy.held, MOST_HELD);
    buf_init(&out, 2 * MOST_HELD);
    if ((x->held.len == 0 || buf_add(&copy.held, x->held.p, x->held.len, &e) == 0) &&
        stream_text_add(&copy, id, &out, &e) == 0)
        holds = copy.held.len > 0 && !copy.stopped;
    buf_done(&copy.held);
    buf_done(&out);
    return holds;
}

int
stream_text_end(struct stream_text *x, uint64_t stop_at, struct buf *out, struct err *e)
{
    size_t n = x->held.len;

    if (x->stopped)
        return 0;
    if (stop_at < x->shown)
        n = 0;
    else if (stop_at - x->shown < n)
        n = (size_t)(stop_at - x->shown);
    return release(x, n, out, e);
}
