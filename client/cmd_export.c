/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom export NAME >FILE and fathom import [NAME] <FILE: bytes between the daemon and a pipe, as
 * fast as the slower of them.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/client.h"

enum { PIECE = 1 << 16, PATIENCE_MS = 50 };

static void
print_digest(char to[33], const struct fathom_result *r)
{
    for (int i = 0; i < 16; i++)
        snprintf(to + 2 * i, 3, "%02x", r->digest[i]);
}

/* ---- Export -------------------------------------------------------------------------- */

static bool
copy_out(void *arg, int fd)
{
    char piece[PIECE];
    uint64_t *bytes = arg;
    const ssize_t n = recv(fd, piece, sizeof piece, MSG_DONTWAIT);

    if (n == -1)
        return errno == EAGAIN || errno == EINTR;
    if (fwrite(piece, 1, (size_t)n, stdout) != (size_t)n)
        die(EXIT_OUTPUT, "cannot write to standard output");
    *bytes += (uint64_t)n;
    return n > 0;
}

int
cmd_export(struct client *c)
{
    const char *name = c->values.args[0];
    const struct fathom_result *r;
    char n[32], bytes[32], digest[33];
    uint64_t got = 0;
    uint32_t id;
    int fd;

    if (isatty(STDOUT_FILENO))
        usage_error(c, "an archive is nothing for a terminal: redirect it to a file");
    if (c->json)
        usage_error(c,
                    "standard output is the archive; --quiet leaves out what stderr says");
    client_open(c);
    do {
        id = fathom_export(c->f, name, arg_given(c, "tokens-only"), &fd, &c->e);
        r = client_run_beside(c, id, fd, POLLIN, copy_out, &got);
        while (id != 0 && r != NULL && copy_out(&got, fd))
            ; /* what was still on its way */
        if (id != 0)
            close(fd);
    } while (r == NULL && got == 0 && client_again(c));
    if (r == NULL)
        client_fail(c);
    if (fflush(stdout) == EOF)
        die(EXIT_OUTPUT, "cannot write to standard output");
    if (got != r->bytes)
        die(70, "%llu bytes came, the daemon sent %llu", (unsigned long long)got,
            (unsigned long long)r->bytes);
    print_digest(digest, r);
    note(c, "exported %s: %s tokens, %llu files of caches, %s, xxh128 %s", name,
         fmt_count(n, sizeof n, r->n), (unsigned long long)r->files,
         fmt_bytes(bytes, sizeof bytes, (double)r->bytes), digest);
    return client_end(c);
}

/* ---- Import -------------------------------------------------------------------------- */

struct feeding {
    char piece[PIECE];
    size_t n, sent;
};

/* False: all of it is sent, or the daemon takes no more and will say why. */
static bool
copy_in(void *arg, int fd)
{
    struct feeding *x = arg;
    ssize_t n;

    if (x->sent == x->n) {
        struct pollfd p = {STDIN_FILENO, POLLIN, 0};

        if (poll(&p, 1, PATIENCE_MS) == 0)
            return true; /* so that signals and answers are seen while nothing comes */
        n = read(STDIN_FILENO, x->piece, sizeof x->piece);
        if (n == -1 && errno == EINTR)
            return true;
        if (n == -1)
            die(66, "standard input: %s", strerror(errno));
        x->n = (size_t)n;
        x->sent = 0;
        if (n == 0) {
            shutdown(fd, SHUT_WR);
            return false;
        }
    }
    n = send(fd, x->piece + x->sent, x->n - x->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == -1)
        return errno == EAGAIN || errno == EINTR;
    x->sent += (size_t)n;
    return true;
}

int
cmd_import(struct client *c)
{
    static struct feeding x;
    const char *name = c->values.n_args > 0 ? c->values.args[0] : NULL;
    const struct fathom_result *r;
    char n[32], digest[33];
    uint32_t id;
    int fd;

    if (isatty(STDIN_FILENO)) {
        args_usage(stderr, c->cmd);
        return CMD_USAGE;
    }
    client_open(c);
    id = fathom_import(c->f, name, &fd, &c->e);
    r = client_run_beside(c, id, fd, POLLOUT, copy_in, &x);
    if (id != 0)
        close(fd);
    if (r == NULL)
        client_fail(c);
    print_digest(digest, r);
    if (c->json) {
        json_begin(NULL);
        json_str("name", r->name);
        json_u64("pos", r->n);
        json_u64("bytes", r->bytes);
        json_u64("files", r->files);
        json_u64("left_out", r->left_out);
        json_str("xxh128", digest);
        json_end();
    }
    note(c, "%s has %s tokens and %llu files of caches", r->name,
         fmt_count(n, sizeof n, r->n), (unsigned long long)r->files);
    if (r->left_out > 0)
        note(c, "%llu files of caches were another model's: only the tokens were taken in",
             (unsigned long long)r->left_out);
    return client_end(c);
}
