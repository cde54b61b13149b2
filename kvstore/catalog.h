/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_CATALOG_H
#define KVSTORE_CATALOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvstore/ledger.h"

struct err;
struct io;

/*
 * Which sessions there are. On the disk:
 *
 *   index.db                    this catalogue: a cache, made again from the folders if it is
 *                               missing, damaged, or was not closed
 *   sessions/ab/<uuid>/         session.db, c/NAME.kvc, k/NAME.kvt
 *   tmp/ trash/ quarantine/     folders on their way in, out, or aside
 *
 * After an unclean end only sessions that were open for writing are looked at again (the table
 * `hot` names them, durably, before their first change), and folders that the index does not know.
 * Any thread; calls are serialised inside. The functions that change folders order their syncs so
 * that after a crash a session is there as a whole or not at all.
 */
struct catalog;

struct catalog_entry {
    struct kvfile_id id;
    struct ledger_meta meta;
    uint64_t len, n_points, disk_bytes;
    bool damaged; /* its folder is there but its ledger cannot be read: see `why` */
    char why[200];
};

/* Opens or makes the store in io's root; takes its lock (ERR_BUSY: another fathomd has it). */
int catalog_open(struct io *io, struct catalog **out, struct err *e);
/* Sessions that are still hot will be looked at again. NULL is fine. */
void catalog_close(struct catalog *c);

/* Whether a bit of its log had turned over when the store was opened, and was put right. */
bool catalog_mended(const struct catalog *c, const struct kvfile_id *id);

/*
 * A write or sync of the index that fails takes no session's changes away: the index is made anew at
 * once, with what is hot and nothing else, so that the next start looks at all folders. If that cannot
 * be, there is none until the next start, which says the same; only if the old one cannot even be taken
 * away no further session can be made hot (ERR_READ_ONLY). How often each has been.
 */
struct catalog_health {
    uint64_t failures, renewals;
};

void catalog_health(const struct catalog *c, struct catalog_health *out);
void catalog_why(struct catalog *c, struct err *why); /* waits for others' calls */

/* All sessions, in no order. Not 0 from each() ends it with that; each() must not call any
 * function of the catalogue. */
int catalog_each(struct catalog *c, int (*each)(void *arg, const struct catalog_entry *en),
                 void *arg, struct err *e);

/* What the index says of one session; not durable by itself: after a crash the index may say what
 * it said when the session was last opened, and the session, still hot, is looked at again. */
int catalog_note(struct catalog *c, const struct catalog_entry *en, struct err *e);

/* A session is hot from before its ledger is opened and its first file published until its ledger
 * is closed and nothing of it is being written any more. true is durable when it returns; false
 * comes after catalog_note(). catalog_sweep() leaves files of hot sessions alone, which is what keeps
 * a file safe that is there before its row. */
int catalog_hot(struct catalog *c, const struct kvfile_id *id, bool hot, struct err *e);

enum { CATALOG_DIR_MAX = 64 };

void catalog_dir(const struct kvfile_id *id,
                 char dir[CATALOG_DIR_MAX]); /* "sessions/ab/..." */
void catalog_new_id(struct kvfile_id *id);   /* random */

/* A new session's folder with a ledger that holds `first`; all durable. These two, delete and
 * quarantine: -1 means that nothing has changed, unless the disk fails in the taking back too. */
int catalog_create(struct catalog *c, const struct kvfile_id *id,
                   const struct ledger_change *first, struct err *e);

/* The same with the files of `from` that first->add names linked into it (copied if the file
 * system gives no more links). Nobody may unlink them meanwhile. */
int catalog_fork(struct catalog *c, const struct kvfile_id *from,
                 const struct kvfile_id *to, const struct ledger_change *first,
                 struct err *e);

/*
 * A copy to look at while the session goes on: a folder in tmp/ into which all files that it has now
 * are linked (copied if there can be no more links) and, with `ledger`, session.db is copied with its
 * write-ahead log, which nobody may have open meanwhile. Nothing of it is durable. catalog_copy_end() gives it up; a sweep
 * frees it.
 */
int catalog_copy(struct catalog *c, const struct kvfile_id *from, bool ledger,
                 struct kvfile_id *copy, char dir[CATALOG_DIR_MAX], struct err *e);
void catalog_copy_end(struct catalog *c, const struct kvfile_id *copy);

/* Gone after any crash; the files go in catalog_sweep(). Its ledger must be closed. */
int catalog_delete(struct catalog *c, const struct kvfile_id *id, struct err *e);
int catalog_quarantine(struct catalog *c, const struct kvfile_id *id, const char *why,
                       struct err *e);

/* Frees what is in trash/ and tmp/, and files of class B that no ledger names: of sessions that
 * have been hot since they were last swept, and are not now. A little at a time: 1 if there is
 * more. */
int catalog_sweep(struct catalog *c, struct err *e);

#endif /* KVSTORE_CATALOG_H */
