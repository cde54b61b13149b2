/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk that fails when it is told to: LD_PRELOADed into fathomd, for ledgers (files under
 * state/sessions/ and state/tmp/) and for the index. FAULT_DIR names a directory; while a file of this name is in it,
 *
 *   full    writes fail with ENOSPC
 *   broken  fdatasync() fails with EIO
 *   held    fdatasync() waits until it is gone
 *   index   fdatasync() of the index fails with EIO
 */
#include "config.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

ssize_t pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at);

static bool
told(const char *what)
{
    const char *dir = getenv("FAULT_DIR");
    char path[4096];

    if (dir == NULL)
        return false;
    snprintf(path, sizeof path, "%s/%s", dir, what);
    return access(path, F_OK) == 0;
}

static bool
is_in(int fd, const char *where)
{
    char link[64], path[4096];
    ssize_t n;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n <= 0)
        return false;
    path[n] = '\0';
    return strstr(path, where) != NULL;
}

static bool
is_ledger(int fd)
{
    return is_in(fd, "/state/sessions/") || is_in(fd, "/state/tmp/");
}

static ssize_t
write_at(int fd, const void *p, size_t n, off64_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off64_t);

    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "pwrite64");
    if (is_ledger(fd) && told("full")) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, p, n, at);
}

ssize_t
pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    return write_at(fd, p, n, at);
}

ssize_t
pwrite(int fd, const void *p, size_t n, off_t at)
{
    return write_at(fd, p, n, at);
}

int
fdatasync(int fd)
{
    const struct timespec moment = {.tv_nsec = 5000000};
    static int (*real)(int);

    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
    if (is_in(fd, "/state/index.db") && told("index")) {
        errno = EIO;
        return -1;
    }
    if (!is_ledger(fd))
        return real(fd);
    while (told("held"))
        nanosleep(&moment, NULL);
    if (told("broken")) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}
