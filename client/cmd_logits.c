/* SPDX-License-Identifier: Apache-2.0 */
/* fathom logits NAME: the next token's logits, float32 in this machine's byte order. */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "client/client.h"

int
cmd_logits(struct client *c)
{
    const struct fathom_result *r;
    uint64_t left;
    char piece[1 << 16];

    client_open(c);
    do {
        r = client_run(c, fathom_logits(c->f, c->values.args[0], &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    if (c->json) {
        json_begin(NULL);
        json_u64("pos", r->pos);
        json_u64("vocab", r->vocab);
        json_list("logits");
    }
    left = r->vocab * sizeof(float);
    for (off_t at = 0; left > 0;) {
        const size_t want = left < sizeof piece ? (size_t)left : sizeof piece;
        const ssize_t n = pread(r->fd, piece, want, at);

        if (n == -1 && errno == EINTR)
            continue;
        if (n <= 0 || n % (ssize_t)sizeof(float) != 0)
            die(70, "the logits cannot be read: %s", n == -1 ? strerror(errno) : "too few");
        for (ssize_t i = 0; c->json && i < n; i += (ssize_t)sizeof(float)) {
            float v;

            memcpy(&v, piece + i, sizeof v);
            json_f64(NULL, (double)v);
        }
        if (!c->json && fwrite(piece, 1, (size_t)n, stdout) != (size_t)n)
            break;
        at += n;
        left -= (uint64_t)n;
    }
    close(r->fd);
    if (c->json) {
        json_list_end();
        json_end();
    }
    return client_end(c);
}
