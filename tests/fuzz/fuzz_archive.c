/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tar to import, of a model that there is not. With a first byte of 0 the rest is the tar as it is; else
 * the heads of its members get their checksums and the manifest its digest, so that mutations
 * reach what lies behind. What is accepted is a session that can be exported again, and imported
 * again from that, the same; what is not leaves nothing behind.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "kvstore/archive.h"
#include "kvstore/archive_impl.h"
#include "kvstore/io.h"
#include "tests/kvfile_sample.h"
#include "tests/sim_fs.h"
#include "tests/store_rig.h"

enum { BLOCK = 512, SIZE_AT = 124, SUM_AT = 148, MOST = 1 << 17 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
must(int truth)
{
    if (!truth)
        abort();
}

static void
sum_head(uint8_t *head)
{
    unsigned sum = 0;
    char text[8];

    memset(head + SUM_AT, ' ', 8);
    for (int i = 0; i < BLOCK; i++)
        sum += head[i];
    snprintf(text, sizeof text, "%06o", sum);
    memcpy(head + SUM_AT, text, 7);
}

static void
make_sums(uint8_t *tar, size_t n)
{
    bool first = true;

    for (size_t at = 0; at + BLOCK <= n;) {
        char digits[12] = "";
        size_t bytes;

        memcpy(digits, tar + at + SIZE_AT, 11);
        bytes = strtoul(digits, NULL, 8);
        sum_head(tar + at);
        at += BLOCK;
        if (bytes > n - at)
            return;
        if (first && bytes > 60) {
            struct archive_hash h;

            archive_hash(tar + at, bytes - 48, &h);
            for (int i = 0; i < 32; i++)
                tar[at + bytes - 36 + i] =
                    "0123456789abcdef"[h.b[i / 2] >> (i % 2 ? 0 : 4) & 15];
        }
        first = false;
        at += (bytes + BLOCK - 1) / BLOCK * BLOCK;
    }
}

struct reader {
    const uint8_t *p;
    size_t n;
};

static ssize_t
feed(void *arg, void *p, size_t room, struct err *e)
{
    struct reader *r = arg;
    const size_t n = r->n < room ? r->n : room;

    (void)e;
    if (n > 0)
        memcpy(p, r->p, n);
    r->p += n;
    r->n -= n;
    return (ssize_t)n;
}

static int
collect(void *arg, const void *p, size_t n, struct err *e)
{
    return buf_add(arg, p, n, e);
}

static int
import(struct catalog *c, unsigned n, const uint8_t *p, size_t len,
       struct catalog_entry *en)
{
    const struct archive_import how = {.mode = 0600,
                                       .most_tokens = 1 << 16,
                                       .most_bytes = 1 << 20,
                                       .model = &kvfile_sample_model,
                                       .adopt = n % 2};
    struct reader r = {p, len};
    struct kvfile_id id;
    struct err e = {0};
    int rc;

    rig_id(&id, n);
    rc = archive_import(c, &id, &how, feed, &r, en, &e);
    must(rc == 0 || (e.code != ERR_NONE && e.text[0] != '\0'));
    must(rc == -1 || !en->damaged);
    return rc;
}

static void
load(struct io *io, const struct catalog_entry *en, struct ledger_content *content)
{
    char dir[CATALOG_DIR_MAX];
    struct ledger *l;
    struct err e;

    catalog_dir(&en->id, dir);
    must(ledger_look(io, dir, &l, &e) == 0);
    must(ledger_load(l, content, &e) == 0);
    ledger_close(l);
}

static void
export_and_back(struct io *io, struct catalog *c, const struct catalog_entry *en)
{
    struct ledger_content content, again;
    struct catalog_entry second;
    char dir[CATALOG_DIR_MAX];
    struct buf out;
    struct err e;

    load(io, en, &content);
    catalog_dir(&en->id, dir);
    buf_init(&out, 1 << 22);
    must(archive_export(io, dir, &content, false, collect, &out, &e) == 0);
    must(import(c, 2, out.p, out.len, &second) == 0);
    load(io, &second, &again);
    must(rig_differ(&content, &again) == NULL);
    ledger_content_done(&again);
    ledger_content_done(&content);
    buf_done(&out);
}

static int
count(void *arg, const struct catalog_entry *en)
{
    (void)en;
    ++*(int *)arg;
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    struct catalog_entry en;
    struct catalog *c;
    struct sim *sim;
    struct err e;
    uint8_t *tar;
    int n = 0, rc;

    if (len < 1 || len > MOST)
        return 0;
    tar = malloc(len);
    must(tar != NULL);
    memcpy(tar, p + 1, len - 1);
    if (p[0] != 0)
        make_sums(tar, len - 1);
    sim = sim_new();
    must(catalog_open(sim_io(sim), &c, &e) == 0);
    rc = import(c, p[0] >> 1 & 1, tar, len - 1, &en);
    must(catalog_each(c, count, &n, &e) == 0 && n == (rc == 0));
    if (rc == 0)
        export_and_back(sim_io(sim), c, &en);
    while ((rc = catalog_sweep(c, &e)) == 1)
        continue;
    must(rc == 0);
    catalog_close(c);
    must(sim_handles(sim) == 0);
    sim_free(sim);
    free(tar);
    return 0;
}
