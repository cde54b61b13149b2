/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_IO_H
#define KVSTORE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct err;

/*
 * Everything that the store does to files, SQLite's part included (vfs.h), goes through one of
 * these: so a test can put a file system in its place that forgets what was not synced, tears
 * writes, loses directory entries, or fails at the k-th call.
 *
 * Paths are relative to the store's root, never begin with a slash and never hold "..";
 * symbolic links are not followed. Handles are small numbers of this io. All functions may be
 * called by any thread; one handle is used by one thread at a time. -1 with *e set: ERR_NOT_FOUND
 * (ENOENT), ERR_EXISTS (EEXIST), ERR_QUOTA (ENOSPC, EDQUOT), ERR_UNAVAILABLE (a read that the
 * disk does not answer, ETIMEDOUT), ERR_INTERNAL (EMFILE, ENFILE, ENOMEM, EINVAL),
 * ERR_READ_ONLY (a change failed), ERR_DAMAGED (a read failed); e->sys is the errno, the text
 * names the path.
 */
struct io;

enum io_open { IO_READ = 1, IO_WRITE = 2, IO_CREATE = 4, IO_EXCLUSIVE = 8, IO_DIRECT = 16 };

struct io_stat {
    uint64_t bytes;  /* length */
    uint64_t blocks; /* bytes that it takes on the disk */
    uint64_t inode;
    uint32_t links;
    bool is_dir;
};

struct io_ops {
    /* A regular file; the handle, from 0 on. IO_WRITE may read too. IO_DIRECT goes past the
     * page cache where the file system can; then all reads and writes are at multiples of
     * 4096 in memory, length and place. */
    int (*open)(struct io *io, const char *path, int flags, struct err *e);
    /* A file without a name in this directory: IO_WRITE, IO_DIRECT if that can be. If it is
     * closed without a name, it is gone. */
    int (*open_nameless)(struct io *io, const char *dir, struct err *e);
    void (*close)(struct io *io, int h);
    /* All n bytes or -1, but a read ends early at the end of the file: how many it got. */
    ssize_t (*read)(struct io *io, int h, void *p, size_t n, uint64_t at, struct err *e);
    int (*write)(struct io *io, int h, const void *p, size_t n, uint64_t at, struct err *e);
    /* The same for much: p, n and at multiples of 4096; as fast as the disk can. */
    ssize_t (*read_bulk)(struct io *io, int h, void *p, size_t n, uint64_t at,
                         struct err *e);
    int (*write_bulk)(struct io *io, int h, const void *p, size_t n, uint64_t at,
                      struct err *e);
    int (*size)(struct io *io, int h, uint64_t *bytes, struct err *e);
    int (*reserve)(struct io *io, int h, uint64_t bytes, struct err *e); /* fallocate */
    int (*truncate)(struct io *io, int h, uint64_t bytes, struct err *e);
    /* Data, and what is needed to find it. After a failure what was written since the last
     * success is lost or not, and never comes back by trying again: make a new file. */
    int (*sync)(struct io *io, int h, struct err *e);
    int (*sync_dir)(struct io *io, const char *dir, struct err *e);
    /* Of a nameless one, in the directory that it was made in. Never replaces a file. */
    int (*name)(struct io *io, int h, const char *path, struct err *e);
    int (*link)(struct io *io, const char *from, const char *to, struct err *e);
    int (*rename)(struct io *io, const char *from, const char *to, struct err *e);
    int (*unlink)(struct io *io, const char *path, struct err *e);
    int (*mkdir)(struct io *io, const char *path, struct err *e);
    int (*rmdir)(struct io *io, const char *path, struct err *e);
    /* "." is the root. Not 0 from each() ends it with that. */
    int (*list)(struct io *io, const char *dir, int (*each)(void *arg, const char *name),
                void *arg, struct err *e);
    int (*stat)(struct io *io, const char *path, struct io_stat *out, struct err *e);
    int (*space)(struct io *io, uint64_t *free_bytes, uint64_t *all, struct err *e);
    /* Until the handle is closed nobody else has this file so: ERR_BUSY if somebody does. */
    int (*lock)(struct io *io, int h, struct err *e);
};

struct io {
    const struct io_ops *ops;
};

/* Sets *e by the rules above and returns -1; for whoever makes a struct io. what: "read". */
int io_error(struct err *e, int sys, bool change, const char *what, const char *path);

/* The real one, on a directory that is there. uring: use io_uring for bulk if the kernel lets
 * us, else (and with false) threads. */
struct io *io_open_root(const char *root, bool uring, struct err *e);
void io_close_root(struct io *io); /* NULL is fine; all handles must be closed */
const char *io_bulk_name(const struct io *io); /* "io_uring" or "threads" */

/*
 * A disk may stop answering. All calls but the bulk ones then wait as long as the kernel does: they
 * are for threads that may wait, watched by one that does not. A bulk call during which nothing has come back for this long fails
 * with e->sys ETIMEDOUT (a read: ERR_UNAVAILABLE, a write: ERR_READ_ONLY). Its requests are still
 * with the kernel, so the memory that it was given may yet be read or written: it must not be
 * used, given away, unmapped or freed before io_bulk_stuck() says 0. While IO_STUCK_MOST calls
 * are stuck, further ones fail at once, with their memory untouched (e->sys EBUSY).
 */
enum { IO_DEADLINE_MS = 30000, IO_STUCK_MOST = 4 };

void io_set_deadline(struct io *io,
                     unsigned ms); /* of the real one; IO_DEADLINE_MS at first */
/* Bulk reads that go past the page cache use memory of their own in between, in huge pages where
 * they can be had (at first: on). Off is right if all such reads are into huge pages. */
void io_set_bounce(struct io *io, bool on);
unsigned io_bulk_stuck(struct io *io); /* calls whose requests have not come back */

#endif /* KVSTORE_IO_H */
