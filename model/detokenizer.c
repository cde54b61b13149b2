/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Token ids back to text, one at a time, never half a character. Any thread that owns the
 * struct detokenizer.
 *
 * A control token ends whatever character is being held: its missing bytes cannot come from
 * the other side of it, whether or not the token itself is shown.
 */
#include <config.h> /* "config.h" would be model/config.h */

#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"
#include "model/tokenizer.h"

/* n bytes that are no character. */
static int
put_bad(const struct detokenizer *d, const uint8_t *p, size_t n, struct buf *out,
        struct err *e)
{
    return d->raw ? buf_add(out, p, n, e) : buf_adds(out, "\xef\xbf\xbd", e);
}

int
detokenize_flush(struct detokenizer *d, struct buf *out, struct err *e)
{
    if (d->n_held > 0 && put_bad(d, d->held, d->n_held, out, e) == -1)
        return -1;
    d->n_held = 0;
    return 0;
}

/* The bytes behind those that are held: at most 3 are held again at the end. */
static int
put_bytes(struct detokenizer *d, const uint8_t *p, size_t n, struct buf *out, struct err *e)
{
    while (n > 0) {
        uint8_t c[4];
        size_t have = d->n_held, more;
        int k;

        if (have == 0) {
            const size_t good = utf8_valid(p, n);

            if (buf_add(out, p, good, e) == -1)
                return -1;
            p += good;
            n -= good;
            if (n == 0)
                break;
        }
        memcpy(c, d->held, have);
        more = n < sizeof c - have ? n : sizeof c - have;
        memcpy(c + have, p, more);
        k = utf8_char(c, have + more);
        if (k == 0) {
            memcpy(d->held, c, have + more);
            d->n_held = (uint8_t)(have + more);
            break;
        }
        /* What is held begins a character, so that the bad part is never shorter than it. */
        if (k > 0 ? buf_add(out, c, (size_t)k, e) == -1
                  : put_bad(d, c, (size_t)-k, out, e) == -1)
            return -1;
        d->n_held = 0;
        p += (size_t)(k > 0 ? k : -k) - have;
        n -= (size_t)(k > 0 ? k : -k) - have;
    }
    return 0;
}

int
detokenize(struct detokenizer *d, uint32_t id, struct buf *out, struct err *e)
{
    const struct detokenizer held = *d;
    const size_t was = out->len;
    size_t len;
    const char *p = tokenizer_bytes(d->t, id, &len);
    int rc = 0;

    if (!tokenizer_is_control(d->t, id)) {
        rc = put_bytes(d, (const uint8_t *)p, len, out, e);
    } else {
        rc = detokenize_flush(d, out, e);
        if (rc == 0 && d->control)
            rc = buf_add(out, p, len, e);
    }
    if (rc == -1) { /* as if never called */
        *d = held;
        out->len = was;
    }
    return rc;
}
