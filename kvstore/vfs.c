/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SQLite's files through struct io: see vfs.h for what is promised.
 *
 * Two things are stricter than in SQLite's own unix VFS. Every file that was made is durable by name
 * with its first sync (there: journals and WAL only). And SQLite may sync once more after a
 * sync that failed, when it rolls back or closes; the kernel would then report success for pages
 * that it has dropped, so the file refuses (io.h). Time, sleep and randomness are the
 * default VFS's. No xDeviceCharacteristics: a power cut may tear whatever was being written.
 *
 * SQLite has checksums in its write-ahead log, but none in a database: a bit of a token or of an
 * access mode that turns over would be served. So each page ends with the XXH3-64 of what is in
 * front of it, seeded with its place; it is made when the page is written, which is when the log's
 * content moves into the database, and looked at whenever it is read. What SQLite has in memory or in
 * the log has anything in these 8 bytes.
 */
#include "config.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/vfs.h"
#include "kvstore/wal.h"

enum { PATH_ROOM = 512, SECTOR = 4096, SMALLEST_PAGE = 512 /* of SQLite's */ };

struct vfs {
    sqlite3_vfs base;
    struct io *io;
    sqlite3_vfs *os; /* the default one */
    bool sums;
    struct wal_found log;
    char name[];
};

struct vfs_file {
    sqlite3_file base;
    struct io *io;
    int h;
    bool new_name;                 /* perhaps nobody has synced its folder */
    bool failed;                   /* a sync did */
    bool delete_on_close;          /* as SQLite asked */
    bool sums;                     /* a database whose pages have them */
    const struct wal_found *fixes; /* of a log; NULL: none */
    char path[PATH_ROOM];
};

static _Thread_local struct err last;

static struct vfs_file *
file_of(sqlite3_file *base)
{
    return (struct vfs_file *)base;
}

static struct vfs *
vfs_of(sqlite3_vfs *base)
{
    return (struct vfs *)base;
}

/* "." for a name in the root. */
static void
folder_of(const char *path, char dir[PATH_ROOM])
{
    const char *slash = strrchr(path, '/');
    const size_t n = slash != NULL ? (size_t)(slash - path) : 1;

    memcpy(dir, slash != NULL ? path : ".", n);
    dir[n] = '\0';
}

static int
file_close(sqlite3_file *base)
{
    struct vfs_file *f = file_of(base);

    f->io->ops->close(f->io, f->h);
    if (f->delete_on_close)
        f->io->ops->unlink(f->io, f->path, &last);
    return SQLITE_OK;
}

static uint64_t
sum_of(const uint8_t *page, uint64_t at)
{
    return XXH3_64bits_withSeed(page, VFS_PAGE - VFS_SUM, at);
}

void
vfs_seal_page(uint8_t page[VFS_PAGE], uint64_t at)
{
    const uint64_t sum = sum_of(page, at);

    memcpy(page + VFS_PAGE - VFS_SUM, &sum,
           sizeof sum); /* little-endian, as all files of ours */
}

/* Parts of the first page are read before anybody knows how large a page is; all of it is, later. */
static int
check_page(const struct vfs_file *f, const uint8_t *p, int n, uint64_t at)
{
    uint64_t sum;

    if (n < SMALLEST_PAGE)
        return SQLITE_OK;
    if (n == VFS_PAGE && at % VFS_PAGE == 0) {
        memcpy(&sum, p + VFS_PAGE - VFS_SUM, sizeof sum);
        if (sum == sum_of(p, at))
            return SQLITE_OK;
    }
    err_set(&last, ERR_DAMAGED, 0,
            "store: %s: the page at %llu does not match its checksum", f->path,
            (unsigned long long)at);
    return SQLITE_IOERR_DATA;
}

static int
file_read(sqlite3_file *base, void *p, int n, sqlite3_int64 at)
{
    struct vfs_file *f = file_of(base);
    const ssize_t got = f->io->ops->read(f->io, f->h, p, (size_t)n, (uint64_t)at, &last);

    if (got == -1)
        return SQLITE_IOERR_READ;
    if (f->fixes != NULL)
        wal_mend(f->fixes, p, (uint64_t)got, (uint64_t)at);
    if (got == n)
        return f->sums ? check_page(f, p, n, (uint64_t)at) : SQLITE_OK;
    memset((uint8_t *)p + got, 0, (size_t)(n - got)); /* as SQLite wants it */
    return SQLITE_IOERR_SHORT_READ;
}

static int
refuse(const struct vfs_file *f, int rc)
{
    err_set(&last, ERR_READ_ONLY, EIO, "store: %s takes no more: a sync of it has failed",
            f->path);
    return rc;
}

static int
file_write(sqlite3_file *base, const void *p, int n, sqlite3_int64 at)
{
    struct vfs_file *f = file_of(base);
    uint8_t page[VFS_PAGE];

    if (f->failed)
        return refuse(f, SQLITE_IOERR_WRITE);
    f->fixes = NULL; /* all of it is in the database */
    if (f->sums && n == VFS_PAGE) {
        memcpy(page, p, VFS_PAGE);
        vfs_seal_page(page, (uint64_t)at);
        p = page;
    }
    if (f->io->ops->write(f->io, f->h, p, (size_t)n, (uint64_t)at, &last) == 0)
        return SQLITE_OK;
    return last.code == ERR_QUOTA ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

static int
file_truncate(sqlite3_file *base, sqlite3_int64 n)
{
    struct vfs_file *f = file_of(base);

    if (f->failed)
        return refuse(f, SQLITE_IOERR_TRUNCATE);
    f->fixes = NULL;
    return f->io->ops->truncate(f->io, f->h, (uint64_t)n, &last) == 0
               ? SQLITE_OK
               : SQLITE_IOERR_TRUNCATE;
}

static int
file_sync(sqlite3_file *base, int flags)
{
    struct vfs_file *f = file_of(base);
    char dir[PATH_ROOM];

    (void)flags;
    if (f->failed)
        return refuse(f, SQLITE_IOERR_FSYNC);
    f->failed = true;
    if (f->io->ops->sync(f->io, f->h, &last) == -1)
        return SQLITE_IOERR_FSYNC;
    if (f->new_name) {
        folder_of(f->path, dir);
        if (f->io->ops->sync_dir(f->io, dir, &last) == -1)
            return SQLITE_IOERR_DIR_FSYNC;
        f->new_name = false;
    }
    f->failed = false;
    return SQLITE_OK;
}

static int
file_size(sqlite3_file *base, sqlite3_int64 *out)
{
    struct vfs_file *f = file_of(base);
    uint64_t n;

    if (f->io->ops->size(f->io, f->h, &n, &last) == -1)
        return SQLITE_IOERR_FSTAT;
    *out = (sqlite3_int64)n;
    return SQLITE_OK;
}

static int
file_lock(sqlite3_file *base, int kind)
{
    (void)base;
    (void)kind;
    return SQLITE_OK;
}

static int
file_check_lock(sqlite3_file *base, int *out)
{
    (void)base;
    *out = 0;
    return SQLITE_OK;
}

static int
file_control(sqlite3_file *base, int op, void *arg)
{
    (void)base;
    (void)op;
    (void)arg;
    return SQLITE_NOTFOUND;
}

static int
file_sector(sqlite3_file *base)
{
    (void)base;
    return SECTOR;
}

static int
file_characteristics(sqlite3_file *base)
{
    (void)base;
    return 0;
}

static const sqlite3_io_methods methods = {
    .iVersion = 1, /* neither shared memory nor mapped files */
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_lock,
    .xCheckReservedLock = file_check_lock,
    .xFileControl = file_control,
    .xSectorSize = file_sector,
    .xDeviceCharacteristics = file_characteristics,
};

static int
vfs_open(sqlite3_vfs *base, const char *path, sqlite3_file *out, int flags, int *out_flags)
{
    struct io *io = vfs_of(base)->io;
    struct vfs_file *f = file_of(out);
    const int how = IO_READ | (flags & SQLITE_OPEN_READWRITE ? IO_WRITE : 0);

    memset(f, 0, sizeof *f); /* no methods: nothing to close */
    if (path == NULL || strlen(path) >= sizeof f->path) {
        err_set(&last, ERR_INTERNAL, 0,
                path == NULL ? "store: SQLite wants a temporary file (temp_store=MEMORY?)"
                             : "store: the path of a database is too long");
        return SQLITE_CANTOPEN;
    }
    f->h = io->ops->open(io, path, how, &last);
    if (f->h == -1 && last.code == ERR_NOT_FOUND && flags & SQLITE_OPEN_CREATE) {
        f->h = io->ops->open(io, path, how | IO_CREATE | IO_EXCLUSIVE, &last);
    }
    if (f->h == -1)
        return last.code == ERR_QUOTA ? SQLITE_FULL : SQLITE_CANTOPEN;
    if (flags & SQLITE_OPEN_MAIN_DB && flags & SQLITE_OPEN_READWRITE &&
        io->ops->lock(io, f->h, &last) == -1) {
        io->ops->close(io, f->h);
        return last.code == ERR_BUSY ? SQLITE_BUSY : SQLITE_CANTOPEN;
    }
    f->io = io;
    /* Also if it was there: whoever made it may have been killed before its first sync. */
    f->new_name = flags & SQLITE_OPEN_CREATE;
    f->sums = vfs_of(base)->sums && flags & SQLITE_OPEN_MAIN_DB;
    f->fixes = flags & SQLITE_OPEN_WAL && vfs_of(base)->log.n_fixes > 0 ? &vfs_of(base)->log
                                                                        : NULL;
    f->delete_on_close = flags & SQLITE_OPEN_DELETEONCLOSE;
    strcpy(f->path, path);
    f->base.pMethods = &methods;
    if (out_flags != NULL)
        *out_flags = flags;
    return SQLITE_OK;
}

static int
vfs_delete(sqlite3_vfs *base, const char *path, int sync_dir)
{
    struct io *io = vfs_of(base)->io;
    char dir[PATH_ROOM];

    if (io->ops->unlink(io, path, &last) == -1)
        return last.code == ERR_NOT_FOUND ? SQLITE_IOERR_DELETE_NOENT : SQLITE_IOERR_DELETE;
    if (!sync_dir)
        return SQLITE_OK;
    folder_of(path, dir);
    return io->ops->sync_dir(io, dir, &last) == 0 ? SQLITE_OK : SQLITE_IOERR_DIR_FSYNC;
}

static int
vfs_access(sqlite3_vfs *base, const char *path, int flags, int *out)
{
    struct io *io = vfs_of(base)->io;
    struct io_stat st;

    *out = 0;
    if (io->ops->stat(io, path, &st, &last) == -1)
        return last.code == ERR_NOT_FOUND ? SQLITE_OK : SQLITE_IOERR_ACCESS;
    /* An empty journal is none: SQLite's own VFS says so too. */
    *out = flags != SQLITE_ACCESS_EXISTS || st.is_dir || st.bytes > 0;
    return SQLITE_OK;
}

static int
vfs_full_path(sqlite3_vfs *base, const char *path, int n, char *out)
{
    (void)base;
    if (strlen(path) >= (size_t)n)
        return SQLITE_CANTOPEN;
    strcpy(out, path); /* they are relative to the io's root, which does not move */
    return SQLITE_OK;
}

/* Extensions: none. */
static void *
vfs_dlopen(sqlite3_vfs *base, const char *path)
{
    (void)base;
    (void)path;
    return NULL;
}

static void
vfs_dlerror(sqlite3_vfs *base, int n, char *out)
{
    (void)base;
    sqlite3_snprintf(n, out, "no extensions");
}

static void (*vfs_dlsym(sqlite3_vfs *base, void *p, const char *name))(void)
{
    (void)base;
    (void)p;
    (void)name;
    return NULL;
}

static void
vfs_dlclose(sqlite3_vfs *base, void *p)
{
    (void)base;
    (void)p;
}

static int
vfs_randomness(sqlite3_vfs *base, int n, char *out)
{
    sqlite3_vfs *os = vfs_of(base)->os;

    return os->xRandomness(os, n, out);
}

static int
vfs_sleep(sqlite3_vfs *base, int us)
{
    sqlite3_vfs *os = vfs_of(base)->os;

    return os->xSleep(os, us);
}

static int
vfs_time(sqlite3_vfs *base, double *out)
{
    sqlite3_vfs *os = vfs_of(base)->os;

    return os->xCurrentTime(os, out);
}

static int
vfs_time_int64(sqlite3_vfs *base, sqlite3_int64 *out)
{
    sqlite3_vfs *os = vfs_of(base)->os;

    return os->xCurrentTimeInt64(os, out);
}

static int
vfs_last_sys(sqlite3_vfs *base, int n, char *out)
{
    (void)base;
    if (n > 0)
        sqlite3_snprintf(n, out, "%s", last.text);
    return last.sys;
}

int
vfs_register(struct io *io, const char *name, bool sums, struct err *e)
{
    const size_t n = strlen(name) + 1;
    struct vfs *v = calloc(1, sizeof *v + n);
    int rc;

    if (v == NULL)
        return err_set(e, ERR_INTERNAL, ENOMEM, "store: no memory for a VFS");
    memcpy(v->name, name, n);
    v->io = io;
    v->sums = sums;
    v->os = sqlite3_vfs_find(NULL); /* initialises SQLite */
    v->base = (sqlite3_vfs){
        .iVersion = 2,
        .szOsFile = sizeof(struct vfs_file),
        .mxPathname = PATH_ROOM - 1,
        .zName = v->name,
        .xOpen = vfs_open,
        .xDelete = vfs_delete,
        .xAccess = vfs_access,
        .xFullPathname = vfs_full_path,
        .xDlOpen = vfs_dlopen,
        .xDlError = vfs_dlerror,
        .xDlSym = vfs_dlsym,
        .xDlClose = vfs_dlclose,
        .xRandomness = vfs_randomness,
        .xSleep = vfs_sleep,
        .xCurrentTime = vfs_time,
        .xGetLastError = vfs_last_sys,
        .xCurrentTimeInt64 = vfs_time_int64,
    };
    rc = v->os != NULL && sqlite3_vfs_find(name) == NULL ? sqlite3_vfs_register(&v->base, 0)
                                                         : SQLITE_ERROR;
    if (rc == SQLITE_OK)
        return 0;
    free(v);
    return err_set(e, ERR_INTERNAL, 0, "store: SQLite takes no VFS named %s", name);
}

void
vfs_mend_log(const char *name, const struct wal_found *w)
{
    sqlite3_vfs *base = sqlite3_vfs_find(name);

    if (base != NULL)
        vfs_of(base)->log = *w;
}

void
vfs_witness(struct sqlite3_file *log, uint32_t n)
{
    const struct vfs_file *f = file_of(log);

    if (log->pMethods == &methods && !f->failed)
        wal_witness(f->io, f->h, n);
}

const struct wal_found *
vfs_mended(const char *name)
{
    sqlite3_vfs *base = sqlite3_vfs_find(name);

    return base != NULL && vfs_of(base)->log.n_fixes > 0 ? &vfs_of(base)->log : NULL;
}

void
vfs_unregister(const char *name)
{
    sqlite3_vfs *base = sqlite3_vfs_find(name);

    if (base == NULL)
        return;
    sqlite3_vfs_unregister(base);
    free(vfs_of(base));
}

const struct err *
vfs_error(void)
{
    return &last;
}

void
vfs_clear_error(void)
{
    memset(&last, 0, sizeof last);
}
