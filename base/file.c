/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"

static int
open_regular(const char *path, struct stat *st, struct err *e)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd == -1)
        return err_set(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_INVALID, errno, "%s: %s",
                       path, strerror(errno));
    if (fstat(fd, st) == -1 || !S_ISREG(st->st_mode)) {
        close(fd);
        return err_set(e, ERR_INVALID, 0, "%s: not a regular file", path);
    }
    return fd;
}

char *
file_read(const char *path, size_t max, size_t *len, struct err *e)
{
    struct stat st;
    size_t got = 0;
    char *p = NULL;
    const int fd = open_regular(path, &st, e);

    if (fd == -1)
        return NULL;
    if ((uint64_t)st.st_size > max) {
        err_set(e, ERR_INVALID, 0, "%s: larger than %zu bytes", path, max);
        goto out;
    }
    p = malloc((size_t)st.st_size + 1);
    if (p == NULL) {
        err_set(e, ERR_QUOTA, errno, "%s: no memory for %lld bytes", path,
                (long long)st.st_size);
        goto out;
    }
    while (got < (size_t)st.st_size) {
        const ssize_t n = read(fd, p + got, (size_t)st.st_size - got);

        if (n == -1 && errno == EINTR)
            continue;
        if (n <= 0) {
            err_set(e, ERR_DAMAGED, n == 0 ? 0 : errno, "%s: %s", path,
                    n == 0 ? "became shorter while being read" : strerror(errno));
            free(p);
            p = NULL;
            goto out;
        }
        got += (size_t)n;
    }
    p[got] = '\0';
    *len = got;
out:
    close(fd);
    return p;
}

int
file_make_dir(const char *path, struct err *e)
{
    char *copy = strdup(path);
    struct stat st;
    int sys = 0;

    if (copy == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a path");
    for (char *p = copy + strspn(copy, "/"); *p != '\0' && sys == 0;) {
        char *end = p + strcspn(p, "/"), *next = end + strspn(end, "/");

        *end = '\0';
        if (mkdir(copy, *next == '\0' ? 0700 : 0755) == -1 && errno != EEXIST)
            sys = errno;
        else if (stat(copy, &st) == -1)
            sys = errno;
        else if (!S_ISDIR(st.st_mode))
            sys = ENOTDIR;
        if (sys == 0 && *next != '\0')
            *end = '/';
        p = next;
    }
    if (sys != 0)
        err_set(e, ERR_READ_ONLY, sys, "%s: %s", copy, strerror(sys));
    free(copy);
    return sys == 0 ? 0 : -1;
}

int
file_map(struct file_map *m, const char *path, struct err *e)
{
    struct stat st;
    void *p = NULL;
    const int fd = open_regular(path, &st, e);

    if (fd == -1)
        return -1;
    if (st.st_size > 0)
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (p == MAP_FAILED)
        return err_set(e, ERR_INTERNAL, errno, "%s: mmap: %s", path, strerror(errno));
    *m = (struct file_map){.p = p, .len = (size_t)st.st_size};
    return 0;
}

void
file_unmap(struct file_map *m)
{
    if (m->p != NULL)
        munmap((void *)m->p, m->len);
    *m = (struct file_map){0};
}
