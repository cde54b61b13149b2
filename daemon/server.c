/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listening socket: where it comes from, who may come in, and what happens when
 * descriptors run out (accepting stops for a while: a level-triggered loop would spin).
 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/conn.h"
#include "daemon/options.h"
#include "daemon/server.h"

enum { BACKLOG = 128, ACCEPTS_A_TURN = 64, PAUSE_MS = 500 };

/* Whoever has the lock owns the path: so a socket file left by a crash can be told from one
 * that is in use, without a race between two that start. */
static int
lock_path(struct server *sv, struct err *e)
{
    char path[128];

    snprintf(path, sizeof path, "%s.lock", sv->o->socket);
    sv->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (sv->lock == -1)
        return err_set(e, ERR_READ_ONLY, errno, "%s: %s (setting socket)", path,
                       strerror(errno));
    if (flock(sv->lock, LOCK_EX | LOCK_NB) == -1)
        return err_set(e, ERR_EXISTS, errno,
                       "another fathomd listens on %s; stop it or choose another --socket",
                       sv->o->socket);
    return 0;
}

static int
bind_path(struct server *sv, struct err *e)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct stat st;
    mode_t was;
    int rc;

    if (strlen(sv->o->socket) >= sizeof sa.sun_path)
        return err_set(e, ERR_INVALID, 0, "socket path of more than %zu bytes",
                       sizeof sa.sun_path - 1);
    if (lock_path(sv, e) == -1)
        return -1;
    if (lstat(sv->o->socket, &st) == 0) {
        if (!S_ISSOCK(st.st_mode))
            return err_set(e, ERR_EXISTS, 0, "%s is there and is no socket", sv->o->socket);
        unlink(sv->o->socket);
    }
    sv->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (sv->fd == -1)
        return err_set(e, ERR_INTERNAL, errno, "socket: %s", strerror(errno));
    memcpy(sa.sun_path, sv->o->socket, strlen(sv->o->socket));
    was = umask(0777 & ~(mode_t)sv->o->socket_mode);
    rc = bind(sv->fd, (const struct sockaddr *)&sa, sizeof sa);
    umask(was);
    if (rc == -1 || listen(sv->fd, BACKLOG) == -1)
        return err_set(e, ERR_READ_ONLY, errno, "%s: %s (setting socket)", sv->o->socket,
                       strerror(errno));
    sv->bound = true;
    return 0;
}

/* No descriptor is left: the spare one lets somebody in just to be told so by the close. */
static void
shed(struct server *sv)
{
    const struct timeval pause = {.tv_usec = PAUSE_MS * 1000};

    log_line(LOG_WARNING,
             "accept-paused why=\"%s\" fix=\"raise LimitNOFILE or lower "
             "max-connections\"",
             strerror(errno));
    if (sv->spare != -1) {
        close(sv->spare);
        close(accept4(sv->fd, NULL, NULL, SOCK_CLOEXEC));
        sv->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    sv->refused++;
    event_del(sv->on_accept);
    event_add(sv->again, &pause);
}

static void
on_accept(evutil_socket_t fd, short what, void *arg)
{
    struct server *sv = arg;

    (void)what;
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        const int one = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (one != -1) {
            conn_new(sv, one);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                   errno == ENOMEM) {
            shed(sv);
            return;
        } else if (errno == EAGAIN || (errno != EINTR && errno != ECONNABORTED)) {
            return;
        }
    }
}

static void
on_again(evutil_socket_t fd, short what, void *arg)
{
    struct server *sv = arg;

    (void)fd;
    (void)what;
    if (sv->fd != -1)
        event_add(sv->on_accept, NULL);
}

int
server_listen(struct server *sv, int passed, struct err *e)
{
    sv->fd = passed;
    if (sv->fd == -1 && bind_path(sv, e) == -1)
        return -1;
    sv->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    sv->on_accept = event_new(sv->base, sv->fd, EV_READ | EV_PERSIST, on_accept, sv);
    sv->again = evtimer_new(sv->base, on_again, sv);
    if (sv->on_accept == NULL || sv->again == NULL || event_add(sv->on_accept, NULL) == -1)
        return err_set(e, ERR_QUOTA, errno, "no memory to listen");
    return 0;
}

void
server_unlisten(struct server *sv)
{
    if (sv->on_accept != NULL)
        event_free(sv->on_accept);
    if (sv->again != NULL)
        event_free(sv->again);
    sv->on_accept = sv->again = NULL;
    if (sv->bound)
        unlink(sv->o->socket);
    if (sv->fd != -1)
        close(sv->fd);
    if (sv->spare != -1)
        close(sv->spare);
    if (sv->lock != -1)
        close(sv->lock);
    sv->fd = sv->spare = sv->lock = -1;
    sv->bound = false;
}
