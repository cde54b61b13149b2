/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bulk transfers: a call is cut into pieces of 1 MiB, of which DEPTH are on their way at once,
 * by io_uring or, where the kernel does not let us, by threads (io_threads.c).
 *
 * A ring belongs to one call at a time: a call takes one from the list of idle ones or makes one,
 * so calls of several threads do not wait for each other, no lock is held while the disk works,
 * and there are as many rings as there ever were calls at once. A call that gets no answer for its
 * deadline sets its ring aside with all requests that are out, and fails; the ring is freed when
 * they have come back (each later call looks), and until then the memory of that call is not its
 * caller's to use (io.h). A ring that was aside is not used again: it may hold requests that never
 * went out.
 *
 * Reads go by way of the ring's own memory, in huge pages, unless the caller's is known to be so,
 * too: a megabyte in scattered pages of 4 KiB is 256 places for the disk to write to, and a disk
 * behind virtio then reads at a third of its speed. What was read is copied while the rest is on
 * its way.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "kvstore/io_impl.h"

#ifdef HAVE_LIBURING
#    include <liburing.h>
#    include <string.h>
#    include <sys/mman.h>
#    include <time.h>

#    include "base/clock.h"

enum { DEPTH = 16, BOUNCE_DEPTH = 8, HUGE = 2 << 20 };

struct piece {
    size_t from, n; /* of the call's memory: what is still to be moved */
};

struct ring {
    struct io_uring u;
    struct ring *next;
    unsigned n_out; /* prepared, and their completions not seen */
    unsigned n_free;
    uint8_t
        free[DEPTH]; /* [n_free]: pieces that are not out, the last ones are used first */
    uint8_t *bounce; /* [DEPTH][IO_PIECE], of which few are ever touched; NULL: not yet */
    struct piece pieces[DEPTH];
};

struct rings {
    pthread_mutex_t mu;
    struct ring *idle;  /* mu */
    struct ring *aside; /* mu: calls that were given up */
    unsigned n_aside;   /* mu */
};

static struct ring *
ring_new(void)
{
    struct ring *r = calloc(1, sizeof *r);
    struct io_uring_params params = {0};

    if (r == NULL)
        return NULL;
    if (io_uring_queue_init_params(DEPTH, &r->u, &params) != 0) {
        free(r);
        return NULL;
    }
    /* Waiting with a deadline would else need requests of its own. */
    if (!(params.features & IORING_FEAT_EXT_ARG)) {
        io_uring_queue_exit(&r->u);
        free(r);
        return NULL;
    }
    for (r->n_free = 0; r->n_free < DEPTH; r->n_free++)
        r->free[r->n_free] = (uint8_t)r->n_free;
    return r;
}

static void
ring_free(struct ring *r)
{
    io_uring_queue_exit(&r->u);
    if (r->bounce != NULL)
        munmap(r->bounce, DEPTH * IO_PIECE);
    free(r);
}

/* Without it the disk writes to the caller's memory itself. */
static void
make_bounce(struct ring *r)
{
    const size_t n = DEPTH * IO_PIECE;
    uint8_t *p, *at;

    if (r->bounce != NULL)
        return;
    p = mmap(NULL, n + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return;
    at = p + (HUGE - (uintptr_t)p % HUGE) % HUGE;
    if (at > p)
        munmap(p, (size_t)(at - p));
    if (at < p + HUGE)
        munmap(at + n, (size_t)(p + HUGE - at));
    madvise(at, n, MADV_HUGEPAGE);
    r->bounce = at;
}

static bool
bounces(const struct ring *r, const struct bulk_job *j)
{
    return j->bounce && r->bounce != NULL;
}

static struct rings *
rings_new(void)
{
    struct rings *rs = calloc(1, sizeof *rs);

    if (rs == NULL)
        return NULL;
    rs->idle = ring_new(); /* also the question whether we may */
    if (rs->idle == NULL) {
        free(rs);
        return NULL;
    }
    pthread_mutex_init(&rs->mu, NULL);
    return rs;
}

static void
rings_free(struct rings *rs)
{
    struct ring *next;

    for (struct ring *r = rs->idle; r != NULL; r = next) {
        next = r->next;
        ring_free(r);
    }
    /* Those aside stay: their requests may still come back into the memory of a call. */
    pthread_mutex_destroy(&rs->mu);
    free(rs);
}

/* With rs->mu held: frees what has come back meanwhile. */
static void
look_aside(struct rings *rs)
{
    for (struct ring **at = &rs->aside, *r; (r = *at) != NULL;) {
        struct io_uring_cqe *cqe;

        while (r->n_out > 0 && io_uring_peek_cqe(&r->u, &cqe) == 0) {
            io_uring_cqe_seen(&r->u, cqe);
            r->n_out--;
        }
        if (r->n_out > 0) {
            at = &r->next;
        } else {
            *at = r->next;
            rs->n_aside--;
            ring_free(r);
        }
    }
}

static struct ring *
take_ring(struct rings *rs, int *sys)
{
    struct ring *r;

    pthread_mutex_lock(&rs->mu);
    look_aside(rs);
    *sys = rs->n_aside >= IO_STUCK_MOST ? EBUSY : 0;
    r = *sys == 0 ? rs->idle : NULL;
    if (r != NULL)
        rs->idle = r->next;
    pthread_mutex_unlock(&rs->mu);
    if (r == NULL && *sys == 0) {
        r = ring_new();
        if (r == NULL)
            *sys = ENOMEM;
    }
    return r;
}

static void
give_ring(struct rings *rs, struct ring *r)
{
    const unsigned unsent = io_uring_sq_ready(&r->u);

    r->n_out -= unsent; /* the kernel has not seen these, nor will it */
    if (r->n_out == 0 && unsent != 0) {
        ring_free(r);
        return;
    }
    pthread_mutex_lock(&rs->mu);
    if (r->n_out == 0) {
        r->next = rs->idle;
        rs->idle = r;
    } else {
        r->next = rs->aside;
        rs->aside = r;
        rs->n_aside++;
    }
    pthread_mutex_unlock(&rs->mu);
}

/* What a call has come to. */
struct progress {
    size_t next; /* no piece was begun from there on */
    size_t end;  /* where the file ends, or the call */
    int sys;     /* the first error: no piece is begun after it */
};

static void
send_piece(struct ring *r, const struct bulk_job *j, uint8_t k)
{
    /* There is always one: no more are out than the ring has room for. */
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->u);
    const struct piece *p = &r->pieces[k];
    uint8_t *to = bounces(r, j) ? r->bounce + (size_t)k * IO_PIECE : j->p + p->from;

    if (j->write)
        io_uring_prep_write(sqe, j->fd, j->p + p->from, (unsigned)p->n, j->at + p->from);
    else
        io_uring_prep_read(sqe, j->fd, to, (unsigned)p->n, j->at + p->from);
    sqe->user_data = k;
    r->n_out++;
}

static void
begin_pieces(struct ring *r, const struct bulk_job *j, struct progress *g)
{
    const unsigned most = bounces(r, j) ? BOUNCE_DEPTH : DEPTH;

    while (g->sys == 0 && DEPTH - r->n_free < most && g->next < g->end) {
        const uint8_t k = r->free[--r->n_free];
        const size_t left = j->n - g->next;

        r->pieces[k] = (struct piece){g->next, left < IO_PIECE ? left : IO_PIECE};
        g->next += r->pieces[k].n;
        send_piece(r, j, k);
    }
}

/* One completion; what it did not do is sent again. */
static void
end_piece(struct ring *r, const struct bulk_job *j, struct progress *g, uint8_t k, int res)
{
    struct piece *p = &r->pieces[k];

    if (res > 0 && bounces(r, j))
        memcpy(j->p + p->from, r->bounce + (size_t)k * IO_PIECE, (size_t)res);
    if (res == -EINTR || res == -EAGAIN)
        res = 0;
    else if (res == 0 && j->write)
        res = -EIO;
    else if (res == 0 || (res > 0 && res % IO_BLOCK != 0 && j->direct && !j->write)) {
        /* The file ends here. */
        if (p->from + (size_t)res < g->end)
            g->end = p->from + (size_t)res;
        p->n = 0;
    } else if (res > 0) {
        p->from += (size_t)res;
        p->n -= (size_t)res;
    }
    if (res < 0 && g->sys == 0)
        g->sys = -res;
    if (g->sys == 0 && p->n > 0)
        send_piece(r, j, k);
    else
        r->free[r->n_free++] = k;
}

/* Sends what is prepared and waits for one answer: 0, or an errno. */
static int
turn(struct ring *r, uint64_t until_ns)
{
    const uint64_t now = clock_ns(), left = now < until_ns ? until_ns - now : 0;
    struct __kernel_timespec ts = {
        .tv_sec = (long long)(left / 1000000000),
        .tv_nsec = (long long)(left % 1000000000),
    };
    struct io_uring_cqe *cqe;
    int rc = io_uring_submit(&r->u);

    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
        return -rc;
    rc = io_uring_wait_cqe_timeout(&r->u, &cqe, &ts);
    if (rc == -ETIME)
        return ETIMEDOUT;
    return rc == 0 || rc == -EINTR || rc == -EAGAIN ? 0 : -rc;
}

static ssize_t
rings_move(struct rings *rs, const struct bulk_job *j)
{
    const uint64_t patience = (uint64_t)j->deadline_ms * 1000000;
    struct progress g = {.end = j->n};
    uint64_t until = clock_ns() + patience;
    struct ring *r = take_ring(rs, &g.sys);

    if (r == NULL)
        return -g.sys;
    if (j->bounce)
        make_bounce(r);
    for (;;) {
        struct io_uring_cqe *cqe;
        int sys;

        begin_pieces(r, j, &g);
        if (r->n_out == 0)
            break;
        sys = turn(r, until);
        if (sys != 0) {
            g.sys = sys;
            break;
        }
        while (io_uring_peek_cqe(&r->u, &cqe) == 0) {
            const uint8_t k = (uint8_t)cqe->user_data;
            const int res = cqe->res;

            io_uring_cqe_seen(&r->u, cqe);
            r->n_out--;
            end_piece(r, j, &g, k, res);
            until = clock_ns() + patience;
        }
    }
    /* Whatever went wrong: with requests still out it is told as a hang, for the memory's sake. */
    if (r->n_out > io_uring_sq_ready(&r->u))
        g.sys = ETIMEDOUT;
    give_ring(rs, r);
    return g.sys == 0 ? (ssize_t)g.end : -g.sys;
}

static unsigned
rings_stuck(struct rings *rs)
{
    unsigned n;

    pthread_mutex_lock(&rs->mu);
    look_aside(rs);
    n = rs->n_aside;
    pthread_mutex_unlock(&rs->mu);
    return n;
}

#else /* without liburing there are threads only */
struct rings;

static struct rings *
rings_new(void)
{
    return NULL;
}

static void
rings_free(struct rings *rs)
{
    (void)rs;
}

static ssize_t
rings_move(struct rings *rs, const struct bulk_job *j)
{
    (void)rs;
    (void)j;
    return -ENOSYS;
}

static unsigned
rings_stuck(struct rings *rs)
{
    (void)rs;
    return 0;
}
#endif

struct bulk {
    struct rings *rings; /* or NULL, then: */
    struct threads *threads;
};

struct bulk *
bulk_new(bool uring)
{
    struct bulk *b = calloc(1, sizeof *b);

    if (b == NULL)
        return NULL;
    if (uring)
        b->rings = rings_new();
    if (b->rings == NULL && (b->threads = threads_new()) == NULL) {
        free(b);
        return NULL;
    }
    return b;
}

void
bulk_free(struct bulk *b)
{
    if (b == NULL)
        return;
    if (b->rings != NULL)
        rings_free(b->rings);
    else
        threads_free(b->threads);
    free(b);
}

const char *
bulk_name(const struct bulk *b)
{
    return b->rings != NULL ? "io_uring" : "threads";
}

ssize_t
bulk_move(struct bulk *b, const struct bulk_job *j)
{
    return b->rings != NULL ? rings_move(b->rings, j) : threads_move(b->threads, j);
}

unsigned
bulk_stuck(struct bulk *b)
{
    return b->rings != NULL ? rings_stuck(b->rings) : threads_stuck(b->threads);
}
