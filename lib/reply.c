/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What comes back, from wire structs to the public ones and into the callbacks.
 *
 * Strings on the wire have no NUL and token lists no alignment, so both are copied: short ones
 * to the stack, long ones into f->scratch.
 */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/lib.h"

static const char *
copy(char *to, size_t size, struct wire_str s)
{
    snprintf(to, size, "%.*s", (int)s.len, s.p);
    return to;
}

/* The same with a NUL behind it, until the next call. */
static const char *
terminated(struct fathom *f, struct wire_str s, struct err *e)
{
    f->scratch.len = 0;
    if (buf_add(&f->scratch, s.p, s.len, e) == -1 || buf_add(&f->scratch, "", 1, e) == -1)
        return NULL;
    return (const char *)f->scratch.p;
}

/* Little-endian words from bytes, the caller's to free(). A NULL with n 0 is no failure. */
static int
words(struct wire_bin b, uint32_t **out, size_t *n, struct err *e)
{
    *out = NULL;
    *n = b.len / 4;
    if (b.len % 4 != 0)
        return err_set(e, ERR_PROTOCOL, 0, "a list of tokens has %u bytes", b.len);
    if (*n == 0)
        return 0;
    *out = malloc(b.len);
    if (*out == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu tokens", *n);
    memcpy(*out, b.p, b.len);
    for (size_t i = 0; i < *n; i++)
        (*out)[i] = le32toh((*out)[i]);
    return 0;
}

static int
give_text(struct fathom *f, struct call *c, struct wire_str text, struct err *e)
{
    const char *s;

    if (c->w.text == NULL)
        return 0;
    s = terminated(f, text, e);
    if (s == NULL)
        return -1;
    c->w.text(c->w.arg, s, text.len);
    return 0;
}

static int
give_ids(struct call *c, struct wire_bin tokens, struct err *e)
{
    uint32_t *ids;
    size_t n;

    if (c->w.ids == NULL)
        return 0;
    if (words(tokens, &ids, &n, e) == -1)
        return -1;
    if (n > 0)
        c->w.ids(c->w.arg, ids, n);
    free(ids);
    return 0;
}

/* ---- Streams ------------------------------------------------------------------------ */

static int
give_token(struct fathom *f, struct call *c, const struct wire_token *t, struct err *e)
{
    struct fathom_top top[20];
    struct fathom_token out = {.pos = t->pos, .id = (uint32_t)t->id};

    out.text = terminated(f, t->text, e);
    if (out.text == NULL)
        return -1;
    out.len = t->text.len;
    out.reasoning = t->reasoning;
    out.logprob = wire_has(t, token, logprob) ? t->logprob : (double)NAN;
    out.top = top;
    for (uint32_t i = 0; i < t->top.n && i < 20; i++)
        top[out.n_top++] =
            (struct fathom_top){(uint32_t)t->top.v[i].id, t->top.v[i].logprob};
    if (c->w.token(c->w.arg, &out) != 0) {
        struct fathom_error
            ignored; /* no room to send it: then the tokens just keep coming */

        fathom_cancel(f, c->id, &ignored);
    }
    return 0;
}

int
lib_items(struct fathom *f, struct call *c, struct wire_in *in, struct err *e)
{
    for (uint32_t i = 0; i < in->n_items; i++) {
        if (c->method == WIRE_METHOD_append) {
            struct wire_progress p;

            if (wire_decode_item(in, i, WIRE_MSG(progress), &p, e) == -1)
                return -1;
            if (c->w.progress != NULL)
                c->w.progress(c->w.arg, p.pos, p.total);
        } else if (c->method == WIRE_METHOD_sample) {
            struct wire_token t;

            if (wire_decode_item(in, i, WIRE_MSG(token), &t, e) == -1)
                return -1;
            c->unpaid++;
            if (c->w.token != NULL && !c->cancelled && give_token(f, c, &t, e) == -1)
                return -1;
        }
    }
    if (c->unpaid >= LIB_CREDIT / 2) {
        const uint32_t n = c->unpaid;

        c->unpaid = 0;
        return wire_credit(&f->out, c->id, n, e);
    }
    return 0;
}

/* ---- Responses ---------------------------------------------------------------------- */

static int
reply_hello(struct fathom *f, struct wire_in *in, struct err *e)
{
    struct wire_hello_result r;

    if (wire_decode(in, WIRE_MSG(hello_result), &r, NULL, e) == -1)
        return -1;
    f->info = (struct fathom_info){
        .server = copy(f->server, sizeof f->server, r.server),
        .instance = copy(f->instance, sizeof f->instance, r.instance),
        .model = copy(f->model, sizeof f->model, r.model),
        .backend = copy(f->backend, sizeof f->backend, r.backend),
        .vocab = r.vocab,
        .max_positions = r.max_positions,
        .uid = r.uid,
        .max_document = r.max_document,
        .max_requests = r.max_requests,
    };
    f->greeted = true;
    return 1;
}

static int
reply_list(struct fathom *f, struct call *c, struct wire_in *in, struct err *e)
{
    struct wire_list_result r;

    if (wire_decode(in, WIRE_MSG(list_result), &r, NULL, e) == -1)
        return -1;
    for (uint32_t i = 0; i < r.sessions.n; i++) {
        const struct wire_session *s = &r.sessions.v[i];
        char owner[65], state[33], tier[17];
        struct fathom_session out = {
            .name = copy(c->name, sizeof c->name, s->name),
            .owner = copy(owner, sizeof owner, s->owner),
            .state = copy(state, sizeof state, s->state),
            .pos = s->pos,
            .mode = s->mode,
            .created_ms = s->created_ms,
            .used_ms = s->used_ms,
            .bytes = s->bytes,
            .checkpoints = s->checkpoints,
            .disk_bytes = s->disk_bytes,
            .tier = copy(tier, sizeof tier, s->tier),
        };

        c->r.n++;
        if (c->w.session != NULL)
            c->w.session(c->w.arg, &out);
    }
    if (!r.more || r.sessions.n == 0 || c->cancelled || c->one_page)
        return 1;
    return lib_next_page(f, c, e);
}

static int
reply_stat(struct call *c, struct wire_in *in, struct err *e)
{
    char name[LIB_MAX_NAME + 1], owner[65], group[65], state[33], chat[33], why[257],
        tier[17];
    struct wire_stat_result r;
    struct fathom_point *points;
    char(*labels)[65];

    if (wire_decode(in, WIRE_MSG(stat_result), &r, NULL, e) == -1)
        return -1;
    c->r.pos = r.pos;
    points = calloc(r.points.n + 1, sizeof *points);
    labels = calloc(r.points.n + 1, sizeof *labels);
    if (points == NULL || labels == NULL) {
        free(points);
        free(labels);
        return err_set(e, ERR_QUOTA, errno, "no memory for %u checkpoints", r.points.n);
    }
    for (uint32_t i = 0; i < r.points.n; i++)
        points[i] =
            (struct fathom_point){copy(labels[i], sizeof labels[i], r.points.v[i].name),
                                  r.points.v[i].pos, r.points.v[i].durable};
    if (c->w.stat != NULL) {
        const struct fathom_stat out = {
            .name = copy(name, sizeof name, r.name),
            .owner = copy(owner, sizeof owner, r.owner),
            .group = copy(group, sizeof group, r.group),
            .state = copy(state, sizeof state, r.state),
            .chat = copy(chat, sizeof chat, r.chat),
            .pos = r.pos,
            .mode = r.mode,
            .created_ms = r.created_ms,
            .used_ms = r.used_ms,
            .bytes = r.bytes,
            .kv_bytes = r.kv_bytes,
            .transcript_bytes = r.transcript_bytes,
            .kv_pos = r.kv_pos,
            .turns = r.turns,
            .max_positions = r.max_positions,
            .bytes_per_token = r.bytes_per_token,
            .points = points,
            .n_points = r.points.n,
            .why = copy(why, sizeof why, r.why),
            .durable_pos = r.durable_pos,
            .disk_bytes = r.disk_bytes,
            .file_bytes = r.file_bytes,
            .written_rows = r.written_rows,
            .written_states = r.written_states,
            .written_tokens = r.written_tokens,
            .tier = copy(tier, sizeof tier, r.tier),
            .memory_bytes = r.memory_bytes,
        };

        c->w.stat(c->w.arg, &out);
    }
    free(points);
    free(labels);
    return 1;
}

static int
reply_status(struct call *c, struct wire_in *in, struct err *e)
{
    char state[17], sentence[257], server[65], model[129], backend[129];
    struct wire_status_result r;

    if (wire_decode(in, WIRE_MSG(status_result), &r, NULL, e) == -1)
        return -1;
    if (c->w.status != NULL) {
        const struct fathom_status out = {
            .state = copy(state, sizeof state, r.state),
            .sentence = copy(sentence, sizeof sentence, r.sentence),
            .server = copy(server, sizeof server, r.server),
            .model = copy(model, sizeof model, r.model),
            .backend = copy(backend, sizeof backend, r.backend),
            .pid = r.pid,
            .engine_pid = r.engine_pid,
            .uptime_ms = r.uptime_ms,
            .load_permille = r.load_permille,
            .vocab = r.vocab,
            .max_positions = r.max_positions,
            .weight_bytes = r.weight_bytes,
            .connections = r.connections,
            .sessions = r.sessions,
            .sessions_busy = r.sessions_busy,
            .tokens = r.tokens,
            .kv_bytes = r.kv_bytes,
            .kv_limit = r.kv_limit,
            .queued = r.queued,
            .running = r.running,
            .engine_restarts = r.engine_restarts,
            .steps = r.steps,
            .prefill_tokens = r.prefill_tokens,
            .decode_tokens = r.decode_tokens,
            .uid = r.uid,
            .my_sessions = r.my_sessions,
            .my_tokens = r.my_tokens,
            .max_sessions = r.max_sessions,
            .max_tokens = r.max_tokens,
        };

        c->w.status(c->w.arg, &out);
    }
    return 1;
}

static int
reason_of(struct wire_str s)
{
    static const struct {
        const char *name;
        int reason;
    } reasons[] = {
        {"limit", FATHOM_REASON_LIMIT},
        {"eos", FATHOM_REASON_EOS},
        {"stop-token", FATHOM_REASON_STOP_TOKEN},
        {"stop-string", FATHOM_REASON_STOP_STRING},
        {"context-full", FATHOM_REASON_CONTEXT},
    };

    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        if (wire_is(s, reasons[i].name))
            return reasons[i].reason;
    }
    return FATHOM_REASON_OTHER;
}

static int
reply_sample(struct fathom *f, struct call *c, struct wire_in *in, struct err *e)
{
    struct fathom_result *to = &c->r;
    struct wire_sample_result r;

    if (wire_decode(in, WIRE_MSG(sample_result), &r, NULL, e) == -1)
        return -1;
    to->pos = r.pos;
    to->n = r.n;
    to->reason = reason_of(r.reason);
    copy(to->reason_name, sizeof to->reason_name, r.reason);
    copy(to->note, sizeof to->note, r.note);
    to->seed = r.seed;
    to->top_k = r.top_k;
    to->penalty_window = r.penalty_window;
    to->max_tokens = r.max_tokens;
    to->temperature = r.temperature;
    to->top_p = r.top_p;
    to->min_p = r.min_p;
    to->repetition = r.repetition;
    to->presence = r.presence;
    to->frequency = r.frequency;
    to->queue_us = r.queue_us;
    to->first_us = r.first_us;
    to->total_us = r.total_us;
    to->repeated = r.repeated;
    if (wire_has(&r, sample_result, text) && give_text(f, c, r.text, e) == -1)
        return -1;
    if (wire_has(&r, sample_result, tokens) && give_ids(c, r.tokens, e) == -1)
        return -1;
    if (wire_has(&r, sample_result, message) && c->w.message != NULL) {
        const char *json = terminated(f, r.message, e);

        if (json == NULL)
            return -1;
        c->w.message(c->w.arg, json, r.message.len);
    }
    return 1;
}

static int
reply_transcript(struct fathom *f, struct call *c, struct wire_in *in, struct err *e)
{
    struct wire_transcript_result r;

    if (wire_decode(in, WIRE_MSG(transcript_result), &r, NULL, e) == -1)
        return -1;
    c->r.pos = r.pos;
    c->r.n += r.n;
    if (give_text(f, c, r.text, e) == -1 || give_ids(c, r.tokens, e) == -1)
        return -1;
    c->from = r.from + r.n;
    if (c->all ? c->from >= r.pos : r.n >= c->left)
        return 1;
    if (r.n == 0 || c->from >= r.pos || c->cancelled)
        return 1;
    if (!c->all)
        c->left -= r.n;
    return lib_next_page(f, c, e);
}

static int
reply_score(struct call *c, struct wire_in *in, struct err *e)
{
    struct wire_score_result r;
    uint32_t *ids, *bits;
    size_t n, n_bits;
    float *scores;

    if (wire_decode(in, WIRE_MSG(score_result), &r, NULL, e) == -1)
        return -1;
    c->r.n = r.n;
    c->r.total = r.total;
    if (c->w.scores == NULL)
        return 1;
    if (words(r.tokens, &ids, &n, e) == -1)
        return -1;
    if (words(r.logprobs, &bits, &n_bits, e) == -1) {
        free(ids);
        return -1;
    }
    scores = malloc(n_bits * sizeof *scores + 1);
    if (scores == NULL || n != n_bits) {
        err_set(e, scores == NULL ? ERR_QUOTA : ERR_PROTOCOL, 0,
                "%zu scores for %zu tokens", n_bits, n);
        free(ids);
        free(bits);
        free(scores);
        return -1;
    }
    if (n > 0) {
        memcpy(scores, bits, n * sizeof *scores);
        c->w.scores(c->w.arg, ids, scores, n);
    }
    free(ids);
    free(bits);
    free(scores);
    return 1;
}

static void
take_fd(struct call *c, int fd)
{
    c->r.fd = fd;
    c->owns_fd = true;
}

static int
reply_small(struct call *c, struct wire_in *in, struct err *e)
{
    union {
        struct wire_session_new_result made;
        struct wire_append_result append;
        struct wire_pos_result pos;
        struct wire_tokenize_result tokenize;
        struct wire_logits_result logits;
        struct wire_stats_result stats;
        struct wire_ring_result ring;
        struct wire_ring_wake_result wake;
        struct wire_nothing nothing;
    } r;

    if (wire_decode(in, wire_methods[c->method].result, &r, NULL, e) == -1)
        return -1;
    switch (c->method) {
    case WIRE_METHOD_session_new:
        c->r.pos = r.made.pos;
        c->r.created = r.made.created;
        break;
    case WIRE_METHOD_append:
        c->r.pos = r.append.pos;
        c->r.n = r.append.appended;
        c->r.repeated = r.append.repeated;
        c->r.dropped = r.append.dropped;
        c->r.replay = r.append.replay;
        break;
    case WIRE_METHOD_tokenize:
        c->r.n = r.tokenize.n;
        return give_ids(c, r.tokenize.tokens, e) == -1 ? -1 : 1;
    case WIRE_METHOD_logits:
        c->r.pos = r.logits.pos;
        c->r.vocab = r.logits.vocab;
        take_fd(c, r.logits.logits);
        break;
    case WIRE_METHOD_stats: take_fd(c, r.stats.page); break;
    case WIRE_METHOD_ring:
        c->r.ring = r.ring.ring;
        take_fd(c, r.ring.memory);
        break;
    case WIRE_METHOD_ring_wake: take_fd(c, r.wake.wake); break;
    case WIRE_METHOD_delete:
    case WIRE_METHOD_chmod: break;
    default:
        c->r.pos = r.pos.pos;
        c->r.dropped = r.pos.dropped;
        c->r.replay = r.pos.replay;
        c->r.restored = r.pos.restored;
    }
    return 1;
}

int
lib_reply(struct fathom *f, struct call *c, struct wire_in *in, struct err *e)
{
    switch (c->method) {
    case WIRE_METHOD_hello: return reply_hello(f, in, e);
    case WIRE_METHOD_list: return reply_list(f, c, in, e);
    case WIRE_METHOD_stat: return reply_stat(c, in, e);
    case WIRE_METHOD_sample: return reply_sample(f, c, in, e);
    case WIRE_METHOD_transcript: return reply_transcript(f, c, in, e);
    case WIRE_METHOD_score: return reply_score(c, in, e);
    case WIRE_METHOD_status: return reply_status(c, in, e);
    case WIRE_METHOD_park:
    case WIRE_METHOD_unpark: return lib_reply_park(c, in, e);
    case WIRE_METHOD_export: return lib_reply_export(c, in, e);
    case WIRE_METHOD_import: return lib_reply_import(c, in, e);
    case WIRE_METHOD_verify: return lib_reply_verify(c, in, e);
    default: return reply_small(c, in, e);
    }
}
