/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sequence that was saved at any position, and brought back elsewhere, goes on as if nothing
 * had happened: the next 64 rows of logits, and of the draft block's, are the same bytes. And an
 * image is a function of the tokens alone: whatever the way to a position (steps, company, wrong
 * tokens taken back, a fork, an earlier restore), it is the same, byte for byte.
 *
 * Mutants: an image in which one part is missing, stale or another position's must show in the
 * rows, part by part; else the comparison would prove nothing.
 *
 * FATHOM_NIGHTLY=1 takes all places for all models, as `make nightly` does.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "gpu/cpu/cpu.h"
#include "tests/kernels/golden.h"
#include "tests/kernels/resume.h"
#include "tests/test.h"

static const int places[] = {1,   3,   4,   5,   127, 128, 129, 130, 200,  255,  256,
                             257, 383, 384, 385, 511, 512, 513, 777, 2047, 2048, 2049};

static struct resume *now; /* the model and table of the tests that follow one another */

static bool
is_nightly(void)
{
    const char *nightly = getenv("FATHOM_NIGHTLY");

    return nightly != NULL && strcmp(nightly, "1") == 0;
}

/* Whole pages further back than the indexer leaves nothing out. */
static int
chosen_from(const struct resume *r)
{
    const int all = r->c.index_topk * MODEL_CSA_RATIO;

    return all > 256 ? (all + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS * KV_PAGE_TOKENS : 0;
}

static bool
is_due(const struct resume *r, int place)
{
    if (is_nightly())
        return true;
    if (strcmp(r->name, "flash-tiny") == 0 && strcmp(r->isa, "auto") == 0)
        return true;
    return place == 1 || place == 5 || place == 127 || place == 128 || place == 130 ||
           place == 257 || place == 384 || (place == 777 && chosen_from(r) > 0);
}

static int
last_place(const struct resume *r)
{
    int last = chosen_from(r) + 400; /* what the other tests need */

    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (is_due(r, places[i]) && places[i] > last)
            last = places[i];
    return last;
}

/* Saved on the way, at each place; brought back in another backend. */
static void
every_place(void **state)
{
    struct resume *r = *state;
    struct backend *a = resume_backend(r, 0), *b = resume_backend(r, 0);
    static const int cuts[] = {1, 13, RESUME_ROWS};
    int at = 0;

    resume_open(a, 0);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct image saved, again;

        if (!is_due(r, places[i]))
            continue;
        resume_run(r, a, 0, at, places[i] - at, 97);
        at = places[i];
        image_take(r, a, 0, &saved);
        assert_int_equal(saved.pos, at);
        resume_open(b, 1);
        image_put(r, b, 1, &saved);
        image_take(r, b, 1, &again);
        assert_true(image_same(r, &saved, &again));
        if (!resume_goes_on(r, b, 1, at, cuts[i % 3]))
            fail_msg("%s: other rows behind position %d", r->name, at);
        image_free(&saved);
        image_free(&again);
    }
    backend_cpu.close(a);
    backend_cpu.close(b);
}

/* The way to a position leaves nothing in the image. */
static void
any_way_the_same_image(void **state)
{
    static const int at[] = {5, 130, 257, 384};
    struct resume *r = *state;
    struct backend *b = resume_backend(r, 0);

    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        struct image plain;

        resume_open(b, 0);
        resume_run(r, b, 0, 0, at[i], MAX_STEP_TOKENS);
        image_take(r, b, 0, &plain);
        for (int way = 0; way < WAYS; way++) {
            struct image other;

            resume_way(r, b, at[i], way);
            image_take(r, b, 1, &other);
            if (!image_same(r, &plain, &other))
                fail_msg("%s: another image of %d tokens by way %d", r->name, at[i], way);
            if (!resume_goes_on(r, b, 1, at[i], 16))
                fail_msg("%s: other rows behind %d by way %d", r->name, at[i], way);
            image_free(&other);
        }
        image_free(&plain);
    }
    backend_cpu.close(b);
}

/* Drafts refused behind a restore: back to where it was set, and no further. */
static void
taking_back_behind_a_restore(void **state)
{
    static const int at[] = {4, 128, 259};
    struct resume *r = *state;
    struct backend *b = resume_backend(r, 0);
    struct err e = {0};

    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        const uint64_t pos = (uint64_t)at[i];
        struct image saved;

        resume_open(b, 0);
        resume_run(r, b, 0, 0, at[i], 64);
        image_take(r, b, 0, &saved);
        resume_open(b, 0);
        image_put(r, b, 0, &saved);
        resume_run_wrong(r, b, 0, MAX_REWIND);
        assert_int_equal(backend_cpu.seq_rewind(b, 0, pos, &e), 0);
        assert_int_equal(backend_cpu.seq_rewind(b, 0, pos - 1, &e), -1);
        assert_int_equal(e.code, ERR_CONFLICT);
        assert_int_equal(backend_cpu.seq_len(b, 0), pos);
        /* A fork is bound in the same way. */
        backend_cpu.seq_close(b, 1);
        assert_int_equal(backend_cpu.seq_fork(b, 0, 1, &e), 0);
        assert_int_equal(backend_cpu.seq_rewind(b, 1, pos - 1, &e), -1);
        assert_int_equal(e.code, ERR_CONFLICT);
        assert_true(resume_goes_on(r, b, 0, at[i], 3));
        assert_true(resume_goes_on(r, b, 1, at[i], 7));
        image_free(&saved);
    }
    backend_cpu.close(b);
}

/* Bits do not depend on threads, nor an image on the table of operations that it comes to. */
static void
other_threads_and_tables(void **state)
{
    static const char *const tables[] = {"portable", "avx2", "avx512", "reference"};
    struct resume *r = *state;
    struct backend *a = resume_backend(r, 1), *b = resume_backend(r, 2);
    struct image saved;

    resume_open(a, 0);
    resume_run(r, a, 0, 0, 300, 100);
    image_take(r, a, 0, &saved);
    resume_open(b, 0);
    image_put(r, b, 0, &saved);
    assert_true(resume_goes_on(r, b, 0, 300, 20));
    backend_cpu.close(a);
    backend_cpu.close(b);
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        const struct backend_opts o = {.isa = tables[i], .max_seqs = 2, .mtp = true};
        struct image again;
        struct err e = {0};
        struct gaps g;

        b = backend_cpu.open(&r->c, r->w, &o, &e);
        if (b == NULL) {
            print_message("# %s\n", e.text);
            continue;
        }
        resume_open(b, 0);
        image_put(r, b, 0, &saved);
        image_take(r, b, 0, &again);
        assert_true(image_same(r, &saved, &again));
        image_free(&again);
        /* Another table sums in another order, so its rows are near, no more. */
        resume_rows(r, b, 0, 300, 4, 4);
        logit_gaps(r->got, r->want + (size_t)300 * r->vocab, 4, (int)r->vocab, &g);
        assert_true(g.rel_median < 0.2);
        backend_cpu.close(b);
    }
    image_free(&saved);
}

/* A second process gets the image and the rows that it has to find, nothing else. */
static void
a_new_process(void **state)
{
    struct resume *r = *state;
    struct backend *b = resume_backend(r, 0);
    const int fd = memfd_create("image", 0);
    char number[16];
    struct image saved;
    int status;
    pid_t pid;

    assert_true(fd >= 0);
    resume_open(b, 0);
    resume_run(r, b, 0, 0, 385, 128);
    image_take(r, b, 0, &saved);
    image_write(r, &saved, fd);
    image_free(&saved);
    backend_cpu.close(b);
    snprintf(number, sizeof number, "%d", fd);
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "resume_test", "--restore", number, r->name, r->isa,
              (char *)NULL);
        _exit(99);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(fd);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* The other end of that. */
static int
restore_here(int fd, const char *name, const char *isa)
{
    static struct resume r;
    struct image saved;
    struct backend *b;
    bool same;

    resume_load(&r, name, isa);
    image_read(&r, &saved, fd);
    b = resume_backend(&r, 0);
    resume_open(b, 1);
    image_put(&r, b, 1, &saved);
    same = resume_goes_on(&r, b, 1, (int)saved.pos, 1);
    backend_cpu.close(b);
    image_free(&saved);
    resume_unload(&r);
    return same ? 0 : 1;
}

/* Where part i begins in the state. */
static uint8_t *
part_at(const struct resume *r, const struct image *im, size_t part)
{
    uint8_t *at = im->state;

    for (size_t i = 0; i < part; i++)
        at += kv_state_rows(&r->layout.parts[i], im->pos) * r->layout.parts[i].row_bytes;
    return at;
}

/* Rows of a kind in the state, gone or as they were at another position. */
static void
spoil_kind(const struct resume *r, struct image *im, uint16_t kind, const struct image *old)
{
    for (size_t i = 0; i < r->layout.n_parts; i++) {
        const struct kv_part *p = &r->layout.parts[i];
        const uint64_t n = kv_state_rows(p, im->pos);
        const uint64_t n_old = old != NULL ? kv_state_rows(p, old->pos) : 0;

        if (p->kind == kind && old == NULL)
            memset(part_at(r, im, i), 0, n * p->row_bytes);
        if (p->kind == kind && old != NULL)
            memcpy(part_at(r, im, i), part_at(r, old, i),
                   (n < n_old ? n : n_old) * p->row_bytes);
    }
}

/* Only the rows in front of the last block's end: what the block to come takes from the one
 * before it. */
static void
spoil_overlap(const struct resume *r, struct image *im)
{
    for (size_t i = 0; i < r->layout.n_parts; i++) {
        const struct kv_part *p = &r->layout.parts[i];

        if ((p->kind == KV_PART_FRONTIER || p->kind == KV_PART_INDEX_FRONTIER) &&
            p->span > 0)
            memset(part_at(r, im, i), 0, (size_t)p->ratio * p->row_bytes);
    }
}

struct mutant_case {
    const char *what;
    int pos, old; /* old: where the stale rows come from */
    uint16_t kind;
};

static const struct mutant_case cases[] = {
    {"the window's rows missing", 300, 0, KV_PART_WINDOW},
    {"the compressed rows of the last page missing", 300, 0, KV_PART_MAIN},
    {"the index rows of the last page missing", 300, 0, KV_PART_INDEX},
    {"the frontier missing", 300, 0, KV_PART_FRONTIER},
    {"the indexer's frontier missing", 302, 0, KV_PART_INDEX_FRONTIER},
    {"the frontier of a block earlier", 300, 296, KV_PART_FRONTIER},
    {"the frontier of a page earlier", 300, 172, KV_PART_FRONTIER},
    {"the window of one token earlier", 300, 299, KV_PART_WINDOW},
    {"the draft's window missing", 300, 0, KV_PART_DRAFT_WINDOW},
    {"the draft's streams missing", 300, 0, KV_PART_DRAFT_STREAMS},
    {"the draft's streams of one token earlier", 300, 299, KV_PART_DRAFT_STREAMS},
    {"the overlap missing at a page's end", 384, 0, 0},
    {"the overlap missing within a block", 386, 0, 0},
};

static bool
goes_on_from(struct resume *r, struct backend *b, const struct image *im)
{
    resume_open(b, 1);
    image_put(r, b, 1, im);
    return resume_goes_on(r, b, 1, (int)im->pos, 16);
}

static void
mutants_show(void **state)
{
    struct resume *r = *state;
    struct backend *b = resume_backend(r, 0);
    const int base = chosen_from(r);

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct mutant_case *m = &cases[i];
        struct image good, old = {.pos = 0};

        resume_open(b, 0);
        resume_run(r, b, 0, 0, base + (m->old > 0 ? m->old : m->pos), 128);
        if (m->old > 0) {
            image_take(r, b, 0, &old);
            resume_run(r, b, 0, base + m->old, m->pos - m->old, 128);
        }
        image_take(r, b, 0, &good);
        assert_true(goes_on_from(r, b, &good));
        if (m->kind == 0)
            spoil_overlap(r, &good);
        else
            spoil_kind(r, &good, m->kind, m->old > 0 ? &old : NULL);
        if (goes_on_from(r, b, &good))
            fail_msg("%s: nobody noticed: %s", r->name, m->what);
        image_free(&good);
        image_free(&old);
    }
    backend_cpu.close(b);
}

/* A page in another's place, and one byte of one page. */
static void
pages_of_elsewhere_show(void **state)
{
    struct resume *r = *state;
    struct backend *b = resume_backend(r, 0);
    const size_t page = (size_t)r->layout.page_bytes;
    struct image im;

    resume_open(b, 0);
    resume_run(r, b, 0, 0, 400, 128);
    image_take(r, b, 0, &im);
    assert_true(goes_on_from(r, b, &im));
    memcpy(im.pages + page, im.pages, page);
    assert_false(goes_on_from(r, b, &im));
    image_free(&im);
    image_take(r, b, 0, &im);
    for (size_t i = 0; i < r->layout.n_parts; i++)
        if (r->layout.parts[i].kind == KV_PART_MAIN && r->layout.parts[i].ratio > 4)
            im.pages[page + r->layout.parts[i].page_at] ^= 0x08;
    assert_false(goes_on_from(r, b, &im));
    image_free(&im);
    backend_cpu.close(b);
}

static void
out_of_order(void **state)
{
    struct resume *r = *state;
    struct backend *b = resume_backend(r, 0);
    struct err e = {0};
    struct image im;
    struct step_seq share = {.seq = 1, .n_tokens = 1, .tokens = r->tokens};
    const struct step step = {.n_seqs = 1, .seqs = &share};
    struct backend_info info;
    uint64_t before;

    resume_open(b, 0);
    resume_run(r, b, 0, 0, 300, 128);
    image_take(r, b, 0, &im);
    /* Pages that are not whole, or not there. */
    assert_int_equal(backend_cpu.kv_out(b, 0, 2, 1, im.pages, NULL, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_int_equal(backend_cpu.kv_out(b, 0, UINT64_MAX, 2, im.pages, NULL, &e), -1);
    assert_int_equal(backend_cpu.kv_out(b, 0, 1, UINT64_MAX, im.pages, NULL, &e), -1);
    assert_int_equal(backend_cpu.kv_out(b, 1, 0, 0, NULL, NULL, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    /* To one that has tokens. */
    assert_int_equal(backend_cpu.kv_in(b, 0, 1, im.pages, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    assert_int_equal(backend_cpu.kv_set(b, 0, 300, im.state, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    backend_cpu.info(b, &info);
    before = info.kv_used;
    resume_open(b, 1);
    assert_int_equal(backend_cpu.kv_set(b, 1, 300, im.state, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    assert_int_equal(backend_cpu.kv_in(b, 1, 1, im.pages, &e), 0);
    /* Half of it is here. */
    assert_int_equal(backend_cpu.step(b, &step, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    assert_int_equal(backend_cpu.seq_rewind(b, 1, 0, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    assert_int_equal(backend_cpu.kv_out(b, 1, 0, 1, im.pages, NULL, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    assert_int_equal(backend_cpu.kv_set(b, 1, 300, im.state, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    assert_int_equal(backend_cpu.kv_in(b, 1, UINT64_MAX / 2, im.pages, &e), -1);
    assert_int_equal(e.code, ERR_CONTEXT_FULL);
    assert_int_equal(backend_cpu.kv_busy(b, 1, &e), 0);
    assert_int_equal(backend_cpu.kv_in(b, 1, 1, im.pages + r->layout.page_bytes, &e), 0);
    assert_int_equal(backend_cpu.kv_set(b, 1, 300, im.state, &e), 0);
    assert_true(resume_goes_on(r, b, 1, 300, 30));
    /* Closed half-way: nothing stays. */
    resume_open(b, 1);
    assert_int_equal(backend_cpu.kv_in(b, 1, 2, im.pages, &e), 0);
    backend_cpu.seq_close(b, 1);
    backend_cpu.info(b, &info);
    assert_int_equal(info.kv_used, before);
    image_free(&im);
    backend_cpu.close(b);
}

/* No room for all pages: none is taken, and with less to bring it goes on. */
static void
no_room(void **state)
{
    struct resume *r = *state;
    struct backend_opts o = {.isa = r->isa, .max_seqs = 2, .mtp = true};
    struct backend *b = resume_backend(r, 0);
    struct backend_info info;
    struct err e = {0};
    struct image im;

    resume_open(b, 0);
    resume_run(r, b, 0, 0, 300, 128);
    image_take(r, b, 0, &im);
    backend_cpu.info(b, &info);
    backend_cpu.close(b);
    o.kv_bytes = info.seq_fixed_bytes + 2 * info.page_bytes + info.page_bytes / 2;
    b = backend_cpu.open(&r->c, r->w, &o, &e);
    assert_non_null(b);
    resume_open(b, 1);
    assert_int_equal(backend_cpu.kv_in(b, 1, 3, im.pages, &e), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    backend_cpu.info(b, &info);
    assert_int_equal(info.kv_used, info.seq_fixed_bytes);
    assert_int_equal(backend_cpu.kv_in(b, 1, 2, im.pages, &e), 0);
    assert_int_equal(backend_cpu.kv_set(b, 1, 300, im.state, &e), -1); /* a third page */
    assert_int_equal(e.code, ERR_QUOTA);
    backend_cpu.seq_close(b, 1);
    backend_cpu.close(b);
    o.kv_bytes += info.page_bytes;
    b = backend_cpu.open(&r->c, r->w, &o, &e);
    resume_open(b, 1);
    image_put(r, b, 1, &im);
    assert_true(resume_goes_on(r, b, 1, 300, RESUME_ROWS));
    image_free(&im);
    backend_cpu.close(b);
}

static int
set_up(void **state)
{
    struct resume *want = *state;

    if (now != want) {
        if (now != NULL)
            resume_unload(now);
        now = want;
        resume_load(now, want->name, want->isa);
        resume_answers(now, last_place(now) + RESUME_ROWS);
    }
    return 0;
}

/* The first SHORT ones for all tables, the others for the fastest, and for all at night. */
enum { SHORT = 3 };

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_place),
    cmocka_unit_test(taking_back_behind_a_restore),
    cmocka_unit_test(a_new_process),
    cmocka_unit_test(other_threads_and_tables),
    cmocka_unit_test(any_way_the_same_image),
    cmocka_unit_test(mutants_show),
    cmocka_unit_test(pages_of_elsewhere_show),
    cmocka_unit_test(out_of_order),
    cmocka_unit_test(no_room),
};

int
main(int argc, char **argv)
{
    static struct resume all[] = {
        {.name = "flash-tiny", .isa = "auto"},     {.name = "pro-tiny", .isa = "auto"},
        {.name = "bf16-tiny", .isa = "auto"},      {.name = "fathom-mini", .isa = "auto"},
        {.name = "flash-tiny", .isa = "portable"}, {.name = "flash-tiny", .isa = "avx2"},
    };

    enum { N = sizeof all / sizeof *all, TESTS = sizeof tests / sizeof *tests };
    static struct CMUnitTest list[N * TESTS];
    static char names[N * TESTS][96];
    size_t n = 0;

    if (argc == 5 && strcmp(argv[1], "--restore") == 0)
        return restore_here(atoi(argv[2]), argv[3], argv[4]);
    for (size_t i = 0; i < N; i++) {
        struct err e = {0};

        if (!resume_present(all[i].name)) {
            print_message("# no %s: GOLDEN_DIR does not name a folder that has it\n",
                          all[i].name);
            continue;
        }
        if (cpu_ops_find(all[i].isa, &e) == NULL) {
            print_message("# %s\n", e.text);
            continue;
        }
        const size_t most = strcmp(all[i].isa, "auto") == 0 || is_nightly() ? TESTS : SHORT;

        for (size_t t = 0; t < most; t++, n++) {
            snprintf(names[n], sizeof names[n], "%s, %s: %s", all[i].name, all[i].isa,
                     tests[t].name);
            list[n] = tests[t];
            list[n].name = names[n];
            list[n].initial_state = &all[i];
            list[n].setup_func = set_up;
        }
    }
    n = (size_t)_cmocka_run_group_tests("resume", list, n, NULL, NULL);
    if (now != NULL)
        resume_unload(now);
    return (int)n;
}
