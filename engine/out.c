/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's queue of packets to the daemon. Nearly always empty: a packet goes straight to
 * the socket, and only what does not fit is copied. Engine loop thread only.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "base/err.h"
#include "engine/out.h"
#include "proto/link.h"

struct out_packet {
    struct out_packet *next;
    struct link_head head;
    size_t len; /* of body */
    uint8_t body[];
};

void
out_init(struct out *o, int sock)
{
    *o = (struct out){.sock = sock};
    o->last = &o->first;
}

void
out_done(struct out *o)
{
    while (o->first != NULL) {
        struct out_packet *p = o->first;

        o->first = p->next;
        free(p);
    }
    out_init(o, -1);
}

static int
keep(struct out *o, const struct link_head *h, const struct iovec *iov, int n_iov,
     struct err *e)
{
    struct out_packet *p;
    size_t len = 0;

    for (int i = 0; i < n_iov; i++)
        len += iov[i].iov_len;
    if (len > OUT_MAX - o->bytes)
        return err_set(e, ERR_INTERNAL, 0, "%zu bytes wait for the daemon to read them",
                       o->bytes);
    p = malloc(sizeof *p + len);
    if (p == NULL)
        return err_set(e, ERR_INTERNAL, 0, "no memory for a packet of %zu bytes", len);
    p->next = NULL;
    p->head = *h;
    p->len = 0;
    for (int i = 0; i < n_iov; i++) {
        memcpy(p->body + p->len, iov[i].iov_base, iov[i].iov_len);
        p->len += iov[i].iov_len;
    }
    *o->last = p;
    o->last = &p->next;
    o->bytes += sizeof *h + len;
    return 0;
}

int
out_push(struct out *o, uint16_t type, uint32_t seq, uint32_t job, const struct iovec *iov,
         int n_iov, struct err *e)
{
    struct link_head h = {.type = type, .seq = seq, .job = job};

    if (o->first != NULL || link_send(o->sock, &h, iov, n_iov, -1, e) == -1) {
        if (o->first == NULL && e->code != ERR_BUSY)
            return -1;
        if (keep(o, &h, iov, n_iov, e) == -1)
            return -1;
    }
    o->pushed++;
    return 0;
}

int
out_flush(struct out *o, struct err *e)
{
    while (o->first != NULL) {
        struct out_packet *p = o->first;
        const struct iovec iov = {p->body, p->len};

        if (link_send(o->sock, &p->head, &iov, 1, -1, e) == -1)
            return e->code == ERR_BUSY ? 0 : -1;
        o->bytes -= sizeof p->head + p->len;
        o->first = p->next;
        if (o->first == NULL)
            o->last = &o->first;
        free(p);
    }
    return 0;
}
