/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host arena: one memfd, mapped once, and the list of its holes in order of address. Extents
 * are few (a chunk of a large model is 15 MiB) and live long, so first fit over a sorted array is
 * quick, and what is given back joins its neighbours at once. Giving back never needs memory: the
 * array always has room for one hole more than there are extents out.
 *
 * The memfd cannot grow or shrink, so the engine that maps it, too, can never be made to touch
 * what is not there. Main thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/arena.h"

enum { ALIGN = 4096, HUGE = 2 << 20, FIRST_ROOM = 64, SEALS = F_SEAL_SHRINK | F_SEAL_GROW };

struct arena {
    int fd;
    bool huge;
    uint8_t *base;
    uint64_t bytes, used;
    struct extent *holes; /* [n], by address, none beside another */
    size_t n, room, n_out;
};

static bool
is_huge(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC;
}

/* Maps it; with huge pages this is where the system says that it has not so many. */
static bool
map(struct arena *a, int fd)
{
    void *p = mmap(NULL, a->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (p == MAP_FAILED)
        return false;
    a->base = p;
    a->fd = fd;
    a->huge = is_huge(fd);
    return true;
}

/* One of an earlier fathomd: the size and the seals are what the engine relies on. */
static bool
take_over(struct arena *a, int fd)
{
    struct stat st;
    const int seals = fcntl(fd, F_GET_SEALS);

    return seals != -1 && (seals & SEALS) == SEALS &&
           (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0 && fstat(fd, &st) == 0 &&
           st.st_size >= 0 && (uint64_t)st.st_size == a->bytes &&
           fcntl(fd, F_SETFD, FD_CLOEXEC) != -1 && map(a, fd);
}

static bool
make(struct arena *a, unsigned flags)
{
    const int fd = memfd_create("fathom-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
    int sys;

    if (fd == -1)
        return false;
    if (ftruncate(fd, (off_t)a->bytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) != -1 && map(a, fd))
        return true;
    sys = errno;
    close(fd);
    errno = sys;
    return false;
}

int
arena_open(uint64_t bytes, int fd, struct arena **out, struct err *e)
{
    struct arena *a;

    if (bytes == 0 || bytes > INT64_MAX - HUGE)
        return err_set(e, ERR_INVALID, 0, "an arena of %llu bytes",
                       (unsigned long long)bytes);
    a = calloc(1, sizeof *a);
    if (a == NULL || (a->holes = calloc(FIRST_ROOM, sizeof *a->holes)) == NULL) {
        free(a);
        return err_set(e, ERR_QUOTA, errno, "no memory for an arena");
    }
    a->room = FIRST_ROOM;
    a->bytes = (bytes + HUGE - 1) / HUGE * HUGE;
    if (fd != -1 && !take_over(a, fd)) {
        close(fd);
        fd = -1;
    }
    if (fd == -1 && !make(a, MFD_HUGETLB) && !make(a, 0)) {
        err_set(e, ERR_QUOTA, errno, "%llu bytes of host memory: %s",
                (unsigned long long)a->bytes, strerror(errno));
        free(a->holes);
        free(a);
        return -1;
    }
    a->holes[0] = (struct extent){0, a->bytes};
    a->n = 1;
    *out = a;
    return 0;
}

void
arena_close(struct arena *a)
{
    if (a == NULL)
        return;
    munmap(a->base, a->bytes);
    close(a->fd);
    free(a->holes);
    free(a);
}

int
arena_fd(const struct arena *a)
{
    return a->fd;
}

uint8_t *
arena_at(const struct arena *a, struct extent x)
{
    assert(x.at <= a->bytes && x.bytes <= a->bytes - x.at);
    return a->base + x.at;
}

uint64_t
arena_bytes(const struct arena *a)
{
    return a->bytes;
}

uint64_t
arena_used(const struct arena *a)
{
    return a->used;
}

bool
arena_huge(const struct arena *a)
{
    return a->huge;
}

static void
remove_hole(struct arena *a, size_t i)
{
    a->n--;
    memmove(&a->holes[i], &a->holes[i + 1], (a->n - i) * sizeof *a->holes);
}

/* Each extent out can make one hole more when it comes back. */
static bool
reserve(struct arena *a)
{
    struct extent *p;

    if (a->n_out + 2 <= a->room)
        return true;
    p = realloc(a->holes, 2 * a->room * sizeof *p);
    if (p == NULL)
        return false;
    a->holes = p;
    a->room *= 2;
    return true;
}

bool
arena_take(struct arena *a, uint64_t bytes, struct extent *out)
{
    if (bytes == 0 || bytes > a->bytes || !reserve(a))
        return false;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    for (size_t i = 0; i < a->n; i++) {
        struct extent *hole = &a->holes[i];

        if (hole->bytes < bytes)
            continue;
        *out = (struct extent){hole->at, bytes};
        hole->at += bytes;
        hole->bytes -= bytes;
        if (hole->bytes == 0)
            remove_hole(a, i);
        a->used += bytes;
        a->n_out++;
        return true;
    }
    return false;
}

static void
insert_hole(struct arena *a, size_t i, struct extent x)
{
    memmove(&a->holes[i + 1], &a->holes[i], (a->n - i) * sizeof *a->holes);
    a->holes[i] = x;
    a->n++;
}

bool
arena_take_at(struct arena *a, struct extent x)
{
    const uint64_t end = x.at + x.bytes;

    if (x.at % ALIGN != 0 || x.bytes % ALIGN != 0 || x.bytes == 0 || x.at > a->bytes ||
        x.bytes > a->bytes - x.at || !reserve(a))
        return false;
    for (size_t i = 0; i < a->n; i++) {
        struct extent *hole = &a->holes[i];
        const uint64_t hole_end = hole->at + hole->bytes;

        if (x.at < hole->at || end > hole_end)
            continue;
        hole->bytes = x.at - hole->at;
        if (hole->bytes == 0)
            remove_hole(a, i);
        else
            i++;
        if (end < hole_end)
            insert_hole(a, i, (struct extent){end, hole_end - end});
        a->used += x.bytes;
        a->n_out++;
        return true;
    }
    return false;
}

void
arena_give(struct arena *a, struct extent *x)
{
    size_t i = 0, high = a->n;
    struct extent *before, *after;

    if (x->bytes == 0)
        return;
    while (i < high) { /* the first hole behind x */
        const size_t mid = i + (high - i) / 2;

        if (a->holes[mid].at < x->at)
            i = mid + 1;
        else
            high = mid;
    }
    before = i > 0 ? &a->holes[i - 1] : NULL;
    after = i < a->n ? &a->holes[i] : NULL;
    assert(a->n_out > 0 && x->bytes <= a->used && x->at <= a->bytes - x->bytes);
    assert(before == NULL || before->at + before->bytes <= x->at);
    assert(after == NULL || x->at + x->bytes <= after->at);
    a->used -= x->bytes;
    a->n_out--;
    if (before != NULL && before->at + before->bytes == x->at) {
        before->bytes += x->bytes;
        if (after != NULL && before->at + before->bytes == after->at) {
            before->bytes += after->bytes;
            remove_hole(a, i);
        }
    } else if (after != NULL && x->at + x->bytes == after->at) {
        after->at = x->at;
        after->bytes += x->bytes;
    } else {
        insert_hole(a, i, *x);
    }
    *x = (struct extent){0};
}
