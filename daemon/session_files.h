/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SESSION_FILES_H
#define DAEMON_SESSION_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvstore/ledger.h"

struct err;
struct session;

/*
 * The files of class B that belong to a session, as its next commit says. The list is in memory
 * while the log is: chunks by position, then states by position. Main thread.
 */

/* Adds files, or replaces those of the same id; drops others. They count against the owner's
 * QUOTA_DISK, whatever the limit: ask quota_take() before writing them. All or nothing. */
int session_files_change(struct session *s, const struct ledger_file *add, size_t n_add,
                         const struct kvfile_id *drop, size_t n_drop, struct err *e);

const struct ledger_file *session_file(const struct session *s, const struct kvfile_id *id);

/* The tokens behind pos go: states there are dropped, chunks give up the pages that hold any. */
int session_files_cut(struct session *s, uint64_t pos, struct err *e);

/* What a fork of its first pos tokens can share: an array to be freed; NULL with *n 0: none. */
int session_files_until(const struct session *s, uint64_t pos, struct ledger_file **out,
                        size_t *n, struct err *e);

/* The store's: those touched are n_touched_taken when a commit takes them, and then the ledger has
 * them or it has not. */
void session_files_stored(struct session *s, bool done);

/* The store's: the list from the ledger, taken over; and forgotten with the log. */
void session_files_loaded(struct session *s, struct ledger_file *files, size_t n);
void session_files_park(struct session *s);

#endif /* DAEMON_SESSION_FILES_H */
