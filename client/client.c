/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Talking to the daemon: open, run a request while listening for signals, try again, fail.
 *
 * Outside client_run() signals have their usual effect: nothing is under way then that would have
 * to be cancelled. SIGPIPE keeps its default all the time, so that `fathom log x | head` ends
 * without a word; the daemon sees the connection close.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/client.h"

enum { FIRST_PAUSE_MS = 100, LONGEST_PAUSE_MS = 2000, EXIT_INTERRUPTED = 130 };

static volatile sig_atomic_t signals_seen;

static void
on_signal(int number)
{
    (void)number;
    if (++signals_seen > 1)
        _exit(EXIT_INTERRUPTED);
}

_Noreturn void
die(int status, const char *fmt, ...)
{
    va_list ap;

    fflush(stdout);
    fputs("fathom: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(status);
}

void
note(const struct client *c, const char *fmt, ...)
{
    va_list ap;

    if (c->quiet || c->json)
        return;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void
op_id(uint8_t id[16])
{
    if (getrandom(id, 16, 0) != 16)
        die(71, "getrandom: %s", strerror(errno));
}

void
client_open(struct client *c)
{
    if (c->deadline_ns == 0)
        c->deadline_ns = clock_ns() + c->wait_ms * UINT64_C(1000000);
    while ((c->f = fathom_open(c->socket, &c->e)) == NULL) {
        if (!client_again(c))
            client_fail(c);
    }
}

static void
on_done(void *arg, const struct fathom_result *r, const struct fathom_error *e)
{
    struct client *c = arg;

    if (r != NULL) {
        c->r = *r;
        c->e = (struct fathom_error){.code = FATHOM_OK};
    } else {
        c->e = *e;
    }
}

const struct fathom_result *
client_run(struct client *c, uint32_t id)
{
    return client_run_beside(c, id, -1, 0, NULL, NULL);
}

const struct fathom_result *
client_run_beside(struct client *c, uint32_t id, int fd, short events,
                  bool (*pump)(void *arg, int fd), void *arg)
{
    const struct sigaction catch = {.sa_handler = on_signal};
    struct sigaction was_int, was_term;
    struct fathom_error ignored;
    sigset_t ours, before;

    if (id == 0)
        return NULL;
    /* Only ppoll() lets signals in: so none gets lost between the look and the wait. */
    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigprocmask(SIG_BLOCK, &ours, &before);
    sigaction(SIGINT, &catch, &was_int);
    sigaction(SIGTERM, &catch, &was_term);

    c->e.code = -1; /* under way */
    if (fathom_on_done(c->f, id, on_done, c) == -1)
        abort();
    while (c->e.code == -1) {
        struct pollfd p[2] = {{fathom_fd(c->f), (short)fathom_events(c->f), 0},
                              {fd, events, 0}};

        (void)ppoll(p, 2, NULL, &before); /* a descriptor of -1 is left out */
        if (signals_seen > 0 && !c->interrupted) {
            c->interrupted = true;
            (void)fathom_cancel(c->f, id, &ignored);
        }
        if (p[1].revents != 0 && !pump(arg, fd))
            fd = -1;
        (void)fathom_process(c->f,
                             &ignored); /* if it fails, the request ends with its error */
        fflush(stdout);
    }
    sigaction(SIGINT, &was_int, NULL);
    sigaction(SIGTERM, &was_term, NULL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return c->e.code == FATHOM_OK ? &c->r : NULL;
}

bool
client_again(struct client *c)
{
    static uint64_t pause_ms = FIRST_PAUSE_MS;
    const uint64_t now = clock_ns();
    uint64_t ms = pause_ms > c->e.retry_ms ? pause_ms : c->e.retry_ms;
    struct timespec t;
    uint8_t dice = 0;

    if (c->interrupted || (c->e.code != FATHOM_UNAVAILABLE && c->e.code != FATHOM_BUSY) ||
        now >= c->deadline_ns)
        return false;
    if (ms > LONGEST_PAUSE_MS)
        ms = LONGEST_PAUSE_MS;
    /* Between half and all of it: many waiting clients must not come back at once. */
    (void)getrandom(&dice, 1, 0);
    ms = ms / 2 + ms * dice / 512;
    t = (struct timespec){(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
    pause_ms = pause_ms * 2 < LONGEST_PAUSE_MS ? pause_ms * 2 : LONGEST_PAUSE_MS;

    if (c->f != NULL) {
        fathom_close(c->f);
        c->f = NULL;
        client_open(c);
    }
    return true;
}

_Noreturn void
client_fail(struct client *c)
{
    char pos[64] = "";

    if (fflush(stdout) == EOF || ferror(stdout)) /* then that is why it was cancelled */
        die(EXIT_OUTPUT, "cannot write to standard output");
    if (c->interrupted && c->e.code == FATHOM_CANCELLED)
        exit(client_end(c));
    if (c->e.has_pos)
        snprintf(pos, sizeof pos, " (the session is at position %llu)",
                 (unsigned long long)c->e.pos);
    if (c->json) {
        json_begin(NULL);
        json_begin("error");
        json_u64("code", (uint64_t)c->e.code);
        json_str("name", c->e.name);
        json_str("text", c->e.text);
        if (c->e.has_pos)
            json_u64("pos", c->e.pos);
        json_end();
        json_end();
        fflush(stdout);
    }
    fprintf(stderr, "fathom %s: %s%s\n", c->cmd->name, c->e.text, pos);
    exit(fathom_error_exit_status(&c->e));
}

int
client_end(struct client *c)
{
    const bool has_pos = c->e.code == FATHOM_OK || c->e.has_pos;
    const uint64_t pos = c->e.code == FATHOM_OK ? c->r.pos : c->e.pos;

    if (!c->interrupted)
        return 0;
    fflush(stdout);
    if (!c->quiet && has_pos)
        fprintf(stderr, "\nfathom: stopped; the session keeps all up to position %llu\n",
                (unsigned long long)pos);
    return EXIT_INTERRUPTED;
}
