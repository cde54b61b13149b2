/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting fathom-engine. fathomd has threads, so between fork and exec only what is safe in a
 * signal handler may be called: words and environment are made before.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "daemon/engine_spawn.h"
#include "daemon/options.h"
#include "proto/link.h"

enum {
    LINK_FD = 3,
    STATUS_FD = 4,
    ARENA_FD = 5,
    MAX_WORDS = 28,
    NO_EXEC = 127,
    SOCKET_BYTES = 1 << 20
};

static int
make_status(const struct link_status **page, struct err *e)
{
    const int fd = memfd_create("fathom-status", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *p;

    if (fd == -1)
        return err_set(e, ERR_INTERNAL, errno, "memfd_create: %s", strerror(errno));
    if (ftruncate(fd, sizeof **page) == -1 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == -1 ||
        (p = mmap(NULL, sizeof **page, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED) {
        err_set(e, ERR_INTERNAL, errno, "the engine's status page: %s", strerror(errno));
        close(fd);
        return -1;
    }
    *page = p;
    return fd;
}

/* The environment without what systemd says to fathomd alone. */
static char **
environment(void)
{
    static const char *const ours[] = {
        "NOTIFY_SOCKET=", "WATCHDOG_USEC=", "WATCHDOG_PID=",
        "LISTEN_FDS=",    "LISTEN_PID=",    "LISTEN_FDNAMES="};
    size_t n = 0, kept = 0;
    char **env;

    while (environ[n] != NULL)
        n++;
    env = calloc(n + 1, sizeof *env);
    if (env == NULL)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        bool drop = false;

        for (size_t k = 0; k < sizeof ours / sizeof ours[0]; k++)
            drop |= strncmp(environ[i], ours[k], strlen(ours[k])) == 0;
        if (!drop)
            env[kept++] = environ[i];
    }
    return env;
}

static _Noreturn void
child(const char *const *words, char *const *env, int sock, int status, int arena,
      pid_t parent)
{
    sigset_t none;
    int fd;

    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(0); /* it died before the line above */

    /* Above the numbers that they shall get, so that neither dup2 closes the other. */
    sock = fcntl(sock, F_DUPFD, ARENA_FD + 1);
    status = fcntl(status, F_DUPFD, ARENA_FD + 1);
    if (arena != -1)
        arena = fcntl(arena, F_DUPFD, ARENA_FD + 1);
    fd = open("/dev/null", O_RDWR);
    if (sock == -1 || status == -1 || fd == -1 || dup2(sock, LINK_FD) == -1 ||
        dup2(status, STATUS_FD) == -1 || (arena != -1 && dup2(arena, ARENA_FD) == -1) ||
        dup2(fd, STDIN_FILENO) == -1 || dup2(STDERR_FILENO, STDOUT_FILENO) == -1)
        _exit(NO_EXEC);
    close_range(arena != -1 ? ARENA_FD + 1 : STATUS_FD + 1, ~0u, 0);
    execve(words[0], (char *const *)(uintptr_t)words, env);
    _exit(NO_EXEC);
}

static int
start(struct engine_child *c, const struct options *o, const struct engine_arena *arena,
      int sock, int status, struct err *e)
{
    char kv[32], threads[32], sequences[32], bytes[32];
    const char *words[MAX_WORDS] = {
        o->engine, "--model",    o->model, "--backend",   o->backend, "--isa",
        o->isa,    "--kv-bytes", kv,       "--threads",   threads,    "--max-seqs",
        sequences, "--link-fd",  "3",      "--status-fd", "4",
    };
    char **env = environment();
    size_t n = 0;
    const pid_t self = getpid();

    if (env == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory to start the engine");
    snprintf(bytes, sizeof bytes, "%" PRIu64, arena->bytes);
    while (words[n] != NULL)
        n++;
    if (arena->fd != -1) {
        words[n++] = "--arena-fd";
        words[n++] = "5";
        words[n++] = "--arena-bytes";
        words[n++] = bytes;
    }
    snprintf(kv, sizeof kv, "%" PRIu64, o->kv_memory);
    snprintf(threads, sizeof threads, "%" PRIu64, o->threads);
    snprintf(sequences, sizeof sequences, "%" PRIu64, o->max_sequences);
    c->pid = fork();
    if (c->pid == 0)
        child(words, env, sock, status, arena->fd, self);
    free(env);
    if (c->pid == -1) {
        c->pid = 0;
        return err_set(e, ERR_INTERNAL, errno, "fork: %s", strerror(errno));
    }
    c->pidfd = pidfd_open(c->pid, 0);
    if (c->pidfd == -1) {
        const int sys = errno;

        kill(c->pid, SIGKILL); /* ours, not waited for: the number cannot be another's */
        waitid(P_PID, (id_t)c->pid, &(siginfo_t){0}, WEXITED);
        c->pid = 0;
        return err_set(e, ERR_INTERNAL, sys, "pidfd_open: %s", strerror(sys));
    }
    return 0;
}

int
engine_spawn(struct engine_child *c, const struct options *o,
             const struct engine_arena *arena, struct err *e)
{
    int sock[2], status, rc;

    *c = (struct engine_child){.pidfd = -1, .sock = -1};
    status = make_status(&c->status, e);
    if (status == -1)
        return -1;
    if (link_pair(sock, e) == -1) {
        close(status);
        engine_child_done(c);
        return -1;
    }
    /* Larger than usual where the system allows it: a token list is tens of kilobytes. */
    for (int i = 0; i < 2; i++)
        setsockopt(sock[i], SOL_SOCKET, SO_SNDBUF, &(int){SOCKET_BYTES}, sizeof(int));
    c->sock = sock[0];
    rc = start(c, o, arena, sock[1], status, e);
    close(sock[1]);
    close(status);
    if (rc == -1)
        engine_child_done(c);
    return rc;
}

void
engine_child_done(struct engine_child *c)
{
    if (c->pidfd != -1)
        close(c->pidfd);
    if (c->sock != -1)
        close(c->sock);
    if (c->status != NULL)
        munmap((void *)(uintptr_t)c->status, sizeof *c->status);
    *c = (struct engine_child){.pidfd = -1, .sock = -1};
}
