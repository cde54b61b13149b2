/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real struct io: a directory, and files below it.
 *
 * Everything is opened relative to the root's descriptor by openat2(), which refuses to leave
 * it or to follow a symbolic link; where the kernel has none (or a filter hides it), the path is
 * walked a component at a time with O_NOFOLLOW, which comes to the same. Any thread may call: the
 * table of handles has a lock, which is held for a few instructions and never during a call to
 * the kernel. What is about names is in io_names.c, bulk transfers are in io_bulk.c.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/io_impl.h"

static int
sys_openat2(int dir, const char *path, int flags)
{
    const struct open_how how = {
        .flags = (uint64_t)flags,
        .mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? 0600 : 0,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    long fd;

    /* EAGAIN: somebody renamed a folder meanwhile and the kernel cannot tell if we left. */
    do
        fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
    while (fd == -1 && (errno == EINTR || errno == EAGAIN));
    return (int)fd;
}

static int
open_one(int dir, const char *name, int flags)
{
    int fd;

    do
        fd = openat(dir, name, flags | O_NOFOLLOW, 0600);
    while (fd == -1 && errno == EINTR);
    return fd;
}

/* The same a component at a time; path was looked at by path_ok(). */
static int
walk(int root, const char *path, int flags)
{
    int dir = root, next;
    const char *slash;

    while ((slash = strchr(path, '/')) != NULL) {
        char name[NAME_MAX + 1];

        if ((size_t)(slash - path) > NAME_MAX) {
            next = -1;
            errno = ENAMETOOLONG;
        } else {
            memcpy(name, path, (size_t)(slash - path));
            name[slash - path] = '\0';
            next = open_one(dir, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
        }
        if (dir != root) {
            const int was = errno;

            close(dir);
            errno = was;
        }
        if (next == -1)
            return -1;
        dir = next;
        path = slash + 1;
    }
    next = open_one(dir, path, flags);
    if (dir != root) {
        const int was = errno;

        close(dir);
        errno = was;
    }
    return next;
}

/* No empty component, no "..", no slash in front; "." alone is the root. */
static bool
path_ok(const char *path)
{
    if (strlen(path) >= IO_PATH_MAX)
        return false;
    for (const char *p = path;; p++) {
        const size_t n = strcspn(p, "/");

        if (n == 0 || (n == 2 && p[0] == '.' && p[1] == '.'))
            return false;
        p += n;
        if (*p == '\0')
            return true;
    }
}

int
io_open_beneath(const struct io_root *r, const char *path, int flags)
{
    if (!path_ok(path)) {
        errno = EINVAL;
        return -1;
    }
    if (r->openat2)
        return sys_openat2(r->fd, path, flags | O_CLOEXEC);
    return walk(r->fd, path, flags | O_CLOEXEC);
}

int
io_open_parent(const struct io_root *r, const char *path, const char **last)
{
    const char *slash = strrchr(path, '/');
    char dir[IO_PATH_MAX];

    if (!path_ok(path)) {
        errno = EINVAL;
        return -1;
    }
    *last = slash != NULL ? slash + 1 : path;
    snprintf(dir, sizeof dir, "%.*s", slash != NULL ? (int)(slash - path) : 1,
             slash != NULL ? path : ".");
    return io_open_beneath(r, dir, O_PATH | O_DIRECTORY);
}

int
io_error(struct err *e, int sys, bool change, const char *what, const char *path)
{
    enum err_code code = change ? ERR_READ_ONLY : ERR_DAMAGED;

    switch (sys) {
    case ENOENT: code = ERR_NOT_FOUND; break;
    case EEXIST: code = ERR_EXISTS; break;
    case ENOSPC:
    case EDQUOT: code = ERR_QUOTA; break;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EINVAL: code = ERR_INTERNAL; break;
    case ETIMEDOUT:
    case EBUSY: code = change ? ERR_READ_ONLY : ERR_UNAVAILABLE; break;
    default: break;
    }
    return err_set(e, code, sys, "store: cannot %s %s: %s", what, path,
                   sys == ETIMEDOUT ? "the disk does not answer" : strerror(sys));
}

/* Takes fd over, also when it fails. */
static int
new_handle(struct io_root *r, int fd, bool direct, const char *path, const char *part,
           struct err *e)
{
    struct io_file *f = calloc(1, sizeof *f);
    size_t h;

    if (f == NULL || (part != NULL && (f->part = strdup(part)) == NULL))
        goto no_memory;
    f->fd = fd;
    f->direct = direct;
    snprintf(f->path, sizeof f->path, "%s", path);
    pthread_mutex_lock(&r->mu);
    for (h = 0; h < r->n_files && r->files[h] != NULL; h++)
        continue;
    if (h == r->n_files) {
        const size_t room = r->n_files != 0 ? 2 * r->n_files : 16;
        struct io_file **more = realloc(r->files, room * sizeof(*more));

        if (more == NULL) {
            pthread_mutex_unlock(&r->mu);
            goto no_memory;
        }
        memset(more + r->n_files, 0, (room - r->n_files) * sizeof(*more));
        r->files = more;
        r->n_files = room;
    }
    r->files[h] = f;
    pthread_mutex_unlock(&r->mu);
    return (int)h;

no_memory:
    if (f != NULL)
        free(f->part);
    free(f);
    close(fd);
    return io_error(e, ENOMEM, true, "open", path);
}

struct io_file *
io_file_of(struct io_root *r, int h)
{
    struct io_file *f = NULL;

    pthread_mutex_lock(&r->mu);
    if (h >= 0 && (size_t)h < r->n_files)
        f = r->files[h];
    pthread_mutex_unlock(&r->mu);
    assert(f != NULL); /* a handle that its owner has closed already */
    return f;
}

static int
io_open(struct io *io, const char *path, int flags, struct err *e)
{
    struct io_root *r = io_root_of(io);
    const bool change = flags & (IO_WRITE | IO_CREATE);
    bool direct = flags & IO_DIRECT;
    struct stat st;
    /* O_NONBLOCK: a FIFO put there by somebody must not hold us up; files do not care. */
    int sys = O_NONBLOCK | O_NOCTTY | (flags & IO_WRITE ? O_RDWR : O_RDONLY), fd;

    if (flags & IO_CREATE)
        sys |= O_CREAT | (flags & IO_EXCLUSIVE ? O_EXCL : 0);
    fd = io_open_beneath(r, path, sys | (direct ? O_DIRECT : 0));
    if (fd == -1 && direct && errno == EINVAL) {
        direct = false;
        fd = io_open_beneath(r, path, sys);
        /* Some file systems make the file before they refuse O_DIRECT. */
        if (fd == -1 && errno == EEXIST)
            fd = io_open_beneath(r, path, sys & ~O_EXCL);
    }
    if (fd == -1)
        return io_error(e, errno, change, "open", path);
    if (fstat(fd, &st) == -1 || !S_ISREG(st.st_mode)) {
        close(fd);
        return err_set(e, ERR_DAMAGED, 0, "store: %s is no regular file", path);
    }
    /* io_uring would hand O_NONBLOCK's EAGAIN on to us instead of waiting. */
    if (fcntl(fd, F_SETFL, direct ? O_DIRECT : 0) == -1) {
        const int was = errno;

        close(fd);
        return io_error(e, was, change, "open", path);
    }
    return new_handle(r, fd, direct, path, NULL, e);
}

/* Where the file system has no O_TMPFILE: one with a name that nobody looks for, and that is
 * cleaned away after a crash as every file that no ledger names. */
static int
open_part(struct io_root *r, const char *dir, struct err *e)
{
    uint8_t id[8];
    char part[IO_PATH_MAX + 32];
    int fd;

    if (getrandom(id, sizeof id, 0) != sizeof id)
        return io_error(e, errno, true, "name a new file in", dir);
    snprintf(part, sizeof part, "%s/.part-%02x%02x%02x%02x%02x%02x%02x%02x", dir, id[0],
             id[1], id[2], id[3], id[4], id[5], id[6], id[7]);
    fd = io_open_beneath(r, part, O_RDWR | O_CREAT | O_EXCL);
    if (fd == -1)
        return io_error(e, errno, true, "make a file in", dir);
    return new_handle(r, fd, fcntl(fd, F_SETFL, O_DIRECT) == 0, part, part, e);
}

static int
io_open_nameless(struct io *io, const char *dir, struct err *e)
{
    struct io_root *r = io_root_of(io);
    int fd = io_open_beneath(r, dir, O_TMPFILE | O_RDWR);

    if (fd == -1 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL))
        return open_part(r, dir, e);
    if (fd == -1)
        return io_error(e, errno, true, "make a file in", dir);
    return new_handle(r, fd, fcntl(fd, F_SETFL, O_DIRECT) == 0, dir, NULL, e);
}

static void
io_close(struct io *io, int h)
{
    struct io_root *r = io_root_of(io);
    struct io_file *f = io_file_of(r, h);

    pthread_mutex_lock(&r->mu);
    r->files[h] = NULL;
    pthread_mutex_unlock(&r->mu);
    if (f->part != NULL) {
        const char *last;
        const int dir = io_open_parent(r, f->part, &last);

        if (dir != -1) {
            unlinkat(dir, last, 0);
            close(dir);
        }
        free(f->part);
    }
    close(f->fd); /* an error of it tells nothing that sync() did not */
    free(f);
}

static ssize_t
io_read(struct io *io, int h, void *p, size_t n, uint64_t at, struct err *e)
{
    const struct io_file *f = io_file_of(io_root_of(io), h);
    size_t got = 0;

    while (got < n) {
        const ssize_t k = pread(f->fd, (uint8_t *)p + got, n - got, (off_t)(at + got));

        if (k == -1 && errno == EINTR)
            continue;
        if (k == -1)
            return io_error(e, errno, false, "read", f->path);
        if (k == 0)
            break;
        got += (size_t)k;
        if (f->direct && got % IO_BLOCK != 0)
            break; /* the end, and the kernel would refuse to go on from here */
    }
    return (ssize_t)got;
}

static int
io_write(struct io *io, int h, const void *p, size_t n, uint64_t at, struct err *e)
{
    const struct io_file *f = io_file_of(io_root_of(io), h);

    for (size_t put = 0; put < n;) {
        const ssize_t k =
            pwrite(f->fd, (const uint8_t *)p + put, n - put, (off_t)(at + put));

        if (k == -1 && errno == EINTR)
            continue;
        if (k <= 0)
            return io_error(e, k == 0 ? EIO : errno, true, "write", f->path);
        put += (size_t)k;
    }
    return 0;
}

static ssize_t
move_bulk(struct io_root *r, struct io_file *f, bool write, void *p, size_t n, uint64_t at)
{
    struct bulk_job j = {
        .fd = f->fd,
        .write = write,
        .direct = f->direct,
        .bounce = f->direct && !write && __atomic_load_n(&r->bounce, __ATOMIC_RELAXED),
        .p = p,
        .n = n,
        .at = at,
        .deadline_ms = __atomic_load_n(&r->deadline_ms, __ATOMIC_RELAXED),
    };
    ssize_t done;

    assert((uintptr_t)p % IO_BLOCK == 0 && n % IO_BLOCK == 0 && at % IO_BLOCK == 0);
    done = bulk_move(r->bulk, &j);
    /* Some file systems take O_DIRECT when they open and refuse it when they work. */
    if (done == -EINVAL && f->direct && fcntl(f->fd, F_SETFL, 0) == 0) {
        f->direct = j.direct = j.bounce = false;
        done = bulk_move(r->bulk, &j);
    }
    return done;
}

static ssize_t
io_read_bulk(struct io *io, int h, void *p, size_t n, uint64_t at, struct err *e)
{
    struct io_root *r = io_root_of(io);
    struct io_file *f = io_file_of(r, h);
    const ssize_t done = move_bulk(r, f, false, p, n, at);

    return done >= 0 ? done : io_error(e, (int)-done, false, "read", f->path);
}

static int
io_write_bulk(struct io *io, int h, const void *p, size_t n, uint64_t at, struct err *e)
{
    struct io_root *r = io_root_of(io);
    struct io_file *f = io_file_of(r, h);
    const ssize_t done = move_bulk(r, f, true, (void *)(uintptr_t)p, n, at);

    return done >= 0 ? 0 : io_error(e, (int)-done, true, "write", f->path);
}

static int
io_size(struct io *io, int h, uint64_t *bytes, struct err *e)
{
    const struct io_file *f = io_file_of(io_root_of(io), h);
    struct stat st;

    if (fstat(f->fd, &st) == -1)
        return io_error(e, errno, false, "look at", f->path);
    *bytes = (uint64_t)st.st_size;
    return 0;
}

static int
io_reserve(struct io *io, int h, uint64_t bytes, struct err *e)
{
    const struct io_file *f = io_file_of(io_root_of(io), h);
    struct stat st;
    int rc;

    do
        rc = fallocate(f->fd, 0, 0, (off_t)bytes);
    while (rc == -1 && errno == EINTR);
    if (rc == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return io_error(e, errno, true, "reserve room for", f->path);
    /* Nothing can be promised here; the length at least is what it would be. */
    if (fstat(f->fd, &st) == -1)
        return io_error(e, errno, true, "look at", f->path);
    if ((uint64_t)st.st_size >= bytes || ftruncate(f->fd, (off_t)bytes) == 0)
        return 0;
    return io_error(e, errno, true, "lengthen", f->path);
}

static int
io_truncate(struct io *io, int h, uint64_t bytes, struct err *e)
{
    const struct io_file *f = io_file_of(io_root_of(io), h);
    int rc;

    do
        rc = ftruncate(f->fd, (off_t)bytes);
    while (rc == -1 && errno == EINTR);
    return rc == 0 ? 0 : io_error(e, errno, true, "cut", f->path);
}

/* No second try, not even after EINTR: the kernel tells of lost pages once only. */
static int
io_sync(struct io *io, int h, struct err *e)
{
    const struct io_file *f = io_file_of(io_root_of(io), h);

    return fdatasync(f->fd) == 0 ? 0 : io_error(e, errno, true, "sync", f->path);
}

/* Of the open file, not of the process: a second open in this process is refused too. */
static int
io_lock(struct io *io, int h, struct err *e)
{
    const struct io_file *f = io_file_of(io_root_of(io), h);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(f->fd, F_OFD_SETLK, &l) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return err_set(e, ERR_BUSY, errno, "store: %s is locked by another process",
                       f->path);
    return io_error(e, errno, true, "lock", f->path);
}

static const struct io_ops ops = {
    .open = io_open,
    .open_nameless = io_open_nameless,
    .close = io_close,
    .read = io_read,
    .write = io_write,
    .read_bulk = io_read_bulk,
    .write_bulk = io_write_bulk,
    .size = io_size,
    .reserve = io_reserve,
    .truncate = io_truncate,
    .sync = io_sync,
    .sync_dir = io_sync_dir,
    .name = io_name,
    .link = io_link,
    .rename = io_rename,
    .unlink = io_unlink,
    .mkdir = io_mkdir,
    .rmdir = io_rmdir,
    .list = io_list,
    .stat = io_stat,
    .space = io_space,
    .lock = io_lock,
};

struct io *
io_open_root(const char *root, bool uring, struct err *e)
{
    struct io_root *r = calloc(1, sizeof *r);
    int probe;

    if (r == NULL || (r->bulk = bulk_new(uring)) == NULL) {
        free(r);
        io_error(e, ENOMEM, true, "open", root);
        return NULL;
    }
    r->io.ops = &ops;
    r->deadline_ms = IO_DEADLINE_MS;
    r->bounce = true;
    r->fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (r->fd == -1) {
        io_error(e, errno, true, "open", root);
        bulk_free(r->bulk);
        free(r);
        return NULL;
    }
    probe = sys_openat2(r->fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    r->openat2 = probe != -1;
    if (probe != -1)
        close(probe);
    pthread_mutex_init(&r->mu, NULL);
    return &r->io;
}

void
io_close_root(struct io *io)
{
    struct io_root *r = io_root_of(io);

    if (io == NULL)
        return;
    for (size_t h = 0; h < r->n_files; h++)
        assert(r->files[h] == NULL);
    bulk_free(r->bulk);
    close(r->fd);
    pthread_mutex_destroy(&r->mu);
    free(r->files);
    free(r);
}

const char *
io_bulk_name(const struct io *io)
{
    return bulk_name(io_root_of(io)->bulk);
}

void
io_set_deadline(struct io *io, unsigned ms)
{
    __atomic_store_n(&io_root_of(io)->deadline_ms, ms, __ATOMIC_RELAXED);
}

void
io_set_bounce(struct io *io, bool on)
{
    __atomic_store_n(&io_root_of(io)->bounce, on, __ATOMIC_RELAXED);
}

unsigned
io_bulk_stuck(struct io *io)
{
    return bulk_stuck(io_root_of(io)->bulk);
}
