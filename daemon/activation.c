/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/activation.h"
#include "daemon/notify.h"

static bool
listens(int fd)
{
    return sd_is_socket_unix(fd, SOCK_STREAM, 1, NULL, 0) > 0;
}

/* Where it belongs; NULL: nowhere. A socket without a name of ours is for clients. */
static int *
place(struct activation *a, int fd, const char *name)
{
    if (strcmp(name, "arena") == 0)
        return a->arena == -1 ? &a->arena : NULL;
    if (!listens(fd))
        return NULL;
    if (strcmp(name, "metrics") == 0)
        return a->metrics == -1 ? &a->metrics : NULL;
    return a->api == -1 ? &a->api : NULL;
}

int
activation_take(struct activation *a, struct err *e)
{
    char **names = NULL;
    const int n = sd_listen_fds_with_names(1, &names);
    int strangers = 0;

    *a = (struct activation){-1, -1, -1};
    if (n < 0)
        return err_set(e, ERR_INTERNAL, -n, "sd_listen_fds: %s", strerror(-n));
    for (int i = 0; i < n; i++) {
        const int fd = SD_LISTEN_FDS_START + i;
        int *to = place(a, fd, names[i]);

        if (to != NULL) {
            *to = fd;
        } else {
            log_line(LOG_WARNING, "listen-fd-ignored fdname=%s", names[i]);
            notify_forget(names[i]);
            strangers += sd_is_socket(fd, AF_UNSPEC, 0, -1) > 0;
            close(fd);
        }
        free(names[i]);
    }
    free(names);
    if (a->api != -1)
        fcntl(a->api, F_SETFL, O_NONBLOCK);
    if (a->metrics != -1)
        fcntl(a->metrics, F_SETFL, O_NONBLOCK);
    if (a->api == -1 && (strangers > 0 || a->metrics != -1))
        return err_set(e, ERR_INVALID, 0,
                       "no listening Unix stream socket for clients among the %d "
                       "descriptors passed",
                       n);
    return 0;
}

void
activation_done(struct activation *a)
{
    int *all[] = {&a->api, &a->metrics, &a->arena};

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (*all[i] != -1)
            close(*all[i]);
        *all[i] = -1;
    }
}
