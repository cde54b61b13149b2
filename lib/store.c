/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions as the disk has them: export, import, verify. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/lib.h"

/* Ours first, the daemon's second; closed again by send_with() if the request cannot be sent. */
static int
make_pair(int pair[2], struct err *e)
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0)
        return 0;
    return err_set(e, ERR_QUOTA, errno, "socketpair: %s", strerror(errno));
}

static uint32_t
send_with(struct fathom *f, enum wire_method_id method, const void *body, const int pair[2],
          int *fd, struct fathom_error *fe)
{
    struct err e;
    struct call *c = lib_call_new(f, method, NULL, &e);
    uint32_t id = 0;

    if (c == NULL) {
        lib_error(fe, &e);
        close(pair[1]);
    } else {
        id = lib_send(f, c, body, fe); /* and the descriptor with it */
    }
    *fd = id != 0 ? pair[0] : -1;
    if (id == 0)
        close(pair[0]);
    return id;
}

static uint32_t
send_plain(struct fathom *f, enum wire_method_id method, const struct fathom_watch *w,
           const void *body, struct fathom_error *fe)
{
    struct err e;
    struct call *c = lib_call_new(f, method, w, &e);

    return c == NULL ? lib_no(fe, &e) : lib_send(f, c, body, fe);
}

uint32_t
fathom_park(struct fathom *f, const char *name, int to_memory, struct fathom_error *fe)
{
    struct wire_park r = {.name = wire_str(name)};

    if (to_memory)
        wire_put(&r, park, to, wire_str("memory"));
    return send_plain(f, WIRE_METHOD_park, NULL, &r, fe);
}

uint32_t
fathom_unpark(struct fathom *f, const char *name, struct fathom_error *fe)
{
    const struct wire_name r = {.name = wire_str(name)};

    return send_plain(f, WIRE_METHOD_unpark, NULL, &r, fe);
}

uint32_t
fathom_export(struct fathom *f, const char *name, int tokens_only, int *fd,
              struct fathom_error *fe)
{
    struct wire_export r = {.name = wire_str(name)};
    int pair[2];
    struct err e;

    *fd = -1;
    if (make_pair(pair, &e) == -1)
        return lib_no(fe, &e);
    r.to = pair[1];
    if (tokens_only)
        wire_put(&r, export, tokens_only, true);
    return send_with(f, WIRE_METHOD_export, &r, pair, fd, fe);
}

uint32_t
fathom_import(struct fathom *f, const char *name, int *fd, struct fathom_error *fe)
{
    struct wire_import r = {0};
    int pair[2];
    struct err e;

    *fd = -1;
    if (make_pair(pair, &e) == -1)
        return lib_no(fe, &e);
    r.from = pair[1];
    if (name != NULL)
        wire_put(&r, import, name, wire_str(name));
    return send_with(f, WIRE_METHOD_import, &r, pair, fd, fe);
}

uint32_t
fathom_verify(struct fathom *f, const char *name, const struct fathom_watch *w,
              struct fathom_error *fe)
{
    const struct wire_verify r = {.name = wire_str(name)};

    return send_plain(f, WIRE_METHOD_verify, w, &r, fe);
}

uint32_t
fathom_give_up(struct fathom *f, const char *name, const struct fathom_watch *w,
               struct fathom_error *fe)
{
    struct wire_verify r = {.name = wire_str(name)};

    wire_put(&r, verify, give_up, true);
    return send_plain(f, WIRE_METHOD_verify, w, &r, fe);
}

/* ---- Replies ------------------------------------------------------------------------ */

static void
take_digest(struct call *c, struct wire_bin digest)
{
    if (digest.len == sizeof c->r.digest)
        memcpy(c->r.digest, digest.p, digest.len);
}

int
lib_reply_park(struct call *c, struct wire_in *in, struct err *e)
{
    struct wire_park_result r;

    if (wire_decode(in, WIRE_MSG(park_result), &r, NULL, e) == -1)
        return -1;
    c->r.pos = r.pos;
    c->r.replay = r.replay;
    c->r.memory_bytes = r.memory_bytes;
    c->r.disk_bytes = r.disk_bytes;
    memcpy(c->r.tier, r.tier.p, r.tier.len < 16 ? r.tier.len : 16);
    return 1;
}

int
lib_reply_export(struct call *c, struct wire_in *in, struct err *e)
{
    struct wire_export_result r;

    if (wire_decode(in, WIRE_MSG(export_result), &r, NULL, e) == -1)
        return -1;
    c->r.n = r.tokens;
    c->r.bytes = r.bytes;
    c->r.files = r.files;
    take_digest(c, r.digest);
    return 1;
}

int
lib_reply_import(struct call *c, struct wire_in *in, struct err *e)
{
    struct wire_import_result r;

    if (wire_decode(in, WIRE_MSG(import_result), &r, NULL, e) == -1)
        return -1;
    memcpy(c->r.name, r.name.p, r.name.len < 64 ? r.name.len : 64);
    c->r.n = c->r.pos = r.tokens;
    c->r.bytes = r.bytes;
    c->r.files = r.files;
    c->r.left_out = r.left_out;
    take_digest(c, r.digest);
    return 1;
}

int
lib_reply_verify(struct call *c, struct wire_in *in, struct err *e)
{
    struct wire_verify_result r;
    const char **texts;
    uint32_t n = 0;

    if (wire_decode(in, WIRE_MSG(verify_result), &r, NULL, e) == -1)
        return -1;
    texts = calloc(r.problems.n + 1, sizeof *texts);
    while (texts != NULL && n < r.problems.n &&
           (texts[n] = wire_dup(r.problems.v[n].text)) != NULL)
        n++;
    if (c->w.verified != NULL && n == r.problems.n) {
        const struct fathom_verified out = {.good = r.good,
                                            .wrong = r.wrong,
                                            .problems = texts,
                                            .n_problems = n,
                                            .ledger = r.ledger,
                                            .tokens = r.tokens,
                                            .files = r.files,
                                            .files_good = r.files_good,
                                            .states = r.states,
                                            .best = r.best,
                                            .recompute = r.recompute,
                                            .salvage = r.salvage};

        c->w.verified(c->w.arg, &out);
    }
    c->r.n = r.tokens;
    for (uint32_t i = 0; i < n; i++)
        free((char *)(uintptr_t)texts[i]);
    free(texts);
    return n == r.problems.n ? 1 : err_set(e, ERR_QUOTA, errno, "no memory for a result");
}
