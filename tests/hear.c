/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hear: the other end of sd_notify(3), for tests.
 *
 *   hear PATH >FILE &             prints each line that comes to the datagram socket PATH
 *   hear PATH COMMAND ... >FILE   and runs COMMAND as a service manager would
 *
 * The second way keeps descriptors that come with FDSTORE=1, by FDNAME, forgets them with
 * FDSTOREREMOVE=1, starts COMMAND again when a signal ended it, and passes them then as
 * sd_listen_fds(3) says; it prints `kept NAME`, `forgot NAME`, `passed NAME` and `ended STATUS`,
 * each of a memfd with its inode. SIGTERM goes on to COMMAND; SIGUSR1 is a restart: COMMAND gets
 * SIGTERM, the shell script HEAR_BETWEEN is run when it has ended (its parent's descriptors are the
 * store), and COMMAND is started again. HEAR_STORE="NAME ..." begins with
 * memfds of those names in the store, HEAR_LISTEN="NAME=SOCKET ..." with listening sockets.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_KEPT = 16, FIRST_FD = 3 };

static struct {
    char name[64];
    int fd;
} kept[MAX_KEPT];

static int n_kept;
static volatile pid_t child;
static volatile sig_atomic_t again;

static void
say(const char *what, int i)
{
    struct stat st;

    fstat(kept[i].fd, &st);
    printf("%s %s %lu\n", what, kept[i].name, (unsigned long)st.st_ino);
    fflush(stdout);
}

static void
keep(const char *name, int fd)
{
    if (n_kept == MAX_KEPT) {
        close(fd);
        return;
    }
    snprintf(kept[n_kept].name, sizeof kept[n_kept].name, "%s", name);
    kept[n_kept].fd = fd;
    say("kept", n_kept++);
}

static void
forget(const char *name)
{
    int n = 0;

    for (int i = 0; i < n_kept; i++) {
        if (strcmp(kept[i].name, name) != 0) {
            kept[n++] = kept[i];
            continue;
        }
        say("forgot", i);
        close(kept[i].fd);
    }
    n_kept = n;
}

static int
bound(const char *path, int type)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
    if (fd == -1 || bind(fd, (const struct sockaddr *)&sa, sizeof sa) == -1) {
        fprintf(stderr, "hear: %s: %s\n", path, strerror(errno));
        exit(73);
    }
    return fd;
}

static void
read_environment(void)
{
    char *store = getenv("HEAR_STORE"), *sockets = getenv("HEAR_LISTEN"), *eq;

    for (char *w = store != NULL ? strtok(store, " ") : NULL; w != NULL;
         w = strtok(NULL, " "))
        keep(w, memfd_create(w, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    for (char *w = sockets != NULL ? strtok(sockets, " ") : NULL; w != NULL;
         w = strtok(NULL, " ")) {
        eq = strchr(w, '=');
        if (eq == NULL)
            exit(64);
        *eq = '\0';
        keep(w, bound(eq + 1, SOCK_STREAM));
        listen(kept[n_kept - 1].fd, 16);
    }
}

/* Descriptors at FIRST_FD and up: first out of the way, then to their places. */
static _Noreturn void
become(char **words)
{
    char names[MAX_KEPT * 65] = "", number[32];

    for (int i = 0; i < n_kept; i++) {
        kept[i].fd = fcntl(kept[i].fd, F_DUPFD, FIRST_FD + MAX_KEPT);
        strcat(strcat(names, i > 0 ? ":" : ""), kept[i].name);
    }
    for (int i = 0; i < n_kept; i++)
        dup2(kept[i].fd, FIRST_FD + i);
    close_range((unsigned)(FIRST_FD + n_kept), ~0u, 0);
    if (n_kept > 0) {
        snprintf(number, sizeof number, "%d", (int)getpid());
        setenv("LISTEN_PID", number, 1);
        snprintf(number, sizeof number, "%d", n_kept);
        setenv("LISTEN_FDS", number, 1);
        setenv("LISTEN_FDNAMES", names, 1);
    }
    execvp(words[0], words);
    _exit(127);
}

static int
run(char **words)
{
    for (int i = 0; i < n_kept; i++)
        say("passed", i);
    child = fork();
    if (child == 0)
        become(words);
    return pidfd_open(child, 0);
}

/* One message; what it says of the store is done. */
static int
hear(int sock)
{
    char text[4096], name[64] = "", *at;

    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {text, sizeof text - 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = &control,
                       .msg_controllen = sizeof control};
    const ssize_t n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *c;
    int fd = -1;

    if (n < 0)
        return -1;
    text[n] = '\0';
    puts(text);
    fflush(stdout);
    c = CMSG_FIRSTHDR(&m);
    if (c != NULL && c->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    at = strstr(text, "FDNAME=");
    if (at != NULL)
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 7, "\n"), at + 7);
    if (strstr(text, "FDSTOREREMOVE=1") != NULL)
        forget(name);
    else if (strstr(text, "FDSTORE=1") != NULL && fd != -1)
        keep(name, fd);
    else if (fd != -1)
        close(fd);
    return 0;
}

static void
on_term(int sig)
{
    again = sig == SIGUSR1;
    if (child > 0)
        kill(child, SIGTERM);
}

static void
run_between(void)
{
    const char *script = getenv("HEAR_BETWEEN");

    if (script != NULL && access(script, R_OK) == 0 &&
        system("exec sh \"$HEAR_BETWEEN\"") != 0)
        exit(70);
}

int
main(int argc, char **argv)
{
    struct pollfd p[2] = {{.events = POLLIN}, {.fd = -1, .events = POLLIN}};
    siginfo_t si;

    if (argc < 2)
        return 64;
    p[0].fd = bound(argv[1], SOCK_DGRAM);
    if (argc > 2) {
        signal(SIGTERM, on_term);
        signal(SIGUSR1, on_term);
        setenv("NOTIFY_SOCKET", argv[1], 1);
        read_environment();
        p[1].fd = run(argv + 2);
    }
    while (poll(p, 2, -1) > 0 || errno == EINTR) {
        if ((p[0].revents & POLLIN) != 0 && hear(p[0].fd) == -1)
            return 1;
        if ((p[1].revents & POLLIN) == 0 || (p[0].revents & POLLIN) != 0)
            continue; /* what it said last is heard before its end */
        waitid(P_PIDFD, (id_t)p[1].fd, &si, WEXITED);
        close(p[1].fd);
        printf("ended %d\n", si.si_status);
        fflush(stdout);
        if (si.si_code == CLD_EXITED && !again)
            return si.si_status;
        if (again)
            run_between();
        again = 0;
        p[1].fd = run(argv + 2);
    }
    return 1;
}
