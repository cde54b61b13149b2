/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/vfs.h"
#include "tests/kvfile_sample.h"
#include "tests/store_rig.h"

struct io *
rig_folder(char name[32])
{
    struct err e = {0};
    struct io *io;

    snprintf(name, 32, "store_rig_XXXXXX");
    if (mkdtemp(name) == NULL) {
        perror(name);
        exit(99);
    }
    io = io_open_root(name, false, &e);
    if (io == NULL) {
        fprintf(stderr, "%s\n", e.text);
        exit(99);
    }
    return io;
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void
rig_folder_done(struct io *io, const char *name)
{
    io_close_root(io);
    nftw(name, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

void
rig_meta(struct ledger_meta *m, const char *name)
{
    *m = (struct ledger_meta){
        .uid = 1000, .gid = 100, .mode = 0640, .created_ms = 1, .turns = 2};
    snprintf(m->name, sizeof m->name, "%s", name);
    memset(m->fingerprint, 0x5a, sizeof m->fingerprint);
}

uint32_t
rig_token(uint64_t seed, uint64_t pos)
{
    return (uint32_t)((seed * 1000003 + pos) * 2654435761u >> 7) % 1000;
}

void
rig_tokens(uint32_t *ids, uint64_t seed, uint64_t pos, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = rig_token(seed, pos + i);
}

void
rig_point(struct ledger_point *p, const char *label, uint64_t pos)
{
    *p = (struct ledger_point){
        .pos = pos, .made_ms = 1000 + pos, .automatic = label[0] == 't'};
    snprintf(p->label, sizeof p->label, "%s", label);
}

void
rig_op(struct ledger_op *o, unsigned n)
{
    memset(o->body, (int)(n % 251), sizeof o->body);
    memset(o->id, 0, sizeof o->id);
    memcpy(o->id, &n, sizeof n);
}

void
rig_id(struct kvfile_id *id, unsigned n)
{
    memset(id->b, 0x11, sizeof id->b);
    memcpy(id->b, &n, sizeof n);
}

void
rig_chunk(struct ledger_file *f, unsigned n, uint64_t pos, uint32_t n_tokens)
{
    *f = (struct ledger_file){
        .about = {.type = KVFILE_CHUNK, .pos = pos, .n_tokens = n_tokens},
        .n_pages = n_tokens / KVFILE_PAGE_TOKENS,
        .bytes = 8 * KVFILE_ALIGN,
    };
    rig_id(&f->about.id, n);
}

void
rig_state(struct ledger_file *f, unsigned n, uint64_t pos)
{
    *f = (struct ledger_file){
        .about = {.type = KVFILE_STATE, .pos = pos, .state_bytes = 5000, .logits = true},
        .turn = true,
        .bytes = 4 * KVFILE_ALIGN,
    };
    rig_id(&f->about.id, n);
}

int
rig_publish(struct io *io, const char *dir, struct ledger_file *f, const uint32_t *tokens,
            struct err *e)
{
    const struct kvfile_sample sample = {.about = f->about,
                                         .tokens = tokens + f->about.pos};
    struct kvfile_plan plan;
    uint8_t *image;
    int rc;

    image = kvfile_sample_make(&sample, &plan);
    f->bytes = plan.bytes;
    rc = kvfile_publish(io, dir, &f->about, image, plan.bytes, e);
    free(image);
    return rc;
}

static bool
same_meta(const struct ledger_meta *a, const struct ledger_meta *b)
{
    return strcmp(a->name, b->name) == 0 && a->uid == b->uid && a->gid == b->gid &&
           a->mode == b->mode && a->created_ms == b->created_ms &&
           a->used_ms == b->used_ms && a->turns == b->turns &&
           a->rollbacks == b->rollbacks && a->turn_open == b->turn_open &&
           a->quarantined == b->quarantined &&
           memcmp(a->fingerprint, b->fingerprint, sizeof a->fingerprint) == 0 &&
           a->rows_written == b->rows_written && a->state_written == b->state_written &&
           a->rows_tokens == b->rows_tokens;
}

static bool
same_file(const struct ledger_file *a, const struct ledger_file *b)
{
    return memcmp(&a->about.id, &b->about.id, sizeof a->about.id) == 0 &&
           a->about.type == b->about.type && a->about.pos == b->about.pos &&
           a->about.n_tokens == b->about.n_tokens &&
           a->about.state_bytes == b->about.state_bytes &&
           a->about.logits == b->about.logits && a->n_pages == b->n_pages &&
           a->turn == b->turn && a->bytes == b->bytes;
}

const char *
rig_differ(const struct ledger_content *a, const struct ledger_content *b)
{
    if (!same_meta(&a->meta, &b->meta))
        return "meta";
    if (a->len != b->len ||
        (a->len > 0 && memcmp(a->tokens, b->tokens, a->len * sizeof *a->tokens) != 0))
        return "tokens";
    if (a->n_points != b->n_points || a->n_ops != b->n_ops || a->n_files != b->n_files)
        return "numbers of points, ops, files";
    for (size_t i = 0; i < a->n_points; i++) {
        if (strcmp(a->points[i].label, b->points[i].label) != 0 ||
            a->points[i].pos != b->points[i].pos ||
            a->points[i].automatic != b->points[i].automatic ||
            a->points[i].made_ms != b->points[i].made_ms)
            return "a point";
    }
    for (size_t i = 0; i < a->n_ops; i++) {
        if (memcmp(&a->ops[i], &b->ops[i], sizeof a->ops[i]) != 0)
            return "an op";
    }
    for (size_t i = 0; i < a->n_files; i++) {
        if (!same_file(&a->files[i], &b->files[i]))
            return "a file";
    }
    return NULL;
}

void
rig_seal_pages(const char *path)
{
    uint8_t page[VFS_PAGE];
    FILE *f = fopen(path, "r+");

    if (f == NULL)
        abort();
    for (uint64_t at = 0; fread(page, 1, sizeof page, f) == sizeof page; at += VFS_PAGE) {
        vfs_seal_page(page, at);
        if (fseek(f, (long)at, SEEK_SET) != 0 || fwrite(page, 1, sizeof page, f) == 0 ||
            fseek(f, (long)(at + VFS_PAGE), SEEK_SET) != 0)
            abort();
    }
    fclose(f);
}
