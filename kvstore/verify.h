/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_VERIFY_H
#define KVSTORE_VERIFY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct err;
struct io;
struct kvfile_model;

struct verify_result {
    bool ledger;    /* session.db can be read; all but `salvage` is 0 if not */
    uint64_t len;   /* tokens */
    uint64_t wrong; /* things that are not as they must be: report() had a line for each */
    uint64_t files, files_good;
    uint64_t orphans,
        orphan_bytes;   /* files that no row names; nothing wrong, catalog_sweep()'s */
    uint64_t states;    /* from which the session could go on */
    uint64_t best;      /* the last such position; 0: only from the tokens */
    uint64_t recompute; /* tokens to be computed again from there */
    uint64_t
        salvage; /* without the ledger: tokens that the chunks hold, from the first on */
};

/*
 * Recomputes all of a session that is closed: SQLite's own check of the ledger, its rules, every
 * file it names with all its hashes, the chunks' tokens against the ledger's, and that chunks
 * and states chain. m: files of another model are wrong too; NULL: any. Changes nothing. 0 if all
 * could be looked at, whatever was found; -1 if not (ERR_BUSY: somebody has it open). Takes as
 * long as reading every byte; report() ends it by returning not 0, and *stop (NULL is fine), looked at
 * before each file, by being true: ERR_CANCELLED.
 */
int store_verify(struct io *io, const char *dir, const struct kvfile_model *m,
                 const atomic_bool *stop,
                 int (*report)(void *arg, bool wrong, const char *text), void *arg,
                 struct verify_result *out, struct err *e);

#endif /* KVSTORE_VERIFY_H */
