/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that the daemon writes and we read. The daemon is believed as far as one believes who
 * answers one's questions; but sizes are checked, and that the memory cannot shrink under us, for
 * what is read here may have been handed on by anybody.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "lib/lib.h"
#include "proto/page.h"
#include "proto/ring.h"

struct fathom_page {
    const uint64_t *words;
};

struct fathom_reader {
    struct ring_in in;
    uint64_t bytes, lost;
};

/* All of it, read-only. NULL: *e. */
static const void *
map_all(int fd, uint64_t *bytes, struct err *e)
{
    const int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;
    void *p;

    if (seals == -1 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &st) == -1 ||
        st.st_size <= 0) {
        err_set(e, ERR_INVALID, 0, "descriptor %d is no shared memory of fathomd", fd);
        return NULL;
    }
    *bytes = (uint64_t)st.st_size;
    p = mmap(NULL, *bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        err_set(e, ERR_QUOTA, errno, "mmap: %s", strerror(errno));
        return NULL;
    }
    return p;
}

/* ---- Statistics pages --------------------------------------------------------------- */

struct fathom_page *
fathom_page_open(int fd, struct fathom_error *fe)
{
    struct fathom_page *p = malloc(sizeof *p);
    uint64_t bytes, words[1];
    struct err e;

    if (p == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a page");
    } else if ((p->words = map_all(fd, &bytes, &e)) != NULL) {
        if (bytes == PAGE_BYTES && page_read(p->words, words, 1) == 0)
            return p;
        munmap((void *)(uintptr_t)p->words, bytes);
        err_set(&e, ERR_PROTOCOL, 0, "this is no statistics page that we can read");
    }
    free(p);
    lib_error(fe, &e);
    return NULL;
}

void
fathom_page_close(struct fathom_page *p)
{
    if (p != NULL)
        munmap((void *)(uintptr_t)p->words, PAGE_BYTES);
    free(p);
}

int
fathom_page_read(const struct fathom_page *p, uint64_t *words, size_t n)
{
    return page_read(p->words, words, n);
}

/* ---- Rings -------------------------------------------------------------------------- */

struct fathom_reader *
fathom_reader_open(int fd, struct fathom_error *fe)
{
    struct fathom_reader *r = calloc(1, sizeof *r);
    const uint8_t *map;
    struct err e;

    if (r == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a reader");
    } else if ((map = map_all(fd, &r->bytes, &e)) != NULL) {
        if (ring_open(&r->in, map, r->bytes))
            return r;
        munmap((void *)(uintptr_t)map, r->bytes);
        err_set(&e, ERR_PROTOCOL, 0, "this is no ring that we can read");
    }
    free(r);
    lib_error(fe, &e);
    return NULL;
}

void
fathom_reader_close(struct fathom_reader *r)
{
    if (r == NULL)
        return;
    munmap((void *)(uintptr_t)r->in.map, r->bytes);
    ring_close(&r->in);
    free(r);
}

static int
read_token(struct fathom_record *out, const struct ring_record *rec, const uint8_t *p)
{
    struct ring_token t;

    if (rec->bytes < sizeof t)
        return -1;
    memcpy(&t, p, sizeof t);
    out->id = t.id;
    out->reasoning = t.reasoning != 0;
    out->logprob = t.logprob;
    out->text = (const char *)p + sizeof t;
    out->len = rec->bytes - sizeof t;
    return 0;
}

static int
read_row(struct fathom_record *out, const struct ring_record *rec, const uint8_t *p)
{
    struct ring_logits t;

    if (rec->bytes < sizeof t || (rec->bytes - sizeof t) % sizeof(float) != 0)
        return -1;
    memcpy(&t, p, sizeof t);
    out->vocab = (rec->bytes - sizeof t) / sizeof(float);
    out->row = (const float *)(const void *)(p + sizeof t);
    out->id = t.id;
    out->log_sum = t.log_sum;
    if (t.id >= out->vocab)
        return -1;
    out->logprob = (double)out->row[t.id] - t.log_sum;
    return 0;
}

int
fathom_reader_next(struct fathom_reader *r, struct fathom_record *out,
                   struct fathom_error *fe)
{
    const uint8_t *p = NULL;
    struct ring_record rec;
    struct err e;
    int got = ring_next(&r->in, &rec, &p);

    if (got == 0)
        return 0;
    *out = (struct fathom_record){.text = "", .logprob = (double)NAN};
    if (got == 1) {
        out->pos = rec.pos;
        out->gap = r->in.lost != r->lost;
        r->lost = r->in.lost;
        if (rec.kind == RING_TOKEN) {
            got = read_token(out, &rec, p);
        } else if (rec.kind == RING_LOGITS) {
            got = read_row(out, &rec, p);
        } else {
            out->over = rec.kind == RING_END;
            out->text = (const char *)p;
            out->len = rec.bytes;
            got = out->over ? 0 : -1;
        }
    }
    if (got == 0)
        return 1;
    err_set(&e, ERR_PROTOCOL, 0, "the ring holds no records that we know");
    lib_error(fe, &e);
    return -1;
}
