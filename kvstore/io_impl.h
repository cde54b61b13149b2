/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_IO_IMPL_H
#define KVSTORE_IO_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kvstore/io.h"

/* The real struct io, for io.c, io_names.c and io_bulk.c only. */

enum {
    IO_PATH_MAX = 512,
    IO_BLOCK = 4096,       /* what direct transfers are aligned to */
    IO_PIECE = 1024 * 1024 /* one request of a bulk call */
};

/* One bulk call. p, n and at are multiples of IO_BLOCK; fd stays open during the call. */
struct bulk_job {
    int fd;
    bool write;
    bool direct; /* by O_DIRECT: a read that is not whole blocks has met the end */
    bool bounce; /* a read: see io_set_bounce() */
    uint8_t *p;
    size_t n;
    uint64_t at;
    unsigned deadline_ms; /* how long nothing may come back */
};

/* io_bulk.c: picks io_uring or threads. Bytes moved (fewer than n only at the end of a file that
 * is read), or minus an errno: ETIMEDOUT and EBUSY as io.h says. */
struct bulk;

struct bulk *bulk_new(bool uring);
void bulk_free(struct bulk *b); /* what is stuck is left to the kernel, and never freed */
const char *bulk_name(const struct bulk *b);
ssize_t bulk_move(struct bulk *b, const struct bulk_job *j);
unsigned bulk_stuck(struct bulk *b);

/* io_threads.c: a few threads that take a call's pieces one by one. */
struct threads;

struct threads *threads_new(void);
void threads_free(struct threads *t);
ssize_t threads_move(struct threads *t, const struct bulk_job *j);
unsigned threads_stuck(struct threads *t);

struct io_file {
    int fd;
    bool direct;
    char *
        part; /* the name that a nameless one has where the file system knows none without */
    char path[IO_PATH_MAX];
};

struct io_root {
    struct io io;
    int fd;
    bool openat2; /* the kernel has it and lets us */
    struct bulk *bulk;
    unsigned deadline_ms; /* atomic */
    bool bounce;          /* atomic */
    pthread_mutex_t mu;
    struct io_file **files; /* mu; [n_files], by handle; NULL: free */
    size_t n_files;         /* mu */
};

static inline struct io_root *
io_root_of(const struct io *io)
{
    return (struct io_root *)(uintptr_t)io;
}

/* io.c, for io_names.c. A descriptor below the root, or -1 with errno. */
int io_open_beneath(const struct io_root *r, const char *path, int flags);
/* The folder that holds path, and where in path the last name begins. */
int io_open_parent(const struct io_root *r, const char *path, const char **last);
struct io_file *io_file_of(struct io_root *r, int h);

/* io_names.c: all that is about names, not about what files hold. */
int io_sync_dir(struct io *io, const char *dir, struct err *e);
int io_name(struct io *io, int h, const char *path, struct err *e);
int io_link(struct io *io, const char *from, const char *to, struct err *e);
int io_rename(struct io *io, const char *from, const char *to, struct err *e);
int io_unlink(struct io *io, const char *path, struct err *e);
int io_mkdir(struct io *io, const char *path, struct err *e);
int io_rmdir(struct io *io, const char *path, struct err *e);
int io_list(struct io *io, const char *dir, int (*each)(void *arg, const char *name),
            void *arg, struct err *e);
int io_stat(struct io *io, const char *path, struct io_stat *out, struct err *e);
int io_space(struct io *io, uint64_t *free_bytes, uint64_t *all, struct err *e);

#endif /* KVSTORE_IO_IMPL_H */
