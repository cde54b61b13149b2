/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/num.h"
#include "daemon/quota.h"
#include "daemon/text.h"
#include "model/tokenizer.h"

enum { WORKERS = 2, NAME_BYTES = 16384, BYTES_AN_ID = 4 };

struct worker {
    struct text *x;
    struct mailbox *box;
    pthread_t thread;
    bool running;
};

struct text {
    const struct tokenizer *t;
    size_t max_out;
    struct mailbox *back;
    struct event *on_back;
    atomic_bool stop;
    struct worker workers[WORKERS];
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
run(const struct text *x, struct text_job *job)
{
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

static void *
work(void *arg)
{
    struct worker *w = arg;
    struct pollfd p = {.fd = mailbox_fd(w->box), .events = POLLIN};
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (!atomic_load(&w->x->stop)) {
        struct mail *next;

        if (poll(&p, 1, -1) == -1 && errno != EINTR)
            break;
        for (struct mail *m = mailbox_take_all(w->box); m != NULL; m = next) {
            struct text_job *job = (struct text_job *)m;

            next = m->next;
            if (!atomic_load(&w->x->stop))
                run(w->x, job);
            mailbox_post(w->x->back, &job->mail);
        }
    }
    return NULL;
}

static void
on_back(evutil_socket_t fd, short what, void *arg)
{
    struct text *x = arg;
    struct mail *next;

    (void)fd;
    (void)what;
    for (struct mail *m = mailbox_take_all(x->back); m != NULL; m = next) {
        struct text_job *job = (struct text_job *)m;

        next = m->next;
        job->done(job);
    }
}

void
text_post(struct text *x, struct text_job *job)
{
    mailbox_post(x->workers[job->bulk].box, &job->mail);
}

struct text *
text_new(struct event_base *base, const struct tokenizer *t, size_t max_out, struct err *e)
{
    struct text *x = calloc(1, sizeof *x);

    if (x == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the text threads");
        return NULL;
    }
    x->t = t;
    x->max_out = max_out;
    x->back = mailbox_new(e);
    if (x->back == NULL)
        goto fail;
    x->on_back = event_new(base, mailbox_fd(x->back), EV_READ | EV_PERSIST, on_back, x);
    if (x->on_back == NULL || event_add(x->on_back, NULL) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for the text threads");
        goto fail;
    }
    for (int i = 0; i < WORKERS; i++) {
        struct worker *w = &x->workers[i];
        int rc;

        w->x = x;
        w->box = mailbox_new(e);
        if (w->box == NULL)
            goto fail;
        rc = pthread_create(&w->thread, NULL, work, w);
        if (rc != 0) {
            err_set(e, ERR_INTERNAL, rc, "pthread_create: %s", strerror(rc));
            goto fail;
        }
        w->running = true;
    }
    return x;

fail:
    text_free(x);
    return NULL;
}

static void
drop_all(struct mailbox *box)
{
    struct mail *next;

    for (struct mail *m = mailbox_take_all(box); m != NULL; m = next) {
        next = m->next;
        text_job_free((struct text_job *)m);
    }
}

/* A mail that only wakes: the worker sees `stop` and hands it back unread. */
static void
stop_worker(struct worker *w)
{
    struct err e;
    struct text_job *nudge = text_job_new(TEXT_SHOW, NULL, NULL, &e);

    if (nudge != NULL)
        mailbox_post(w->box, &nudge->mail);
    pthread_join(w->thread, NULL);
}

void
text_free(struct text *x)
{
    if (x == NULL)
        return;
    atomic_store(&x->stop, true);
    for (int i = 0; i < WORKERS; i++) {
        if (x->workers[i].running)
            stop_worker(&x->workers[i]);
        if (x->workers[i].box != NULL)
            drop_all(x->workers[i].box);
        mailbox_free(x->workers[i].box);
    }
    if (x->on_back != NULL)
        event_free(x->on_back);
    if (x->back != NULL)
        drop_all(x->back);
    mailbox_free(x->back);
    free(x);
}
