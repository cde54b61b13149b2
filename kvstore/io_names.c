/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of the real struct io that is about names: folders, links, and how a file without a
 * name gets one. Each call opens the folder that holds the name (below the root, no symbolic
 * links) and works on the last component in it.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/io_impl.h"

int
io_sync_dir(struct io *io, const char *dir, struct err *e)
{
    const int fd = io_open_beneath(io_root_of(io), dir, O_RDONLY | O_DIRECTORY);
    int sys = 0;

    if (fd == -1)
        return io_error(e, errno, true, "open", dir);
    if (fsync(fd) == -1) /* once: see io.c */
        sys = errno;
    close(fd);
    return sys == 0 ? 0 : io_error(e, sys, true, "sync", dir);
}

/* Without replacing what is there. */
static int
move_name(int from_dir, const char *from, int to_dir, const char *to)
{
    if (renameat2(from_dir, from, to_dir, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
    if (linkat(from_dir, from, to_dir, to, 0) == -1)
        return -1;
    return unlinkat(from_dir, from, 0);
}

static int
name_fd(int fd, int dir, const char *last)
{
    char proc[32];

    /* Needs a capability before Linux 6.10: ENOENT says so. Then the way of open(2). */
    if (linkat(fd, "", dir, last, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno != ENOENT && errno != EPERM && errno != EINVAL)
        return -1;
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, proc, dir, last, AT_SYMLINK_FOLLOW);
}

int
io_name(struct io *io, int h, const char *path, struct err *e)
{
    struct io_root *r = io_root_of(io);
    struct io_file *f = io_file_of(r, h);
    const char *last, *part_last;
    const int dir = io_open_parent(r, path, &last);
    int part_dir = -1, rc, sys;

    if (dir == -1)
        return io_error(e, errno, true, "name", path);
    if (f->part == NULL) {
        rc = name_fd(f->fd, dir, last);
    } else {
        part_dir = io_open_parent(r, f->part, &part_last);
        rc = part_dir == -1 ? -1 : move_name(part_dir, part_last, dir, last);
    }
    sys = errno;
    close(dir);
    if (part_dir != -1)
        close(part_dir);
    if (rc == -1)
        return io_error(e, sys, true, "name", path);
    free(f->part);
    f->part = NULL;
    snprintf(f->path, sizeof f->path, "%s", path);
    return 0;
}

/* Both folders, for link() and rename(): 0, or -1 with errno and nothing open. */
static int
open_parents(const struct io_root *r, const char *from, const char *to, int dirs[2],
             const char *lasts[2])
{
    int sys;

    dirs[0] = io_open_parent(r, from, &lasts[0]);
    if (dirs[0] == -1)
        return -1;
    dirs[1] = io_open_parent(r, to, &lasts[1]);
    if (dirs[1] != -1)
        return 0;
    sys = errno;
    close(dirs[0]);
    errno = sys;
    return -1;
}

static int
two_names(struct io *io, const char *from, const char *to, bool link, struct err *e)
{
    const char *lasts[2], *const what = link ? "link" : "rename";
    int dirs[2], rc, sys;

    if (open_parents(io_root_of(io), from, to, dirs, lasts) == -1)
        return io_error(e, errno, true, what, from);
    rc = link ? linkat(dirs[0], lasts[0], dirs[1], lasts[1], 0)
              : renameat(dirs[0], lasts[0], dirs[1], lasts[1]);
    sys = errno;
    close(dirs[0]);
    close(dirs[1]);
    return rc == 0 ? 0 : io_error(e, sys, true, what, sys == EEXIST ? to : from);
}

int
io_link(struct io *io, const char *from, const char *to, struct err *e)
{
    return two_names(io, from, to, true, e);
}

int
io_rename(struct io *io, const char *from, const char *to, struct err *e)
{
    return two_names(io, from, to, false, e);
}

static int
remove_name(struct io *io, const char *path, int flags, struct err *e)
{
    const char *last;
    const int dir = io_open_parent(io_root_of(io), path, &last);
    int rc, sys;

    if (dir == -1)
        return io_error(e, errno, true, "remove", path);
    rc = unlinkat(dir, last, flags);
    sys = errno;
    close(dir);
    return rc == 0 ? 0 : io_error(e, sys, true, "remove", path);
}

int
io_unlink(struct io *io, const char *path, struct err *e)
{
    return remove_name(io, path, 0, e);
}

int
io_rmdir(struct io *io, const char *path, struct err *e)
{
    return remove_name(io, path, AT_REMOVEDIR, e);
}

int
io_mkdir(struct io *io, const char *path, struct err *e)
{
    const char *last;
    const int dir = io_open_parent(io_root_of(io), path, &last);
    int rc, sys;

    if (dir == -1)
        return io_error(e, errno, true, "make", path);
    rc = mkdirat(dir, last, 0700);
    sys = errno;
    close(dir);
    return rc == 0 ? 0 : io_error(e, sys, true, "make", path);
}

int
io_list(struct io *io, const char *dir, int (*each)(void *arg, const char *name), void *arg,
        struct err *e)
{
    const int fd = io_open_beneath(io_root_of(io), dir, O_RDONLY | O_DIRECTORY);
    DIR *d = fd != -1 ? fdopendir(fd) : NULL;
    const struct dirent *entry;
    int rc = 0, sys;

    if (d == NULL) {
        sys = errno;
        if (fd != -1)
            close(fd);
        return io_error(e, sys, false, "list", dir);
    }
    for (;;) {
        errno = 0;
        entry = readdir(d);
        sys = errno;
        if (entry == NULL)
            break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        rc = each(arg, entry->d_name);
        if (rc != 0)
            break;
    }
    closedir(d);
    if (rc == 0 && sys != 0)
        return io_error(e, sys, false, "list", dir);
    return rc;
}

int
io_stat(struct io *io, const char *path, struct io_stat *out, struct err *e)
{
    const int fd = io_open_beneath(io_root_of(io), path, O_PATH);
    struct stat st;
    int rc, sys;

    if (fd == -1)
        return io_error(e, errno, false, "look at", path);
    rc = fstat(fd, &st);
    sys = errno;
    close(fd);
    if (rc == -1)
        return io_error(e, sys, false, "look at", path);
    *out = (struct io_stat){
        .bytes = (uint64_t)st.st_size,
        .blocks = (uint64_t)st.st_blocks * 512,
        .inode = st.st_ino,
        .links = (uint32_t)st.st_nlink,
        .is_dir = S_ISDIR(st.st_mode),
    };
    return 0;
}

int
io_space(struct io *io, uint64_t *free_bytes, uint64_t *all, struct err *e)
{
    struct statvfs st;
    int rc;

    do
        rc = fstatvfs(io_root_of(io)->fd, &st);
    while (rc == -1 && errno == EINTR);
    if (rc == -1)
        return io_error(e, errno, false, "look at the file system of", "the store");
    *free_bytes = (uint64_t)st.f_bavail * st.f_frsize;
    *all = (uint64_t)st.f_blocks * st.f_frsize;
    return 0;
}
