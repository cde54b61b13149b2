/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listening socket: where it comes from, who may come in, and what happens when
 * descriptors run out (accepting stops for a while: a level-triggered loop would spin).
 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/conn.h"
#include "daemon/options.h"
#include "daemon/server.h"

enum { ACCEPTS_A_TURN = 64, PAUSE_MS = 500 };

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
        close(accept4(sv->listener.fd, NULL, NULL, SOCK_CLOEXEC));
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
    if (sv->listener.fd != -1)
        event_add(sv->on_accept, NULL);
}

int
server_listen(struct server *sv, int passed, struct err *e)
{
    if (passed != -1)
        sv->listener.fd = passed;
    else if (listener_bind(&sv->listener, sv->o->socket, (unsigned)sv->o->socket_mode,
                           "socket", e) == -1)
        return -1;
    sv->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    sv->on_accept =
        event_new(sv->base, sv->listener.fd, EV_READ | EV_PERSIST, on_accept, sv);
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
    listener_close(&sv->listener);
    if (sv->spare != -1)
        close(sv->spare);
    sv->spare = -1;
}
