/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a socket at a path. A file beside it is locked: whoever has the lock owns the path, so
 * that a socket file left by a crash can be told from one in use, without a race between two that
 * start.
 */
#include "config.h"

#include <errno.h>
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
#include "daemon/listener.h"

enum { BACKLOG = 128 };

static int
lock_path(struct listener *l, const char *setting, struct err *e)
{
    char lock[sizeof((struct sockaddr_un *)0)->sun_path + sizeof ".lock"];

    snprintf(lock, sizeof lock, "%s.lock", l->path);
    l->lock = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (l->lock == -1)
        return err_set(e, ERR_READ_ONLY, errno, "%s: %s (setting %s)", lock,
                       strerror(errno), setting);
    if (flock(l->lock, LOCK_EX | LOCK_NB) == -1)
        return err_set(e, ERR_EXISTS, errno,
                       "another fathomd listens on %s; stop it or choose another --%s",
                       l->path, setting);
    return 0;
}

static int
bind_path(struct listener *l, unsigned mode, const char *setting, struct err *e)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct stat st;
    mode_t was;
    int rc;

    if (strlen(l->path) >= sizeof sa.sun_path)
        return err_set(e, ERR_INVALID, 0, "%s: a path of more than %zu bytes", setting,
                       sizeof sa.sun_path - 1);
    if (lock_path(l, setting, e) == -1)
        return -1;
    if (lstat(l->path, &st) == 0) {
        if (!S_ISSOCK(st.st_mode))
            return err_set(e, ERR_EXISTS, 0, "%s is there and is no socket", l->path);
        unlink(l->path);
    }
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd == -1)
        return err_set(e, ERR_INTERNAL, errno, "socket: %s", strerror(errno));
    memcpy(sa.sun_path, l->path, strlen(l->path));
    was = umask(0777 & ~(mode_t)mode);
    rc = bind(l->fd, (const struct sockaddr *)&sa, sizeof sa);
    umask(was);
    if (rc == -1 || listen(l->fd, BACKLOG) == -1)
        return err_set(e, ERR_READ_ONLY, errno, "%s: %s (setting %s)", l->path,
                       strerror(errno), setting);
    l->bound = true;
    return 0;
}

int
listener_bind(struct listener *l, const char *path, unsigned mode, const char *setting,
              struct err *e)
{
    *l = LISTENER_NONE;
    l->path = strdup(path);
    if (l->path == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory to listen");
    if (bind_path(l, mode, setting, e) == 0)
        return 0;
    listener_close(l);
    return -1;
}

void
listener_close(struct listener *l)
{
    if (l->bound)
        unlink(l->path);
    if (l->fd != -1)
        close(l->fd);
    if (l->lock != -1)
        close(l->lock);
    free(l->path);
    *l = LISTENER_NONE;
}
