/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/num.h"
#include "daemon/quota.h"
#include "daemon/text.h"
#include "model/tokenizer.h"

enum { THREADS = 2, NAME_BYTES = 16384, BYTES_AN_ID = 4 };

struct text {
    const struct tokenizer *t;
    size_t max_out;
    struct workers *workers;
};

struct text_job *
text_job_new(enum text_kind kind, void (*done)(struct text_job *), void *arg, struct err *e)
{
    struct text_job *job = calloc(1, sizeof *job);

    if (job == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a text job");
        return NULL;
    }
    job->kind = kind;
    job->done = done;
    job->arg = arg;
    return job;
}

int
text_job_pay(struct text_job *job, struct user *payer, struct err *e)
{
    const uint64_t n = sizeof *job + (1 + BYTES_AN_ID) * (job->n_in + job->ids.len);

    if (quota_take(payer, QUOTA_BYTES, n, e) == -1)
        return -1;
    job->payer = quota_hold(payer);
    job->paid = n;
    return 0;
}

void
text_job_free(struct text_job *job)
{
    if (job == NULL)
        return;
    if (job->payer != NULL) {
        quota_give(job->payer, QUOTA_BYTES, job->paid);
        quota_drop(job->payer);
    }
    if (job->mapped != NULL)
        munmap(job->mapped, job->n_in);
    else
        free((char *)(uintptr_t)job->in);
    buf_done(&job->ids);
    buf_done(&job->out);
    free(job);
}

/* The bytes of all tokens, control tokens as their literal text. */
static int
show(const struct text *x, struct text_job *job, struct err *e)
{
    const uint32_t *ids = (const uint32_t *)(const void *)job->ids.p;

    for (size_t i = 0; i < job->ids.len / BYTES_AN_ID; i++) {
        size_t len;
        const char *p = tokenizer_bytes(x->t, ids[i], &len);

        if (buf_add(&job->out, p, len, e) == -1)
            return -1;
    }
    return 0;
}

static int
chat(const struct text *x, struct text_job *job, struct err *e)
{
    struct chat_text text;
    int rc;

    chat_text_init(&text, 2 * job->n_in + (1u << 20));
    rc = chat_encode(job->in, job->n_in, &job->chat, &text, e);
    if (rc == 0)
        rc = chat_tokenize(x->t, &text, &job->ids, e);
    chat_text_done(&text);
    return rc;
}

static int
parse(const struct text *x, struct text_job *job, struct err *e)
{
    struct chat_message m;
    struct buf text;
    int rc;

    if (show(x, job, e) == -1)
        return -1;
    text = job->out;
    buf_init(&job->out, x->max_out);
    rc = chat_parse((const char *)text.p, text.len, job->thinking, &m, e);
    buf_done(&text);
    if (rc == -1)
        return -1;
    memcpy(job->note, m.note, sizeof job->note);
    rc = chat_message_json(&m, &job->out, e);
    chat_message_done(&m);
    return rc;
}

static int
user_name(struct text_job *job, struct err *e)
{
    char room[NAME_BYTES];
    struct passwd pw, *found = NULL;

    if (getpwuid_r(job->number, &pw, room, sizeof room, &found) != 0 || found == NULL)
        return 0;
    return buf_adds(&job->out, pw.pw_name, e);
}

static int
group_number(struct text_job *job, struct err *e)
{
    char room[NAME_BYTES];
    struct group gr, *found = NULL;
    uint64_t n;
    struct err not_a_number;

    if (num_u64(job->in, 0, UINT32_MAX - 1, &n, &not_a_number) == 0) {
        job->number = (uint32_t)n;
        return 0;
    }
    if (getgrnam_r(job->in, &gr, room, sizeof room, &found) != 0 || found == NULL)
        return err_set(e, ERR_NOT_FOUND, 0, "no group '%.40s'", job->in);
    job->number = gr.gr_gid;
    return 0;
}

static void
run(void *arg, struct worker_job *work)
{
    const struct text *x = arg;
    struct text_job *job = (struct text_job *)work;
    struct err e = {0};
    int rc = 0;

    job->ids.cap = x->max_out;
    job->out.cap = x->max_out;
    switch (job->kind) {
    case TEXT_TOKENIZE:
        rc = tokenizer_encode(x->t, job->in, job->n_in, job->flags, &job->ids, &e);
        break;
    case TEXT_CHAT: rc = chat(x, job, &e); break;
    case TEXT_PARSE: rc = parse(x, job, &e); break;
    case TEXT_SHOW: rc = show(x, job, &e); break;
    case TEXT_USER: rc = user_name(job, &e); break;
    case TEXT_GROUP: rc = group_number(job, &e); break;
    }
    if (rc == -1)
        job->err = e;
}

static void
on_back(void *arg, struct worker_job *work)
{
    struct text_job *job = (struct text_job *)work;

    (void)arg;
    job->done(job);
}

static void
drop(struct worker_job *work)
{
    text_job_free((struct text_job *)work);
}

void
text_post(struct text *x, struct text_job *job)
{
    workers_post(x->workers, job->bulk, &job->work);
}

struct text *
text_new(struct event_base *base, const struct tokenizer *t, size_t max_out, struct err *e)
{
    static const struct workers_kind kind = {
        .run = run, .back = on_back, .drop = drop, .turn_ms = -1};
    struct text *x = calloc(1, sizeof *x);

    if (x == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the text threads");
        return NULL;
    }
    x->t = t;
    x->max_out = max_out;
    x->workers = workers_new(base, THREADS, &kind, x, e);
    if (x->workers == NULL) {
        free(x);
        return NULL;
    }
    return x;
}

void
text_free(struct text *x)
{
    if (x == NULL)
        return;
    workers_free(x->workers, 0);
    free(x);
}
