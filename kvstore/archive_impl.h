/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_ARCHIVE_IMPL_H
#define KVSTORE_ARCHIVE_IMPL_H

#include "base/buf.h"
#include "kvstore/ledger_impl.h"

enum {
    ARCHIVE_VERSION = 1,
    ARCHIVE_MANIFEST_MAX = 32 << 20,
    ARCHIVE_FILE_MAX = 256 << 20, /* no file of class B comes near */
};

struct archive_hash {
    uint8_t b[16]; /* XXH3-128, canonical */
};

/* manifest.json. */
struct manifest {
    bool tokens_only;
    struct ledger_content c; /* without tokens and ops, whose numbers are set */
    struct archive_hash tokens, ops;
    struct archive_hash
        *heads; /* [c.n_files]: of the first 4,096 bytes, which hash the rest */
};

void archive_hash(const void *p, size_t n, struct archive_hash *out);
int manifest_write(const struct manifest *m, struct buf *out, struct err *e);
/* Believes nothing; what it accepts keeps the rules of the ledger. manifest_done() in any case. */
int manifest_read(const char *text, size_t n, struct manifest *m, struct err *e);
void manifest_done(struct manifest *m); /* frees c's points and files, and heads */

#endif /* KVSTORE_ARCHIVE_IMPL_H */
