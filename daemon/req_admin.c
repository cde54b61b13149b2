/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hello and status: who we are, how we are, and what the limits are.
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/status.h"
#include "daemon/text.h"
#include "daemon/work.h"

static const char server_name[] = "fathomd/" PACKAGE_VERSION;

/* The user's name, once for all of that user's connections. */
static void
on_user(struct text_job *job)
{
    struct user *u = job->arg;

    if (job->err.code == ERR_NONE && job->out.len > 0 && job->out.len <= USER_NAME_MAX) {
        memcpy(u->name, job->out.p, job->out.len);
        u->name[job->out.len] = '\0';
    }
    text_job_free(job);
}

void
server_look_up(const struct server *sv, struct user *u)
{
    struct err e;
    struct text_job *job;

    if (u->looked_up)
        return;
    job = text_job_new(TEXT_USER, on_user, u, &e);
    if (job == NULL)
        return; /* then the user has no name but the number */
    /* Once, whatever comes of it: a directory that is slow or down is not asked again and
     * again by a client that comes again and again. */
    u->looked_up = true;
    job->payer = quota_hold(u);
    job->number = u->uid;
    text_post(sv->text, job);
}

void
req_hello(struct request *r, const void *body)
{
    static struct wire_str features[] = {
        {"logits-fd", 9}, {"document-fd", 11}, {"stats-page", 10}, {"rings", 5}};
    const struct wire_hello *q = body;
    struct conn *c = r->conn;
    const struct server *sv = c->server;
    const struct link_ready *info = engine_info(work_engine(sv->work));
    struct wire_hello_result res = {0};
    struct err e;

    if (c->hello || q->proto_min > WIRE_PROTO || q->proto_max < WIRE_PROTO) {
        if (c->hello)
            err_set(&e, ERR_PROTOCOL, 0, "hello comes once");
        else
            err_set(&e, ERR_PROTOCOL, 0,
                    "the client speaks versions %" PRIu64 " to %" PRIu64
                    " of the protocol, fathomd %d",
                    q->proto_min, q->proto_max, WIRE_PROTO);
        request_fail(r, &e);
        conn_bye(c, &e);
        return;
    }
    c->hello = true;
    log_line(LOG_DEBUG, "conn-hello conn=%" PRIu64 " uid=%" PRIu32 " client=\"%.*s\"",
             c->number, c->cred.uid, (int)q->client.len,
             q->client.p != NULL ? q->client.p : "");
    server_look_up(sv, c->user);
    res.proto = WIRE_PROTO;
    res.server = wire_str(server_name);
    res.instance = wire_str(sv->instance);
    res.features = (struct wire_strs){features, sizeof features / sizeof features[0]};
    res.model = wire_str(sv->model);
    if (info != NULL) {
        wire_put(&res, hello_result, fingerprint, wire_bin(info->fingerprint, 32));
        wire_put(&res, hello_result, vocab, info->vocab);
        wire_put(&res, hello_result, max_positions, info->max_positions);
        wire_put(&res, hello_result, backend, wire_str(info->backend));
    }
    res.uid = c->cred.uid;
    res.max_frame = FRAME_MAX;
    res.max_requests = sv->o->max_requests_conn;
    wire_put(&res, hello_result, max_sessions, sv->o->max_sessions_user);
    wire_put(&res, hello_result, max_tokens, sv->o->max_tokens_user);
    wire_put(&res, hello_result, max_document, sv->o->max_document);
    request_reply(r, WIRE_MSG(hello_result), &res);
}

static void
put_engine(struct wire_status_result *res, const struct server *sv)
{
    const struct engine *g = work_engine(sv->work);
    const struct link_ready *info = engine_info(g);
    struct link_status st;

    engine_status(g, &st);
    if (engine_pid(g) != 0)
        wire_put(res, status_result, engine_pid, (uint64_t)engine_pid(g));
    if (engine_state(g) == ENGINE_LOADING)
        wire_put(res, status_result, load_permille, st.load_permille);
    wire_put(res, status_result, steps, st.steps);
    wire_put(res, status_result, prefill_tokens, st.prefill_tokens);
    wire_put(res, status_result, decode_tokens, st.decode_tokens);
    wire_put(res, status_result, kv_bytes, st.kv_used);
    res->engine_restarts = engine_restarts(g);
    if (info == NULL)
        return;
    wire_put(res, status_result, fingerprint, wire_bin(info->fingerprint, 32));
    wire_put(res, status_result, vocab, info->vocab);
    wire_put(res, status_result, max_positions, info->max_positions);
    wire_put(res, status_result, weight_bytes, info->weight_bytes);
    wire_put(res, status_result, kv_limit, info->kv_limit);
}

void
req_status(struct request *r, const void *body)
{
    const struct server *sv = r->conn->server;
    const struct link_ready *info = engine_info(work_engine(sv->work));
    const struct user *u = r->conn->user;
    struct wire_status_result res = {0};
    struct work_counts counts;
    char sentence[256], backend[128];

    (void)body;
    work_count(sv->work, &counts);
    status_sentence(sv, sentence, sizeof sentence);
    res.state = wire_str(status_word(sv));
    res.sentence = wire_str(sentence);
    res.server = wire_str(server_name);
    wire_put(&res, status_result, pid, (uint64_t)getpid());
    res.uptime_ms = (clock_ns() - sv->started_ns) / 1000000;
    wire_put(&res, status_result, model, wire_str(sv->model));
    if (info != NULL) {
        snprintf(backend, sizeof backend, "%s %s", info->backend, info->detail);
        wire_put(&res, status_result, backend, wire_str(backend));
    }
    put_engine(&res, sv);
    res.connections = sv->quota.used[QUOTA_CONNECTIONS];
    res.sessions = sv->quota.used[QUOTA_SESSIONS];
    res.tokens = sv->quota.used[QUOTA_TOKENS];
    wire_put(&res, status_result, sessions_busy, counts.busy);
    res.queued = counts.queued;
    res.running = counts.running;
    wire_put(&res, status_result, uid, u->uid);
    wire_put(&res, status_result, my_sessions, u->used[QUOTA_SESSIONS]);
    wire_put(&res, status_result, my_tokens, u->used[QUOTA_TOKENS]);
    wire_put(&res, status_result, max_sessions, sv->o->max_sessions_user);
    wire_put(&res, status_result, max_tokens, sv->o->max_tokens_user);
    request_reply(r, WIRE_MSG(status_result), &res);
}
