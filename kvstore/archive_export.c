/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session to a tar. Headers say nothing of the machine: owner 0, mode 0644, the time when the
 * session was made; members are in a fixed order. So the same session is the same bytes.
 */
#include "config.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "kvstore/archive.h"
#include "kvstore/archive_impl.h"
#include "kvstore/io.h"

enum { BLOCK = 1 << 18, LAST_BLOCK = 10240, DIR_ROOM = 512 };

struct export
{
    struct io *io;
    const char *dir;
    struct archive *tar;
    time_t made;
    int (*write)(void *arg, const void *p, size_t n, struct err *e);
    void *arg;
    struct err *e; /* set by write() if that failed */
    bool failed;
};

/* After a failure it takes all and throws it away: told of it, libarchive 3.6 would free less than
 * it has, a block of each export whose reader leaves. */
static la_ssize_t
give(struct archive *tar, void *arg, const void *p, size_t n)
{
    struct export *x = arg;

    (void)tar;
    x->failed = x->failed || x->write(x->arg, p, n, x->e) == -1;
    return (la_ssize_t)n;
}

static int
tar_failed(struct export *x, const char *what)
{
    if (x->failed)
        return -1;
    return err_set(x->e, ERR_INTERNAL, archive_errno(x->tar), "export: %s: %s", what,
                   archive_error_string(x->tar));
}

static int
member(struct export *x, const char *name, const void *p, size_t n)
{
    struct archive_entry *en = archive_entry_new();
    int rc;

    if (en == NULL)
        return err_set(x->e, ERR_QUOTA, errno, "no memory to export");
    archive_entry_set_pathname(en, name);
    archive_entry_set_filetype(en, AE_IFREG);
    archive_entry_set_perm(en, 0644);
    archive_entry_set_mtime(en, x->made, 0);
    archive_entry_set_size(en, (la_int64_t)n);
    rc = archive_write_header(x->tar, en);
    archive_entry_free(en);
    if (rc != ARCHIVE_OK || (n > 0 && archive_write_data(x->tar, p, n) != (la_ssize_t)n))
        return tar_failed(x, name);
    return x->failed ? -1 : 0;
}

/* One file of class B into memory; *image is the caller's to free. */
static int
read_file(struct export *x, const struct ledger_file *f, uint8_t **image)
{
    uint64_t bytes;

    *image = f->bytes <= ARCHIVE_FILE_MAX ? aligned_alloc(KVFILE_ALIGN, f->bytes) : NULL;
    if (*image == NULL)
        return err_set(x->e, ERR_QUOTA, errno, "no memory to export a file");
    if (kvfile_read(x->io, x->dir, &f->about, *image, f->bytes, &bytes, x->e) == -1)
        return -1;
    return bytes == f->bytes
               ? 0
               : err_set(x->e, ERR_DAMAGED, 0, "a file of %s is too short", x->dir);
}

static int
export_file(struct export *x, const struct ledger_file *f)
{
    char name[KVFILE_NAME_MAX];
    uint8_t *image;
    int rc = read_file(x, f, &image);

    kvfile_name(&f->about, name);
    if (rc == 0)
        rc = kvfile_check(image, f->bytes, NULL, &f->about, NULL, NULL, NULL, x->e);
    if (rc == -1)
        err_prefix(x->e, "%s: cannot be exported (its tokens alone can)", name);
    else
        rc = member(x, name, image, f->bytes);
    free(image);
    return rc;
}

/* The first block of each file: it holds the hashes of the rest. */
static int
hash_heads(struct export *x, struct manifest *m)
{
    uint8_t head[KVFILE_ALIGN];
    int rc = 0;

    m->heads = calloc(m->c.n_files + 1, sizeof *m->heads);
    if (m->heads == NULL)
        return err_set(x->e, ERR_QUOTA, errno, "no memory to export");
    for (size_t i = 0; rc == 0 && i < m->c.n_files; i++) {
        char path[DIR_ROOM], name[KVFILE_NAME_MAX];
        int h;

        kvfile_name(&m->c.files[i].about, name);
        snprintf(path, sizeof path, "%s/%s", x->dir, name);
        h = x->io->ops->open(x->io, path, IO_READ, x->e);
        if (h == -1)
            return -1;
        switch (x->io->ops->read(x->io, h, head, sizeof head, 0, x->e)) {
        case sizeof head: archive_hash(head, sizeof head, &m->heads[i]); break;
        case -1: rc = -1; break;
        default: rc = err_set(x->e, ERR_DAMAGED, 0, "%s is too short", path); break;
        }
        x->io->ops->close(x->io, h);
    }
    return rc;
}

static int
export_manifest(struct export *x, const struct ledger_content *c, bool tokens_only)
{
    struct manifest m = {.tokens_only = tokens_only, .c = *c};
    struct buf text;
    int rc;

    if (tokens_only)
        m.c.n_files = 0;
    archive_hash(c->tokens, c->len * sizeof *c->tokens, &m.tokens);
    archive_hash(c->ops, c->n_ops * sizeof *c->ops, &m.ops);
    buf_init(&text, ARCHIVE_MANIFEST_MAX);
    rc = hash_heads(x, &m);
    if (rc == 0)
        rc = manifest_write(&m, &text, x->e);
    if (rc == 0)
        rc = member(x, "manifest.json", text.p, text.len);
    buf_done(&text);
    free(m.heads);
    return rc;
}

static int
export_all(struct export *x, const struct ledger_content *c, bool tokens_only)
{
    if (archive_write_set_format_pax_restricted(x->tar) != ARCHIVE_OK ||
        archive_write_set_bytes_per_block(x->tar, BLOCK) != ARCHIVE_OK ||
        archive_write_set_bytes_in_last_block(x->tar, LAST_BLOCK) != ARCHIVE_OK ||
        archive_write_open2(x->tar, x, NULL, give, NULL, NULL) != ARCHIVE_OK)
        return tar_failed(x, "begin");
    if (export_manifest(x, c, tokens_only) == -1 ||
        member(x, "tokens.u32", c->tokens, c->len * sizeof *c->tokens) == -1 ||
        member(x, "ops.bin", c->ops, c->n_ops * sizeof *c->ops) == -1)
        return -1;
    for (size_t i = 0; i < c->n_files && !tokens_only; i++) {
        if (export_file(x, &c->files[i]) == -1)
            return -1;
    }
    if (archive_write_close(x->tar) != ARCHIVE_OK)
        return tar_failed(x, "end");
    return x->failed ? -1 : 0;
}

int
archive_export(struct io *io, const char *dir, const struct ledger_content *content,
               bool tokens_only,
               int (*write)(void *arg, const void *p, size_t n, struct err *e), void *arg,
               struct err *e)
{
    struct export x = {
        .io = io,
        .dir = dir,
        .tar = archive_write_new(),
        .made = (time_t)(content->meta.created_ms / 1000),
        .write = write,
        .arg = arg,
        .e = e,
    };
    int rc;

    if (x.tar == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory to export");
    rc = export_all(&x, content, tokens_only);
    x.failed |= rc == -1; /* the end that libarchive would write is no longer wanted */
    archive_write_free(x.tar);
    return rc;
}
