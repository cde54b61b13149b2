/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's loop and what comes in over the link. A turn reads all packets that wait, lets
 * every job go as far as it comes without the backend (work.c), runs one step for those that
 * need it (step.c), and answers. So a cancel or a new job waits for one step at most, and a
 * drawn token leaves before the next step begins. One thread; it blocks in poll, when there is
 * nothing to run, and in the step.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "engine/state.h"
#include "model/kvlayout.h"

enum {
    FATAL_WAIT_MS = 1000,
    SCORE_BYTES = 16 << 20,
    COPY_WAIT_NS = 200 * 1000, /* between two looks at copies under way */
};

static void
put_status(uint64_t *field, uint64_t value)
{
    __atomic_store_n(field, value, __ATOMIC_RELAXED);
}

void
engine_say_fatal(int link, const struct err *why)
{
    struct link_head h = {.type = LINK_FATAL};
    const struct iovec iov = {(void *)why, sizeof *why};
    struct pollfd p = {.fd = link, .events = POLLOUT};
    struct err e;

    if (link_send(link, &h, &iov, 1, -1, &e) == -1 && e.code == ERR_BUSY &&
        poll(&p, 1, FATAL_WAIT_MS) == 1)
        link_send(link, &h, &iov, 1, -1, &e);
}

int
engine_fatal(struct engine *en, int status, const struct err *why)
{
    const uint64_t until = clock_ns() + FATAL_WAIT_MS * UINT64_C(1000000);
    struct err e;

    if (en->exit != ENGINE_GOES_ON)
        return -1;
    en->exit = status;
    log_line(LOG_ERROR, "fatal error=%s text=\"%s\" exit=%d", err_name(why->code),
             why->text, status);
    /* Tokens that wait in the queue are worth a moment: they need not be drawn again. */
    while (en->out.first != NULL && clock_ns() < until && out_flush(&en->out, &e) == 0) {
        struct pollfd p = {.fd = en->out.sock, .events = POLLOUT};

        poll(&p, 1, 10);
    }
    if (en->out.first == NULL)
        engine_say_fatal(en->out.sock, why);
    return -1;
}

int
engine_tell(struct engine *en, uint16_t type, const struct job *j, const void *body,
            size_t len, const void *more, size_t more_len)
{
    const struct iovec iov[2] = {{(void *)body, len}, {(void *)more, more_len}};
    struct err e;

    if (en->exit != ENGINE_GOES_ON)
        return -1;
    if (out_push(&en->out, type, j == NULL ? 0 : j->seq, j == NULL ? 0 : j->number, iov,
                 more_len > 0 ? 2 : 1, &e) == 0) {
        put_status(&en->status->packets, en->out.pushed);
        return 0;
    }
    if (e.code == ERR_UNAVAILABLE)
        en->exit = LINK_EXIT_OK;
    else
        engine_fatal(en, LINK_EXIT_FAULT, &e);
    return -1;
}

static bool
has_draft(const struct kv_layout *l)
{
    return l->n_parts > 0 && l->parts[l->n_parts - 1].kind == KV_PART_DRAFT_STREAMS;
}

static int
tell_ready(struct engine *en)
{
    const struct backend_info *in = &en->info;
    struct link_ready r = {.vocab = in->vocab,
                           .max_seqs = in->max_seqs,
                           .max_step_tokens = in->max_step_tokens,
                           .max_rewind = in->max_rewind,
                           .pid = (uint32_t)getpid(),
                           .max_positions = in->max_positions,
                           .weight_bytes = in->weight_bytes,
                           .page_bytes = in->page_bytes,
                           .seq_fixed_bytes = in->seq_fixed_bytes,
                           .kv_limit = in->kv_limit,
                           .layout = en->model.layout->hash,
                           .draft = has_draft(en->model.layout)};

    memcpy(r.fingerprint, en->model.fingerprint, sizeof r.fingerprint);
    memcpy(r.backend, in->name, sizeof r.backend);
    memcpy(r.detail, in->detail, sizeof r.detail);
    put_status(&en->status->load_permille, 1000);
    return engine_tell(en, LINK_READY, NULL, &r, sizeof r, NULL, 0);
}

static int
allocate(struct engine *en, struct link_status *status, struct err *e)
{
    const uint32_t by_memory = (uint32_t)(SCORE_BYTES / (en->info.vocab * sizeof(float)));

    en->max_scored = by_memory < 8 ? 8 : by_memory;
    if (en->max_scored > en->info.max_step_tokens)
        en->max_scored = en->info.max_step_tokens;
    if (en->max_scored > LINK_MAX_FEED)
        en->max_scored = LINK_MAX_FEED;
    en->own_status = calloc(1, sizeof *en->own_status);
    en->packet = malloc(sizeof *en->packet);
    en->taken = calloc(en->info.max_seqs, sizeof *en->taken);
    en->filling = calloc(en->info.max_seqs, sizeof *en->filling);
    en->shares = calloc(LINK_MAX_JOBS, sizeof *en->shares);
    en->share_jobs = calloc(LINK_MAX_JOBS, sizeof *en->share_jobs);
    en->score_out = calloc(en->max_scored, sizeof *en->score_out);
    if (en->own_status == NULL || en->packet == NULL || en->taken == NULL ||
        en->filling == NULL || en->shares == NULL || en->share_jobs == NULL ||
        en->score_out == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for the engine");
    en->status = status != NULL ? status : en->own_status;
    return 0;
}

struct engine *
engine_new(const struct engine_model *m, int link, struct link_status *status,
           struct err *e)
{
    struct engine *en = calloc(1, sizeof *en);

    if (en == NULL) {
        err_set(e, ERR_QUOTA, 0, "no memory for the engine");
        return NULL;
    }
    en->model = *m;
    en->exit = ENGINE_GOES_ON;
    en->jobs_end = &en->jobs;
    out_init(&en->out, link);
    m->ops->info(m->backend, &en->info);
    if (en->info.max_step_tokens < 2 || en->info.max_seqs == 0 || en->info.vocab == 0) {
        err_set(e, ERR_INTERNAL, 0, "backend %s with %u tokens a step, %u sequences",
                en->info.name, en->info.max_step_tokens, en->info.max_seqs);
        goto fail;
    }
    if (choose_init(en, e) == -1 || allocate(en, status, e) == -1 ||
        seqs_init(&en->seqs, m->ops, m->backend, e) == -1 ||
        sched_init(&en->sched, en->info.max_seqs, e) == -1)
        goto fail;
    tell_ready(en);
    return en;
fail:
    engine_free(en);
    return NULL;
}

void
engine_free(struct engine *en)
{
    if (en == NULL)
        return;
    while (en->jobs != NULL) {
        struct job *j = en->jobs;

        en->jobs = j->next;
        job_free(j);
    }
    seqs_done(&en->seqs);
    sched_done(&en->sched);
    choose_done(en);
    out_done(&en->out);
    free(en->own_status);
    free(en->packet);
    free(en->taken);
    free(en->filling);
    free(en->shares);
    free(en->share_jobs);
    free(en->score_rows);
    free(en->score_out);
    free(en);
}

static struct job *
find_job(const struct engine *en, uint32_t number)
{
    for (struct job *j = en->jobs; j != NULL; j = j->next)
        if (j->number == number)
            return j;
    return NULL;
}

static int
take_job(struct engine *en, size_t len, int fd)
{
    struct job *j;
    struct err e;

    if (find_job(en, en->packet->head.job) != NULL) {
        if (fd != -1)
            close(fd);
        err_set(&e, ERR_PROTOCOL, 0, "job %u is under way already", en->packet->head.job);
        return engine_fatal(en, LINK_EXIT_PROTOCOL, &e);
    }
    j = job_new(en->packet, len, fd);
    if (j == NULL) {
        err_set(&e, ERR_INTERNAL, 0, "no memory for a job");
        return engine_fatal(en, LINK_EXIT_FAULT, &e);
    }
    if (en->n_jobs == LINK_MAX_JOBS)
        err_set(&j->err, ERR_BUSY, 0, "%d jobs are under way", LINK_MAX_JOBS);
    else if (j->seq >= en->info.max_seqs ||
             (j->type == LINK_FORK && j->a.fork.from >= en->info.max_seqs))
        err_set(&j->err, ERR_INVALID, 0, "sequence %u: there are %u", j->seq,
                en->info.max_seqs);
    if (j->err.code != ERR_NONE) {
        work_refuse(en, j);
        job_free(j);
        return 0;
    }
    *en->jobs_end = j;
    en->jobs_end = &j->next;
    en->n_jobs++;
    return 0;
}

static int
take_packet(struct engine *en, size_t len, int fd)
{
    const struct link_head *h = &en->packet->head;
    struct job *j;
    struct err e;

    if (h->type >= LINK_OPEN && h->type <= LINK_KV_SET)
        return take_job(en, len, fd);
    switch (h->type) {
    case LINK_CANCEL:
        j = find_job(en, h->job);
        if (j != NULL && job_can_be_cancelled(j))
            err_set(&j->err, ERR_CANCELLED, 0, "cancelled");
        return 0;
    case LINK_QUIT: en->exit = LINK_EXIT_OK; return 0;
    default:
        err_set(&e, ERR_PROTOCOL, 0, "packet of type %u from the daemon", h->type);
        return engine_fatal(en, LINK_EXIT_PROTOCOL, &e);
    }
}

static void
read_link(struct engine *en)
{
    while (en->exit == ENGINE_GOES_ON && en->out.bytes <= OUT_NO_READ) {
        struct err e;
        size_t len;
        int fd;

        switch (link_recv(en->out.sock, en->packet, &len, &fd, &e)) {
        case 1: take_packet(en, len, fd); break;
        case 0: return;
        default:
            if (e.code == ERR_UNAVAILABLE)
                en->exit =
                    LINK_EXIT_OK; /* the daemon has ended; so do we, without a word */
            else
                engine_fatal(en, LINK_EXIT_PROTOCOL, &e);
        }
    }
}

static void
flush(struct engine *en)
{
    struct err e;

    if (out_flush(&en->out, &e) == -1 && en->exit == ENGINE_GOES_ON)
        en->exit = LINK_EXIT_OK;
}

/* Not long while copies are under way, not at all while some are still to be asked for. */
static struct timespec
wait_for(const struct engine *en, int wait_ms)
{
    const long copies = en->copies_to_ask ? 0 : COPY_WAIT_NS;

    if (en->n_copying > 0 && wait_ms > 0)
        return (struct timespec){.tv_nsec = copies};
    return (struct timespec){.tv_sec = wait_ms / 1000,
                             .tv_nsec = (long)(wait_ms % 1000) * 1000000};
}

int
engine_turn(struct engine *en, int wait_ms)
{
    put_status(&en->status->beat_ns, clock_ns());
    read_link(en);
    if (en->exit != ENGINE_GOES_ON) {
        flush(en);
        return en->exit;
    }
    flush(en);
    work(en);
    flush(en);
    if (en->exit == ENGINE_GOES_ON && (en->out.bytes > OUT_NO_STEP || !step(en))) {
        struct pollfd p = {.fd = en->out.sock,
                           .events = (short)((en->out.bytes <= OUT_NO_READ ? POLLIN : 0) |
                                             (en->out.first != NULL ? POLLOUT : 0))};
        const struct timespec wait = wait_for(en, wait_ms);

        if (en->exit == ENGINE_GOES_ON && ppoll(&p, 1, &wait, NULL) == -1 &&
            errno != EINTR) {
            struct err e;

            err_set(&e, ERR_INTERNAL, errno, "poll: %s", strerror(errno));
            engine_fatal(en, LINK_EXIT_FAULT, &e);
        }
    }
    return en->exit;
}

int
engine_run(struct engine *en)
{
    int status;

    do
        status = engine_turn(en, LINK_BEAT_MS / 2);
    while (status == ENGINE_GOES_ON);
    return status;
}
