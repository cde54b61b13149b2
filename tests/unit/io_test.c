/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real struct io in a folder of its own, three times: with io_uring, with threads, and then
 * with a seccomp filter that takes away openat2(), O_TMPFILE, fallocate(), renameat2() and
 * io_uring, so that every way around them is gone too. The linker puts wrappers in front of
 * pread(), pwrite() and liburing's wait, which interrupt, do half, hang, or say that time is over,
 * and of syscall(), which counts. What the simulated file system (tests/sim_fs.h) has too it is
 * held to as well.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "tests/sim_fs.h"
#include "tests/test.h"

enum { MIB = 1 << 20 };

/* SIMULATED: tests/sim_fs.h, so that what is true of it is true of the real one. */
enum variant { URING, THREADS, NOTHING, SIMULATED, N_VARIANTS };

static char folder[] = "io_test_XXXXXX";
static struct io *io;
static enum variant variant;

/* What the wrappers do, and what they saw. */
static bool annoy, hang, tell_timeout;
static unsigned n_calls, n_hanging, n_openat2;
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

ssize_t __real_pread(int fd, void *p, size_t n, off_t at);
ssize_t __wrap_pread(int fd, void *p, size_t n, off_t at);
ssize_t __real_pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at);
long __real_syscall(long nr, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long nr, long a, long b, long c, long d, long e, long f);

/* Every other call is interrupted, and the rest does half of what it was asked to. */
static bool
annoying(size_t *n)
{
    unsigned k;

    if (!annoy)
        return false;
    k = __atomic_fetch_add(&n_calls, 1, __ATOMIC_RELAXED);
    if (k % 2 == 0) {
        errno = EINTR;
        return true;
    }
    if (*n >= 8192)
        *n = *n / 8192 * 4096;
    else if (*n > 1 && *n != 4096) /* a block of O_DIRECT is done or not */
        *n /= 2;
    return false;
}

static void
maybe_hang(void)
{
    pthread_mutex_lock(&mu);
    n_hanging++;
    while (hang)
        pthread_cond_wait(&changed, &mu);
    n_hanging--;
    pthread_mutex_unlock(&mu);
}

static void
set_hang(bool yes)
{
    pthread_mutex_lock(&mu);
    hang = yes;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mu);
}

ssize_t
__wrap_pread(int fd, void *p, size_t n, off_t at)
{
    maybe_hang();
    return annoying(&n) ? -1 : __real_pread(fd, p, n, at);
}

ssize_t
__wrap_pwrite(int fd, const void *p, size_t n, off_t at)
{
    return annoying(&n) ? -1 : __real_pwrite(fd, p, n, at);
}

long
__wrap_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
    const long rc = __real_syscall(nr, a, b, c, d, e, f);

    if (nr == SYS_openat2 && rc != -1)
        __atomic_fetch_add(&n_openat2, 1, __ATOMIC_RELAXED);
    return rc;
}

#ifdef HAVE_LIBURING
struct io_uring;
struct io_uring_cqe;
struct __kernel_timespec;
int __real_io_uring_wait_cqe_timeout(struct io_uring *u, struct io_uring_cqe **cqe,
                                     struct __kernel_timespec *ts);
int __wrap_io_uring_wait_cqe_timeout(struct io_uring *u, struct io_uring_cqe **cqe,
                                     struct __kernel_timespec *ts);

int
__wrap_io_uring_wait_cqe_timeout(struct io_uring *u, struct io_uring_cqe **cqe,
                                 struct __kernel_timespec *ts)
{
    return tell_timeout ? -ETIME : __real_io_uring_wait_cqe_timeout(u, cqe, ts);
}
#endif

static uint8_t *
memory(size_t n)
{
    uint8_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(p != MAP_FAILED);
    return p;
}

static void
fill(uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        p[i] = (uint8_t)(seed >> 56);
    }
}

static void
want(const struct err *e, enum err_code code, int sys)
{
    if (e->code != code || e->sys != sys)
        fail_msg("%s (%d), not %s (%d): %s", err_name(e->code), e->sys, err_name(code), sys,
                 e->text);
}

/* A file of n bytes of that pattern, by the plain calls. */
static void
put(const char *path, size_t n, uint64_t seed)
{
    struct err e = {0};
    uint8_t *p = malloc(n + 1);
    const int h = io->ops->open(io, path, IO_WRITE | IO_CREATE, &e);

    assert_true(h >= 0 && p != NULL);
    fill(p, n, seed);
    assert_int_equal(io->ops->write(io, h, p, n, 0, &e), 0);
    io->ops->close(io, h);
    free(p);
}

static void
test_files(void **state)
{
    const struct io_ops *ops = io->ops;
    struct err e = {0};
    struct io_stat st;
    struct stat real;
    char path[128];
    uint8_t p[16] = {0};
    uint64_t n;
    int h;

    (void)state;
    assert_int_equal(ops->open(io, "a", IO_READ, &e), -1);
    want(&e, ERR_NOT_FOUND, ENOENT);
    assert_non_null(strstr(e.text, " a:"));
    assert_int_equal(ops->mkdir(io, "d", &e), 0);
    assert_int_equal(ops->mkdir(io, "d", &e), -1);
    want(&e, ERR_EXISTS, EEXIST);
    h = ops->open(io, "d/a", IO_WRITE | IO_CREATE | IO_EXCLUSIVE, &e);
    assert_true(h >= 0);
    assert_int_equal(ops->open(io, "d/a", IO_WRITE | IO_CREATE | IO_EXCLUSIVE, &e), -1);
    want(&e, ERR_EXISTS, EEXIST);
    assert_int_equal(ops->write(io, h, "hello world", 11, 2, &e), 0);
    assert_int_equal(ops->read(io, h, p, sizeof p, 0, &e), 13); /* ends with the file */
    assert_memory_equal(p, "\0\0hello world\0\0", 15);
    assert_int_equal(ops->read(io, h, p, sizeof p, 13, &e), 0);
    assert_int_equal(ops->truncate(io, h, 7, &e), 0);
    assert_int_equal(ops->size(io, h, &n, &e), 0);
    assert_int_equal(n, 7);
    assert_int_equal(ops->sync(io, h, &e), 0);
    assert_int_equal(ops->stat(io, "d/a", &st, &e), 0);
    assert_true(st.bytes == 7 && st.links == 1 && !st.is_dir && st.inode != 0);
    assert_int_equal(ops->reserve(io, h, 100000, &e), 0);
    assert_int_equal(ops->stat(io, "d/a", &st, &e), 0);
    assert_int_equal(st.bytes, 100000);
    ops->close(io, h);
    assert_int_equal(ops->stat(io, "d", &st, &e), 0);
    assert_true(st.is_dir);
    assert_int_equal(ops->open(io, "d", IO_READ, &e), -1); /* a folder is no file */

    /* Nobody else may read them, whatever the umask. */
    if (variant != SIMULATED) {
        snprintf(path, sizeof path, "%s/d/a", folder);
        assert_int_equal(stat(path, &real), 0);
        assert_int_equal(real.st_mode & 0777, 0600);
        snprintf(path, sizeof path, "%s/d", folder);
        assert_int_equal(stat(path, &real), 0);
        assert_int_equal(real.st_mode & 0777, 0700);
    }

    assert_int_equal(ops->rmdir(io, "d", &e), -1);
    want(&e, ERR_READ_ONLY, ENOTEMPTY);
    assert_int_equal(ops->unlink(io, "d/a", &e), 0);
    assert_int_equal(ops->unlink(io, "d/a", &e), -1);
    want(&e, ERR_NOT_FOUND, ENOENT);
    assert_int_equal(ops->rmdir(io, "d", &e), 0);
}

static int
count_names(void *arg, const char *name)
{
    size_t *n = arg;

    assert_true(strcmp(name, ".") != 0 && strcmp(name, "..") != 0);
    ++*n;
    return *n == 77 ? 5 : 0;
}

static void
test_names(void **state)
{
    const struct io_ops *ops = io->ops;
    uint64_t room, all;
    struct err e = {0};
    struct io_stat st;
    size_t n = 0;

    (void)state;
    put("a", 5, 1);
    assert_int_equal(ops->mkdir(io, "d", &e), 0);
    assert_int_equal(ops->link(io, "a", "d/b", &e), 0);
    assert_int_equal(ops->link(io, "a", "d/b", &e), -1);
    want(&e, ERR_EXISTS, EEXIST);
    assert_int_equal(ops->stat(io, "d/b", &st, &e), 0);
    assert_int_equal(st.links, 2);
    put("c", 6, 2);
    assert_int_equal(ops->rename(io, "c", "d/b", &e), 0); /* replaces */
    assert_int_equal(ops->stat(io, "d/b", &st, &e), 0);
    assert_true(st.bytes == 6 && st.links == 1);
    assert_int_equal(ops->rename(io, "c", "d/b", &e), -1);
    want(&e, ERR_NOT_FOUND, ENOENT);
    assert_int_equal(ops->sync_dir(io, "d", &e), 0);
    assert_int_equal(ops->sync_dir(io, ".", &e), 0);
    assert_int_equal(ops->sync_dir(io, "x", &e), -1);
    want(&e, ERR_NOT_FOUND, ENOENT);

    assert_int_equal(ops->list(io, ".", count_names, &n, &e), 0);
    assert_int_equal(n, 2);
    n = 76;
    assert_int_equal(ops->list(io, "d", count_names, &n, &e), 5);
    assert_int_equal(ops->list(io, "x", count_names, &n, &e), -1);
    want(&e, ERR_NOT_FOUND, ENOENT);

    assert_int_equal(ops->space(io, &room, &all, &e), 0);
    assert_true(all > 0 && room <= all);
    assert_int_equal(ops->unlink(io, "a", &e), 0);
    assert_int_equal(ops->unlink(io, "d/b", &e), 0);
    assert_int_equal(ops->rmdir(io, "d", &e), 0);
}

/* Every way out of the root, and everything that is not a file. */
static void
test_beneath(void **state)
{
    static const char *const paths[] = {
        "/etc/passwd",    "..",   "../x",   "d/../../x", "d//a", "d/",   "",
        "out/etc/passwd", "in/a", "d/self", "etc",       "d/..", "fifo",
    };
    const struct io_ops *ops = io->ops;
    char at[128];
    struct err e = {0};
    struct io_stat st;
    char longest[1024];

    (void)state;
    assert_int_equal(ops->mkdir(io, "d", &e), 0);
    put("d/a", 3, 3);
    snprintf(at, sizeof at, "%s/out", folder);
    assert_int_equal(symlink("/", at), 0);
    snprintf(at, sizeof at, "%s/in", folder);
    assert_int_equal(symlink("d", at), 0);
    snprintf(at, sizeof at, "%s/d/self", folder);
    assert_int_equal(symlink("a", at), 0);
    snprintf(at, sizeof at, "%s/etc", folder);
    assert_int_equal(symlink("/etc/passwd", at), 0);
    snprintf(at, sizeof at, "%s/fifo", folder);
    assert_int_equal(mkfifo(at, 0600), 0);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        memset(&e, 0, sizeof e);
        if (ops->open(io, paths[i], IO_READ, &e) != -1)
            fail_msg("'%s' was opened", paths[i]);
        assert_true(e.code != ERR_NONE);
    }
    assert_int_equal(ops->open(io, "etc", IO_WRITE, &e), -1);
    assert_int_equal(ops->mkdir(io, "in/e", &e), -1);
    assert_int_equal(ops->rename(io, "d/a", "in/b", &e), -1);
    assert_int_equal(ops->unlink(io, "in/a", &e), -1);
    assert_int_equal(ops->stat(io, "in/a", &st, &e), -1);
    assert_int_equal(ops->list(io, "in", count_names, &st, &e), -1);
    assert_int_equal(ops->list(io, "..", count_names, &st, &e), -1);
    assert_int_equal(ops->open_nameless(io, "in", &e), -1);
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(ops->open(io, longest, IO_READ, &e), -1);
    longest[300] = '/';
    assert_int_equal(ops->open(io, longest, IO_READ, &e), -1);
    assert_int_equal(ops->stat(io, "d/a", &st, &e), 0); /* and this one is fine */
    for (const char *const *p =
             (const char *const[]){"out", "in", "d/self", "etc", "fifo", "d/a", NULL};
         *p; p++)
        assert_int_equal(ops->unlink(io, *p, &e), 0);
    assert_int_equal(ops->rmdir(io, "d", &e), 0);
}

static void
test_nameless(void **state)
{
    const struct io_ops *ops = io->ops;
    uint8_t *p = memory(8192), *q = memory(8192);
    struct err e = {0};
    struct io_stat st;
    size_t n = 0;
    int h;

    (void)state;
    assert_int_equal(ops->mkdir(io, "d", &e), 0);
    h = ops->open_nameless(io, "d", &e);
    assert_true(h >= 0);
    ops->close(io, h);
    assert_int_equal(ops->list(io, "d", count_names, &n, &e), 0);
    assert_int_equal(n, 0); /* left nothing */

    fill(p, 8192, 4);
    h = ops->open_nameless(io, "d", &e);
    assert_true(h >= 0);
    assert_int_equal(ops->reserve(io, h, 8192, &e), 0);
    assert_int_equal(ops->write_bulk(io, h, p, 8192, 0, &e), 0);
    assert_int_equal(ops->sync(io, h, &e), 0);
    assert_int_equal(ops->name(io, h, "d/n", &e), 0);
    assert_int_equal(ops->sync_dir(io, "d", &e), 0);
    assert_int_equal(ops->read_bulk(io, h, q, 8192, 0, &e), 8192);
    ops->close(io, h);
    assert_memory_equal(p, q, 8192);
    assert_int_equal(ops->stat(io, "d/n", &st, &e), 0);
    assert_true(st.bytes == 8192 && st.links == 1);

    /* A second one of that name leaves the first as it is, and goes. */
    h = ops->open_nameless(io, "d", &e);
    assert_true(h >= 0);
    assert_int_equal(ops->name(io, h, "d/n", &e), -1);
    want(&e, ERR_EXISTS, EEXIST);
    if (variant != SIMULATED) { /* which ends whoever tries that */
        assert_int_equal(ops->name(io, h, "x/n", &e), -1);
        want(&e, ERR_NOT_FOUND, ENOENT);
    }
    ops->close(io, h);
    n = 0;
    assert_int_equal(ops->list(io, "d", count_names, &n, &e), 0);
    assert_int_equal(n, 1);
    assert_int_equal(ops->stat(io, "d/n", &st, &e), 0);
    assert_int_equal(st.bytes, 8192);
    assert_int_equal(ops->open_nameless(io, "x", &e), -1);
    want(&e, ERR_NOT_FOUND, ENOENT);
    assert_int_equal(ops->unlink(io, "d/n", &e), 0);
    assert_int_equal(ops->rmdir(io, "d", &e), 0);
    munmap(p, 8192);
    munmap(q, 8192);
}

static void
bulk_of(size_t n, size_t tail, int direct)
{
    const struct io_ops *ops = io->ops;
    const size_t room = n + 4096;
    uint8_t *p = memory(room), *q = memory(room + MIB);
    struct err e = {0};
    int h = ops->open(io, "b", IO_WRITE | IO_CREATE | IO_EXCLUSIVE | direct, &e);

    assert_true(h >= 0);
    fill(p, room, n);
    assert_int_equal(ops->write_bulk(io, h, p, n, 0, &e), 0);
    assert_int_equal(ops->read_bulk(io, h, q, n, 0, &e), (ssize_t)n);
    assert_memory_equal(p, q, n);
    ops->close(io, h);
    h = ops->open(io, "b", IO_WRITE, &e);
    assert_true(h >= 0);
    assert_int_equal(ops->write(io, h, p + n, tail, n, &e), 0);
    ops->close(io, h);
    h = ops->open(io, "b", IO_READ | direct, &e);
    assert_true(h >= 0);
    memset(q, 0, n);
    /* More than there is, and a last block that is not whole. */
    assert_int_equal(ops->read_bulk(io, h, q, room + MIB, 0, &e), (ssize_t)(n + tail));
    assert_memory_equal(p, q, n + tail);
    assert_int_equal(ops->read_bulk(io, h, q, MIB, room + MIB, &e), 0);
    ops->close(io, h);
    assert_int_equal(ops->unlink(io, "b", &e), 0);
    munmap(p, room);
    munmap(q, room + MIB);
}

static void
test_bulk(void **state)
{
    (void)state;
    bulk_of(4096, 0, IO_DIRECT);
    bulk_of(3 * MIB, 1, IO_DIRECT);
    bulk_of(37 * MIB + 8192, 4095, IO_DIRECT);
    bulk_of(37 * MIB + 8192, 777, 0);
    annoy = true;
    bulk_of(5 * MIB + 4096, 100, IO_DIRECT);
    bulk_of(100 * 4096, 0, 0);
    annoy = false;
    if (variant == SIMULATED)
        return;
    io_set_bounce(io, false);
    bulk_of(37 * MIB + 8192, 4095, IO_DIRECT);
}

static void
test_bulk_errors(void **state)
{
    const struct io_ops *ops = io->ops;
    uint8_t *p = memory(8 * MIB);
    struct err e = {0};
    int h;

    (void)state;
    put("b", 4096, 1);
    h = ops->open(io, "b", IO_READ | IO_DIRECT, &e);
    assert_true(h >= 0);
    assert_int_equal(ops->write_bulk(io, h, p, 8 * MIB, 0, &e), -1);
    want(&e, ERR_READ_ONLY, EBADF);
    assert_int_equal(ops->read_bulk(io, h, p, 0, 0, &e), 0);
    mprotect(p + 3 * MIB, MIB, PROT_NONE);
    if (variant != SIMULATED)
        io_set_bounce(io, false); /* it is the kernel that shall find that */
    ops->close(io, h);
    h = ops->open(io, "b", IO_WRITE | IO_DIRECT, &e);
    assert_int_equal(ops->reserve(io, h, 8 * MIB, &e), 0);
    assert_int_equal(ops->write_bulk(io, h, p, 8 * MIB, 0, &e), -1);
    want(&e, ERR_READ_ONLY, EFAULT);
    assert_int_equal(ops->read_bulk(io, h, p, 8 * MIB, 0, &e), -1);
    want(&e, ERR_DAMAGED, EFAULT);
    assert_int_equal(ops->read_bulk(io, h, p, 3 * MIB, 0, &e), 3 * MIB); /* and goes on */
    ops->close(io, h);
    assert_int_equal(ops->unlink(io, "b", &e), 0);
    assert_int_equal(io_bulk_stuck(io), 0);
    munmap(p, 8 * MIB);
}

/* Interrupted and halved calls, on the way of small transfers. */
static void
test_annoyed(void **state)
{
    const struct io_ops *ops = io->ops;
    uint8_t p[1000], q[1000];
    struct err e = {0};
    int h;

    (void)state;
    n_calls = 0;
    annoy = true;
    fill(p, sizeof p, 9);
    h = ops->open(io, "a", IO_WRITE | IO_CREATE, &e);
    assert_true(h >= 0);
    assert_int_equal(ops->write(io, h, p, sizeof p, 10, &e), 0);
    assert_int_equal(ops->read(io, h, q, sizeof q, 10, &e), sizeof q);
    annoy = false;
    assert_true(n_calls > 20);
    assert_memory_equal(p, q, sizeof p);
    ops->close(io, h);
    assert_int_equal(ops->unlink(io, "a", &e), 0);
}

static void
test_lock(void **state)
{
    const struct io_ops *ops = io->ops;
    struct err e = {0};
    int h[2];

    (void)state;
    for (int i = 0; i < 2; i++)
        h[i] = ops->open(io, "lock", IO_WRITE | IO_CREATE, &e);
    assert_int_equal(ops->lock(io, h[0], &e), 0);
    assert_int_equal(ops->lock(io, h[1], &e), -1);
    assert_int_equal(e.code, ERR_BUSY);
    ops->close(io, h[0]);
    assert_int_equal(ops->lock(io, h[1], &e), 0);
    ops->close(io, h[1]);
    assert_int_equal(ops->unlink(io, "lock", &e), 0);
}

struct transfer {
    int h, rc;
    struct err e;
    uint8_t *p;
};

static void
wait_stuck(unsigned n)
{
    while (io_bulk_stuck(io) != n)
        usleep(1000);
}

/* A call that is given up while a thread has it is stuck. On a busy machine it may be given up before
 * a thread has begun: then once more. */
static void
hang_one(int h, uint8_t *p, unsigned n)
{
    struct err e = {0};

    do {
        assert_int_equal(io->ops->read_bulk(io, h, p, MIB, 0, &e), -1);
        want(&e, ERR_UNAVAILABLE, ETIMEDOUT);
    } while (io_bulk_stuck(io) < n);
    assert_int_equal(io_bulk_stuck(io), n);
}

/* The disk does not answer: calls fail, their memory stays theirs, and when it does, all is as
 * before. */
static void
test_deadline(void **state)
{
    const bool threads = strcmp(io_bulk_name(io), "threads") == 0;
    const struct io_ops *ops = io->ops;
    uint8_t *p = memory((IO_STUCK_MOST + 1) * MIB);
    struct err e = {0};
    int h;

    (void)state;
    put("b", MIB, 5);
    io_set_deadline(io, 50);
    h = ops->open(io, "b", IO_READ | (threads ? 0 : IO_DIRECT), &e);
    assert_true(h >= 0);
    set_hang(true);
    tell_timeout = true;
    if (threads) {
        for (unsigned i = 0; i < IO_STUCK_MOST; i++)
            hang_one(h, p + i * MIB, i + 1);
        assert_int_equal(ops->read_bulk(io, h, p, MIB, 0, &e), -1);
        want(&e, ERR_UNAVAILABLE, EBUSY);
        assert_int_equal(ops->write_bulk(io, h, p, MIB, 0, &e), -1);
        want(&e, ERR_READ_ONLY, EBUSY);
    } else {
        assert_int_equal(ops->read_bulk(io, h, p, MIB, 0, &e), -1);
        want(&e, ERR_UNAVAILABLE, ETIMEDOUT);
    }
    ops->close(io, h);
    set_hang(false);
    tell_timeout = false;
    wait_stuck(0);
    io_set_deadline(io, IO_DEADLINE_MS);
    h = ops->open(io, "b", IO_READ | (threads ? 0 : IO_DIRECT), &e);
    assert_int_equal(ops->read_bulk(io, h, p, MIB, 0, &e), MIB);
    ops->close(io, h);
    assert_int_equal(ops->unlink(io, "b", &e), 0);
    munmap(p, (IO_STUCK_MOST + 1) * MIB);
}

static void *
one_of_many(void *arg)
{
    struct transfer *t = arg;

    for (int i = 0; i < 8 && t->rc == 0; i++) {
        memset(t->p, 0, 3 * MIB);
        t->rc = io->ops->read_bulk(io, t->h, t->p, 3 * MIB, 0, &t->e) != 3 * MIB;
    }
    return NULL;
}

static void
test_many(void **state)
{
    pthread_t threads[4];
    struct transfer t[4] = {{0}};
    uint8_t *p = memory(3 * MIB);
    struct err e = {0};

    (void)state;
    put("b", 3 * MIB, 6);
    fill(p, 3 * MIB, 6);
    for (int i = 0; i < 4; i++) {
        t[i].h = io->ops->open(io, "b", IO_READ | (i % 2 ? IO_DIRECT : 0), &e);
        t[i].p = memory(3 * MIB);
        assert_int_equal(pthread_create(&threads[i], NULL, one_of_many, &t[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(t[i].rc, 0);
        assert_memory_equal(t[i].p, p, 3 * MIB);
        io->ops->close(io, t[i].h);
        munmap(t[i].p, 3 * MIB);
    }
    assert_int_equal(io->ops->unlink(io, "b", &e), 0);
    munmap(p, 3 * MIB);
}

/* These calls fail from now on, in this process and for good; openat() only with O_TMPFILE. */
static int
forbid(void)
{
#define NO(call, sys)                                       \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##call, 0, 1), \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (sys))
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        NO(openat2, ENOSYS),
        NO(io_uring_setup, EPERM),
        NO(fallocate, EOPNOTSUPP),
        NO(renameat2, EINVAL),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_openat, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_TMPFILE & ~O_DIRECTORY, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
#undef NO
    const struct sock_fprog all = {.len = sizeof code / sizeof *code, .filter = code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all);
}

static int
open_io(void **state)
{
    static bool forbidden;
    struct err e;

    variant = *(const enum variant *)*state;
    if (variant == SIMULATED) {
        io = sim_io(sim_new());
        return 0;
    }
    if (variant == NOTHING && !forbidden) {
        if (forbid() == -1)
            return -1;
        forbidden = true;
    }
    io = io_open_root(folder, variant != THREADS, &e);
    return io == NULL ? -1 : 0;
}

static int
close_io(void **state)
{
    struct err e = {0};
    size_t n = 0;
    const int rc = io->ops->list(io, ".", count_names, &n, &e);

    (void)state;
    annoy = tell_timeout = false;
    set_hang(false);
    if (variant == SIMULATED)
        sim_free(sim_of(io));
    else
        io_close_root(io);
    io = NULL;
    return rc == 0 && n == 0 ? 0 : -1; /* a test that leaves files behind has failed */
}

/* Else the three variants would be the same one. */
static void
test_variant(void **state)
{
    struct err e = {0};
    const struct open_how how = {.flags = O_PATH | O_CLOEXEC};
    const long there = syscall(SYS_openat2, AT_FDCWD, ".", &how, sizeof how);
    struct io_stat st;

    (void)state;
    n_openat2 = 0;
    assert_int_equal(io->ops->stat(io, ".", &st, &e), 0);
    assert_int_equal(n_openat2, there != -1);
    if (there != -1)
        close((int)there);
    if (variant != URING)
        assert_string_equal(io_bulk_name(io), "threads");
    else if (strcmp(io_bulk_name(io), "io_uring") != 0)
        skip();
    assert_null(io_open_root("io_test_missing", false, &e));
    want(&e, ERR_NOT_FOUND, ENOENT);
    if (variant != NOTHING)
        return;
    assert_int_equal(there, -1);
    assert_int_equal(openat(AT_FDCWD, ".", O_TMPFILE | O_RDWR, 0600), -1);
    assert_int_equal(errno, EOPNOTSUPP);
}

static int
make_folder(void **state)
{
    (void)state;
    umask(0);
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int
remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int
main(void)
{
    static const struct {
        const char *name;
        void (*test)(void **state);
    } tests[] = {
        {"files", test_files},       {"names", test_names},
        {"nameless", test_nameless}, {"bulk", test_bulk},
        {"lock", test_lock},         {"variant", test_variant},
        {"beneath", test_beneath},   {"errors", test_bulk_errors},
        {"annoyed", test_annoyed},   {"deadline", test_deadline},
        {"many", test_many},
    };

    enum {
        N_TESTS = sizeof tests / sizeof *tests,
        N_SIMULATED = 5 /* the first of them */
    };

    static const char *const variants[N_VARIANTS] = {"io_uring", "threads",
                                                     "all ways around", "simulated"};

    static enum variant states[N_VARIANTS] = {URING, THREADS, NOTHING, SIMULATED};

    static char names[N_VARIANTS * N_TESTS][64];
    static struct CMUnitTest all[(N_VARIANTS - 1) * N_TESTS + N_SIMULATED];

    for (size_t v = 0, i = 0; v < N_VARIANTS; v++)
        for (size_t t = 0; t < (v == SIMULATED ? N_SIMULATED : N_TESTS); t++, i++) {
            snprintf(names[i], sizeof names[i], "%s: %s", variants[v], tests[t].name);
            all[i] =
                (struct CMUnitTest){names[i], tests[t].test, open_io, close_io, &states[v]};
        }
    return cmocka_run_group_tests(all, make_folder, remove_folder);
}
