/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies to shared memory that go on beside their thread (cp.async): done as late as can be, when
 * the thread waits for them. Until then there is 0xff in every byte where they go.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/simt/simt.h"

enum { MOST = 256, BYTES = 16 };

/* Of one thread; groups[0] is the oldest that is not done, groups[n_groups] the one that is open. */
struct copies {
    struct {
        void *to;
        const void *from;
    } all[MOST];

    unsigned n, n_groups, groups[MOST + 1];
};

static struct copies *threads[SIMT_MAX_CLUSTER * SIMT_MAX_THREADS];

static struct copies *
mine(void)
{
    struct copies **c = &threads[simt_rank() * SIMT_MAX_THREADS + simt_thread_at.x];

    if (*c == NULL)
        *c = calloc(1, sizeof **c);
    if (*c == NULL)
        abort();
    return *c;
}

void
simt_copy(void *to, const void *from, bool there)
{
    struct copies *c = mine();

    if (c->n == MOST || (uintptr_t)to % BYTES != 0 || (uintptr_t)from % BYTES != 0)
        abort();
    memset(to, 0xff, BYTES);
    c->all[c->n].to = to;
    c->all[c->n++].from = there ? from : NULL;
    c->groups[c->n_groups]++;
}

void
simt_copies_close(void)
{
    struct copies *c = mine();

    if (c->n_groups == MOST)
        abort();
    c->groups[++c->n_groups] = 0;
}

void
simt_copies_wait(unsigned groups)
{
    struct copies *c = mine();
    unsigned done = 0, n = 0;

    for (; c->n_groups - done > groups; done++)
        n += c->groups[done];
    for (unsigned i = 0; i < n; i++)
        if (c->all[i].from != NULL)
            memcpy(c->all[i].to, c->all[i].from, BYTES);
        else
            memset(c->all[i].to, 0, BYTES);
    c->n -= n;
    memmove(c->all, c->all + n, c->n * sizeof c->all[0]);
    c->n_groups -= done;
    memmove(c->groups, c->groups + done, (c->n_groups + 1) * sizeof c->groups[0]);
}

void
simt_copies_begin(unsigned rank, unsigned n)
{
    for (unsigned t = 0; t < n; t++) {
        struct copies *c = threads[rank * SIMT_MAX_THREADS + t];

        if (c != NULL)
            c->n = c->n_groups = c->groups[0] = 0;
    }
}

unsigned
simt_copies_left(void)
{
    struct copies *c = threads[simt_rank() * SIMT_MAX_THREADS + simt_thread_at.x];

    return c != NULL ? c->n : 0;
}
