/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated file system as calls see it: they take effect at once, and each change and
 * each sync is noted down for sim_states.c. Faults come in at one place, enter(). Rules that
 * struct io has for the real one (paths, alignment of bulk transfers, that a nameless file is
 * named in its own folder) are checked, so that code that breaks them fails here too.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "tests/sim_impl.h"

static struct sim *
of(struct io *io)
{
    return (struct sim *)io;
}

struct sim *
sim_of(struct io *io)
{
    return of(io);
}

static struct record *
note(struct sim *s, enum record_kind kind, int inode)
{
    struct record *r;

    if (s->n_records == s->room) {
        s->room = s->room != 0 ? 2 * s->room : 64;
        s->records = sim_must(realloc(s->records, s->room * sizeof *s->records));
    }
    r = &s->records[s->n_records++];
    *r = (struct record){.kind = kind, .inode = inode, .call = sim_ops(s)};
    return r;
}

static void
note_entry(struct sim *s, enum record_kind kind, int inode, int dir, const char *name)
{
    struct record *r = note(s, kind, inode);

    r->dirs[0] = dir;
    r->names[0] = sim_must(strdup(name));
}

static void
forget_records(struct sim *s)
{
    for (size_t i = 0; i < s->n_records; i++) {
        free(s->records[i].names[0]);
        free(s->records[i].names[1]);
        free(s->records[i].bytes);
    }
    s->n_records = 0;
}

/* Takes the lock and counts. What the call has to do: 0, or fail with *sys as *how says. */
static bool
enter(struct sim *s, enum sim_kind kind, enum sim_how *how, int *sys)
{
    bool hit = false;

    pthread_mutex_lock(&s->mu);
    s->calls[__builtin_ctz(kind)]++;
    if (s->faulty && (s->fault.kinds == 0 || s->fault.kinds & kind)) {
        hit = s->met == s->fault.at || (s->fault.for_good && s->met > s->fault.at);
        s->met++;
    }
    if (hit && s->fault.how == SIM_LIE && !(kind & (SIM_SYNC | SIM_SYNC_DIR)))
        abort();
    if (!hit)
        return false;
    s->failed = true;
    *how = s->fault.how;
    *sys = s->fault.sys;
    return true;
}

/* Lets go of the lock; of a call that did all it should, but may have to say that it did not. */
static int
leave(struct sim *s, bool hit, int sys, bool change, const char *what, const char *path,
      struct err *e)
{
    pthread_mutex_unlock(&s->mu);
    if (!hit && sys == 0)
        return 0;
    return io_error(e, sys, change, what, path);
}

/* The folder of a path, and its last name: 0, or an errno. */
static int
resolve(const struct sim *s, const char *path, int *dir, const char **last)
{
    int at = SIM_ROOT;

    for (;;) {
        const size_t n = strcspn(path, "/");
        char name[SIM_NAME_MAX];

        if (n == 0 || n >= sizeof name || strncmp(path, "..", n < 2 ? 2 : n) == 0)
            return EINVAL;
        if (path[n] == '\0') {
            *dir = at;
            *last = path;
            return 0;
        }
        memcpy(name, path, n);
        name[n] = '\0';
        at = tree_find(&s->now, at, name);
        if (at == SIM_NO_INODE)
            return ENOENT;
        if (!s->now.inodes[at].is_dir)
            return ENOTDIR;
        path += n + 1;
    }
}

/* What has that name: 0, or an errno. */
static int
look_up(const struct sim *s, const char *path, int *inode)
{
    const char *last;
    int dir, sys;

    if (strcmp(path, ".") == 0) {
        *inode = SIM_ROOT;
        return 0;
    }
    sys = resolve(s, path, &dir, &last);
    if (sys != 0)
        return sys;
    *inode = tree_find(&s->now, dir, last);
    return *inode != SIM_NO_INODE ? 0 : ENOENT;
}

static int
look_up_dir(const struct sim *s, const char *path, int *inode)
{
    const int sys = look_up(s, path, inode);

    return sys != 0 ? sys : s->now.inodes[*inode].is_dir ? 0 : ENOTDIR;
}

static int
new_handle(struct sim *s, int inode, int flags, const char *path)
{
    for (int h = 0; h < SIM_HANDLES; h++)
        if (!s->handles[h].used) {
            s->handles[h] = (struct handle){.used = true,
                                            .inode = inode,
                                            .flags = flags,
                                            .path = sim_must(strdup(path))};
            return h;
        }
    return -1;
}

static struct handle *
handle_of(struct sim *s, int h)
{
    if (h < 0 || h >= SIM_HANDLES || !s->handles[h].used)
        abort(); /* closed already: a bug of the code under test */
    return &s->handles[h];
}

/* The inode, made if it has to be: 0, or an errno. */
static int
open_inode(struct sim *s, const char *path, int flags, int *inode)
{
    const char *last;
    int dir, sys = resolve(s, path, &dir, &last);

    if (sys != 0)
        return sys;
    *inode = tree_find(&s->now, dir, last);
    if (*inode == SIM_NO_INODE && !(flags & IO_CREATE))
        return ENOENT;
    if (*inode == SIM_NO_INODE) {
        *inode = tree_new_inode(&s->now, false);
        tree_set(&s->now, dir, last, *inode);
        note_entry(s, R_SET, *inode, dir, last);
        return 0;
    }
    if (flags & IO_CREATE && flags & IO_EXCLUSIVE)
        return EEXIST;
    return s->now.inodes[*inode].is_dir ? EISDIR : 0;
}

static int
sim_open(struct io *io, const char *path, int flags, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0, inode, h = -1;
    const bool hit = enter(s, SIM_OPEN, &how, &sys);

    if (!hit || how == SIM_AFTER) {
        const int real = open_inode(s, path, flags, &inode);

        if (!hit) {
            sys = real;
            if (sys == 0 && (h = new_handle(s, inode, flags, path)) == -1)
                sys = EMFILE;
        }
    }
    if (leave(s, hit, sys, flags & (IO_WRITE | IO_CREATE), "open", path, e) == -1)
        return -1;
    return h;
}

static int
sim_open_nameless(struct io *io, const char *dir, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0, inode, h = -1;
    const bool hit = enter(s, SIM_OPEN_NAMELESS, &how, &sys);

    if (!hit) {
        sys = look_up_dir(s, dir, &inode);
        if (sys == 0) {
            h = new_handle(s, tree_new_inode(&s->now, false), IO_WRITE | IO_DIRECT, dir);
            if (h == -1)
                sys = EMFILE;
        }
    }
    return leave(s, hit, sys, true, "make a file in", dir, e) == -1 ? -1 : h;
}

static void
sim_close(struct io *io, int h)
{
    struct sim *s = of(io);

    pthread_mutex_lock(&s->mu);
    free(handle_of(s, h)->path);
    s->handles[h].used = false;
    pthread_mutex_unlock(&s->mu);
}

static bool
aligned(const void *p, size_t n, uint64_t at)
{
    return (uintptr_t)p % 4096 == 0 && n % 4096 == 0 && at % 4096 == 0;
}

static ssize_t
do_read(struct io *io, int h, void *p, size_t n, uint64_t at, bool bulk, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0;
    const bool hit = enter(s, SIM_READ, &how, &sys);
    const struct handle *f = handle_of(s, h);
    const struct blob *b = s->now.inodes[f->inode].data;
    size_t got = 0;

    if (!hit) {
        if ((bulk || f->flags & IO_DIRECT) && !aligned(p, n, at))
            abort();
        got = at >= b->n ? 0 : b->n - at < n ? b->n - at : n;
        if (got > 0)
            tree_read(&s->now, f->inode, p, got, at);
    } else if (n > 0) {
        memset(p, 0xdb, n / 2); /* what a failed read leaves is nobody's */
    }
    return leave(s, hit, sys, false, "read", f->path, e) == -1 ? -1 : (ssize_t)got;
}

static ssize_t
sim_read(struct io *io, int h, void *p, size_t n, uint64_t at, struct err *e)
{
    return do_read(io, h, p, n, at, false, e);
}

static ssize_t
sim_read_bulk(struct io *io, int h, void *p, size_t n, uint64_t at, struct err *e)
{
    return do_read(io, h, p, n, at, true, e);
}

static int
do_write(struct io *io, int h, const void *p, size_t n, uint64_t at, bool bulk,
         struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how = SIM_AFTER;
    int sys = 0;
    const bool hit = enter(s, SIM_WRITE, &how, &sys);
    const struct handle *f = handle_of(s, h);
    const size_t done = !hit || how == SIM_AFTER ? n : how == SIM_HALF ? n / 2 : 0;

    if ((bulk || f->flags & IO_DIRECT) && !aligned(p, n, at))
        abort();
    if (!hit && !(f->flags & IO_WRITE)) {
        sys = EBADF;
    } else if (done > 0) {
        struct record *r = note(s, R_WRITE, f->inode);

        r->at = at;
        r->n = done;
        r->grows = at + done > s->now.inodes[f->inode].data->n;
        r->bytes = sim_must(malloc(done));
        memcpy(r->bytes, p, done);
        tree_write(&s->now, f->inode, p, done, at);
    }
    return leave(s, hit, sys, true, "write", f->path, e);
}

static int
sim_write(struct io *io, int h, const void *p, size_t n, uint64_t at, struct err *e)
{
    return do_write(io, h, p, n, at, false, e);
}

static int
sim_write_bulk(struct io *io, int h, const void *p, size_t n, uint64_t at, struct err *e)
{
    return do_write(io, h, p, n, at, true, e);
}

static int
sim_size(struct io *io, int h, uint64_t *bytes, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0;
    const bool hit = enter(s, SIM_STAT, &how, &sys);
    const struct handle *f = handle_of(s, h);

    if (!hit)
        *bytes = s->now.inodes[f->inode].data->n;
    return leave(s, hit, sys, false, "look at", f->path, e);
}

static int
set_length(struct io *io, int h, uint64_t n, enum sim_kind kind, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how = SIM_AFTER;
    int sys = 0;
    const bool hit = enter(s, kind, &how, &sys);
    const struct handle *f = handle_of(s, h);

    if (!hit && !(f->flags & IO_WRITE))
        sys = EBADF;
    else if (how == SIM_AFTER &&
             (kind == SIM_TRUNCATE || n > s->now.inodes[f->inode].data->n)) {
        note(s, kind == SIM_TRUNCATE ? R_LENGTH : R_GROW, f->inode)->n = n;
        tree_length(&s->now, f->inode, n);
    }
    return leave(s, hit, sys, true, kind == SIM_TRUNCATE ? "cut" : "reserve room for",
                 f->path, e);
}

static int
sim_reserve(struct io *io, int h, uint64_t bytes, struct err *e)
{
    return set_length(io, h, bytes, SIM_RESERVE, e);
}

static int
sim_truncate(struct io *io, int h, uint64_t bytes, struct err *e)
{
    return set_length(io, h, bytes, SIM_TRUNCATE, e);
}

static int
sim_sync(struct io *io, int h, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0;
    const bool hit = enter(s, SIM_SYNC, &how, &sys);
    const struct handle *f = handle_of(s, h);

    if (hit && how == SIM_LIE)
        return leave(s, false, 0, true, "sync", f->path, e);
    note(s, hit ? R_SYNC_FAILED : R_SYNC, f->inode);
    return leave(s, hit, sys, true, "sync", f->path, e);
}

static int
sim_sync_dir(struct io *io, const char *dir, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0, inode;
    const bool hit = enter(s, SIM_SYNC_DIR, &how, &sys);
    const int real = look_up_dir(s, dir, &inode);

    if (hit && how == SIM_LIE)
        return leave(s, false, 0, true, "sync", dir, e);
    if (real == 0)
        note(s, hit ? R_SYNC_DIR_FAILED : R_SYNC_DIR, inode);
    return leave(s, hit, hit ? sys : real, true, "sync", dir, e);
}

static int
add_name(struct sim *s, const char *path, int inode)
{
    const char *last;
    int dir, sys = resolve(s, path, &dir, &last);

    if (sys != 0)
        return sys;
    if (tree_find(&s->now, dir, last) != SIM_NO_INODE)
        return EEXIST;
    tree_set(&s->now, dir, last, inode);
    note_entry(s, R_SET, inode, dir, last);
    return 0;
}

static bool
is_in(const char *path, const char *dir)
{
    const size_t n = strlen(dir);

    if (strcmp(dir, ".") == 0)
        return strchr(path, '/') == NULL;
    return strncmp(path, dir, n) == 0 && path[n] == '/' &&
           strchr(path + n + 1, '/') == NULL;
}

static int
sim_name(struct io *io, int h, const char *path, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how = SIM_AFTER;
    int sys = 0, real = 0;
    const bool hit = enter(s, SIM_NAME, &how, &sys);
    const struct handle *f = handle_of(s, h);

    if (!is_in(path, f->path))
        abort(); /* another folder: a bug of the code under test */
    if (how == SIM_AFTER)
        real = add_name(s, path, f->inode);
    return leave(s, hit, hit ? sys : real, true, "name", path, e);
}

static int
do_link(struct sim *s, const char *from, const char *to)
{
    int inode, sys = look_up(s, from, &inode);

    if (sys != 0)
        return sys;
    return s->now.inodes[inode].is_dir ? EPERM : add_name(s, to, inode);
}

static int
sim_link(struct io *io, const char *from, const char *to, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how = SIM_AFTER;
    int sys = 0, real = 0;
    const bool hit = enter(s, SIM_LINK, &how, &sys);

    if (how == SIM_AFTER)
        real = do_link(s, from, to);
    return leave(s, hit, hit ? sys : real, true, "link", from, e);
}

static int
do_rename(struct sim *s, const char *from, const char *to)
{
    const char *lasts[2];
    int dirs[2], inode, old, sys = resolve(s, from, &dirs[0], &lasts[0]);
    struct record *r;

    if (sys == 0)
        sys = resolve(s, to, &dirs[1], &lasts[1]);
    if (sys != 0)
        return sys;
    inode = tree_find(&s->now, dirs[0], lasts[0]);
    old = tree_find(&s->now, dirs[1], lasts[1]);
    if (inode == SIM_NO_INODE)
        return ENOENT;
    if (inode == old)
        return 0;
    if (old != SIM_NO_INODE && s->now.inodes[old].is_dir != s->now.inodes[inode].is_dir)
        return s->now.inodes[old].is_dir ? EISDIR : ENOTDIR;
    if (old != SIM_NO_INODE && s->now.inodes[old].n_entries > 0)
        return ENOTEMPTY;
    tree_clear(&s->now, dirs[0], lasts[0]);
    tree_set(&s->now, dirs[1], lasts[1], inode);
    r = note(s, R_RENAME, inode);
    for (int i = 0; i < 2; i++) {
        r->dirs[i] = dirs[i];
        r->names[i] = sim_must(strdup(lasts[i]));
    }
    return 0;
}

static int
sim_rename(struct io *io, const char *from, const char *to, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how = SIM_AFTER;
    int sys = 0, real = 0;
    const bool hit = enter(s, SIM_RENAME, &how, &sys);

    if (how == SIM_AFTER)
        real = do_rename(s, from, to);
    return leave(s, hit, hit ? sys : real, true, "rename", from, e);
}

static int
do_remove(struct sim *s, const char *path, bool is_dir)
{
    const char *last;
    int dir, inode, sys = resolve(s, path, &dir, &last);

    if (sys != 0)
        return sys;
    inode = tree_find(&s->now, dir, last);
    if (inode == SIM_NO_INODE)
        return ENOENT;
    if (s->now.inodes[inode].is_dir != is_dir)
        return is_dir ? ENOTDIR : EISDIR;
    if (s->now.inodes[inode].n_entries > 0)
        return ENOTEMPTY;
    tree_clear(&s->now, dir, last);
    note_entry(s, R_CLEAR, inode, dir, last);
    return 0;
}

static int
remove_name(struct io *io, const char *path, enum sim_kind kind, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how = SIM_AFTER;
    int sys = 0, real = 0;
    const bool hit = enter(s, kind, &how, &sys);

    if (how == SIM_AFTER)
        real = do_remove(s, path, kind == SIM_RMDIR);
    return leave(s, hit, hit ? sys : real, true, "remove", path, e);
}

static int
sim_unlink(struct io *io, const char *path, struct err *e)
{
    return remove_name(io, path, SIM_UNLINK, e);
}

static int
sim_rmdir(struct io *io, const char *path, struct err *e)
{
    return remove_name(io, path, SIM_RMDIR, e);
}

static int
do_mkdir(struct sim *s, const char *path)
{
    const int inode = tree_new_inode(&s->now, true);

    return add_name(s, path, inode);
}

static int
sim_mkdir(struct io *io, const char *path, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how = SIM_AFTER;
    int sys = 0, real = 0;
    const bool hit = enter(s, SIM_MKDIR, &how, &sys);

    if (how == SIM_AFTER)
        real = do_mkdir(s, path);
    return leave(s, hit, hit ? sys : real, true, "make", path, e);
}

static int
sim_list(struct io *io, const char *dir, int (*each)(void *arg, const char *name),
         void *arg, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    struct entry *names = NULL;
    int sys = 0, inode, rc = 0;
    size_t n = 0;
    const bool hit = enter(s, SIM_LIST, &how, &sys);

    if (!hit)
        sys = look_up_dir(s, dir, &inode);
    if (sys == 0 && s->now.inodes[inode].n_entries > 0) {
        n = s->now.inodes[inode].n_entries;
        names = sim_must(malloc(n * sizeof *names));
        memcpy(names, s->now.inodes[inode].entries, n * sizeof *names);
    }
    if (leave(s, hit, sys, false, "list", dir, e) == -1)
        return -1;
    for (size_t i = 0; i < n && rc == 0; i++) /* each() may change the folder */
        rc = each(arg, names[i].name);
    free(names);
    return rc;
}

static int
sim_stat(struct io *io, const char *path, struct io_stat *out, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0, inode;
    const bool hit = enter(s, SIM_STAT, &how, &sys);

    if (!hit)
        sys = look_up(s, path, &inode);
    if (sys == 0) {
        const struct inode *i = &s->now.inodes[inode];

        *out = (struct io_stat){.inode = (uint64_t)inode + 2, .is_dir = i->is_dir};
        if (!i->is_dir)
            out->bytes = i->data->n;
        out->blocks = (out->bytes + 4095) / 4096 * 4096;
        for (size_t d = 0; d < s->now.n; d++)
            for (size_t k = 0; k < s->now.inodes[d].n_entries; k++)
                out->links += s->now.inodes[d].entries[k].inode == inode;
    }
    return leave(s, hit, sys, false, "look at", path, e);
}

static int
sim_space(struct io *io, uint64_t *free_bytes, uint64_t *all, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0;
    const bool hit = enter(s, SIM_SPACE, &how, &sys);

    *all = (uint64_t)1 << 40;
    *free_bytes = *all / 2;
    return leave(s, hit, sys, false, "look at the file system of", "the store", e);
}

static int
sim_lock(struct io *io, int h, struct err *e)
{
    struct sim *s = of(io);
    enum sim_how how;
    int sys = 0;
    const bool hit = enter(s, SIM_LOCK, &how, &sys);
    struct handle *f = handle_of(s, h);
    bool busy = false;

    for (int i = 0; i < SIM_HANDLES && !hit; i++)
        busy |= s->handles[i].used && s->handles[i].locked && i != h &&
                s->handles[i].inode == f->inode;
    f->locked = !hit && !busy;
    if (leave(s, hit, sys, true, "lock", f->path, e) == -1)
        return -1;
    return busy ? err_set(e, ERR_BUSY, EAGAIN, "store: %s is locked", f->path) : 0;
}

static const struct io_ops ops = {
    .open = sim_open,
    .open_nameless = sim_open_nameless,
    .close = sim_close,
    .read = sim_read,
    .write = sim_write,
    .read_bulk = sim_read_bulk,
    .write_bulk = sim_write_bulk,
    .size = sim_size,
    .reserve = sim_reserve,
    .truncate = sim_truncate,
    .sync = sim_sync,
    .sync_dir = sim_sync_dir,
    .name = sim_name,
    .link = sim_link,
    .rename = sim_rename,
    .unlink = sim_unlink,
    .mkdir = sim_mkdir,
    .rmdir = sim_rmdir,
    .list = sim_list,
    .stat = sim_stat,
    .space = sim_space,
    .lock = sim_lock,
};

struct sim *
sim_from(const struct tree *t)
{
    struct sim *s = sim_must(calloc(1, sizeof *s));

    s->io.ops = &ops;
    pthread_mutex_init(&s->mu, NULL);
    tree_copy(&s->now, t);
    tree_copy(&s->base, t);
    return s;
}

struct sim *
sim_new(void)
{
    struct tree empty = {0};
    struct sim *s;

    tree_new_inode(&empty, true); /* SIM_ROOT */
    s = sim_from(&empty);
    tree_done(&empty);
    return s;
}

void
sim_free(struct sim *s)
{
    if (s == NULL)
        return;
    for (int h = 0; h < SIM_HANDLES; h++)
        if (s->handles[h].used)
            free(s->handles[h].path);
    forget_records(s);
    free(s->records);
    tree_done(&s->now);
    tree_done(&s->base);
    pthread_mutex_destroy(&s->mu);
    free(s);
}

struct io *
sim_io(struct sim *s)
{
    return &s->io;
}

void
sim_settle(struct sim *s)
{
    forget_records(s);
    tree_done(&s->base);
    tree_copy(&s->base, &s->now);
}

void
sim_mark(struct sim *s, uint64_t mark)
{
    note(s, R_MARK, SIM_NO_INODE)->n = mark;
}

uint64_t
sim_calls(const struct sim *s, unsigned kinds)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < 32; i++)
        if (kinds & 1u << i)
            n += s->calls[i];
    return n;
}

uint64_t
sim_ops(const struct sim *s)
{
    return sim_calls(s, SIM_ALL);
}

unsigned
sim_handles(const struct sim *s)
{
    unsigned n = 0;

    for (int h = 0; h < SIM_HANDLES; h++)
        n += s->handles[h].used;
    return n;
}

void
sim_fault(struct sim *s, const struct sim_fault *f)
{
    s->faulty = f != NULL;
    s->failed = false;
    s->met = 0;
    if (f != NULL)
        s->fault = *f;
}

void
sim_fail_at(struct sim *s, uint64_t k, int sys)
{
    sim_fault(s, &(struct sim_fault){.at = k, .sys = sys});
}

bool
sim_failed(const struct sim *s)
{
    return s->failed;
}
