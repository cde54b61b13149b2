/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_ARCHIVE_H
#define KVSTORE_ARCHIVE_H

#include "kvstore/catalog.h"

/*
 * A session as a POSIX tar (docs/KVFORMAT.md, "Export"): manifest.json first, then the tokens, the
 * results of operations, and its files of class B. The same session makes the same bytes. Both
 * ways are streams: beside the tokens, one file of class B is in memory at a time. Any thread; they
 * take as long as the disk and the other side do, and end early if a callback returns -1 with *e set.
 */

/* content: all of the ledger (ledger_load). dir: its folder; its files must stay until this
 * returns, and each is checked on its way. */
int archive_export(struct io *io, const char *dir, const struct ledger_content *content,
                   bool tokens_only,
                   int (*write)(void *arg, const void *p, size_t n, struct err *e),
                   void *arg, struct err *e);

struct archive_import {
    const char *name; /* NULL: the one it had */
    uint32_t uid, gid, mode;
    uint64_t now_ms;
    uint64_t most_tokens, most_bytes;       /* what its owner may still have: ERR_QUOTA */
    const char *tokens_limit, *bytes_limit; /* of what, for the text of that error */
    /* NULL: of any one model. Else another model's session is ERR_MODEL_MISMATCH; if `adopt`, it becomes
     * this model's, as far as its vocabulary has the tokens: its files are left out. */
    const struct kvfile_model *model;
    bool adopt;
    struct archive_told *told; /* NULL is fine */
};

struct archive_told {
    uint64_t files, left_out; /* of class B: taken in; of another model */
};

/* A new session from a tar, all checked: durable and in the catalogue, or nothing. read: bytes
 * got, 0 at the end. What is not as archive_export() writes it is ERR_DAMAGED and named. */
int archive_import(struct catalog *c, const struct kvfile_id *id,
                   const struct archive_import *how,
                   ssize_t (*read)(void *arg, void *p, size_t room, struct err *e),
                   void *arg, struct catalog_entry *out, struct err *e);

#endif /* KVSTORE_ARCHIVE_H */
