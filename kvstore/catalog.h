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
    char why[120];
};

/* Opens or makes the store in io's root; takes its lock (ERR_BUSY: another fathomd has it). */
int catalog_open(struct io *io, struct catalog **out, struct err *e);
void catalog_close(struct catalog *c); /* clean: no session is hot any more. NULL is fine */

/* All sessions, in no order. Not 0 from each() ends it with that. */
int catalog_each(struct catalog *c, int (*each)(void *arg, const struct catalog_entry *en),
                 void *arg, struct err *e);

/* What the index says of one session; durable only with the ledger's next open. */
int catalog_note(struct catalog *c, const struct catalog_entry *en, struct err *e);
/* In front of its ledger's first change; and when it is closed. */
int catalog_hot(struct catalog *c, const struct kvfile_id *id, bool hot, struct err *e);

enum { CATALOG_DIR_MAX = 64 };

void catalog_dir(const struct kvfile_id *id,
                 char dir[CATALOG_DIR_MAX]); /* "sessions/ab/..." */
void catalog_new_id(struct kvfile_id *id);   /* random */

/* A new session's folder with a ledger that holds `first`; all durable. */
int catalog_create(struct catalog *c, const struct kvfile_id *id,
                   const struct ledger_change *first, struct err *e);

/* The same with the chunks of `from` that `files` names linked into it (copied if the file
 * system gives no more links), and states likewise. */
int catalog_fork(struct catalog *c, const struct kvfile_id *from,
                 const struct kvfile_id *to, const struct ledger_change *first,
                 struct err *e);

/* Gone after any crash; the files go in catalog_sweep(). Its ledger must be closed. */
int catalog_delete(struct catalog *c, const struct kvfile_id *id, struct err *e);
int catalog_quarantine(struct catalog *c, const struct kvfile_id *id, const char *why,
                       struct err *e);

/* Frees what is in trash/ and tmp/, and files of class B that no ledger names; a little at a
 * time: 1 if there is more. */
int catalog_sweep(struct catalog *c, struct err *e);

#endif /* KVSTORE_CATALOG_H */
