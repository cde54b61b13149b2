/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What differs between a session and its ledger: random changes, commits that succeed, and such
 * that fail before or after the disk took them. The changes, carried out on a model of a ledger,
 * give the session; and read back they give it again. Mutants that forget one kind of difference
 * are found out by the same comparison.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/op.h"
#include "daemon/options.h"
#include "daemon/session.h"
#include "daemon/session_files.h"
#include "daemon/session_ledger.h"
#include "daemon/store_thread.h"
#include "tests/test.h"

enum { MOST = 4000, POINTS = 12, FILES = 64, STEPS = 400, SEEDS = 60 };

enum mutant { HONEST, NO_LOW, NO_POINTS, NO_OPS, NO_FILES, NO_FAILURE, MUTANTS };

static struct options limits = {.max_sessions = 10,
                                .max_sessions_user = 10,
                                .max_tokens = 1 << 20,
                                .max_tokens_user = 1 << 20,
                                .max_disk = UINT64_C(1) << 40,
                                .max_disk_user = UINT64_C(1) << 40};

/* A ledger as kvstore/ledger.h says that one behaves. */
struct model {
    struct ledger_meta meta;
    uint32_t tokens[MOST];
    uint64_t len;
    struct ledger_point points[POINTS];
    size_t n_points;
    struct ledger_op ops[LEDGER_OPS + 1];
    size_t n_ops;
    struct ledger_file files[FILES];
    size_t n_files;
    bool wrong; /* it was asked for what it cannot do */
};

static uint64_t state;

static uint64_t
below(uint64_t n) /* SplitMix64 */
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % n;
}

static void
put_op(struct model *m, const struct ledger_op *op)
{
    for (size_t i = 0; i < m->n_ops; i++) {
        if (memcmp(m->ops[i].id, op->id, sizeof op->id) == 0) {
            m->ops[i] = *op;
            return;
        }
    }
    m->ops[m->n_ops++] = *op;
    if (m->n_ops > LEDGER_OPS)
        memmove(m->ops, m->ops + 1, --m->n_ops * sizeof *m->ops);
}

static size_t
file_of(const struct model *m, const struct kvfile_id *id)
{
    size_t i = 0;

    while (i < m->n_files && memcmp(&m->files[i].about.id, id, sizeof *id) != 0)
        i++;
    return i;
}

static void
apply(struct model *m, const struct ledger_change *c)
{
    m->meta = *c->meta;
    if (c->has_tokens) {
        if (c->from > m->len || c->from + c->n_tokens > MOST) {
            m->wrong = true;
            return;
        }
        if (c->n_tokens > 0)
            memcpy(m->tokens + c->from, c->tokens, c->n_tokens * sizeof *m->tokens);
        m->len = c->from + c->n_tokens;
    }
    if (c->has_points) {
        assert_true(c->n_points <= POINTS);
        memcpy(m->points, c->points, c->n_points * sizeof *m->points);
        m->n_points = c->n_points;
    }
    for (size_t i = 0; i < c->n_ops; i++)
        put_op(m, &c->ops[i]);
    for (size_t i = 0; i < c->n_drop; i++) {
        const size_t at = file_of(m, &c->drop[i]);

        if (at < m->n_files)
            m->files[at] = m->files[--m->n_files];
    }
    for (size_t i = 0; i < c->n_add; i++) {
        const size_t at = file_of(m, &c->add[i].about.id);

        assert_true(at < FILES);
        m->files[at] = c->add[i];
        m->n_files += at == m->n_files;
    }
}

/* --- a session that lives ------------------------------------------------------------------ */

static void
append(struct session *s)
{
    uint32_t ids[64];
    const size_t n = below(64);
    struct err e;

    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)below(1000000);
    if (s->log.len + n <= MOST)
        assert_int_equal(session_log_append(&s->log, ids, n, &e), 0);
}

static void
add_file(struct session *s)
{
    struct ledger_file f = {.about.type = below(2) == 0 ? KVFILE_CHUNK : KVFILE_STATE,
                            .bytes = 4096 * (1 + below(9))};
    const uint64_t pages = s->log.len / KVFILE_PAGE_TOKENS;
    struct kvfile_id drop[2] = {{{0}}, {{0}}};
    size_t n_drop = 0;
    struct err e;

    if (s->n_files > FILES / 2)
        drop[n_drop++] = s->files[below(s->n_files)].about.id;
    if (f.about.type == KVFILE_CHUNK && pages > 0) {
        const uint64_t first = below(pages);

        f.about.pos = first * KVFILE_PAGE_TOKENS;
        f.n_pages = (uint32_t)(1 + below(pages - first));
        f.about.n_tokens = f.n_pages * KVFILE_PAGE_TOKENS;
    } else {
        f.about.type = KVFILE_STATE;
        f.about.pos = below(s->log.len + 1);
    }
    for (size_t i = 0; i < sizeof f.about.id.b; i++)
        f.about.id.b[i] = (uint8_t)below(256);
    if (s->n_files > 0 && below(4) == 0)
        f.about.id = s->files[below(s->n_files)].about.id;
    assert_int_equal(session_files_change(s, &f, 1, drop, n_drop, &e), 0);
}

static void
record(struct session *s)
{
    const struct op_record op = {.kind = (uint8_t)below(OP_CALL + 1),
                                 .reason = (uint32_t)below(LINK_FAILED),
                                 .begin = s->log.len - (s->log.len > 9 ? below(9) : 0),
                                 .end = s->log.len,
                                 .stop_at = below(100),
                                 .seed = below(UINT64_MAX)};
    struct op_record r = op;
    struct err e;

    for (size_t i = 0; i < sizeof r.id; i++)
        r.id[i] = (uint8_t)below(256);
    assert_int_equal(session_log_record(&s->log, &r, &e), 0);
}

static void
live(struct session *s)
{
    char label[16];
    struct err e;
    uint64_t pos;

    switch (below(10)) {
    case 0: /* back, to anywhere or not far */
        pos = below(3) == 0 ? below(s->log.len + 1)
                            : s->log.len - below(1 + (s->log.len < 100 ? s->log.len : 100));
        assert_int_equal(session_files_cut(s, pos, &e), 0);
        assert_int_equal(session_log_truncate(&s->log, pos, &e), 0);
        break;
    case 1:
        snprintf(label, sizeof label, "l%d", (int)below(9));
        session_log_mark(&s->log, label, false, &e);
        break;
    case 2: session_log_begin_turn(&s->log); break;
    case 3: session_log_turn(&s->log, &e); break;
    case 4:
    case 5:
        for (uint64_t n = below(12) == 0 ? 300 : 1; n > 0; n--)
            record(s);
        break;
    case 6: add_file(s); break;
    default: append(s);
    }
}

/* --- the comparison ------------------------------------------------------------------------ */

static bool
same_points(const struct checkpoint *a, const struct ledger_point *b)
{
    return strcmp(a->label, b->label) == 0 && a->automatic == b->automatic &&
           a->pos == b->pos && a->made_ms == b->made_ms;
}

static bool
same_ops(const struct op_record *a, const struct op_record *b)
{
    return memcmp(a->id, b->id, sizeof a->id) == 0 && a->kind == b->kind &&
           a->code == b->code && a->undone == b->undone && a->reason == b->reason &&
           a->begin == b->begin && a->end == b->end && a->stop_at == b->stop_at &&
           a->seed == b->seed;
}

static bool
same_logs(const struct session_log *a, const struct session_log *b)
{
    const uint64_t n = a->n_ops < OP_IDS_KEPT ? a->n_ops : OP_IDS_KEPT;

    if (a->len != b->len || a->n_checkpoints != b->n_checkpoints ||
        (b->n_ops < OP_IDS_KEPT ? b->n_ops : OP_IDS_KEPT) != n ||
        (a->len > 0 && memcmp(a->tokens, b->tokens, a->len * sizeof *a->tokens) != 0))
        return false;
    for (uint64_t i = 1; i <= n; i++) {
        if (!same_ops(session_log_op(a, a->n_ops - i), session_log_op(b, b->n_ops - i)))
            return false;
    }
    return true;
}

static bool
same_files(const struct session *s, const struct model *m)
{
    if (s->n_files != m->n_files)
        return false;
    for (size_t i = 0; i < s->n_files; i++) {
        const size_t at = file_of(m, &s->files[i].about.id);

        if (at == m->n_files || memcmp(&m->files[at], &s->files[i], sizeof *m->files) != 0)
            return false;
    }
    return true;
}

/* Read back as at a start of the daemon. */
static bool
same(struct session *s, const struct model *m)
{
    struct err e;
    struct session *back = session_found(s->user, POINTS, &e);
    struct ledger_content c = {.meta = m->meta,
                               .len = m->len,
                               .n_points = m->n_points,
                               .n_ops = m->n_ops,
                               .n_files = m->n_files};
    bool ok = !m->wrong;

    c.tokens = memcpy(malloc(sizeof m->tokens), m->tokens, sizeof m->tokens);
    c.points = memcpy(malloc(sizeof m->points), m->points, sizeof m->points);
    c.ops = memcpy(malloc(sizeof m->ops), m->ops, sizeof m->ops);
    c.files = memcpy(malloc(sizeof m->files), m->files, sizeof m->files);
    session_log_found(&back->log, m->len, m->n_points);
    ok = ok && session_from_ledger(back, &c, &e) == 0 && same_logs(&s->log, &back->log) &&
         same_files(s, m) && m->meta.turns == s->log.turns &&
         m->meta.rollbacks == s->log.rollbacks && m->meta.turn_open == s->log.turn_open;
    for (size_t i = 0; ok && i < m->n_points; i++)
        ok = same_points(&s->log.checkpoints[i], &m->points[i]);
    ok = ok && !session_log_differs(&back->log);
    ledger_content_done(&c);
    session_free(back);
    return ok;
}

static void
forget(struct session *s, enum mutant mutant)
{
    struct session_log_diff *d = &s->log.diff;

    if (mutant == NO_LOW && d->low < d->stored && s->log.len >= d->stored)
        d->low = d->stored;
    if (mutant == NO_POINTS)
        d->points = false;
    if (mutant == NO_OPS)
        d->ops = s->log.n_ops;
    if (mutant == NO_FILES)
        s->n_touched = 0;
}

/* As commit.c does it; the session goes on while it is under way. */
static void
commit(struct session *s, struct model *m, enum mutant mutant, bool last)
{
    struct err e;
    struct store_job *job = store_job_new(STORE_COMMIT, &s->id, NULL, NULL, &e);
    const bool fails = !last && below(4) == 0, taken = !fails || below(2) == 0;

    forget(s, mutant);
    assert_int_equal(session_to_ledger(s, job, &e), 0);
    s->n_touched_taken = s->n_touched;
    session_log_take(&s->log);
    for (uint64_t n = last ? 0 : below(4); n > 0; n--)
        live(s);
    if (taken)
        apply(m, &job->change);
    session_log_stored(&s->log, !fails || mutant == NO_FAILURE);
    session_files_stored(s, !fails || mutant == NO_FAILURE);
    store_job_free(job);
}

static bool
one_life(uint64_t seed, enum mutant mutant)
{
    static struct model m;
    struct quota q;
    struct err e;
    struct user *u;
    struct session *s;
    bool ok = true;

    state = seed;
    memset(&m, 0, sizeof m);
    quota_init(&q, &limits);
    u = quota_user(&q, 1, &e);
    s = session_new(u, POINTS, &e);
    assert_non_null(s);
    session_log_touch(&s->log);
    for (int i = 0; ok && i < STEPS; i++) {
        live(s);
        assert_true(session_log_durable(&s->log) <= s->log.len);
        if (below(5) == 0)
            commit(s, &m, mutant, false);
        if (below(40) == 0 || i == STEPS - 1) {
            while (session_log_differs(&s->log) && !m.wrong) /* once, if it is well */
                commit(s, &m, mutant, true);
            ok = same(s, &m) && session_log_durable(&s->log) == s->log.len;
        }
    }
    session_free(s);
    quota_drop(u); /* asserts that nothing is left counted */
    quota_done(&q);
    return ok;
}

static void
changes_make_the_session(void **unused)
{
    (void)unused;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        assert_true(one_life(seed, HONEST));
}

static void
mutants_are_found_out(void **unused)
{
    (void)unused;
    for (enum mutant mutant = HONEST + 1; mutant < MUTANTS; mutant++) {
        uint64_t seed = 1;

        while (seed <= SEEDS && one_life(seed, mutant))
            seed++;
        assert_true(seed <= SEEDS);
    }
}

/* A commit is as large as what changed, however long the session is. */
static void
commits_are_small(void **unused)
{
    static uint32_t ids[100000];
    struct quota q;
    struct err e;
    struct user *u;
    struct session *s;
    struct store_job *job;

    (void)unused;
    quota_init(&q, &limits);
    u = quota_user(&q, 1, &e);
    s = session_new(u, POINTS, &e);
    assert_int_equal(session_log_append(&s->log, ids, 100000, &e), 0);
    session_log_take(&s->log);
    session_log_stored(&s->log, true);
    assert_false(session_log_differs(&s->log));
    assert_int_equal(session_log_append(&s->log, ids, 3, &e), 0);
    assert_int_equal(session_log_durable(&s->log), 100000);
    job = store_job_new(STORE_COMMIT, &s->id, NULL, NULL, &e);
    assert_int_equal(session_to_ledger(s, job, &e), 0);
    assert_int_equal(job->change.from, 100000);
    assert_int_equal(job->change.n_tokens, 3);
    assert_false(job->change.has_points);
    assert_int_equal(job->change.n_ops, 0);
    assert_int_equal(job->len, 100003);
    store_job_free(job);
    session_free(s);
    quota_drop(u);
    quota_done(&q);
}

/* A row that no fathomd wrote. */
static void
nonsense_is_refused(void **unused)
{
    struct quota q;
    struct err e;
    struct user *u;
    struct session *s;

    (void)unused;
    quota_init(&q, &limits);
    u = quota_user(&q, 1, &e);
    for (int i = 0; i < 4; i++) {
        struct ledger_content c = {.ops = calloc(1, sizeof *c.ops), .n_ops = 1};

        s = session_found(u, POINTS, &e);
        session_log_found(&s->log, 0, 0);
        c.ops[0].body[0] = i == 0 ? 9 : 1;     /* version */
        c.ops[0].body[1] = i == 1 ? 200 : 0;   /* kind */
        c.ops[0].body[2] = i == 2 ? 255 : 0;   /* error */
        c.ops[0].body[8 + 7] = i == 3 ? 1 : 0; /* begin behind its end */
        assert_int_equal(session_from_ledger(s, &c, &e), -1);
        assert_int_equal(e.code, ERR_DAMAGED);
        ledger_content_done(&c);
        session_free(s);
    }
    quota_drop(u);
    quota_done(&q);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_make_the_session),
        cmocka_unit_test(mutants_are_found_out),
        cmocka_unit_test(commits_are_small),
        cmocka_unit_test(nonsense_is_refused),
    };

    log_init("session_ledger_test", LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
