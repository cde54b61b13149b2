/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session from a tar that anybody may have made. The manifest says which members follow, in which
 * order and how long; each must be exactly that, a plain file, and what it holds is checked
 * before it is used. Names in the tar are compared, never opened. The session is built in
 * tmp/ and renamed when all of it is there.
 */
#include "config.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore/archive.h"
#include "kvstore/archive_impl.h"
#include "kvstore/catalog_impl.h"

enum { PIECE = 1 << 16 };

struct import {
    struct catalog *catalog;
    const struct archive_import *how;
    struct archive *tar;
    ssize_t (*read)(void *arg, void *p, size_t room, struct err *e);
    void *arg;
    struct err *e; /* set by read() if that failed */
    bool failed;
    char dir[CATALOG_DIR_MAX]; /* tmp/... */
    struct manifest m;         /* its c.tokens and c.ops come later */
    struct kvfile_model first; /* how->model NULL: of the first file, once there is one */
    struct kvfile_part *parts; /* of that one */
    bool adopts;               /* another model's: its files are left out */
    uint8_t piece[PIECE];
};

static la_ssize_t
take(struct archive *tar, void *arg, const void **p)
{
    struct import *x = arg;
    const ssize_t n = x->read(x->arg, x->piece, sizeof x->piece, x->e);

    *p = x->piece;
    if (n >= 0)
        return n;
    x->failed = true;
    archive_set_error(tar, EIO, "the writer is gone");
    return -1;
}

static int
tar_failed(struct import *x, const char *what)
{
    const char *why = archive_error_string(x->tar);

    if (x->failed)
        return -1;
    return err_set(x->e, ERR_DAMAGED, 0, "%s: %s", what,
                   why != NULL ? why : "the tar ends too early");
}

/* The next member must be this one. bytes UINT64_MAX: as long as it likes; its length. */
static int
expect(struct import *x, const char *name, uint64_t *bytes)
{
    struct archive_entry *en;
    const int rc = archive_read_next_header(x->tar, &en);
    const char *got;
    la_int64_t n;

    if (rc == ARCHIVE_EOF)
        return x->failed
                   ? -1
                   : err_set(x->e, ERR_DAMAGED, 0, "%s is missing: the tar ends", name);
    if (rc != ARCHIVE_OK)
        return tar_failed(x, name);
    got = archive_entry_pathname(en);
    n = archive_entry_size(en);
    if (got == NULL || strcmp(got, name) != 0)
        return err_set(x->e, ERR_DAMAGED, 0, "%s must come here, not '%.100s'", name,
                       got != NULL ? got : "");
    if (archive_entry_filetype(en) != AE_IFREG || archive_entry_hardlink(en) != NULL ||
        archive_entry_symlink(en) != NULL)
        return err_set(x->e, ERR_DAMAGED, 0, "%s is not a plain file", name);
    if (n < 0 || (*bytes != UINT64_MAX && (uint64_t)n != *bytes))
        return err_set(x->e, ERR_DAMAGED, 0,
                       "%s has %" PRId64 " bytes, %" PRIu64 " are announced", name,
                       (int64_t)n, *bytes);
    *bytes = (uint64_t)n;
    return 0;
}

static int
read_exactly(struct import *x, const char *name, void *p, size_t n)
{
    size_t have = 0;

    while (have < n) {
        const la_ssize_t got = archive_read_data(x->tar, (char *)p + have, n - have);

        if (got <= 0)
            return got == 0 && !x->failed
                       ? err_set(x->e, ERR_DAMAGED, 0, "%s ends too early", name)
                       : tar_failed(x, name);
        have += (size_t)got;
    }
    return 0;
}

/* Of any length up to `most`; memory only for what has come. */
static int
read_growing(struct import *x, const char *name, uint64_t n, struct buf *b)
{
    while (b->len < n) {
        const size_t more = n - b->len < PIECE ? n - b->len : PIECE;

        if (buf_reserve(b, more, x->e) == -1 ||
            read_exactly(x, name, b->p + b->len, more) == -1)
            return -1;
        b->len += more;
    }
    return 0;
}

static int
check_hash(struct import *x, const char *name, const void *p, size_t n,
           const struct archive_hash *want)
{
    struct archive_hash h;

    archive_hash(p, n, &h);
    return memcmp(&h, want, sizeof h) == 0
               ? 0
               : err_set(x->e, ERR_DAMAGED, 0, "%s: its hash is not the manifest's", name);
}

static int
import_manifest(struct import *x)
{
    uint64_t n = UINT64_MAX;
    struct buf text;
    int rc;

    if (expect(x, "manifest.json", &n) == -1)
        return -1;
    if (n > ARCHIVE_MANIFEST_MAX)
        return err_set(x->e, ERR_DAMAGED, 0, "manifest.json is too large");
    buf_init(&text, ARCHIVE_MANIFEST_MAX + 1);
    rc = read_growing(x, "manifest.json", n, &text);
    if (rc == 0)
        rc = manifest_read((const char *)text.p, text.len, &x->m, x->e);
    buf_done(&text);
    return rc;
}

static int
check_model(struct import *x)
{
    static const uint8_t none[sizeof x->m.c.meta.fingerprint];
    const struct kvfile_model *model = x->how->model;
    uint8_t *fingerprint = x->m.c.meta.fingerprint;

    if (model == NULL || memcmp(fingerprint, none, sizeof none) == 0 ||
        memcmp(fingerprint, model->fingerprint, sizeof none) == 0)
        return 0;
    if (!x->how->adopt)
        return err_set(x->e, ERR_MODEL_MISMATCH, 0, "the session is of another model");
    memcpy(fingerprint, model->fingerprint, sizeof none);
    x->adopts = true;
    return 0;
}

static int
check_room(struct import *x)
{
    uint64_t bytes = x->m.c.len * sizeof(uint32_t);

    for (size_t i = 0; i < x->m.c.n_files && !x->adopts; i++)
        bytes += x->m.c.files[i].bytes; /* 1 << 20 of 1 << 28 at most */
    if (x->m.c.len > x->how->most_tokens)
        return err_set(x->e, ERR_QUOTA, 0,
                       "the session has %" PRIu64 " tokens, %" PRIu64 " are left of %s",
                       x->m.c.len, x->how->most_tokens, x->how->tokens_limit);
    if (bytes > x->how->most_bytes)
        return err_set(x->e, ERR_QUOTA, 0,
                       "the session takes %" PRIu64 " bytes, %" PRIu64 " are left of %s",
                       bytes, x->how->most_bytes, x->how->bytes_limit);
    return 0;
}

static int
import_tokens(struct import *x)
{
    uint64_t n = x->m.c.len * sizeof(uint32_t);
    struct buf b;

    if (expect(x, "tokens.u32", &n) == -1)
        return -1;
    buf_init(&b, n);
    if (read_growing(x, "tokens.u32", n, &b) == -1 ||
        check_hash(x, "tokens.u32", b.p, n, &x->m.tokens) == -1) {
        buf_done(&b);
        return -1;
    }
    x->m.c.tokens = (uint32_t *)(void *)b.p; /* malloc's: aligned */
    for (uint64_t i = 0; x->how->model != NULL && i < x->m.c.len; i++) {
        if (x->m.c.tokens[i] >= x->how->model->vocab)
            return err_set(x->e, ERR_MODEL_MISMATCH, 0,
                           "token %" PRIu64 " is %" PRIu32
                           ", the model's vocabulary has %" PRIu32,
                           i, x->m.c.tokens[i], x->how->model->vocab);
    }
    return 0;
}

static int
import_ops(struct import *x)
{
    uint64_t n = x->m.c.n_ops * sizeof *x->m.c.ops;

    if (expect(x, "ops.bin", &n) == -1)
        return -1;
    x->m.c.ops = malloc(n + 1);
    if (x->m.c.ops == NULL)
        return err_set(x->e, ERR_QUOTA, errno, "no memory to import");
    if (read_exactly(x, "ops.bin", x->m.c.ops, n) == -1)
        return -1;
    return check_hash(x, "ops.bin", x->m.c.ops, n, &x->m.ops);
}

/* A chunk's tokens, as far as they are still the session's. */
static int
check_tokens(struct import *x, const struct ledger_file *f, const char *name,
             const uint32_t *tokens)
{
    const uint64_t n = (uint64_t)f->n_pages * KVFILE_PAGE_TOKENS;

    if (f->about.type == KVFILE_STATE ||
        memcmp(tokens, x->m.c.tokens + f->about.pos, n * sizeof *tokens) == 0)
        return 0;
    return err_set(x->e, ERR_DAMAGED, 0, "%s is of other tokens than the session's", name);
}

/* Nobody knows which model it should be: then all files are of the first one's, and that is the
 * session's. */
static int
remember_model(struct import *x, const char *name, const uint8_t *image)
{
    static const uint8_t none[sizeof x->m.c.meta.fingerprint];
    const uint8_t *session = x->m.c.meta.fingerprint;

    kvfile_model_of(image, &x->first);
    if (memcmp(session, none, sizeof none) != 0 &&
        memcmp(session, x->first.fingerprint, sizeof none) != 0)
        return err_set(x->e, ERR_MODEL_MISMATCH, 0,
                       "%s: it is not of the model that the manifest names", name);
    x->parts = malloc((x->first.n_parts + 1) * sizeof *x->parts);
    if (x->parts == NULL)
        return err_set(x->e, ERR_QUOTA, errno, "no memory to import");
    memcpy(x->parts, x->first.parts, x->first.n_parts * sizeof *x->parts);
    x->first.parts = x->parts;
    return 0;
}

static int
import_image(struct import *x, size_t i, const char *name, uint8_t *image)
{
    const struct ledger_file *f = &x->m.c.files[i];
    const struct kvfile_model *model = x->how->model;
    const uint32_t *tokens = NULL;

    if (model == NULL && x->parts != NULL)
        model = &x->first;
    if (read_exactly(x, name, image, f->bytes) == -1 ||
        check_hash(x, name, image, KVFILE_ALIGN, &x->m.heads[i]) == -1)
        return -1;
    if (kvfile_check(image, f->bytes, model, &f->about, NULL, NULL, &tokens, x->e) == -1)
        return err_prefix(x->e, "%s", name);
    if (model == NULL && remember_model(x, name, image) == -1)
        return -1;
    if (check_tokens(x, f, name, tokens) == -1)
        return -1;
    return kvfile_publish(x->catalog->io, x->dir, &f->about, image, f->bytes, x->e);
}

static int
import_file(struct import *x, size_t i)
{
    uint64_t bytes = x->m.c.files[i].bytes;
    char name[KVFILE_NAME_MAX];
    uint8_t *image;
    int rc;

    kvfile_name(&x->m.c.files[i].about, name);
    if (expect(x, name, &bytes) == -1)
        return -1;
    if (x->adopts)
        return 0; /* the next header skips it */
    image = aligned_alloc(KVFILE_ALIGN, bytes);
    if (image == NULL)
        return err_set(x->e, ERR_QUOTA, errno, "no memory to import a file");
    rc = import_image(x, i, name, image);
    free(image);
    return rc;
}

static int
expect_end(struct import *x)
{
    struct archive_entry *en;
    const int rc = archive_read_next_header(x->tar, &en);

    if (rc == ARCHIVE_EOF && !x->failed)
        return 0;
    if (rc != ARCHIVE_OK)
        return tar_failed(x, "the end");
    return err_set(x->e, ERR_DAMAGED, 0, "'%.100s' does not belong there",
                   archive_entry_pathname(en) != NULL ? archive_entry_pathname(en) : "");
}

static int
write_ledger(struct import *x)
{
    struct ledger_meta *meta = &x->m.c.meta;
    const struct ledger_change first = {
        .meta = meta,
        .has_tokens = true,
        .tokens = x->m.c.tokens,
        .n_tokens = x->m.c.len,
        .has_points = true,
        .points = x->m.c.points,
        .n_points = x->m.c.n_points,
        .ops = x->m.c.ops,
        .n_ops = x->m.c.n_ops,
        .add = x->m.c.files,
        .n_add = x->adopts ? 0 : x->m.c.n_files,
    };

    if (x->how->name != NULL)
        snprintf(meta->name, sizeof meta->name, "%s", x->how->name);
    meta->uid = x->how->uid;
    meta->gid = x->how->gid;
    meta->mode = x->how->mode;
    meta->used_ms = x->how->now_ms;
    if (x->how->told != NULL)
        *x->how->told = (struct archive_told){.files = x->adopts ? 0 : x->m.c.n_files,
                                              .left_out = x->adopts ? x->m.c.n_files : 0};
    return catalog_build_ledger(x->catalog, x->dir, &first, x->e);
}

static int
import_all(struct import *x)
{
    if (archive_read_support_format_tar(x->tar) != ARCHIVE_OK ||
        archive_read_open2(x->tar, x, NULL, take, NULL, NULL) != ARCHIVE_OK)
        return tar_failed(x, "not a tar");
    if (import_manifest(x) == -1 || check_model(x) == -1 || check_room(x) == -1 ||
        import_tokens(x) == -1 || import_ops(x) == -1)
        return -1;
    for (size_t i = 0; i < x->m.c.n_files; i++) {
        if (import_file(x, i) == -1)
            return -1;
    }
    return expect_end(x) == -1 || write_ledger(x) == -1 ? -1 : 0;
}

int
archive_import(struct catalog *c, const struct kvfile_id *id,
               const struct archive_import *how,
               ssize_t (*read)(void *arg, void *p, size_t room, struct err *e), void *arg,
               struct catalog_entry *out, struct err *e)
{
    struct import *x = calloc(1, sizeof *x);
    int rc;

    if (x == NULL || (x->tar = archive_read_new()) == NULL) {
        free(x);
        return err_set(e, ERR_QUOTA, errno, "no memory to import");
    }
    x->catalog = c;
    x->how = how;
    x->read = read;
    x->arg = arg;
    x->e = e;
    rc = catalog_build_begin(c, id, x->dir, e);
    if (rc == 0) {
        rc = import_all(x);
        if (rc == 0)
            rc = catalog_build_finish(c, id, e);
        else
            catalog_build_drop(c, id);
    }
    if (rc == 0)
        catalog_look(c->io, id, out);
    archive_read_free(x->tar);
    free(x->m.c.tokens);
    free(x->m.c.ops);
    free(x->parts);
    manifest_done(&x->m);
    free(x);
    return rc;
}
