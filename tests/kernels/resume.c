/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "tests/kernels/resume.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "gpu/cpu/cpu.h"
#include "tests/kernels/golden.h"
#include "tests/test.h"

enum { CACHE_BYTES = 256 << 20 };

static uint32_t
random_token(uint64_t *x, size_t vocab)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return (uint32_t)((*x >> 33) % vocab);
}

/* Models that are in the tree, or the golden ones. */
static bool
find_model(const char *name, char *dir, size_t size)
{
    const char *top = getenv("srcdir");
    char probe[4200];

    snprintf(dir, size, "%s/models/%s", top != NULL ? top : ".", name);
    snprintf(probe, sizeof probe, "%s/config.json", dir);
    if (access(probe, R_OK) == 0)
        return true;
    golden_dir(name, dir, size);
    snprintf(probe, sizeof probe, "%s/config.json", dir);
    return access(probe, R_OK) == 0;
}

bool
resume_present(const char *name)
{
    char dir[4096];

    return find_model(name, dir, sizeof dir);
}

void
resume_load(struct resume *r, const char *name, const char *isa)
{
    uint64_t x = 0x9e3779b97f4a7c15;
    struct err e = {0};
    char dir[4096];

    *r = (struct resume){.name = name, .isa = isa};
    find_model(name, dir, sizeof dir);
    if (model_config_load(&r->c, dir, &e) == 0)
        r->w = weights_open(dir, &r->c, NULL, NULL, &e);
    if (r->w == NULL || kv_layout_init(&r->layout, &r->c, true, &e) == -1)
        fail_msg("%s: %s", dir, e.text);
    r->vocab = (size_t)r->c.vocab_size;
    for (int i = 0; i < RESUME_MOST; i++)
        r->tokens[i] = random_token(&x, r->vocab);
    r->got = calloc(RESUME_ROWS * r->vocab, sizeof *r->got);
    r->got_draft = calloc(RESUME_ROWS * r->vocab, sizeof *r->got);
    assert_true(r->got != NULL && r->got_draft != NULL);
}

void
resume_unload(struct resume *r)
{
    weights_close(r->w);
    kv_layout_done(&r->layout);
    free(r->want);
    free(r->want_draft);
    free(r->got);
    free(r->got_draft);
}

struct backend *
resume_backend(const struct resume *r, int threads)
{
    const struct backend_opts o = {.isa = r->isa,
                                   .n_threads = threads,
                                   .max_seqs = 3,
                                   .mtp = true,
                                   .kv_bytes = CACHE_BYTES};
    struct err e = {0};
    struct backend *b = backend_cpu.open(&r->c, r->w, &o, &e);

    if (b == NULL)
        fail_msg("%s: %s", r->name, e.text);
    return b;
}

void
resume_open(struct backend *b, uint32_t seq)
{
    struct err e = {0};

    backend_cpu.seq_close(b, seq);
    if (backend_cpu.seq_open(b, seq, &e) == -1)
        fail_msg("%s", e.text);
}

static void
run(struct backend *b, uint32_t seq, const uint32_t *tokens, int n, int cut, size_t vocab,
    float *rows, float *draft)
{
    for (int at = 0; at < n; at += cut) {
        const int some = n - at < cut ? n - at : cut;

        run_tokens(b, seq, tokens + at, some, rows != NULL ? some : 0,
                   rows != NULL ? rows + (size_t)at * vocab : NULL,
                   draft != NULL ? draft + (size_t)at * vocab : NULL);
    }
}

void
resume_answers(struct resume *r, int n)
{
    struct backend *b = resume_backend(r, 0);

    r->n_want = n;
    r->want = calloc((size_t)n * r->vocab, sizeof *r->want);
    r->want_draft = calloc((size_t)n * r->vocab, sizeof *r->want);
    assert_true(r->want != NULL && r->want_draft != NULL);
    resume_open(b, 0);
    run(b, 0, r->tokens, n, MAX_STEP_TOKENS, r->vocab, r->want, r->want_draft);
    backend_cpu.close(b);
}

void
resume_run(struct resume *r, struct backend *b, uint32_t seq, int from, int n, int cut)
{
    run(b, seq, r->tokens + from, n, cut, r->vocab, NULL, NULL);
}

void
resume_rows(struct resume *r, struct backend *b, uint32_t seq, int from, int n, int cut)
{
    memset(r->got, 0xff, RESUME_ROWS * r->vocab * sizeof *r->got);
    memset(r->got_draft, 0xff, RESUME_ROWS * r->vocab * sizeof *r->got);
    run(b, seq, r->tokens + from, n, cut, r->vocab, r->got, r->got_draft);
}

void
resume_run_wrong(struct resume *r, struct backend *b, uint32_t seq, int n)
{
    uint32_t wrong[MAX_REWIND];
    uint64_t x = backend_cpu.seq_len(b, seq) * 77 + 1;

    assert_in_range(n, 0, MAX_REWIND);
    for (int i = 0; i < n; i++)
        wrong[i] = random_token(&x, r->vocab);
    if (n > 0)
        run_tokens(b, seq, wrong, n, n, r->got, r->got_draft);
}

bool
resume_goes_on(struct resume *r, struct backend *b, uint32_t seq, int from, int cut)
{
    const size_t at = (size_t)from * r->vocab, n = RESUME_ROWS * r->vocab * sizeof(float);

    assert_true(from + RESUME_ROWS <= r->n_want);
    resume_rows(r, b, seq, from, RESUME_ROWS, cut);
    return memcmp(r->got, r->want + at, n) == 0 &&
           memcmp(r->got_draft, r->want_draft + at, n) == 0;
}

static void
take_back(struct backend *b, uint32_t seq, int len)
{
    struct err e = {0};

    if (backend_cpu.seq_rewind(b, seq, (uint64_t)len, &e) == -1)
        fail_msg("%s", e.text);
}

static void
fork_seq(struct backend *b, uint32_t from, uint32_t to)
{
    struct err e = {0};

    backend_cpu.seq_close(b, to);
    if (backend_cpu.seq_fork(b, from, to, &e) == -1)
        fail_msg("%s", e.text);
}

/* Its tokens beside those of sequence 2, which has others. */
static void
in_company(struct resume *r, struct backend *b, int n)
{
    struct step_seq share[2] = {{.seq = 2}, {.seq = 1}};
    const struct step step = {.n_seqs = 2, .seqs = share};
    struct err e = {0};

    resume_open(b, 2);
    for (int at = 0, some; at < n; at += some) {
        some = n - at < 50 ? n - at : 50;
        share[0].tokens = r->tokens + at + 31;
        share[0].n_tokens = 1 + (uint32_t)at % 9;
        share[1].tokens = r->tokens + at;
        share[1].n_tokens = (uint32_t)some;
        if (backend_cpu.step(b, &step, &e) == -1)
            fail_msg("%s", e.text);
    }
}

/* As in speculation: up to 16 wrong tokens at each place, also over the ends of pages. */
static void
with_refused_drafts(struct resume *r, struct backend *b, int n)
{
    for (int at = 0, i = 1; at < n; i++) {
        const int some = n - at < 7 ? n - at : 7;

        resume_run_wrong(r, b, 1, 1 + i * 5 % MAX_REWIND);
        take_back(b, 1, at);
        resume_run(r, b, 1, at, some, 7);
        at += some;
    }
    resume_run_wrong(r, b, 1, MAX_REWIND);
    take_back(b, 1, n);
}

void
resume_way(struct resume *r, struct backend *b, int n, int way)
{
    const int half = n / 2;
    struct image im;

    resume_open(b, 1);
    switch (way) {
    case BY_SINGLE_STEPS: resume_run(r, b, 1, 0, n, 1); break;
    case IN_COMPANY: in_company(r, b, n); break;
    case WITH_REFUSED_DRAFTS: with_refused_drafts(r, b, n); break;
    case AFTER_A_ROLLBACK:
        resume_run(r, b, 1, 0, n + MAX_REWIND, 33);
        take_back(b, 1, n);
        break;
    case AS_A_FORK:
        resume_open(b, 2);
        resume_run(r, b, 2, 0, half, 64);
        fork_seq(b, 2, 1);
        resume_run_wrong(r, b, 2,
                         MAX_REWIND); /* first, so that it is the one that copies */
        resume_run(r, b, 1, half, n - half, 29);
        break;
    case AFTER_ITS_FORK_WENT_ON:
        resume_run(r, b, 1, 0, half, 64);
        fork_seq(b, 1, 2);
        resume_run(r, b, 1, half, n - half, 29);
        resume_run_wrong(r, b, 2, MAX_REWIND);
        break;
    default:
        resume_open(b, 2);
        resume_run(r, b, 2, 0, half, 64);
        image_take(r, b, 2, &im);
        image_put(r, b, 1, &im);
        image_free(&im);
        resume_run(r, b, 1, half, n - half, 31);
        break;
    }
}

static size_t
pages_size(const struct resume *r, const struct image *im)
{
    return (size_t)(im->pos / KV_PAGE_TOKENS * r->layout.page_bytes);
}

static size_t
state_size(const struct resume *r, const struct image *im)
{
    return (size_t)kv_state_bytes(&r->layout, im->pos);
}

/* Exactly as long as it must be, full of something else each time: a byte too much is seen by
 * the address sanitizer, one that nobody writes by any comparison. */
static uint8_t *
room(size_t n)
{
    static int fill;
    uint8_t *p = malloc(n > 0 ? n : 1);

    assert_non_null(p);
    memset(p, ++fill & 255, n);
    return p;
}

void
image_take(const struct resume *r, struct backend *b, uint32_t seq, struct image *im)
{
    struct err e = {0};
    uint64_t pages;

    im->pos = backend_cpu.seq_len(b, seq);
    pages = im->pos / KV_PAGE_TOKENS;
    im->pages = room(pages_size(r, im));
    im->state = room(state_size(r, im));
    /* The first one and the others, and the state with the others. */
    if ((pages > 0 && backend_cpu.kv_out(b, seq, 0, 1, im->pages, NULL, &e) == -1) ||
        backend_cpu.kv_out(b, seq, pages > 0, pages - (pages > 0),
                           im->pages + (pages > 0) * r->layout.page_bytes, im->state,
                           &e) == -1)
        fail_msg("%s", e.text);
}

void
image_put(const struct resume *r, struct backend *b, uint32_t seq, const struct image *im)
{
    const uint64_t pages = im->pos / KV_PAGE_TOKENS, first = pages / 2;
    struct err e = {0};

    if ((first > 0 && backend_cpu.kv_in(b, seq, first, im->pages, &e) == -1) ||
        (pages > first &&
         backend_cpu.kv_in(b, seq, pages - first, im->pages + first * r->layout.page_bytes,
                           &e) == -1) ||
        backend_cpu.kv_set(b, seq, im->pos, im->state, &e) == -1)
        fail_msg("%s", e.text);
    assert_int_equal(backend_cpu.seq_len(b, seq), im->pos);
}

bool
image_same(const struct resume *r, const struct image *a, const struct image *b)
{
    return a->pos == b->pos && memcmp(a->pages, b->pages, pages_size(r, a)) == 0 &&
           memcmp(a->state, b->state, state_size(r, a)) == 0;
}

void
image_free(struct image *im)
{
    free(im->pages);
    free(im->state);
    *im = (struct image){0};
}

static void
put_all(int fd, const void *p, size_t n)
{
    const char *at = p;

    while (n > 0) {
        const ssize_t done = write(fd, at, n);

        assert_true(done > 0);
        at += done;
        n -= (size_t)done;
    }
}

static void
get_all(int fd, void *p, size_t n)
{
    char *at = p;

    while (n > 0) {
        const ssize_t done = read(fd, at, n);

        assert_true(done > 0);
        at += done;
        n -= (size_t)done;
    }
}

void
image_write(const struct resume *r, const struct image *im, int fd)
{
    const size_t at = (size_t)im->pos * r->vocab,
                 n = RESUME_ROWS * r->vocab * sizeof *r->want;

    put_all(fd, &im->pos, sizeof im->pos);
    put_all(fd, im->pages, pages_size(r, im));
    put_all(fd, im->state, state_size(r, im));
    put_all(fd, r->want + at, n);
    put_all(fd, r->want_draft + at, n);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
}

void
image_read(struct resume *r, struct image *im, int fd)
{
    size_t at;

    get_all(fd, &im->pos, sizeof im->pos);
    assert_in_range(im->pos, 1, RESUME_MOST - RESUME_ROWS);
    im->pages = room(pages_size(r, im));
    im->state = room(state_size(r, im));
    get_all(fd, im->pages, pages_size(r, im));
    get_all(fd, im->state, state_size(r, im));
    at = (size_t)im->pos * r->vocab;
    r->n_want = (int)im->pos + RESUME_ROWS;
    r->want = calloc((size_t)r->n_want * r->vocab, sizeof *r->want);
    r->want_draft = calloc((size_t)r->n_want * r->vocab, sizeof *r->want);
    assert_true(r->want != NULL && r->want_draft != NULL);
    get_all(fd, r->want + at, RESUME_ROWS * r->vocab * sizeof *r->want);
    get_all(fd, r->want_draft + at, RESUME_ROWS * r->vocab * sizeof *r->want);
}
