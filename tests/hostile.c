/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hostile: a client that does with shared memory what it must not be able to do, or what must hurt
 * nobody but itself. Prints TAP.
 *
 *   hostile SOCKET FIRST-NUMBER
 *
 * Sessions `victim` (somebody else's work, whose tokens must come out the same throughout) and
 * `mine` are there and hold something.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/fathom.h"

enum { VICTIM_TOKENS = 40 };

static const char *socket_path;
static int number;

static void
ok(int good, const char *what)
{
    printf("%s %d - %s\n", good ? "ok" : "not ok", number++, what);
    fflush(stdout);
}

static struct fathom *
connect_now(void)
{
    struct fathom_error e;
    struct fathom *f = fathom_open(socket_path, &e);

    if (f == NULL) {
        printf("Bail out! %s\n", e.text);
        exit(1);
    }
    return f;
}

/* ---- The bystander ------------------------------------------------------------------- */

struct tokens {
    uint32_t id[VICTIM_TOKENS];
    size_t n;
};

static int
on_token(void *arg, const struct fathom_token *t)
{
    struct tokens *all = arg;

    if (all->n < VICTIM_TOKENS)
        all->id[all->n++] = t->id;
    return 0;
}

/* What the victim draws next, taken back afterwards. */
static void
draw(struct tokens *out)
{
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = out, .token = on_token};
    struct fathom *f = connect_now();
    struct fathom_sample a;
    struct fathom_error e;
    const struct fathom_result *r;

    *out = (struct tokens){.n = 0};
    FATHOM_SAMPLE_INIT(&a);
    a.name = "victim";
    a.n = VICTIM_TOKENS;
    a.temperature = 0;
    a.ignore_eos = 1;
    r = fathom_finish(f, fathom_sample(f, &a, &w, &e), &e);
    if (r == NULL)
        printf("# the victim: %s\n", e.text);
    else if (fathom_finish(
                 f,
                 fathom_rollback(f, "victim", NULL, (int64_t)(r->pos - VICTIM_TOKENS), &e),
                 &e) == NULL)
        printf("# the victim: %s\n", e.text);
    fathom_close(f);
}

static struct tokens undisturbed;

static void
nobody_else(const char *what)
{
    struct tokens now;
    char text[200];

    draw(&now);
    snprintf(text, sizeof text, "%s: nobody else is hurt", what);
    ok(now.n == VICTIM_TOKENS && memcmp(&now, &undisturbed, sizeof now) == 0, text);
}

/* ---- Memory that we may only read ---------------------------------------------------- */

static int
fails(long rc, int with)
{
    if (rc != -1 || errno != with)
        printf("# %ld, %s, not %s\n", rc, strerror(errno), strerror(with));
    return rc == -1 && errno == with;
}

static void
scribble(int fd, size_t bytes, const char *what)
{
    char path[64], text[100], before[4096], after[4096];
    int good = 1, again;
    void *p;

    good &= pread(fd, before, sizeof before, 0) == (ssize_t)sizeof before;
    p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    good &= fails(p == MAP_FAILED ? -1 : 0, EPERM);
    p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    good &= p != MAP_FAILED;
    good &= fails(mprotect(p, bytes, PROT_READ | PROT_WRITE), EACCES);
    good &= fails(pwrite(fd, "x", 1, 0), EPERM);
    good &= fails(ftruncate(fd, 0), EPERM);
    good &= fails(ftruncate(fd, (off_t)bytes * 2), EPERM);
    good &=
        fails(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), EPERM);
    good &= fails(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
    /* Another way in to the same memory. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    again = open(path, O_RDWR | O_CLOEXEC);
    if (again != -1) {
        good &= fails(pwrite(again, "x", 1, 0), EPERM);
        good &= mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) ==
                MAP_FAILED;
        close(again);
    }
    good &= pread(fd, after, sizeof after, 0) == (ssize_t)sizeof after;
    munmap(p, bytes);
    snprintf(text, sizeof text, "%s: it cannot be written to, cut or opened again", what);
    ok(good, text);
}

static void
stats_pages(void)
{
    struct fathom *f = connect_now();
    uint64_t w[FATHOM_DAEMON_WORDS], s[FATHOM_SESSION_WORDS];
    struct fathom_error e;
    const struct fathom_result *r = fathom_finish(f, fathom_stats(f, NULL, &e), &e);
    struct fathom_page *page;
    struct tokens ignored;
    int fd, i;

    ok(r != NULL && r->fd != -1, "a statistics page");
    fd = r->fd;
    page = fathom_page_open(fd, &e);
    ok(page != NULL && fathom_page_read(page, w, FATHOM_DAEMON_WORDS) == 0 &&
           w[FATHOM_PAGE_KIND] == 1 && w[FATHOM_DAEMON_STATE] == 1 &&
           w[FATHOM_DAEMON_CONNECTIONS] >= 1,
       "says that the daemon serves");
    draw(&ignored);
    for (i = 0; i < 200; i++) {
        uint64_t now[FATHOM_DAEMON_WORDS];

        if (fathom_page_read(page, now, FATHOM_DAEMON_WORDS) == 0 &&
            now[FATHOM_DAEMON_DRAWN] >= w[FATHOM_DAEMON_DRAWN] + VICTIM_TOKENS)
            break;
        usleep(50000);
    }
    ok(i < 200, "and how many tokens were drawn, without being asked again");
    scribble(fd, 4096, "a statistics page");
    fathom_page_close(page);
    close(fd);

    r = fathom_finish(f, fathom_stats(f, "mine", &e), &e);
    page = r != NULL ? fathom_page_open(r->fd, &e) : NULL;
    ok(page != NULL && fathom_page_read(page, s, FATHOM_SESSION_WORDS) == 0 &&
           s[FATHOM_PAGE_KIND] == 2 && s[FATHOM_SESSION_POS] > 0,
       "a session's page");
    fathom_finish(f, fathom_new(f, "short-lived", 0, &e), &e);
    r = fathom_finish(f, fathom_stats(f, "short-lived", &e), &e);
    fathom_page_close(page);
    page = r != NULL ? fathom_page_open(r->fd, &e) : NULL;
    fathom_finish(f, fathom_delete(f, "short-lived", &e), &e);
    for (i = 0; i < 200 && page != NULL; i++) {
        if (fathom_page_read(page, s, FATHOM_SESSION_WORDS) == 0 &&
            s[FATHOM_SESSION_STATE] == 6)
            break;
        usleep(50000);
    }
    ok(page != NULL && i < 200, "the page of a deleted session says so");
    fathom_page_close(page);
    r = fathom_finish(f, fathom_stats(f, "nobody", &e), &e);
    ok(r == NULL && e.code == FATHOM_NOT_FOUND, "no page of a session that is not there");
    for (i = 0; i < 100; i++) {
        r = fathom_finish(f, fathom_stats(f, NULL, &e), &e);
        if (r == NULL)
            break;
        close(r->fd);
    }
    ok(r == NULL && e.code == FATHOM_QUOTA, "pages without end: refused");
    fathom_close(f);
    nobody_else("pages without end");
}

/* ---- Rings --------------------------------------------------------------------------- */

static uint32_t
sample_into(struct fathom *f, uint64_t ring, uint64_t n, struct fathom_error *e)
{
    struct fathom_sample a;

    FATHOM_SAMPLE_INIT(&a);
    a.name = "mine";
    a.n = n;
    a.temperature = 0;
    a.ignore_eos = 1;
    a.quiet = 1;
    a.ring = ring;
    return fathom_sample(f, &a, NULL, e);
}

static void
token_ring(void)
{
    struct fathom *f = connect_now();
    struct fathom_error e;
    const struct fathom_result *r =
        fathom_finish(f, fathom_ring(f, FATHOM_RING_TOKENS, 64, &e), &e);
    uint64_t ring = r != NULL ? r->ring : 0, first = 0, n = 0, gaps = 0, pos = 0, over = 0;
    struct fathom_reader *reader;
    struct fathom_record rec;
    int fd = r != NULL ? r->fd : -1, wake;
    char bytes[4096];
    uint32_t second;

    ok(r != NULL && fd != -1 && ring != 0, "a ring of tokens");
    reader = fathom_reader_open(fd, &e);
    r = fathom_finish(f, fathom_ring_wake(f, ring, &e), &e);
    wake = r != NULL ? r->fd : -1;
    ok(reader != NULL && wake != -1, "its reader and its waker");
    scribble(fd, 4096, "a ring");

    r = fathom_finish(f, sample_into(f, ring, 60, &e), &e);
    while (fathom_reader_next(reader, &rec, &e) == 1) {
        if (n == 0)
            first = rec.pos;
        gaps += rec.gap || (!rec.over && rec.pos != first + n);
        n += !rec.over;
        over += (uint64_t)rec.over;
    }
    ok(r != NULL && n == 60 && gaps == 0 && over == 1 && first + n == r->pos,
       "no more tokens than it holds: none is lost");
    ok(read(wake, bytes, sizeof bytes) > 0, "it was woken");

    /* Nobody reads, nobody takes the wake-ups, and our end may block. */
    fcntl(wake, F_SETFL, fcntl(wake, F_GETFL) & ~O_NONBLOCK);
    for (int i = 0; i < 1000; i++) {
        if (send(wake, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) == -1)
            break;
    }
    r = fathom_finish(f, sample_into(f, ring, 3000, &e), &e);
    n = gaps = 0;
    while (fathom_reader_next(reader, &rec, &e) == 1) {
        gaps += (uint64_t)rec.gap;
        pos = rec.pos;
        n++;
    }
    ok(r != NULL && gaps == 1 && n >= 64 && n < 3000 && pos == r->pos,
       "more than it holds: the newest ones, and the gap is told");
    nobody_else("a reader that never reads");

    second = sample_into(f, ring, 2000, &e);
    r = fathom_finish(f, sample_into(f, ring, 5, &e), &e);
    ok(r == NULL && e.code == FATHOM_BUSY,
       "two samples into one ring: the second is refused");
    fathom_cancel(f, second, &e);
    fathom_finish(f, second, &e);
    r = fathom_finish(f, sample_into(f, 99, 5, &e), &e);
    ok(r == NULL && e.code == FATHOM_NOT_FOUND, "a ring that is not there");
    r = fathom_finish(f, fathom_ring(f, FATHOM_RING_TOKENS, 0, &e), &e);
    ok(r == NULL && e.code == FATHOM_INVALID, "a ring of nothing");
    r = fathom_finish(f, fathom_ring(f, FATHOM_RING_LOGITS, 60000, &e), &e);
    ok(r == NULL && e.code == FATHOM_QUOTA && strstr(e.text, "max-ring") != NULL,
       "a ring that is too large names the setting");
    for (int i = 0;
         i < 100 &&
         (r = fathom_finish(f, fathom_ring(f, FATHOM_RING_LOGITS, 8, &e), &e)) != NULL;
         i++)
        close(r->fd);
    ok(r == NULL && e.code == FATHOM_QUOTA, "rings without end: refused");

    /* Gone in the middle of it all; what we have mapped stays as it is. */
    second = sample_into(f, ring, 2000, &e);
    fathom_wait(f, 20, &e);
    fathom_close(f);
    while (fathom_reader_next(reader, &rec, &e) == 1)
        ;
    fathom_reader_close(reader);
    close(fd);
    close(wake);
    nobody_else("a client that leaves in the middle");
}

/* Each row is the one that the token was drawn from: at temperature 0 its largest. */
static void
logits_ring(void)
{
    struct fathom *f = connect_now();
    struct fathom_error e;
    const struct fathom_result *r =
        fathom_finish(f, fathom_ring(f, FATHOM_RING_LOGITS, 24, &e), &e);
    struct fathom_reader *reader = r != NULL ? fathom_reader_open(r->fd, &e) : NULL;
    const uint64_t ring = r != NULL ? r->ring : 0, vocab = fathom_info(f)->vocab;
    struct fathom_record rec;
    uint64_t n = 0, wrong = 0, next = 0;

    ok(reader != NULL, "a ring of logits");
    if (r != NULL)
        scribble(r->fd, 4096, "a ring of logits");
    r = fathom_finish(f, sample_into(f, ring, 24, &e), &e);
    if (r == NULL)
        printf("# %s\n", e.text);
    while (reader != NULL && fathom_reader_next(reader, &rec, &e) == 1) {
        if (rec.over)
            continue;
        wrong += rec.gap || rec.vocab != vocab || (n > 0 && rec.pos != next);
        for (size_t i = 0; i < rec.vocab; i++)
            wrong += rec.row[i] > rec.row[rec.id];
        wrong += !(rec.logprob <= 0 && rec.logprob > -30);
        next = rec.pos + 1;
        n++;
    }
    ok(r != NULL && n == 24 && wrong == 0 && next == r->pos,
       "each token with the row that it was drawn from");
    fathom_reader_close(reader);
    fathom_close(f);
}

/* ---- Documents ----------------------------------------------------------------------- */

static atomic_int stop_now;

/* Shorter, longer, other bytes: as long as it goes on. */
static void *
change_always(void *arg)
{
    const int fd = *(const int *)arg;
    char bytes[4096];
    unsigned x = 1;

    while (!stop_now) {
        memset(bytes, (int)('a' + x++ % 26), sizeof bytes);
        (void)!pwrite(fd, bytes, sizeof bytes, (off_t)(x % 50) * 4096);
        (void)!ftruncate(fd, (off_t)(x % 3) * 100000);
    }
    return NULL;
}

static void
documents(void)
{
    struct fathom *f = connect_now();
    struct fathom_append a;
    struct fathom_error e;
    const struct fathom_result *r;
    pthread_t thread;
    int fd = memfd_create("mine", MFD_CLOEXEC | MFD_ALLOW_SEALING), bad = 0, done = 0,
        pair[2];

    if (fd == -1 || ftruncate(fd, 200000) == -1)
        exit(99);
    FATHOM_APPEND_INIT(&a);
    a.name = "mine";
    a.document = fd;
    stop_now = 0;
    pthread_create(&thread, NULL, change_always, &fd);
    for (int i = 0; i < 30; i++) {
        r = fathom_finish(f, fathom_append(f, &a, NULL, &e), &e);
        bad += r == NULL && e.code != FATHOM_INVALID && e.code != FATHOM_CONTEXT_FULL;
        done += r != NULL;
        if (r == NULL && e.code == FATHOM_CONTEXT_FULL)
            break;
    }
    stop_now = 1;
    pthread_join(thread, NULL);
    printf("# %d of them went in\n", done);
    ok(bad == 0, "a document that changes all the time: taken as it stood, or refused");
    close(fd);

    /* Half the seals are none: what can still shrink is copied, not mapped. */
    fd = memfd_create("mine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    (void)!write(fd, "some text", 9);
    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_WRITE);
    a.document = fd;
    fathom_finish(f, fathom_rollback(f, "mine", NULL, 1, &e), &e);
    r = fathom_finish(f, fathom_append(f, &a, NULL, &e), &e);
    ftruncate(fd, 0);
    ok(r != NULL && r->n > 0, "a document that is not sealed against shrinking is copied");
    close(fd);
    /* Huge pages are not mapped: the machine may have none, and the last part of one cannot be
     * unmapped. Two million zeros are more tokens than fit, which they have to become first. */
    fd = memfd_create("mine", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    if (fd != -1 && ftruncate(fd, 2 << 20) == 0) {
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
        a.document = fd;
        r = fathom_finish(f, fathom_append(f, &a, NULL, &e), &e);
        ok(r == NULL && e.code == FATHOM_CONTEXT_FULL,
           "a document of huge pages is copied");
    }
    if (fd != -1)
        close(fd);
    /* What is no memory at all. */
    (void)!pipe(pair);
    a.document = pair[0];
    r = fathom_finish(f, fathom_append(f, &a, NULL, &e), &e);
    ok(r == NULL && e.code == FATHOM_INVALID, "a pipe is no document");
    close(pair[0]);
    close(pair[1]);
    fathom_close(f);
    nobody_else("documents that change");
}

/* ---- Streams ------------------------------------------------------------------------- */

/* `large` is more than a socket holds; transfer-timeout is 1 s, two at once are allowed. */
static void
streams(void)
{
    struct fathom *f = connect_now(), *g;
    struct fathom_error e;
    const struct fathom_result *r;
    uint32_t id, ids[3];
    uint64_t n = 0;
    char bytes[65536];
    int fd, fds[3];
    ssize_t got;

    id = fathom_export(f, "large", 0, &fd, &e);
    r = fathom_finish(f, id, &e);
    ok(r == NULL && e.code == FATHOM_DEADLINE && strstr(e.text, "transfer-timeout") != NULL,
       "an export that nobody reads is given up, and names the setting");
    close(fd);

    for (int i = 0; i < 3; i++)
        ids[i] = fathom_export(f, "large", 1, &fds[i], &e);
    r = fathom_finish(f, ids[2], &e);
    ok(r == NULL && e.code == FATHOM_BUSY &&
           strstr(e.text, "max-transfers-per-user") != NULL,
       "a third export at once is refused");
    close(fds[2]);
    got = recv(fds[0], bytes, 1000, 0);
    close(fds[0]);
    r = fathom_finish(f, ids[0], &e);
    ok(got > 0 && r == NULL && e.code == FATHOM_CANCELLED, "a reader that leaves");
    fathom_cancel(f, ids[1], &e);
    r = fathom_finish(f, ids[1], &e);
    ok(r == NULL && e.code == FATHOM_CANCELLED, "one that is cancelled");
    close(fds[1]);

    g = connect_now();
    fathom_export(g, "large", 0, &fd, &e);
    fathom_wait(g, 50, &e);
    fathom_close(g); /* the connection, not the stream */
    while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0)
        n += (uint64_t)got;
    ok(got == 0 || got == -1, "a connection that is lost ends its export");
    close(fd);

    /* Deleted in the middle: what was begun is finished, from the copy. */
    fathom_finish(f, fathom_fork(f, "large", "doomed", NULL, FATHOM_ANY_POS, &e), &e);
    id = fathom_export(f, "doomed", 0, &fd, &e);
    for (n = 0; n < 4096 && fathom_wait(f, 10, &e) != -1;) {
        got = recv(fd, bytes, 4096, MSG_DONTWAIT);
        n += got > 0 ? (uint64_t)got : 0;
    }
    fathom_finish(f, fathom_delete(f, "doomed", &e), &e);
    while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0)
        n += (uint64_t)got;
    r = fathom_finish(f, id, &e);
    ok(r != NULL && r->bytes == n, "a session that is deleted meanwhile");
    close(fd);

    id = fathom_import(f, "silent", &fd, &e);
    r = fathom_finish(f, id, &e);
    ok(r == NULL && e.code == FATHOM_DEADLINE,
       "an import of which nothing comes is given up");
    close(fd);
    id = fathom_import(f, "garbage", &fd, &e);
    fathom_wait(f, 50, &e);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7919 >> 3);
    (void)!send(fd, bytes, sizeof bytes, MSG_NOSIGNAL);
    close(fd);
    r = fathom_finish(f, id, &e);
    ok(r == NULL && e.code == FATHOM_DAMAGED, "garbage is no archive");
    r = fathom_finish(f, fathom_rollback(f, "large", NULL, 1, &e), &e);
    ok(r != NULL, "none of these holds the session");
    fathom_close(f);
    nobody_else("streams that are left hanging");
}

int
main(int argc, char **argv)
{
    if (argc != 3)
        return 64;
    socket_path = argv[1];
    number = atoi(argv[2]);
    draw(&undisturbed);
    ok(undisturbed.n == VICTIM_TOKENS, "somebody else's work");
    stats_pages();
    token_ring();
    logits_ring();
    documents();
    streams();
    printf("# next %d\n", number);
    return 0;
}
