/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection: bytes in and out, requests under way, who is called back when.
 *
 * Nothing here blocks but fathom_open(), fathom_wait() and fathom_finish(). A call is in
 * f->calls from its start until its end was told. Callbacks may start calls, so lists are looked
 * up again after each one. Once the connection is dead it stays so, and its error ends all.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/lib.h"

enum { MAX_READS = 16 }; /* in one fathom_process(), so that a loop gets its turn */

int
fathom_socket_path(char *path, size_t size)
{
    const char *env = getenv("FATHOM_SOCKET"), *run = getenv("XDG_RUNTIME_DIR");
    int n;

    if (env != NULL && env[0] != '\0') {
        n = snprintf(path, size, "%s", env);
        return n < 0 || (size_t)n >= size ? -1 : 0;
    }
    if (run != NULL && run[0] != '\0') {
        n = snprintf(path, size, "%s/fathom/sock", run);
        if (n > 0 && (size_t)n < size && access(path, F_OK) == 0)
            return 0;
    }
    n = snprintf(path, size, "/run/fathom/api.sock");
    return n < 0 || (size_t)n >= size ? -1 : 0;
}

static int
connect_to(const char *path, struct err *e)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char found[sizeof to.sun_path];
    int fd;

    if (path == NULL) {
        if (fathom_socket_path(found, sizeof found) == -1)
            return err_set(e, ERR_INVALID, 0, "the socket's path is too long");
        path = found;
    }
    if (strlen(path) >= sizeof to.sun_path)
        return err_set(e, ERR_INVALID, 0, "socket path of %zu bytes: at most %zu",
                       strlen(path), sizeof to.sun_path - 1);
    memcpy(to.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd == -1)
        return err_set(e, ERR_INTERNAL, errno, "socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == -1) {
        const int why = errno;

        close(fd);
        return err_set(e, why == EACCES ? ERR_PERMISSION : ERR_UNAVAILABLE, why,
                       "connect to %s: %s%s", path, strerror(why),
                       why == ENOENT || why == ECONNREFUSED ? "; is fathomd running?" : "");
    }
    return fd;
}

/* The greeting's end: there is nothing to tell. If it fails the connection dies of it. */
static void
on_hello(void *arg, const struct fathom_result *r, const struct fathom_error *e)
{
    (void)arg;
    (void)r;
    (void)e;
}

struct fathom *
fathom_open_fd(int fd, struct fathom_error *fe)
{
    const struct fathom_watch w = {.struct_size = sizeof w, .done = on_hello};
    struct wire_hello hello = {.proto_min = WIRE_PROTO, .proto_max = WIRE_PROTO};
    struct fathom *f = calloc(1, sizeof *f);
    struct call *c;
    struct err e;

    if (f == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a connection");
        lib_error(fe, &e);
        close(fd);
        return NULL;
    }
    f->fd = fd;
    frame_in_init(&f->in);
    frame_out_init(&f->out, LIB_MAX_WAITING);
    buf_init(&f->scratch, 4 << 20);
    wire_put(&hello, hello, client, wire_str("libfathom/" PACKAGE_VERSION));
    c = lib_call_new(f, WIRE_METHOD_hello, &w, &e);
    if (c == NULL)
        lib_error(fe, &e);
    if (c == NULL || lib_send(f, c, &hello, fe) == 0) {
        fathom_close(f);
        return NULL;
    }
    return f;
}

struct fathom *
fathom_open(const char *path, struct fathom_error *fe)
{
    struct fathom *f;
    struct err e;
    const int fd = connect_to(path, &e);

    if (fd == -1) {
        lib_error(fe, &e);
        return NULL;
    }
    f = fathom_open_fd(fd, fe);
    while (f != NULL && !f->greeted) {
        if (fathom_wait(f, -1, fe) == -1) {
            fathom_close(f);
            return NULL;
        }
    }
    return f;
}

static void
call_free(struct call *c)
{
    if (c != NULL && c->owns_fd)
        close(c->r.fd);
    free(c);
}

void
fathom_close(struct fathom *f)
{
    if (f == NULL)
        return;
    while (f->calls != NULL) {
        struct call *c = f->calls;

        f->calls = c->next;
        call_free(c);
    }
    call_free(f->last);
    frame_in_done(&f->in);
    frame_out_done(&f->out);
    buf_done(&f->scratch);
    close(f->fd);
    free(f);
}

const struct fathom_info *
fathom_info(const struct fathom *f)
{
    return f->greeted ? &f->info : NULL;
}

int
fathom_fd(const struct fathom *f)
{
    return f->fd;
}

int
fathom_events(const struct fathom *f)
{
    return frame_out_waiting(&f->out) > 0 ? POLLIN | POLLOUT : POLLIN;
}

/* ---- Calls -------------------------------------------------------------------------- */

static struct call *
find_call(struct fathom *f, uint32_t id)
{
    for (struct call *c = f->calls; c != NULL; c = c->next) {
        if (c->id == id)
            return c;
    }
    return NULL;
}

struct call *
lib_call_new(struct fathom *f, enum wire_method_id method, const struct fathom_watch *w,
             struct err *e)
{
    struct call *c;

    if (f->dead) {
        *e = f->dead_error;
        return NULL;
    }
    if (w != NULL && (w->struct_size == 0 || w->struct_size > 4096)) {
        err_set(e, ERR_INVALID, 0, "struct_size of a fathom_watch is not set");
        return NULL;
    }
    c = calloc(1, sizeof *c);
    if (c == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a request");
        return NULL;
    }
    /* A caller built with an older header has a shorter struct: the rest stays NULL. */
    if (w != NULL)
        memcpy(&c->w, w, w->struct_size < sizeof c->w ? w->struct_size : sizeof c->w);
    c->done_arg = c->w.arg;
    c->method = method;
    c->r.fd = -1;
    do {
        c->id = ++f->last_id;
    } while (c->id == 0 || find_call(f, c->id) != NULL);
    return c;
}

uint32_t
lib_send(struct fathom *f, struct call *c, const void *body, struct fathom_error *fe)
{
    struct err e;

    if (wire_request(&f->out, c->id, c->method, body, &e) == -1) {
        call_free(c);
        return lib_no(fe, &e);
    }
    c->next = f->calls;
    f->calls = c;
    return c->id;
}

/* The call is over: tells it, or keeps the result for fathom_finish(). */
void
lib_end(struct fathom *f, struct call *c)
{
    c->over = true;
    if (c->w.done == NULL)
        return;
    c->owns_fd = false; /* theirs now */
    c->w.done(c->done_arg, c->failed ? NULL : &c->r, c->failed ? &c->e : NULL);
    for (struct call **p = &f->calls; *p != NULL; p = &(*p)->next) {
        if (*p == c) {
            *p = c->next;
            break;
        }
    }
    call_free(c);
}

static void
end_with(struct fathom *f, struct call *c, const struct err *e)
{
    c->failed = true;
    lib_error(&c->e, e);
    lib_end(f, c);
}

int
fathom_on_done(struct fathom *f, uint32_t id,
               void (*done)(void *arg, const struct fathom_result *r,
                            const struct fathom_error *e),
               void *arg)
{
    struct call *c = find_call(f, id);

    if (c == NULL || c->over || c->awaited)
        return -1;
    c->w.done = done;
    c->done_arg = arg;
    return 0;
}

int
fathom_cancel(struct fathom *f, uint32_t id, struct fathom_error *fe)
{
    struct call *c = find_call(f, id);
    struct err e;

    if (c == NULL || c->over || c->cancelled)
        return 0;
    if (wire_cancel(&f->out, id, &e) == -1) {
        lib_error(fe, &e);
        return -1;
    }
    c->cancelled = true;
    c->left = 0;
    return 0;
}

/* ---- Bytes -------------------------------------------------------------------------- */

static void
die(struct fathom *f, const struct err *e)
{
    if (!f->dead) {
        f->dead = true;
        f->dead_error = *e;
    }
    for (;;) {
        struct call *c = f->calls;

        while (c != NULL && c->over)
            c = c->next;
        if (c == NULL)
            return;
        end_with(f, c, &f->dead_error);
    }
}

static int
on_response(struct fathom *f, struct wire_in *in, struct err *e)
{
    struct call *c = find_call(f, in->id);
    struct err why;
    int r;

    if (c == NULL || c->over)
        return err_set(e, ERR_PROTOCOL, 0, "a response to no request of ours");
    if (in->failed) {
        struct wire_error we;

        if (wire_decode(in, WIRE_MSG(error), &we, NULL, e) == -1)
            return -1;
        if (c->method == WIRE_METHOD_hello) {
            wire_error_to(&we, e);
            return -1; /* then nothing else will go well either */
        }
        c->failed = true;
        lib_wire_error(&c->e, &we);
        lib_end(f, c);
        return 0;
    }
    r = lib_reply(f, c, in, &why);
    if (r == 1)
        lib_end(f, c);
    else if (r == -1)
        end_with(f, c, &why);
    return 0;
}

static int
on_frame(struct fathom *f, const uint8_t *p, size_t len, struct err *e)
{
    struct wire_error bye;
    struct wire_in in;
    struct call *c;
    int r = 0;

    if (wire_open(&in, &f->in, p, len, e) == -1)
        return -1;
    switch (in.shape) {
    case WIRE_RESPONSE: r = on_response(f, &in, e); break;
    case WIRE_STREAM:
        c = find_call(f, in.id);
        if (c != NULL && !c->over)
            r = lib_items(f, c, &in, e);
        break;
    case WIRE_NOTIFY:
        /* Why it is about to close. Other notifications are of a newer daemon. */
        if (in.method == &wire_methods[WIRE_METHOD_bye] &&
            wire_decode(&in, WIRE_MSG(error), &bye, NULL, e) == 0) {
            wire_error_to(&bye, e);
            r = -1;
        }
        break;
    default: r = err_set(e, ERR_PROTOCOL, 0, "the daemon sent a request");
    }
    wire_close(&in);
    return r;
}

static int
read_some(struct fathom *f, struct err *e)
{
    for (int i = 0; i < MAX_READS; i++) {
        const int got = frame_in_recv(&f->in, f->fd, e);
        const uint8_t *p;
        size_t len;
        int r;

        if (got != 1)
            return got;
        while ((r = frame_in_next(&f->in, &p, &len, e)) == 1) {
            if (on_frame(f, p, len, e) == -1)
                return -1;
        }
        if (r == -1)
            return -1;
    }
    return 0;
}

int
fathom_process(struct fathom *f, struct fathom_error *fe)
{
    struct err e, unsent;
    int sent;

    if (f->dead) {
        lib_error(fe, &f->dead_error);
        return -1;
    }
    /* What has come is read even if nothing can be sent any more: it may say why. */
    sent = frame_out_send(&f->out, f->fd, &unsent);
    if (read_some(f, &e) == -1) {
        die(f, &e);
    } else if (sent == -1) {
        die(f, &unsent);
    } else if (frame_out_send(&f->out, f->fd, &e) != -1) {
        return 0; /* callbacks may have queued something */
    } else {
        die(f, &e);
    }
    lib_error(fe, &f->dead_error);
    return -1;
}

int
fathom_wait(struct fathom *f, int timeout_ms, struct fathom_error *fe)
{
    struct pollfd p = {f->fd, POLLIN, 0};
    struct err e;

    /* Send first: most requests fit, and then POLLOUT would only wake us up at once. */
    if (!f->dead && frame_out_send(&f->out, f->fd, &e) != -1) {
        p.events = (short)fathom_events(f);
        if (poll(&p, 1, timeout_ms) <= 0)
            return 0;
    }
    return fathom_process(f, fe) == -1 ? -1 : 1;
}

/* Takes it out of the list. */
static struct call *
claim(struct fathom *f, uint32_t id)
{
    for (struct call **p = &f->calls; *p != NULL; p = &(*p)->next) {
        struct call *c = *p;

        if (c->id == id) {
            *p = c->next;
            return c;
        }
    }
    return NULL;
}

const struct fathom_result *
fathom_finish(struct fathom *f, uint32_t id, struct fathom_error *fe)
{
    struct fathom_error lost;
    struct call *c;

    if (id == 0)
        return NULL;
    c = find_call(f, id);
    if (c == NULL || c->w.done != NULL) {
        struct err e;

        err_set(&e, ERR_INVALID, 0, "request %u is not one to wait for", id);
        lib_error(fe, &e);
        return NULL;
    }
    c->awaited = true;
    /* A lost connection ends the call, so its error is the call's. */
    while (!c->over)
        (void)fathom_wait(f, -1, &lost);
    call_free(f->last);
    f->last = claim(f, id);
    f->last->owns_fd = false;
    if (f->last->failed) {
        *fe = f->last->e;
        return NULL;
    }
    return &f->last->r;
}
