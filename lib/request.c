/* SPDX-License-Identifier: Apache-2.0 */
/* One function a request: public arguments into the wire's struct, and off it goes. */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/lib.h"

/* The new call, or NULL with *fe set. */
static struct call *
start(struct fathom *f, enum wire_method_id method, const struct fathom_watch *w,
      struct fathom_error *fe)
{
    struct err e;
    struct call *c = lib_call_new(f, method, w, &e);

    if (c == NULL)
        lib_error(fe, &e);
    return c;
}

static uint32_t
send_new(struct fathom *f, enum wire_method_id method, const struct fathom_watch *w,
         const void *body, struct fathom_error *fe)
{
    struct call *c = start(f, method, w, fe);

    return c == NULL ? 0 : lib_send(f, c, body, fe);
}

uint32_t
fathom_new(struct fathom *f, const char *name, int flags, struct fathom_error *fe)
{
    struct wire_session_new r = {.name = wire_str(name)};

    if (flags & FATHOM_IF_ABSENT)
        wire_put(&r, session_new, if_absent, true);
    return send_new(f, WIRE_METHOD_session_new, NULL, &r, fe);
}

uint32_t
fathom_list(struct fathom *f, int all_users, const struct fathom_watch *w,
            struct fathom_error *fe)
{
    struct call *c = start(f, WIRE_METHOD_list, w, fe);
    struct wire_list r = {0};

    if (c == NULL)
        return 0;
    c->all = all_users != 0;
    if (c->all)
        wire_put(&r, list, all, true);
    return lib_send(f, c, &r, fe);
}

uint32_t
fathom_list_recent(struct fathom *f, int all_users, uint64_t n,
                   const struct fathom_watch *w, struct fathom_error *fe)
{
    struct call *c = start(f, WIRE_METHOD_list, w, fe);
    struct wire_list r = {0};

    if (c == NULL)
        return 0;
    c->one_page = true;
    wire_put(&r, list, recent, true);
    wire_put(&r, list, limit, n);
    if (all_users)
        wire_put(&r, list, all, true);
    return lib_send(f, c, &r, fe);
}

int
lib_next_page(struct fathom *f, struct call *c, struct err *e)
{
    struct wire_list list = {0};
    struct wire_transcript part = {.name = wire_str(c->name)};

    /* The number is free again: the response that we are in has ended its request. */
    if (c->method == WIRE_METHOD_list) {
        if (c->all)
            wire_put(&list, list, all, true);
        wire_put(&list, list, after, wire_str(c->name));
        return wire_request(&f->out, c->id, c->method, &list, e);
    }
    wire_put(&part, transcript, from, c->from);
    if (!c->all)
        wire_put(&part, transcript, n, c->left);
    if (c->w.ids != NULL)
        wire_put(&part, transcript, what, wire_str("tokens"));
    return wire_request(&f->out, c->id, c->method, &part, e);
}

static uint32_t
send_name(struct fathom *f, enum wire_method_id method, const char *name,
          const struct fathom_watch *w, struct fathom_error *fe)
{
    const struct wire_name r = {.name = wire_str(name)};

    return send_new(f, method, w, &r, fe);
}

uint32_t
fathom_stat(struct fathom *f, const char *name, const struct fathom_watch *w,
            struct fathom_error *fe)
{
    return send_name(f, WIRE_METHOD_stat, name, w, fe);
}

uint32_t
fathom_delete(struct fathom *f, const char *name, struct fathom_error *fe)
{
    return send_name(f, WIRE_METHOD_delete, name, NULL, fe);
}

uint32_t
fathom_logits(struct fathom *f, const char *name, struct fathom_error *fe)
{
    return send_name(f, WIRE_METHOD_logits, name, NULL, fe);
}

uint32_t
fathom_status(struct fathom *f, const struct fathom_watch *w, struct fathom_error *fe)
{
    const struct wire_nothing r = {0};

    return send_new(f, WIRE_METHOD_status, w, &r, fe);
}

uint32_t
fathom_stats(struct fathom *f, const char *name, struct fathom_error *fe)
{
    struct wire_stats r = {0};

    if (name != NULL)
        wire_put(&r, stats, name, wire_str(name));
    return send_new(f, WIRE_METHOD_stats, NULL, &r, fe);
}

uint32_t
fathom_ring(struct fathom *f, int kind, uint64_t records, struct fathom_error *fe)
{
    const struct wire_ring r = {
        .kind = wire_str(kind == FATHOM_RING_LOGITS ? "logits" : "tokens"),
        .records = records};

    return send_new(f, WIRE_METHOD_ring, NULL, &r, fe);
}

uint32_t
fathom_ring_wake(struct fathom *f, uint64_t ring, struct fathom_error *fe)
{
    const struct wire_ring_wake r = {.ring = ring};

    return send_new(f, WIRE_METHOD_ring_wake, NULL, &r, fe);
}

/* ---- Append ------------------------------------------------------------------------- */

void
fathom_append_init(struct fathom_append *a, size_t struct_size)
{
    struct fathom_append new = {
        .struct_size = struct_size, .document = -1, .bos = -1, .if_pos = FATHOM_ANY_POS};

    memcpy(a, &new, struct_size < sizeof new ? struct_size : sizeof new);
}

/* Text in a memfd that nobody can change any more; -1 with *e set. */
static int
make_document(const char *text, size_t len, struct err *e)
{
    const int fd = memfd_create("document", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd == -1)
        return err_set(e, ERR_QUOTA, errno, "memfd_create: %s", strerror(errno));
    for (size_t at = 0; at < len;) {
        const ssize_t n = write(fd, text + at, len - at);

        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1) {
            err_set(e, ERR_QUOTA, errno, "a document of %zu bytes: %s", len,
                    strerror(errno));
            close(fd);
            return -1;
        }
        at += (size_t)n;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) ==
        -1) {
        err_set(e, ERR_INTERNAL, errno, "sealing a document: %s", strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

/* Host words as little-endian bytes, the caller's to free(); NULL, with *e set, if there is
 * no memory. */
static uint8_t *
little_endian(const uint32_t *v, size_t n, struct err *e)
{
    uint32_t *out = malloc(n * sizeof *out + 1);

    if (out == NULL)
        err_set(e, ERR_QUOTA, errno, "no memory for %zu tokens", n);
    for (size_t i = 0; out != NULL && i < n; i++)
        out[i] = htole32(v[i]);
    return (uint8_t *)out;
}

static void
put_op_id(const void *op_id, struct wire_bin *to, uint64_t *has, int bit)
{
    if (op_id != NULL) {
        *to = wire_bin(op_id, 16);
        *has |= UINT64_C(1) << bit;
    }
}

uint32_t
fathom_append(struct fathom *f, const struct fathom_append *args,
              const struct fathom_watch *w, struct fathom_error *fe)
{
    struct fathom_append a;
    struct wire_append r = {0};
    uint8_t *tokens = NULL;
    struct call *c;
    uint32_t id = 0;
    struct err e;
    int fd = -1;

    fathom_append_init(&a, sizeof a);
    if (args->name == NULL || args->struct_size == 0 || args->struct_size > 4096) {
        err_set(&e, ERR_INVALID, 0, "append: no name, or FATHOM_APPEND_INIT was not used");
        return lib_no(fe, &e);
    }
    memcpy(&a, args, args->struct_size < sizeof a ? args->struct_size : sizeof a);
    r.name = wire_str(a.name);
    if (a.text != NULL && a.len > LIB_INLINE_TEXT) {
        fd = make_document(a.text, a.len, &e);
        if (fd == -1)
            return lib_no(fe, &e);
    } else if (a.text != NULL) {
        wire_put(&r, append, text, wire_strn(a.text, a.len));
    }
    if (a.document != -1) {
        if (fd != -1)
            close(fd); /* both given: the daemon says that it is one too many */
        fd = fcntl(a.document, F_DUPFD_CLOEXEC, 3);
        if (fd == -1) {
            err_set(&e, ERR_INVALID, errno, "the document's descriptor: %s",
                    strerror(errno));
            return lib_no(fe, &e);
        }
    }
    if (a.tokens != NULL) {
        tokens = little_endian(a.tokens, a.n_tokens, &e);
        if (tokens == NULL) {
            if (fd != -1)
                close(fd);
            return lib_no(fe, &e);
        }
        wire_put(&r, append, tokens, wire_bin(tokens, 4 * a.n_tokens));
    }
    if (a.messages != NULL)
        wire_put(&r, append, messages, wire_str(a.messages));
    if (a.control)
        wire_put(&r, append, control, true);
    if (a.bos != -1)
        wire_put(&r, append, bos, a.bos != 0);
    if (a.thinking)
        wire_put(&r, append, thinking, true);
    if (a.keep_reasoning)
        wire_put(&r, append, keep_reasoning, true);
    if (a.effort != NULL)
        wire_put(&r, append, effort, wire_str(a.effort));
    if (a.if_pos >= 0)
        wire_put(&r, append, if_pos, (uint64_t)a.if_pos);
    put_op_id(a.op_id, &r.op_id, &r.has, WIRE_append_op_id);
    if (w != NULL && w->progress != NULL)
        wire_put(&r, append, progress, true);
    if (fd != -1)
        wire_put(&r, append, document, fd);
    c = start(f, WIRE_METHOD_append, w, fe);
    if (c != NULL)
        id = lib_send(f, c, &r, fe); /* and the descriptor with it */
    else if (fd != -1)
        close(fd);
    free(tokens);
    return id;
}

int
fathom_append_text(struct fathom *f, const char *name, const char *text, size_t len,
                   uint64_t *pos, struct fathom_error *fe)
{
    const struct fathom_result *r;
    struct fathom_append a;

    FATHOM_APPEND_INIT(&a);
    a.name = name;
    a.text = text;
    a.len = len;
    r = fathom_finish(f, fathom_append(f, &a, NULL, fe), fe);
    if (pos != NULL && r != NULL)
        *pos = r->pos;
    else if (pos != NULL && fe->has_pos)
        *pos = fe->pos;
    return r != NULL ? 0 : -1;
}

/* ---- Sample ------------------------------------------------------------------------- */

void
fathom_sample_init(struct fathom_sample *a, size_t struct_size)
{
    struct fathom_sample new = {.struct_size = struct_size,
                                .temperature = (double)NAN,
                                .top_p = (double)NAN,
                                .min_p = (double)NAN,
                                .repetition = (double)NAN,
                                .presence = (double)NAN,
                                .frequency = (double)NAN,
                                .if_pos = FATHOM_ANY_POS};

    memcpy(a, &new, struct_size < sizeof new ? struct_size : sizeof new);
}

/* The plain fields: those that are not the default. */
static void
put_sample(struct wire_sample *r, const struct fathom_sample *a)
{
    r->name = wire_str(a->name);
    if (a->n != 0)
        wire_put(r, sample, n, a->n);
    if (a->min_tokens != 0)
        wire_put(r, sample, min_tokens, a->min_tokens);
    if (!isnan(a->temperature))
        wire_put(r, sample, temperature, a->temperature);
    if (!isnan(a->top_p))
        wire_put(r, sample, top_p, a->top_p);
    if (!isnan(a->min_p))
        wire_put(r, sample, min_p, a->min_p);
    if (!isnan(a->repetition))
        wire_put(r, sample, repetition, a->repetition);
    if (!isnan(a->presence))
        wire_put(r, sample, presence, a->presence);
    if (!isnan(a->frequency))
        wire_put(r, sample, frequency, a->frequency);
    if (a->top_k != 0)
        wire_put(r, sample, top_k, a->top_k);
    if (a->penalty_window != 0)
        wire_put(r, sample, penalty_window, a->penalty_window);
    if (a->has_seed)
        wire_put(r, sample, seed, a->seed);
    if (a->ignore_eos)
        wire_put(r, sample, ignore_eos, true);
    if (a->logprobs)
        wire_put(r, sample, logprobs, true);
    if (a->top_logprobs != 0)
        wire_put(r, sample, top_logprobs, (uint64_t)a->top_logprobs);
    if (a->control)
        wire_put(r, sample, control, true);
    if (a->parse)
        wire_put(r, sample, parse, true);
    if (a->quiet)
        wire_put(r, sample, quiet, true);
    if (a->detach)
        wire_put(r, sample, detach, true);
    if (a->pause)
        wire_put(r, sample, on_stall, wire_str("pause"));
    if (a->if_pos >= 0)
        wire_put(r, sample, if_pos, (uint64_t)a->if_pos);
    put_op_id(a->op_id, &r->op_id, &r->has, WIRE_sample_op_id);
    if (a->ring != 0)
        wire_put(r, sample, ring, a->ring);
}

/* What has to be allocated for the time of encoding. */
struct lists {
    struct wire_bias *bias;
    struct wire_str *stop;
    uint8_t *ban, *stop_tokens;
};

static int
put_lists(struct wire_sample *r, const struct fathom_sample *a, struct lists *l,
          struct err *e)
{
    if (a->n_bias > 1024 || a->n_stop > 16)
        return err_set(e, ERR_INVALID, 0,
                       "sample: more than 1024 biases or 16 stop strings");
    if (a->n_bias > 0) {
        l->bias = calloc(a->n_bias, sizeof *l->bias);
        if (l->bias == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for %zu biases", a->n_bias);
        for (size_t i = 0; i < a->n_bias; i++)
            l->bias[i] =
                (struct wire_bias){.id = a->bias[i].id, .bias = (double)a->bias[i].bias};
        r->bias.v = l->bias;
        r->bias.n = (uint32_t)a->n_bias;
        r->has |= UINT64_C(1) << WIRE_sample_bias;
    }
    if (a->n_stop > 0) {
        l->stop = calloc(a->n_stop, sizeof *l->stop);
        if (l->stop == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for %zu stops", a->n_stop);
        for (size_t i = 0; i < a->n_stop; i++)
            l->stop[i] = wire_str(a->stop[i]);
        wire_put(r, sample, stop, (struct wire_strs){l->stop, (uint32_t)a->n_stop});
    }
    if (a->n_ban > 0) {
        l->ban = little_endian(a->ban, a->n_ban, e);
        if (l->ban == NULL)
            return -1;
        wire_put(r, sample, ban, wire_bin(l->ban, 4 * a->n_ban));
    }
    if (a->n_stop_tokens > 0) {
        l->stop_tokens = little_endian(a->stop_tokens, a->n_stop_tokens, e);
        if (l->stop_tokens == NULL)
            return -1;
        wire_put(r, sample, stop_tokens, wire_bin(l->stop_tokens, 4 * a->n_stop_tokens));
    }
    return 0;
}

uint32_t
fathom_sample(struct fathom *f, const struct fathom_sample *args,
              const struct fathom_watch *w, struct fathom_error *fe)
{
    struct lists lists = {0};
    struct fathom_sample a;
    struct wire_sample r = {0};
    uint32_t id = 0;
    struct err e;

    fathom_sample_init(&a, sizeof a);
    if (args->name == NULL || args->struct_size == 0 || args->struct_size > 4096) {
        err_set(&e, ERR_INVALID, 0, "sample: no name, or FATHOM_SAMPLE_INIT was not used");
        return lib_no(fe, &e);
    }
    memcpy(&a, args, args->struct_size < sizeof a ? args->struct_size : sizeof a);
    put_sample(&r, &a);
    if (put_lists(&r, &a, &lists, &e) == -1)
        lib_error(fe, &e);
    else
        id = send_new(f, WIRE_METHOD_sample, w, &r, fe);
    free(lists.bias);
    free(lists.stop);
    free(lists.ban);
    free(lists.stop_tokens);
    return id;
}

int
fathom_sample_text(struct fathom *f, const char *name, const struct fathom_sample *args,
                   int (*token)(void *arg, const struct fathom_token *t), void *arg,
                   uint64_t *pos, struct fathom_error *fe)
{
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = arg, .token = token};
    const struct fathom_result *r;
    struct fathom_sample a;

    FATHOM_SAMPLE_INIT(&a);
    if (args != NULL)
        memcpy(&a, args, args->struct_size < sizeof a ? args->struct_size : sizeof a);
    a.name = name;
    r = fathom_finish(f, fathom_sample(f, &a, &w, fe), fe);
    if (pos != NULL && r != NULL)
        *pos = r->pos;
    else if (pos != NULL && fe->has_pos)
        *pos = fe->pos;
    return r != NULL ? 0 : -1;
}

/* ---- The others --------------------------------------------------------------------- */

uint32_t
fathom_fork(struct fathom *f, const char *name, const char *to, const char *checkpoint,
            int64_t pos, struct fathom_error *fe)
{
    struct wire_fork r = {.name = wire_str(name), .to = wire_str(to)};

    if (checkpoint != NULL)
        wire_put(&r, fork, at, wire_str(checkpoint));
    if (pos >= 0)
        wire_put(&r, fork, pos, (uint64_t)pos);
    return send_new(f, WIRE_METHOD_fork, NULL, &r, fe);
}

uint32_t
fathom_checkpoint(struct fathom *f, const char *name, const char *label,
                  struct fathom_error *fe)
{
    const struct wire_checkpoint r = {.name = wire_str(name), .label = wire_str(label)};

    return send_new(f, WIRE_METHOD_checkpoint, NULL, &r, fe);
}

uint32_t
fathom_checkpoint_remove(struct fathom *f, const char *name, const char *label,
                         struct fathom_error *fe)
{
    struct wire_checkpoint r = {.name = wire_str(name), .label = wire_str(label)};

    wire_put(&r, checkpoint, remove, true);
    return send_new(f, WIRE_METHOD_checkpoint, NULL, &r, fe);
}

uint32_t
fathom_rollback(struct fathom *f, const char *name, const char *checkpoint, int64_t pos,
                struct fathom_error *fe)
{
    struct wire_rollback r = {.name = wire_str(name)};

    if (checkpoint != NULL)
        wire_put(&r, rollback, to, wire_str(checkpoint));
    if (pos >= 0)
        wire_put(&r, rollback, pos, (uint64_t)pos);
    return send_new(f, WIRE_METHOD_rollback, NULL, &r, fe);
}

uint32_t
fathom_rename(struct fathom *f, const char *name, const char *to, struct fathom_error *fe)
{
    const struct wire_rename r = {.name = wire_str(name), .to = wire_str(to)};

    return send_new(f, WIRE_METHOD_rename, NULL, &r, fe);
}

uint32_t
fathom_chmod(struct fathom *f, const char *name, unsigned mode, const char *group,
             struct fathom_error *fe)
{
    struct wire_chmod r = {.name = wire_str(name), .mode = mode};

    if (group != NULL)
        wire_put(&r, chmod, group, wire_str(group));
    return send_new(f, WIRE_METHOD_chmod, NULL, &r, fe);
}

uint32_t
fathom_transcript(struct fathom *f, const char *name, uint64_t from, uint64_t n,
                  const struct fathom_watch *w, struct fathom_error *fe)
{
    struct wire_transcript r = {.name = wire_str(name)};
    struct call *c = start(f, WIRE_METHOD_transcript, w, fe);

    if (c == NULL)
        return 0;
    snprintf(c->name, sizeof c->name, "%s", name);
    c->from = from;
    c->left = n;
    c->all = n == 0;
    wire_put(&r, transcript, from, from);
    if (n > 0)
        wire_put(&r, transcript, n, n);
    if (c->w.ids != NULL)
        wire_put(&r, transcript, what, wire_str("tokens"));
    return lib_send(f, c, &r, fe);
}

uint32_t
fathom_tokenize(struct fathom *f, const char *text, size_t len, int control,
                const struct fathom_watch *w, struct fathom_error *fe)
{
    struct wire_tokenize r = {.text = wire_strn(text, len)};

    if (control)
        wire_put(&r, tokenize, control, true);
    return send_new(f, WIRE_METHOD_tokenize, w, &r, fe);
}

uint32_t
fathom_score(struct fathom *f, const char *name, const char *text, size_t len, int control,
             const struct fathom_watch *w, struct fathom_error *fe)
{
    struct wire_score r = {0};

    if (name != NULL)
        wire_put(&r, score, name, wire_str(name));
    wire_put(&r, score, text, wire_strn(text, len));
    if (control)
        wire_put(&r, score, control, true);
    return send_new(f, WIRE_METHOD_score, w, &r, fe);
}
