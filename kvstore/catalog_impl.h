/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_CATALOG_IMPL_H
#define KVSTORE_CATALOG_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/err.h"
#include "kvstore/catalog.h"
#include "kvstore/ledger_impl.h"

/* Session ids, unsorted unless somebody sorts them. */
struct ids {
    struct kvfile_id *v;
    size_t n, room;
};

int ids_add(struct ids *l, const struct kvfile_id *id, struct err *e);
bool ids_has(const struct ids *l, const struct kvfile_id *id); /* one by one */
void ids_drop(struct ids *l, const struct kvfile_id *id);
void ids_done(struct ids *l);
int ids_order(const void *a, const void *b); /* for qsort, bsearch */

enum { CATALOG_UUID = 36 };

void catalog_uuid(const struct kvfile_id *id, char text[CATALOG_UUID + 1]);
bool catalog_parse_uuid(const char *text, struct kvfile_id *id);

struct catalog {
    struct io *io;
    int held;             /* the file `lock` */
    pthread_mutex_t lock; /* for all below */
    sqlite3
        *db; /* NULL: there is no index, and on the disk none; the next start makes one */
    bool
        dead; /* a change of the index failed, and it could not be taken off the disk: why */
    struct err why;
    uint64_t tried_ns; /* when one was last made */
    _Atomic uint64_t failures, renewals;
    struct ids hot;
    struct ids due;          /* to be swept: have been hot, as their rows' `swept` says */
    struct ids mended;       /* when the store was opened */
    struct ids building;     /* their folders in tmp/ are not to be swept */
    bool shelf_durable[256]; /* sessions/ab is there after a crash */
};

/* Makes what a ledger and its folder say into an entry; a damaged one if it cannot be read. */
int catalog_rows(sqlite3 *db, int (*each)(void *arg, const struct catalog_entry *en),
                 void *arg, struct err *e);
void catalog_look(struct io *io, const struct kvfile_id *id, struct catalog_entry *en);
int catalog_put(struct catalog *c, const struct catalog_entry *en, struct err *e);

/* catalog_index.c: opens or makes index.db and brings it up to date with the folders. */
int catalog_index_open(struct catalog *c, struct err *e);
/* After a failed change of the index. 0: there is a new one in its place, or none; what the change was
 * about need not be known to it. -1: the disk is full and nothing has changed, or c->dead. */
int catalog_index_failed(struct catalog *c, struct err *e);
/* Takes the index off the disk, durably, and makes one that only knows what is hot. */
int catalog_index_renew(struct catalog *c, struct err *e);
/* Where there is none on the disk: tries to make it, now and then. */
int catalog_index_retry(struct catalog *c, struct err *e);
bool catalog_has_index(const struct catalog *c);

/*
 * A folder on its way in: begin makes tmp/<uuid> with c/ and k/, which the caller fills and syncs;
 * ledger, last, writes session.db and syncs it and the folder; finish puts that in place; drop gives
 * it up.
 */
int catalog_build_begin(struct catalog *c, const struct kvfile_id *id,
                        char dir[CATALOG_DIR_MAX], struct err *e);
int catalog_build_ledger(struct catalog *c, const char *dir,
                         const struct ledger_change *first, struct err *e);
int catalog_build_finish(struct catalog *c, const struct kvfile_id *id, struct err *e);
void catalog_build_drop(struct catalog *c, const struct kvfile_id *id);

#endif /* KVSTORE_CATALOG_IMPL_H */
