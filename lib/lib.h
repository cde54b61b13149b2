/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LIB_LIB_H
#define LIB_LIB_H

/* What the files of the library know of each other. Not installed. */

#include <stdbool.h>

#include "base/buf.h"
#include "base/err.h"
#include "lib/fathom.h"
#include "proto/frame.h"
#include "proto/wire.h"

enum {
    LIB_MAX_NAME = 128,
    LIB_CREDIT = 1024,          /* the daemon's default window */
    LIB_MAX_WAITING = 16 << 20, /* bytes that requests may wait in, unsent */
    LIB_INLINE_TEXT = 512 << 10,
};

/* One request, from its start until its end has been told. */
struct call {
    struct call *next;
    uint32_t id;
    enum wire_method_id method;
    struct fathom_watch w;
    void *done_arg;  /* of w.done: fathom_on_done() has its own */
    bool over;       /* kept for fathom_finish() */
    bool failed;     /* over: e is set, else r is */
    bool awaited;    /* fathom_finish() has it */
    bool owns_fd;    /* r.fd is nobody else's yet */
    bool cancelled;  /* no more tokens are passed on */
    uint32_t unpaid; /* tokens that came since credit was last given */
    struct fathom_result r;
    struct fathom_error e;
    char name[LIB_MAX_NAME + 1]; /* list: the last one seen; transcript: the session */
    uint64_t from, left;         /* transcript: what is still wanted; left 0: all */
    bool all, one_page;          /* list */
};

struct fathom {
    int fd;
    struct frame_in in;
    struct frame_out out;
    uint32_t last_id;
    struct call *calls;
    struct call *last; /* the one whose result fathom_finish() returned; owned */
    bool dead;         /* why: dead_error */
    struct err dead_error;
    struct buf scratch; /* for what a callback is given with a NUL behind it */
    bool greeted;
    struct fathom_info info;
    char server[65], instance[37], model[129], backend[65];
};

/* error.c */
void lib_error(struct fathom_error *to, const struct err *from);
void lib_wire_error(struct fathom_error *to, const struct wire_error *from);
uint32_t lib_no(struct fathom_error *to, const struct err *from); /* 0 */

/* conn.c */
struct call *lib_call_new(struct fathom *f, enum wire_method_id method,
                          const struct fathom_watch *w, struct err *e);
uint32_t lib_send(struct fathom *f, struct call *c, const void *body,
                  struct fathom_error *e); /* takes c over */
void lib_end(struct fathom *f, struct call *c);

/* reply.c: the result is in *in; 1: c is over, 0: it goes on, -1: *e says what is wrong. */
int lib_reply(struct fathom *f, struct call *c, struct wire_in *in, struct err *e);
int lib_items(struct fathom *f, struct call *c, struct wire_in *in, struct err *e);

/* store.c: the same for what it asks for. */
int lib_reply_park(struct call *c, struct wire_in *in, struct err *e);
int lib_reply_export(struct call *c, struct wire_in *in, struct err *e);
int lib_reply_import(struct call *c, struct wire_in *in, struct err *e);
int lib_reply_verify(struct call *c, struct wire_in *in, struct err *e);

/* request.c: asks for the next page of a list or transcript. */
int lib_next_page(struct fathom *f, struct call *c, struct err *e);

#endif /* LIB_LIB_H */
