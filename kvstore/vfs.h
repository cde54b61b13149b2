/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_VFS_H
#define KVSTORE_VFS_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct io;
struct sqlite3_file;
struct wal_found;

/*
 * A SQLite VFS on a struct io: databases that are opened through it (sqlite3_open_v2(path, &db,
 * flags, name)) live where the io says, paths are relative to its root, and every byte, sync and
 * name that SQLite writes goes through the io. Any thread.
 *
 * One connection a database, while it lasts (of those that may write): another one is SQLITE_BUSY.
 * There is no shared memory, so WAL needs PRAGMA locking_mode=EXCLUSIVE before the first access;
 * there are no temporary files, so PRAGMA temp_store=MEMORY. A new file's folder is synced with
 * its first sync. After a sync that failed the file takes no more writes and syncs.
 *
 * sums: the last VFS_SUM bytes of each page of a database are its checksum. It must have pages of
 * VFS_PAGE bytes that leave so many free (SQLITE_FCNTL_RESERVE_BYTES, before its first table), and
 * must have been written so from its first page on. A page that does not match is SQLITE_IOERR_DATA.
 */
enum { VFS_PAGE = 4096, VFS_SUM = 8 };

int vfs_register(struct io *io, const char *name, bool sums, struct err *e);
void vfs_seal_page(uint8_t page[VFS_PAGE], uint64_t at); /* as a write at `at` does */
/* Of databases that are opened through it from now on: their log is read with these fixes, until it
 * is begun anew. */
void vfs_mend_log(const char *name, const struct wal_found *w);
/* A commit has synced this log (SQLITE_FCNTL_JOURNAL_POINTER), which has n frames. */
void vfs_witness(struct sqlite3_file *log, uint32_t n);
/* What that said; NULL: nothing. */
const struct wal_found *vfs_mended(const char *name);
void vfs_unregister(const char *name); /* no database may be open; not registered is fine */

/* What a call of this thread met last in a VFS of ours, for the text that SQLite cannot give:
 * "disk I/O error". ERR_NONE if nothing since vfs_clear_error(). */
const struct err *vfs_error(void);
void vfs_clear_error(void);

#endif /* KVSTORE_VFS_H */
