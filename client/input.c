/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input from a file or a pipe, into a memfd: whatever its size it is in memory once, and as a
 * sealed memfd it can be handed to the daemon without another copy.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/client.h"

enum { PIECE = 1 << 16 };

static void
write_all(int fd, const char *p, size_t len, const char *path)
{
    while (len > 0) {
        const ssize_t n = write(fd, p, len);

        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1)
            die(71, "%s: no room for it: %s", path, strerror(errno));
        p += n;
        len -= (size_t)n;
    }
}

void
input_read(const struct client *c, const char *path, struct input *in)
{
    const bool is_stdin = path == NULL || strcmp(path, "-") == 0;
    const int from = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    char piece[PIECE];
    ssize_t n;

    *in = (struct input){.p = ""};
    if (is_stdin) {
        path = "standard input";
        if (isatty(STDIN_FILENO)) {
            args_usage(stderr, c->cmd);
            exit(CMD_USAGE);
        }
    }
    if (from == -1)
        die(66, "%s: %s", path, strerror(errno));
    in->fd = memfd_create("input", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (in->fd == -1)
        die(71, "memfd_create: %s", strerror(errno));
    while ((n = read(from, piece, sizeof piece)) != 0) {
        if (n == -1 && errno == EINTR)
            continue;
        if (n == -1)
            die(66, "%s: %s", path, strerror(errno));
        write_all(in->fd, piece, (size_t)n, path);
        in->len += (size_t)n;
    }
    if (!is_stdin)
        close(from);
    if (fcntl(in->fd, F_ADD_SEALS,
              F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == -1)
        die(71, "sealing: %s", strerror(errno));
    if (in->len > 0) {
        in->p = mmap(NULL, in->len, PROT_READ, MAP_PRIVATE, in->fd, 0);
        if (in->p == MAP_FAILED)
            die(71, "mmap: %s", strerror(errno));
    }
}

void
input_done(struct input *in)
{
    if (in->len > 0)
        munmap((void *)(uintptr_t)in->p, in->len);
    close(in->fd);
}
