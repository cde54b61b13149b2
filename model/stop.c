/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stop strings across token borders. At most 16 strings of at most 64 bytes against a few
 * bytes a token: comparing the tail with each string at every byte is cheaper than building
 * an automaton, and needs no memory of its own. One thread for each matcher.
 */
#include <config.h>

#include <string.h>

#include "model/sampler.h"

void
stop_matcher_init(struct stop_matcher *m, const struct sample_params *p)
{
    *m = (struct stop_matcher){.p = p};
}

/* The longest stop string that ends where the tail ends; 0 if none does. */
static size_t
longest_at_end(const struct stop_matcher *m)
{
    size_t best = 0;

    for (uint32_t i = 0; i < m->p->n_stops; i++) {
        const size_t n = m->p->stops[i].len;

        if (n > best && n <= m->n_tail &&
            memcmp(m->tail + m->n_tail - n, m->p->stops[i].s, n) == 0)
            best = n;
    }
    return best;
}

bool
stop_matcher_feed(struct stop_matcher *m, const char *bytes, size_t len, uint64_t *at)
{
    for (size_t i = 0; i < len; i++) {
        size_t n;

        if (m->n_tail == sizeof m->tail) {
            memmove(m->tail, m->tail + 1, sizeof m->tail - 1);
            m->n_tail--;
        }
        m->tail[m->n_tail++] = bytes[i];
        m->fed++;
        n = longest_at_end(m);
        if (n > 0) {
            *at = m->fed - n;
            return true;
        }
    }
    return false;
}

size_t
stop_matcher_held(const struct stop_matcher *m)
{
    size_t held = 0;

    for (uint32_t i = 0; i < m->p->n_stops; i++) {
        size_t n = m->p->stops[i].len > 0 ? m->p->stops[i].len - 1U : 0;

        if (n > m->n_tail)
            n = m->n_tail;
        for (; n > held; n--) {
            if (memcmp(m->tail + m->n_tail - n, m->p->stops[i].s, n) == 0)
                held = n;
        }
    }
    return held;
}
