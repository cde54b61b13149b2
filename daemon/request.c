/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/text.h"
#include "daemon/work.h"

enum { BODY_MAX = 2048, PATH_BYTES = 129 };

#define OF(message) offsetof(struct wire_##message, name)

static const struct request_entry table[WIRE_METHODS] = {
    [WIRE_METHOD_hello] = {.handle = req_hello},
    [WIRE_METHOD_session_new] = {.handle = req_session_new},
    [WIRE_METHOD_list] = {.handle = req_list},
    [WIRE_METHOD_stat] = {req_stat, SESSION_READ, OF(name), false},
    [WIRE_METHOD_append] = {req_append, SESSION_WRITE, OF(append), false},
    [WIRE_METHOD_sample] = {req_sample, SESSION_WRITE, OF(sample), false},
    [WIRE_METHOD_fork] = {req_fork, SESSION_READ, OF(fork), false},
    [WIRE_METHOD_checkpoint] = {req_checkpoint, SESSION_WRITE, OF(checkpoint), false},
    [WIRE_METHOD_rollback] = {req_rollback, SESSION_WRITE, OF(rollback), false},
    [WIRE_METHOD_park] = {req_park, SESSION_WRITE, OF(park), false},
    [WIRE_METHOD_unpark] = {req_unpark, SESSION_WRITE, OF(name), false},
    [WIRE_METHOD_export] = {req_export, SESSION_READ, OF(export), false},
    [WIRE_METHOD_import] = {.handle = req_import},
    [WIRE_METHOD_verify] = {req_verify, SESSION_READ, OF(verify), false},
    [WIRE_METHOD_rename] = {req_rename, SESSION_ADMIN, OF(rename), false},
    [WIRE_METHOD_delete] = {req_delete, SESSION_ADMIN, OF(name), false},
    [WIRE_METHOD_chmod] = {req_chmod, SESSION_ADMIN, OF(chmod), false},
    [WIRE_METHOD_transcript] = {req_transcript, SESSION_READ, OF(transcript), false},
    [WIRE_METHOD_tokenize] = {.handle = req_tokenize},
    [WIRE_METHOD_score] = {req_score, SESSION_READ, OF(score), true},
    [WIRE_METHOD_logits] = {req_logits, SESSION_READ, OF(name), false},
    [WIRE_METHOD_status] = {.handle = req_status},
    [WIRE_METHOD_stats] = {req_stats, SESSION_READ, OF(stats), true},
    [WIRE_METHOD_ring] = {.handle = req_ring},
    [WIRE_METHOD_ring_wake] = {.handle = req_ring_wake},
};

bool
request_copy(char *room, size_t size, struct wire_str s)
{
    if (s.len >= size || memchr(s.p, '\0', s.len) != NULL)
        return false;
    memcpy(room, s.p, s.len);
    room[s.len] = '\0';
    return true;
}

static void
request_free(struct request *r)
{
    struct conn *c = r->conn;

    if (r->drop != NULL)
        r->drop(r);
    assert(r->op == NULL && r->text_job == NULL);
    store_unwait(&r->wait);
    if (r->holds) {
        r->session->streams--;
        work_released(c->server->work, r->session);
    }
    *r->at = r->next;
    if (r->next != NULL)
        r->next->at = r->at;
    c->n_requests--;
    quota_give(c->user, QUOTA_REQUESTS, 1);
    free(r);
}

/* Output that does not fit: the reader is too slow for what it asked. */
static void
overflow(struct conn *c, const struct err *e)
{
    log_line(LOG_NOTICE, "conn-overflow conn=%" PRIu64 " uid=%" PRIu32 " why=\"%s\"",
             c->number, c->cred.uid, e->text);
    c->server->slow++;
    conn_drop(c);
}

void
request_reply(struct request *r, const struct wire_message *m, const void *body)
{
    struct conn *c = r->conn;
    const uint32_t id = r->id;
    struct err e;
    const int sent = wire_response(&c->out, id, m, body, &e);

    request_free(r); /* not earlier: the body may point into what the request holds */
    if (sent == -1) {
        if (e.code == ERR_QUOTA) {
            overflow(c, &e);
        } else {
            struct wire_error wrong;
            struct err ignored;

            log_line(LOG_ERROR, "reply-wrong why=\"%s\"", e.text);
            e.code = ERR_INTERNAL;
            wire_error_from(&wrong, &e);
            if (wire_fail(&c->out, id, &wrong, &ignored) == -1)
                overflow(c, &ignored);
        }
    }
    conn_kick(c);
}

/* A request with this id ends with an error. */
static void
tell_error(struct conn *c, uint32_t id, const struct wire_error *body)
{
    struct err e;

    if (body->code < ERR_CODES)
        c->server->errors[body->code]++;
    if (body->code == ERR_QUOTA)
        log_line(LOG_NOTICE, "quota-refused uid=%" PRIu32 " why=\"%.*s\"", c->cred.uid,
                 (int)body->text.len, body->text.p);
    if (wire_fail(&c->out, id, body, &e) == -1)
        overflow(c, &e);
}

static void
send_error(struct request *r, const struct wire_error *body)
{
    struct conn *c = r->conn;
    const uint32_t id = r->id;

    tell_error(c, id, body); /* first: body may point into what the request holds */
    request_free(r);
    conn_kick(c);
}

void
request_fail(struct request *r, const struct err *e)
{
    struct wire_error body;

    wire_error_from(&body, e);
    send_error(r, &body);
}

void
request_fail_at(struct request *r, const struct err *e, uint64_t pos)
{
    struct wire_error body;

    wire_error_from(&body, e);
    wire_put(&body, error, pos, pos);
    send_error(r, &body);
}

void
request_hold(struct request *r)
{
    if (!r->holds)
        r->session->streams++;
    r->holds = true;
}

static void
on_wait(struct store_wait *w, const struct err *why)
{
    struct request *r = w->arg;

    r->go(r, why);
}

static void
prepare(struct request *r, void (*go)(struct request *r, const struct err *why))
{
    request_hold(r);
    r->go = go;
    r->wait = (struct store_wait){.fn = on_wait, .arg = r};
}

void
request_load(struct request *r, void (*go)(struct request *r, const struct err *why))
{
    struct err e;

    prepare(r, go);
    switch (store_need(r->conn->server->store, r->session, &r->wait, &e)) {
    case 1: go(r, NULL); break;
    case -1: go(r, &e); break;
    default: break;
    }
}

void
request_commit(struct request *r, void (*go)(struct request *r, const struct err *why))
{
    prepare(r, go);
    r->changed = true;
    if (store_commit(r->conn->server->store, r->session, &r->wait))
        go(r, NULL);
}

int
request_submit(struct request *r, struct op *op)
{
    struct err e;

    r->op = op;
    if (work_submit(r->conn->server->work, op, &e) == 0)
        return 0;
    r->op = NULL;
    op_free(op);
    request_fail_at(r, &e, r->session->log.len);
    return -1;
}

struct request *
request_of(struct op *op)
{
    struct request *r = op->owner;

    op->owner = NULL;
    if (r != NULL)
        r->op = NULL;
    return r;
}

int
request_post(struct request *r, struct text_job *job, struct err *e)
{
    if (text_job_pay(job, r->conn->user, e) == -1) {
        text_job_free(job);
        return -1;
    }
    r->text_job = job;
    text_post(r->conn->server->text, job);
    return 0;
}

struct request *
request_of_job(struct text_job *job)
{
    struct request *r = job->arg;

    if (r != NULL)
        r->text_job = NULL;
    return r;
}

static struct request *
find(struct conn *c, uint32_t id)
{
    struct request *r = c->requests;

    while (r != NULL && r->id != id)
        r = r->next;
    return r;
}

void
request_cancel(struct conn *c, uint32_t id)
{
    struct request *r = find(c, id);
    struct err why;

    if (r == NULL || r->changed)
        return; /* it was over before this came */
    err_set(&why, ERR_CANCELLED, 0, "cancelled by the client");
    if (r->op != NULL) {
        work_cancel(c->server->work, r->op, &why);
    } else {
        if (r->text_job != NULL)
            r->text_job->arg = NULL;
        r->text_job = NULL;
        request_fail(r, &why);
    }
}

void
request_credit(struct conn *c, uint32_t id, uint32_t n)
{
    struct request *r = find(c, id);

    if (r != NULL && r->credit != NULL)
        r->credit(r, n);
}

void
request_resume_all(struct conn *c)
{
    struct request *next;

    for (struct request *r = c->requests; r != NULL; r = next) {
        next = r->next;
        if (r->resume != NULL && conn_waiting(c) < CONN_STREAM_BYTES)
            r->resume(r);
    }
}

void
request_leave_all(struct conn *c)
{
    struct request *r;
    struct err why;

    err_set(&why, ERR_CANCELLED, 0, "the client has left");
    while ((r = c->requests) != NULL) {
        if (r->leave != NULL)
            r->leave(r);
        if (r->op != NULL) {
            struct op *op = r->op;

            request_of(op);
            work_cancel(c->server->work, op, &why);
        }
        if (r->text_job != NULL)
            r->text_job->arg = NULL;
        r->text_job = NULL;
        request_free(r);
    }
}

/* The session that the body names. */
static int
find_session(struct request *r, const void *body, const struct request_entry *t,
             struct err *e)
{
    const struct wire_str *name = (const void *)((const char *)body + t->name);
    char path[PATH_BYTES];

    if (t->need == 0 || (t->name_is_optional && name->p == NULL))
        return 0;
    if (!request_copy(path, sizeof path, *name))
        return err_set(e, ERR_INVALID, 0, "key 'name': not a session's name");
    r->session = session_lookup(&r->conn->server->quota, &r->conn->cred, path, t->need, e);
    return r->session != NULL ? 0 : -1;
}

static void
refuse(struct conn *c, uint32_t id, const struct err *e, const char *key)
{
    struct wire_error body;

    wire_error_from(&body, e);
    if (key[0] != '\0')
        wire_put(&body, error, key, wire_str(key));
    tell_error(c, id, &body);
    conn_kick(c);
}

/* Of a request whose handler will not see them. */
static void
close_fds(const struct wire_message *m, const void *body)
{
    uint64_t has;

    memcpy(&has, body, sizeof has); /* the first field of each struct */
    for (uint32_t i = 0; i < m->n_fields; i++) {
        if (m->fields[i].type == WIRE_TYPE_fd && (has >> i & 1) != 0)
            close(*(const int *)(const void *)((const char *)body + m->fields[i].offset));
    }
}

static void
run(struct request *r, struct wire_in *in)
{
    const struct request_entry *t = r->entry;
    _Alignas(max_align_t) uint8_t body[BODY_MAX];
    char key[64] = "";
    struct wire_error told;
    struct err e;

    assert(in->method->request->size <= sizeof body);
    memset(body, 0, in->method->request->size);
    if (wire_decode(in, in->method->request, body, key, &e) == -1) {
        wire_error_from(&told, &e);
        if (key[0] != '\0')
            wire_put(&told, error, key, wire_str(key));
        send_error(r, &told);
    } else if (find_session(r, body, t, &e) == -1) {
        close_fds(in->method->request, body);
        request_fail(r, &e);
    } else {
        t->handle(r, body);
    }
}

void
request_new(struct conn *c, struct wire_in *in)
{
    const long method = in->method != NULL ? in->method - wire_methods : -1;
    struct request *r;
    struct err e;

    if (!c->hello && method != WIRE_METHOD_hello) {
        err_set(&e, ERR_PROTOCOL, 0, "hello comes first");
        conn_bye(c, &e);
        return;
    }
    if (method == -1 || table[method].handle == NULL) {
        err_set(&e, ERR_INVALID, 0, "no method '%.*s'", (int)(in->name.len % 65),
                in->name.p);
        refuse(c, in->id, &e, "");
        return;
    }
    if (find(c, in->id) != NULL) {
        err_set(&e, ERR_PROTOCOL, 0, "request %" PRIu32 " is under way already", in->id);
        conn_bye(c, &e);
        return;
    }
    if (c->server->stopping) {
        err_set(&e, ERR_UNAVAILABLE, 0, "fathomd is stopping");
        refuse(c, in->id, &e, "");
        return;
    }
    if (quota_take(c->user, QUOTA_REQUESTS, 1, &e) == -1) {
        refuse(c, in->id, &e, "");
        return;
    }
    r = calloc(1, sizeof *r);
    if (r == NULL) {
        quota_give(c->user, QUOTA_REQUESTS, 1);
        err_set(&e, ERR_QUOTA, errno, "no memory for a request");
        refuse(c, in->id, &e, "");
        return;
    }
    r->conn = c;
    r->id = in->id;
    r->entry = &table[method];
    r->next = c->requests;
    r->at = &c->requests;
    if (r->next != NULL)
        r->next->at = &r->next;
    c->requests = r;
    c->n_requests++;
    c->server->requests[method]++;
    run(r, in);
}
