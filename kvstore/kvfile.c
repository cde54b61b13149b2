/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of class B as bytes: how an image is laid out, sealed and checked. docs/KVFORMAT.md is
 * the same for people; kvfile_io.c brings images to the disk and back.
 *
 * The first block of 4,096 bytes is the head: magic, versions, what the file is about, the table
 * of sections, and in the last 8 bytes the XXH3-64 of all before. In every version to come that
 * much stays, so that a file that is newer can be told from one that is damaged. Sections follow
 * in a fixed order, each at the next multiple of 4,096.
 *
 * The encoding has one form only: the same contents are the same bytes. So the check needs no
 * parser: it reads the few numbers that everything else follows from, bounds them, makes the head
 * that they should have, and compares. What is left then are the sections' hashes, and that
 * the gaps are zero: no bit of a file is without a check. Pure functions; any thread.
 */
#include "config.h"

#include <assert.h>
#include <string.h>
#include <xxhash.h>

#include "base/err.h"
#include "kvstore/kvfile.h"
#include "kvstore/offsets.h"

enum {
    MAX_SECTIONS = 3,
    /* Bounds of what a file may claim, far above any model: no sum below overflows. */
    MAX_VOCAB = 1 << 24,
    MAX_TOKENS_LOG2 = 48,
};

static const uint64_t max_part_of_file = (uint64_t)1 << 40;

/* PNG's trick: a transfer that strips the eighth bit, changes ends of lines or stops at Ctrl-Z
 * is seen at once. */
static const uint8_t magic[8] = {0x89, 'F', 'K', 'V', '\r', '\n', 0x1a, '\n'};

struct hash {
    uint8_t b[16]; /* XXH3-128, canonical */
};

/* As in the file: little-endian, no holes. */
struct section {
    uint32_t kind, reserved;
    uint64_t row_bytes, rows;
    uint64_t at,
        bytes;        /* bytes = row_bytes * rows; zeros up to the next multiple of 4096 */
    struct hash hash; /* of these bytes */
};

struct head {
    uint8_t magic[8];
    uint32_t version, head_bytes;
    uint64_t compatible;   /* features that a reader may do without */
    uint64_t incompatible; /* and such that it has to know: none yet */
    uint64_t file_bytes;
    uint32_t type, n_sections;
    struct kvfile_id id;
    uint8_t fingerprint[32];
    uint64_t layout, page_bytes, state_most;
    uint32_t vocab, n_parts;
    uint64_t pos;
    uint32_t n_tokens, has_logits;
    uint64_t state_bytes;
    struct section sections[MAX_SECTIONS];
    uint8_t zero[KVFILE_ALIGN - 152 - MAX_SECTIONS * sizeof(struct section) - 8];
    uint64_t sum; /* XXH3-64 of all before */
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are read as they are");
_Static_assert(KVFILE_ALIGN == (int)OFFSETS_BLOCK, "one block");
_Static_assert(sizeof(struct section) == 56, "no holes");
_Static_assert(sizeof(struct head) == KVFILE_ALIGN, "no holes");
_Static_assert(sizeof(struct kvfile_part) == 24, "no holes");

static const char *
kind_name(uint32_t kind)
{
    static const char *const names[KVFILE_KINDS] = {
        [KVFILE_LAYOUT] = "layout",    [KVFILE_TOKENS] = "tokens", [KVFILE_PAGES] = "pages",
        [KVFILE_STATE_DATA] = "state", [KVFILE_LOGITS] = "logits",
    };

    return names[kind];
}

/* The sections of such a file, with all but their hashes. The number of them. */
static uint32_t
lay_out(const struct kvfile_model *m, const struct kvfile_about *a,
        struct section s[MAX_SECTIONS], struct kvfile_plan *plan)
{
    const uint64_t pages = a->n_tokens / KVFILE_PAGE_TOKENS;
    uint64_t at = sizeof(struct head);
    uint32_t n = 0;

    memset(s, 0, MAX_SECTIONS * sizeof *s);
    s[n++] = (struct section){
        .kind = KVFILE_LAYOUT, .row_bytes = sizeof(struct kvfile_part), .rows = m->n_parts};
    if (a->type == KVFILE_CHUNK) {
        s[n++] = (struct section){
            .kind = KVFILE_TOKENS, .row_bytes = sizeof(uint32_t), .rows = a->n_tokens};
        s[n++] = (struct section){
            .kind = KVFILE_PAGES, .row_bytes = m->page_bytes, .rows = pages};
    } else {
        s[n++] = (struct section){
            .kind = KVFILE_STATE_DATA, .row_bytes = a->state_bytes, .rows = 1};
        if (a->logits)
            s[n++] = (struct section){
                .kind = KVFILE_LOGITS, .row_bytes = sizeof(float), .rows = m->vocab};
    }
    *plan = (struct kvfile_plan){0};
    for (uint32_t i = 0; i < n; i++) {
        s[i].at = at;
        s[i].bytes = s[i].row_bytes * s[i].rows;
        at = section_behind(at, s[i].bytes);
        switch (s[i].kind) {
        case KVFILE_PAGES: plan->pages_at = s[i].at; break;
        case KVFILE_STATE_DATA: plan->state_at = s[i].at; break;
        case KVFILE_LOGITS: plan->logits_at = s[i].at; break;
        default: break;
        }
    }
    plan->bytes = at;
    return n;
}

void
kvfile_plan(const struct kvfile_model *m, const struct kvfile_about *a,
            struct kvfile_plan *out)
{
    struct section s[MAX_SECTIONS];

    lay_out(m, a, s, out);
}

/* All of the head but hashes, features and sum. */
static void
make_head(const struct kvfile_model *m, const struct kvfile_about *a, struct head *h,
          struct kvfile_plan *plan)
{
    memset(h, 0, sizeof *h);
    memcpy(h->magic, magic, sizeof magic);
    h->version = KVFILE_VERSION;
    h->head_bytes = sizeof *h;
    h->type = a->type;
    h->n_sections = lay_out(m, a, h->sections, plan);
    h->file_bytes = plan->bytes;
    h->id = a->id;
    memcpy(h->fingerprint, m->fingerprint, sizeof h->fingerprint);
    h->layout = m->layout;
    h->page_bytes = m->page_bytes;
    h->state_most = m->state_most;
    h->vocab = m->vocab;
    h->n_parts = m->n_parts;
    h->pos = a->pos;
    h->n_tokens = a->n_tokens;
    h->has_logits = a->logits;
    h->state_bytes = a->state_bytes;
}

static struct hash
hash_of(const void *p, uint64_t n)
{
    XXH128_canonical_t c;
    struct hash out;

    XXH128_canonicalFromHash(&c, XXH3_128bits(p, n));
    memcpy(out.b, c.digest, sizeof out.b);
    return out;
}

static uint64_t
sum_of(const struct head *h)
{
    return XXH3_64bits(h, offsetof(struct head, sum));
}

/* NULL, or what is wrong with these numbers: in every file that we make they are right, and with
 * right ones all sums and products of this file fit. */
static const char *
wrong_numbers(const struct kvfile_model *m, const struct kvfile_about *a)
{
    if (m->n_parts > KVFILE_MAX_PARTS)
        return "more parts than there can be";
    if (m->vocab == 0 || m->vocab > MAX_VOCAB)
        return "a vocabulary of impossible size";
    if (m->page_bytes > max_part_of_file || m->state_most > max_part_of_file)
        return "pages or states of impossible size";
    if (a->pos >> MAX_TOKENS_LOG2 != 0)
        return "an impossible position";
    if (a->type == KVFILE_CHUNK) {
        if (a->state_bytes != 0 || a->logits)
            return "a chunk with a state";
        if (a->n_tokens == 0 || a->n_tokens % KVFILE_PAGE_TOKENS != 0 ||
            a->pos % KVFILE_PAGE_TOKENS != 0 ||
            a->pos % KVFILE_CHUNK_TOKENS + a->n_tokens > KVFILE_CHUNK_TOKENS)
            return "a chunk of impossible tokens";
        return NULL;
    }
    if (a->type != KVFILE_STATE)
        return "a type that there is not";
    if (a->n_tokens != 0)
        return "a state with pages";
    return a->state_bytes > m->state_most ? "a state larger than states get" : NULL;
}

void
kvfile_seal(const struct kvfile_model *m, const struct kvfile_about *a,
            const uint32_t *tokens, uint8_t *image)
{
    struct kvfile_plan plan;
    struct head *h = (struct head *)image;

    assert((uintptr_t)image % KVFILE_ALIGN == 0 && wrong_numbers(m, a) == NULL);
    make_head(m, a, h, &plan);
    for (uint32_t i = 0; i < h->n_sections; i++) {
        struct section *s = &h->sections[i];
        uint8_t *p = image + s->at;

        if (s->kind == KVFILE_LAYOUT && s->bytes > 0)
            memcpy(p, m->parts, s->bytes);
        if (s->kind == KVFILE_TOKENS)
            memcpy(p, tokens, s->bytes);
        memset(p + s->bytes, 0, whole_blocks(s->bytes) - s->bytes);
        s->hash = hash_of(p, s->bytes);
    }
    h->sum = sum_of(h);
}

static int
check_format(const struct head *h, uint64_t bytes, struct err *e)
{
    if (bytes >= sizeof magic && memcmp(h->magic, magic, sizeof magic) != 0) {
        if (memcmp(h->magic + 1, "FKV", 3) == 0 || memcmp(h->magic, "FKV", 3) == 0)
            return err_set(e, ERR_DAMAGED, 0,
                           "the first bytes are changed: was it copied as text?");
        return err_set(e, ERR_DAMAGED, 0,
                       "no file of fathom's: the first bytes are others");
    }
    if (bytes < sizeof *h || bytes % KVFILE_ALIGN != 0)
        return err_set(e, ERR_DAMAGED, 0, "%llu bytes are no whole file",
                       (unsigned long long)bytes);
    if (h->sum != sum_of(h))
        return err_set(e, ERR_DAMAGED, 0, "the checksum of the head does not match");
    if (h->version > KVFILE_VERSION)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "format version %u; this fathom reads up to %d: use a newer one",
                       (unsigned)h->version, KVFILE_VERSION);
    if (h->version != KVFILE_VERSION)
        return err_set(e, ERR_DAMAGED, 0, "format version %u has never been",
                       (unsigned)h->version);
    if (h->incompatible != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "features %llx, which this fathom does not know: use a newer one",
                       (unsigned long long)h->incompatible);
    return 0;
}

static void
head_model(const struct head *h, struct kvfile_model *m)
{
    *m = (struct kvfile_model){
        .layout = h->layout,
        .page_bytes = h->page_bytes,
        .state_most = h->state_most,
        .vocab = h->vocab,
        .n_parts = h->n_parts,
    };
    memcpy(m->fingerprint, h->fingerprint, sizeof m->fingerprint);
}

/* The head has a right sum: is there any file that has it? */
static int
check_head(const struct head *h, uint64_t bytes, struct kvfile_model *m,
           struct kvfile_about *a, struct kvfile_plan *plan, struct err *e)
{
    struct head should;
    const char *wrong;

    head_model(h, m);
    *a = (struct kvfile_about){
        .type = h->type == KVFILE_CHUNK ? KVFILE_CHUNK : KVFILE_STATE,
        .id = h->id,
        .pos = h->pos,
        .n_tokens = h->n_tokens,
        .state_bytes = h->state_bytes,
        .logits = h->has_logits != 0,
    };
    wrong = wrong_numbers(m, a);
    if (wrong != NULL)
        return err_set(e, ERR_DAMAGED, 0, "the head tells of %s", wrong);
    make_head(m, a, &should, plan);
    if (plan->bytes != bytes)
        return err_set(e, ERR_DAMAGED, 0, "%llu bytes long, and the head tells of %llu",
                       (unsigned long long)bytes, (unsigned long long)plan->bytes);
    should.compatible = h->compatible;
    for (uint32_t i = 0; i < should.n_sections; i++)
        should.sections[i].hash = h->sections[i].hash;
    should.sum = h->sum;
    if (memcmp(h, &should, sizeof should) != 0)
        return err_set(e, ERR_DAMAGED, 0, "the head contradicts itself");
    return 0;
}

static int
check_sections(const struct head *h, const uint8_t *image, struct err *e)
{
    for (uint32_t i = 0; i < h->n_sections; i++) {
        const struct section *s = &h->sections[i];
        const uint8_t *p = image + s->at;
        const struct hash is = hash_of(p, s->bytes);

        if (memcmp(&is, &s->hash, sizeof is) != 0)
            return err_set(e, ERR_DAMAGED, 0, "the checksum of section %s does not match",
                           kind_name(s->kind));
        for (uint64_t k = s->bytes; k < whole_blocks(s->bytes); k++)
            if (p[k] != 0)
                return err_set(e, ERR_DAMAGED, 0, "something stands behind section %s",
                               kind_name(s->kind));
    }
    return 0;
}

static int
check_tokens(const uint32_t *tokens, uint32_t n, uint32_t vocab, struct err *e)
{
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] >= vocab)
            return err_set(e, ERR_DAMAGED, 0, "token %u is none of %u", (unsigned)tokens[i],
                           (unsigned)vocab);
    return 0;
}

static unsigned long long
first_of(const uint8_t fingerprint[32])
{
    unsigned long long v = 0;

    for (int i = 0; i < 8; i++)
        v = v << 8 | fingerprint[i];
    return v;
}

/* is: the file's, with its parts; m: ours. */
static int
check_model(const struct kvfile_model *is, const struct kvfile_model *m, struct err *e)
{
    if (memcmp(is->fingerprint, m->fingerprint, sizeof is->fingerprint) != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "made with model %016llx..., and this is %016llx...",
                       first_of(is->fingerprint), first_of(m->fingerprint));
    if (is->layout != m->layout || is->page_bytes != m->page_bytes ||
        is->state_most != m->state_most || is->vocab != m->vocab ||
        is->n_parts != m->n_parts ||
        (m->n_parts > 0 && memcmp(is->parts, m->parts, m->n_parts * sizeof *m->parts) != 0))
        return err_set(
            e, ERR_MODEL_MISMATCH, 0,
            "made with model %016llx..., but caches of layout %016llx, not %016llx",
            first_of(m->fingerprint), (unsigned long long)is->layout,
            (unsigned long long)m->layout);
    return 0;
}

static bool
same_about(const struct kvfile_about *a, const struct kvfile_about *b)
{
    return a->type == b->type && memcmp(&a->id, &b->id, sizeof a->id) == 0 &&
           a->pos == b->pos && a->n_tokens == b->n_tokens &&
           a->state_bytes == b->state_bytes && a->logits == b->logits;
}

int
kvfile_check(const uint8_t *image, uint64_t bytes, const struct kvfile_model *m,
             const struct kvfile_about *want, struct kvfile_about *about,
             struct kvfile_plan *plan, const uint32_t **tokens, struct err *e)
{
    const struct head *h = (const struct head *)image;
    struct kvfile_model is;
    struct kvfile_about a;
    struct kvfile_plan p;
    const uint32_t *t = NULL;

    assert((uintptr_t)image % sizeof(uint64_t) == 0);
    if (check_format(h, bytes, e) == -1 || check_head(h, bytes, &is, &a, &p, e) == -1)
        return -1;
    is.parts = (const struct kvfile_part *)(image + h->sections[0].at);
    /* Before the hashes: a file of another model is no reason to read all of it. */
    if (m != NULL && check_model(&is, m, e) == -1)
        return -1;
    if (want != NULL && !same_about(&a, want))
        return err_set(e, ERR_DAMAGED, 0, "a whole file, but not the one of that name");
    if (check_sections(h, image, e) == -1)
        return -1;
    if (a.type == KVFILE_CHUNK) {
        t = (const uint32_t *)(image + h->sections[1].at);
        if (check_tokens(t, a.n_tokens, is.vocab, e) == -1)
            return -1;
    }
    if (about != NULL)
        *about = a;
    if (plan != NULL)
        *plan = p;
    if (tokens != NULL)
        *tokens = t;
    return 0;
}

void
kvfile_model_of(const uint8_t *image, struct kvfile_model *out)
{
    const struct head *h = (const struct head *)image;

    head_model(h, out);
    out->parts = (const struct kvfile_part *)(image + h->sections[0].at);
}
