/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_VFS_H
#define KVSTORE_VFS_H

struct err;
struct io;

/*
 * A SQLite VFS on a struct io: databases that are opened through it (sqlite3_open_v2(path, &db,
 * flags, name)) live where the io says, paths are relative to its root, and every byte, sync and
 * name that SQLite writes goes through the io. Any thread.
 *
 * One connection a database, while it lasts (of those that may write): another one is SQLITE_BUSY.
 * There is no shared memory, so WAL needs PRAGMA locking_mode=EXCLUSIVE before the first access;
 * there are no temporary files, so PRAGMA temp_store=MEMORY. A new file's folder is synced with
 * its first sync. After a sync that failed the file takes no more writes and syncs.
 */
int vfs_register(struct io *io, const char *name, struct err *e);
void vfs_unregister(const char *name); /* no database may be open; not registered is fine */

/* What a call of this thread met last in a VFS of ours, for the text that SQLite cannot give:
 * "disk I/O error". ERR_NONE if nothing since vfs_clear_error(). */
const struct err *vfs_error(void);
void vfs_clear_error(void);

#endif /* KVSTORE_VFS_H */
