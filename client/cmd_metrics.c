/* SPDX-License-Identifier: Apache-2.0 */
/* fathom metrics: the daemon's figures as Prometheus reads them, from the socket for that. */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/err.h"
#include "client/client.h"

enum { MOST = 4 << 20, SILENCE_MS = 10000, EXIT_NO_DAEMON = 69, EXIT_PROTOCOL = 76 };

static const char get[] = "GET /metrics HTTP/1.0\r\n\r\n";

/* metrics.sock, where the other socket is. */
static void
beside(struct client *c, char *path, size_t size)
{
    static const char name[] = "metrics.sock";
    char api[108];
    const char *slash;
    size_t len;

    if (c->socket != NULL)
        snprintf(api, sizeof api, "%s", c->socket);
    else if (fathom_socket_path(api, sizeof api) == -1)
        die(CMD_USAGE, "the socket's path is too long");
    slash = strrchr(api, '/');
    len = slash != NULL ? (size_t)(slash - api) + 1 : 0;
    if (len + sizeof name > size)
        die(CMD_USAGE, "%s: the path is too long", api);
    memcpy(path, api, len);
    memcpy(path + len, name, sizeof name);
}

static int
connect_to(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd == -1)
        die(71, "socket: %s", strerror(errno));
    memcpy(to.sun_path, path, strlen(path) + 1);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == -1)
        die(errno == EACCES ? 77 : EXIT_NO_DAEMON, "%s: %s%s", path, strerror(errno),
            errno == ENOENT || errno == ECONNREFUSED
                ? "; fathomd has the setting metrics-socket, systemd fathomd-metrics.socket"
                : "");
    return fd;
}

/* All that the daemon says until it closes. */
static void
read_answer(int fd, struct buf *b)
{
    char piece[1 << 14];
    struct err e;

    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        ssize_t n;

        if (poll(&p, 1, SILENCE_MS) == 0)
            die(EXIT_NO_DAEMON, "the daemon says nothing");
        n = read(fd, piece, sizeof piece);
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1)
            die(EXIT_NO_DAEMON, "the daemon's answer: %s", strerror(errno));
        if (n == 0)
            return;
        if (buf_add(b, piece, (size_t)n, &e) == -1)
            die(EXIT_PROTOCOL, "the daemon's answer: %s", e.text);
    }
}

int
cmd_metrics(struct client *c)
{
    char path[108];
    const char *body, *line;
    struct buf b;
    struct err e;
    char *text;
    int fd;

    if (c->json)
        usage_error(c,
                    "metrics are in Prometheus' format, not JSON; see `fathom top --json`");
    if (c->values.n_args == 0)
        beside(c, path, sizeof path);
    else if (strlen(c->values.args[0]) < sizeof path)
        memcpy(path, c->values.args[0], strlen(c->values.args[0]) + 1);
    else
        usage_error(c, "%s: the path is too long", c->values.args[0]);
    fd = connect_to(path);
    if (send(fd, get, sizeof get - 1, MSG_NOSIGNAL) != (ssize_t)sizeof get - 1)
        die(EXIT_NO_DAEMON, "%s: %s", path, strerror(errno));
    buf_init(&b, MOST);
    read_answer(fd, &b);
    close(fd);
    text = buf_take(&b, &e);
    if (text == NULL)
        die(err_exit_status(e.code), "%s", e.text);
    line = strstr(text, "\r\n");
    body = strstr(text, "\r\n\r\n");
    if (strncmp(text, "HTTP/1.", 7) != 0 || body == NULL || strstr(text, " 200 ") == NULL ||
        strstr(text, " 200 ") > line)
        die(EXIT_PROTOCOL, "%s: no metrics there", path);
    fputs(body + 4, stdout);
    free(text);
    return 0;
}
