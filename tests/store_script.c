/* SPDX-License-Identifier: Apache-2.0 */
/* See store_script.h. */
#include "config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "kvstore/io.h"
#include "kvstore/verify.h"
#include "tests/kvfile_sample.h"
#include "tests/store_rig.h"
#include "tests/store_script.h"

enum { MOST_TOKENS = 1 << 14, MOST_FILES = 64, MOST_POINTS = 64 };

static void *
need(void *p)
{
    if (p == NULL)
        abort();
    return p;
}

static struct ledger_content
copy_of(const struct ledger_content *c)
{
    struct ledger_content n = *c;

    n.tokens = need(malloc(MOST_TOKENS * sizeof *n.tokens));
    n.points = need(calloc(MOST_POINTS, sizeof *n.points));
    n.ops = need(calloc(LEDGER_OPS + 1, sizeof *n.ops));
    n.files = need(calloc(MOST_FILES, sizeof *n.files));
    if (c->len > 0)
        memcpy(n.tokens, c->tokens, c->len * sizeof *n.tokens);
    if (c->n_points > 0)
        memcpy(n.points, c->points, c->n_points * sizeof *n.points);
    if (c->n_ops > 0)
        memcpy(n.ops, c->ops, c->n_ops * sizeof *n.ops);
    if (c->n_files > 0)
        memcpy(n.files, c->files, c->n_files * sizeof *n.files);
    return n;
}

static int
by_place(const void *a, const void *b)
{
    const struct ledger_file *x = a, *y = b;

    if (x->about.type != y->about.type)
        return x->about.type < y->about.type ? -1 : 1;
    return x->about.pos < y->about.pos ? -1 : x->about.pos > y->about.pos;
}

static void
put_file(struct ledger_content *c, const struct ledger_file *f)
{
    c->files[c->n_files++] = *f;
    qsort(c->files, c->n_files, sizeof *c->files, by_place);
}

/* Tokens do not depend on how often a step was tried. */
static uint32_t
seed_of(const struct script_session *s)
{
    return (uint32_t)(s->c.meta.rollbacks + 1);
}

int
script_begin(struct script *x, struct io *io, struct err *e)
{
    *x = (struct script){.io = io};
    return catalog_open(io, &x->catalog, e);
}

void
script_end(struct script *x)
{
    for (int i = 0; i < SCRIPT_SESSIONS; i++) {
        ledger_close(x->s[i].l);
        ledger_content_done(&x->s[i].c);
    }
    catalog_close(x->catalog);
    *x = (struct script){0};
}

/* Names and ids count up over the sessions of a script; but a text names sessions, not ids. */
static void
fresh_id(struct script *x, struct script_session *s)
{
    rig_id(&s->id, 0x100 * ++x->n_ids + (unsigned)(s - x->s));
}

static int
create(struct script *x, struct script_session *s, unsigned n, struct err *e)
{
    struct ledger_content c = copy_of(&(struct ledger_content){0});
    struct ledger_change first = {
        .meta = &c.meta, .has_tokens = true, .tokens = c.tokens, .n_tokens = n};
    char name[16];

    snprintf(name, sizeof name, "s%d", (int)(s - x->s));
    rig_meta(&c.meta, name);
    c.len = n;
    rig_tokens(c.tokens, 1, 0, n);
    fresh_id(x, s);
    if (catalog_create(x->catalog, &s->id, &first, e) == -1) {
        ledger_content_done(&c);
        return -1;
    }
    s->c = c;
    s->alive = true;
    return 0;
}

static int
fork_to(struct script *x, struct script_session *from, struct script_session *to,
        struct err *e)
{
    struct ledger_content c = copy_of(&from->c);
    struct ledger_change first = {.meta = &c.meta,
                                  .has_tokens = true,
                                  .tokens = c.tokens,
                                  .n_tokens = c.len,
                                  .has_points = true,
                                  .points = c.points,
                                  .n_points = c.n_points,
                                  .add = c.files,
                                  .n_add = c.n_files};

    c.n_ops = 0;
    snprintf(c.meta.name, sizeof c.meta.name, "s%d", (int)(to - x->s));
    fresh_id(x, to);
    if (catalog_fork(x->catalog, &from->id, &to->id, &first, e) == -1) {
        ledger_content_done(&c);
        return -1;
    }
    to->c = c;
    to->alive = true;
    return 0;
}

static int
open_session(struct script *x, struct script_session *s, struct err *e)
{
    char dir[CATALOG_DIR_MAX];

    catalog_dir(&s->id, dir);
    if (catalog_hot(x->catalog, &s->id, true, e) == -1)
        return -1;
    return ledger_open(x->io, dir, false, &s->l, e);
}

static int
close_session(struct script *x, struct script_session *s, struct err *e)
{
    struct catalog_entry en = {.id = s->id,
                               .meta = s->c.meta,
                               .len = s->c.len,
                               .n_points = s->c.n_points,
                               .disk_bytes = 1};

    if (catalog_note(x->catalog, &en, e) == -1)
        return -1;
    ledger_close(s->l);
    s->l = NULL;
    return catalog_hot(x->catalog, &s->id, false, e);
}

/* The change, and then what the session must be. */
static int
commit(struct script_session *s, const struct ledger_change *change,
       struct ledger_content *after, struct err *e)
{
    if (ledger_commit(s->l, change, e) == -1) {
        ledger_content_done(after);
        return -1;
    }
    ledger_content_done(&s->c);
    s->c = *after;
    return 0;
}

static int
append(struct script_session *s, unsigned n, struct err *e)
{
    struct ledger_content c = copy_of(&s->c);
    struct ledger_op op;
    const struct ledger_change change = {.has_tokens = true,
                                         .from = s->c.len,
                                         .tokens = c.tokens + s->c.len,
                                         .n_tokens = n,
                                         .ops = &op,
                                         .n_ops = 1};

    if (c.len + n > MOST_TOKENS)
        abort(); /* the script is too long */
    rig_tokens(c.tokens + c.len, seed_of(s), c.len, n);
    c.len += n;
    rig_op(&op, (unsigned)c.n_ops + 1);
    c.ops[c.n_ops++] = op;
    return commit(s, &change, &c, e);
}

static int
cut(struct script_session *s, unsigned n, struct err *e)
{
    struct ledger_content c = copy_of(&s->c);
    struct kvfile_id drop[MOST_FILES];
    struct ledger_file less[MOST_FILES];
    struct ledger_change change = {.meta = &c.meta,
                                   .has_tokens = true,
                                   .from = n,
                                   .has_points = true,
                                   .points = c.points,
                                   .drop = drop,
                                   .add = less};

    c.meta.rollbacks++;
    c.len = n;
    c.n_points = c.n_files = 0;
    for (size_t i = 0; i < s->c.n_points; i++) {
        if (s->c.points[i].pos <= n)
            c.points[c.n_points++] = s->c.points[i];
    }
    change.n_points = c.n_points;
    for (size_t i = 0; i < s->c.n_files; i++) {
        struct ledger_file f = s->c.files[i];
        const bool cut_it = f.about.pos + f.n_pages * KVFILE_PAGE_TOKENS > n;

        if (f.about.pos > n || (cut_it && (n - f.about.pos) / KVFILE_PAGE_TOKENS == 0)) {
            drop[change.n_drop++] = f.about.id;
            continue;
        }
        if (cut_it) {
            f.n_pages = (uint32_t)((n - f.about.pos) / KVFILE_PAGE_TOKENS);
            less[change.n_add++] = f;
        }
        c.files[c.n_files++] = f;
    }
    return commit(s, &change, &c, e);
}

static int
point(struct script_session *s, struct err *e)
{
    struct ledger_content c = copy_of(&s->c);
    struct ledger_change change = {.has_points = true, .points = c.points};
    char label[24];

    snprintf(label, sizeof label, "turn-%" PRIu64, c.len);
    rig_point(&c.points[c.n_points++], label, c.len);
    change.n_points = c.n_points;
    return commit(s, &change, &c, e);
}

static int
rename_to(struct script_session *s, unsigned n, struct err *e)
{
    struct ledger_content c = copy_of(&s->c);
    const struct ledger_change change = {.meta = &c.meta};

    snprintf(c.meta.name, sizeof c.meta.name, "name-%u", n);
    return commit(s, &change, &c, e);
}

/* Data in front of the row, or, as no one should, behind it. */
static int
publish(struct script *x, struct script_session *s, struct ledger_file *f, bool row_first,
        struct err *e)
{
    const struct ledger_change change = {.add = f, .n_add = 1};
    struct ledger_content c;
    char dir[CATALOG_DIR_MAX];
    int rc;

    rig_id(&f->about.id, 0x10000 + ++x->n_ids);
    catalog_dir(&s->id, dir);
    f->bytes = 4 * KVFILE_ALIGN; /* what the sample model's come to */
    if (!row_first && rig_publish(x->io, dir, f, s->c.tokens, e) == -1)
        return -1;
    c = copy_of(&s->c);
    if (row_first) {
        struct kvfile_plan plan;

        kvfile_plan(&kvfile_sample_model, &f->about, &plan);
        f->bytes = plan.bytes;
    }
    put_file(&c, f);
    rc = commit(s, &change, &c, e);
    return rc == 0 && row_first ? rig_publish(x->io, dir, f, s->c.tokens, e) : rc;
}

static int
chunk(struct script *x, struct script_session *s, unsigned pages, bool row_first,
      struct err *e)
{
    struct ledger_file f;
    uint64_t pos = 0;

    for (size_t i = 0; i < s->c.n_files; i++) {
        if (s->c.files[i].about.type == KVFILE_CHUNK)
            pos = s->c.files[i].about.pos + s->c.files[i].n_pages * KVFILE_PAGE_TOKENS;
    }
    rig_chunk(&f, 0, pos, pages * KVFILE_PAGE_TOKENS);
    return publish(x, s, &f, row_first, e);
}

static int
drop(struct script *x, struct script_session *s, bool file_first, struct err *e)
{
    struct ledger_content c = copy_of(&s->c);
    struct ledger_change change = {.n_drop = 1};
    char dir[CATALOG_DIR_MAX], name[KVFILE_NAME_MAX], path[200];
    struct kvfile_id id;
    size_t i = 0;

    while (i < c.n_files && c.files[i].about.type != KVFILE_STATE)
        i++;
    if (i == c.n_files)
        abort(); /* the script is wrong */
    id = c.files[i].about.id;
    change.drop = &id;
    catalog_dir(&s->id, dir);
    kvfile_name(&c.files[i].about, name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    memmove(&c.files[i], &c.files[i + 1], (--c.n_files - i) * sizeof *c.files);
    if (file_first && x->io->ops->unlink(x->io, path, e) == -1)
        return -1;
    if (commit(s, &change, &c, e) == -1)
        return -1;
    if (!file_first)
        x->io->ops->unlink(x->io, path, e); /* or the sweep will */
    return 0;
}

static int
gone(struct script_session *s, int rc)
{
    if (rc == 0) {
        ledger_content_done(&s->c);
        s->alive = false;
    }
    return rc;
}

static int
sweep(struct catalog *c, struct err *e)
{
    int rc, n = 0;

    while ((rc = catalog_sweep(c, e)) == 1) {
        if (++n == 1000)
            return err_set(e, ERR_INTERNAL, 0, "sweeping does not end");
    }
    return rc;
}

int
script_step(struct script *x, const struct step *step, struct err *e)
{
    struct script_session *s = &x->s[step->session];
    struct ledger_file f;

    switch (step->kind) {
    case STEP_CREATE: return create(x, s, step->n, e);
    case STEP_OPEN: return open_session(x, s, e);
    case STEP_APPEND: return append(s, step->n, e);
    case STEP_CUT: return cut(s, step->n, e);
    case STEP_POINT: return point(s, e);
    case STEP_RENAME: return rename_to(s, step->n, e);
    case STEP_CHUNK:
    case STEP_CHUNK_ROW_FIRST:
        return chunk(x, s, step->n, step->kind == STEP_CHUNK_ROW_FIRST, e);
    case STEP_STATE: rig_state(&f, 0, s->c.len); return publish(x, s, &f, false, e);
    case STEP_DROP:
    case STEP_DROP_FILE_FIRST: return drop(x, s, step->kind == STEP_DROP_FILE_FIRST, e);
    case STEP_CLOSE: return close_session(x, s, e);
    case STEP_FORK: return fork_to(x, s, &x->s[step->n], e);
    case STEP_DELETE: return gone(s, catalog_delete(x->catalog, &s->id, e));
    case STEP_QUARANTINE: return gone(s, catalog_quarantine(x->catalog, &s->id, "test", e));
    case STEP_SWEEP: return sweep(x->catalog, e);
    case STEP_REOPEN:
        catalog_close(x->catalog);
        x->catalog = NULL;
        return catalog_open(x->io, &x->catalog, e);
    case STEP_SETTLE: return 0;
    case STEP_END: break;
    }
    abort();
}

struct text {
    char *p;
    size_t n;
};

static void say(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void
say(struct text *t, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    t->n += (size_t)vsnprintf(t->p + t->n, SCRIPT_TEXT - t->n, fmt, ap);
    va_end(ap);
    if (t->n >= SCRIPT_TEXT)
        abort();
}

static void
describe(struct text *t, const struct ledger_content *c)
{
    say(t, "%s: %" PRIu64 " tokens %08x, rollbacks %" PRIu64 "; points", c->meta.name,
        c->len,
        c->len > 0 ? (unsigned)XXH3_64bits(c->tokens, c->len * sizeof *c->tokens) : 0,
        c->meta.rollbacks);
    for (size_t i = 0; i < c->n_points; i++)
        say(t, " %s@%" PRIu64, c->points[i].label, c->points[i].pos);
    say(t, "; ops %zu %08x; files", c->n_ops,
        c->n_ops > 0 ? (unsigned)XXH3_64bits(c->ops, c->n_ops * sizeof *c->ops) : 0);
    for (size_t i = 0; i < c->n_files; i++)
        say(t, " %d@%" PRIu64 "+%u", (int)c->files[i].about.type, c->files[i].about.pos,
            c->files[i].n_pages);
    say(t, "\n");
}

void
script_want(const struct script *x, char text[SCRIPT_TEXT])
{
    struct text t = {text, 0};
    const struct script_session *by_name[SCRIPT_SESSIONS];
    int n = 0;

    text[0] = '\0';
    for (int i = 0; i < SCRIPT_SESSIONS; i++) {
        int k = n;

        if (!x->s[i].alive)
            continue;
        for (; k > 0 && strcmp(by_name[k - 1]->c.meta.name, x->s[i].c.meta.name) > 0; k--)
            by_name[k] = by_name[k - 1];
        by_name[k] = &x->s[i];
        n++;
    }
    for (int i = 0; i < n; i++)
        describe(&t, &by_name[i]->c);
}

struct found {
    struct catalog_entry v[SCRIPT_SESSIONS + 1];
    size_t n;
};

static int
take(void *arg, const struct catalog_entry *en)
{
    struct found *f = arg;

    if (f->n <= SCRIPT_SESSIONS)
        f->v[f->n++] = *en;
    return 0;
}

static int
by_entry_name(const void *a, const void *b)
{
    return strcmp(((const struct catalog_entry *)a)->meta.name,
                  ((const struct catalog_entry *)b)->meta.name);
}

int
script_have(struct io *io, struct catalog *c, char text[SCRIPT_TEXT], struct err *e)
{
    struct text t = {text, 0};
    struct found f = {.n = 0};

    text[0] = '\0';
    if (catalog_each(c, take, &f, e) == -1)
        return -1;
    qsort(f.v, f.n, sizeof *f.v, by_entry_name);
    for (size_t i = 0; i < f.n; i++) {
        struct ledger_content content;
        char dir[CATALOG_DIR_MAX];
        struct ledger *l;
        int rc;

        if (f.v[i].damaged)
            return err_set(e, ERR_DAMAGED, 0, "a session is damaged: %s", f.v[i].why);
        catalog_dir(&f.v[i].id, dir);
        if (ledger_look(io, dir, &l, e) == -1)
            return -1;
        rc = ledger_load(l, &content, e);
        ledger_close(l);
        if (rc == -1)
            return -1;
        if (strcmp(content.meta.name, f.v[i].meta.name) != 0 || content.len != f.v[i].len ||
            content.n_points != f.v[i].n_points)
            rc = err_set(e, ERR_INTERNAL, 0,
                         "the index says %s with %" PRIu64
                         " tokens, the ledger %s with %" PRIu64,
                         f.v[i].meta.name, f.v[i].len, content.meta.name, content.len);
        else
            describe(&t, &content);
        ledger_content_done(&content);
        if (rc == -1)
            return -1;
    }
    return 0;
}

static char problem[2 * SCRIPT_TEXT + 400];

static const char *
is_wrong(const char *where, const char *what)
{
    snprintf(problem, sizeof problem, "%s: %s", where, what);
    return problem;
}

static int
note_wrong(void *arg, bool wrong, const char *text)
{
    char *first = arg;

    if (wrong && first[0] == '\0')
        snprintf(first, 300, "%s", text);
    return 0;
}

/* Each session's files, and that nothing lies there that no row names. */
static const char *
check_sessions(struct io *io, struct catalog *c)
{
    struct found f = {.n = 0};
    struct err e = {0};

    if (catalog_each(c, take, &f, &e) == -1)
        return is_wrong("each", e.text);
    for (size_t i = 0; i < f.n; i++) {
        struct verify_result r;
        char dir[CATALOG_DIR_MAX], first[300] = "";

        catalog_dir(&f.v[i].id, dir);
        if (store_verify(io, dir, &kvfile_sample_model, NULL, note_wrong, first, &r, &e) ==
            -1)
            return is_wrong("verify", e.text);
        if (r.wrong > 0)
            return is_wrong("verify", first);
        if (r.orphans > 0)
            return "a file that no row names was not swept";
    }
    return NULL;
}

struct tree {
    struct io *io;
    uint64_t sum;
    char dir[256];
    unsigned n_left; /* in tmp/ and trash/ */
};

static int
hash_tree(void *arg, const char *name)
{
    const struct tree *up = arg;
    struct tree down = {.io = up->io};
    struct tree *t = arg;
    struct io_stat st;
    struct err e;

    snprintf(down.dir, sizeof down.dir, "%s%s%s", up->dir[0] == '.' ? "" : up->dir,
             up->dir[0] == '.' ? "" : "/", name);
    if (up->io->ops->stat(up->io, down.dir, &st, &e) == -1)
        return -1;
    if (strncmp(down.dir, "tmp/", 4) == 0 || strncmp(down.dir, "trash/", 6) == 0)
        t->n_left++;
    /* The index is a cache and may be written whenever. */
    t->sum += XXH3_64bits_withSeed(
        down.dir, strlen(down.dir),
        st.is_dir || strncmp(down.dir, "index.db", 8) == 0 ? 0 : st.bytes);
    if (!st.is_dir)
        return 0;
    if (up->io->ops->list(up->io, down.dir, hash_tree, &down, &e) != 0)
        return -1;
    t->sum += down.sum;
    t->n_left += down.n_left;
    return 0;
}

/* Opens, compares, sweeps, closes. */
static const char *
recover(struct io *io, const char *want, const char *or_else, uint64_t *tree)
{
    struct tree t = {.io = io, .dir = "."};
    struct catalog *c = NULL;
    struct err e = {0};
    char have[SCRIPT_TEXT];
    const char *why = NULL;

    if (catalog_open(io, &c, &e) == -1)
        return is_wrong("open", e.text);
    if (script_have(io, c, have, &e) == -1) {
        why = is_wrong("sessions", e.text);
    } else if (strcmp(have, want) != 0 && strcmp(have, or_else) != 0) {
        snprintf(problem, sizeof problem, "it holds\n%sand not\n%s", have, want);
        why = problem;
    }
    if (why == NULL && sweep(c, &e) == -1)
        why = is_wrong("sweep", e.text);
    if (why == NULL)
        why = check_sessions(io, c);
    catalog_close(c);
    if (why == NULL && io->ops->list(io, ".", hash_tree, &t, &e) != 0)
        why = is_wrong("list", e.text);
    if (why == NULL && t.n_left > 0)
        why = "something is left in tmp/ or trash/";
    *tree = t.sum;
    return why;
}

/* One that is alive takes a change, and so does the catalogue. */
static const char *
use_it(struct io *io)
{
    struct ledger_meta meta;
    const struct ledger_change first = {.meta = &meta}, change = {.meta = &meta};
    struct found f = {.n = 0};
    struct kvfile_id id;
    struct err e = {0};
    struct script x;
    const char *why = NULL;

    rig_meta(&meta, "afterwards");
    rig_id(&id, 0xffff);
    if (script_begin(&x, io, &e) == -1)
        return is_wrong("third open", e.text);
    if (catalog_each(x.catalog, take, &f, &e) == -1)
        why = is_wrong("third each", e.text);
    if (why == NULL && f.n > 0) {
        x.s[0].id = f.v[0].id;
        if (open_session(&x, &x.s[0], &e) == -1 ||
            ledger_commit(x.s[0].l, &change, &e) == -1)
            why = is_wrong("a change", e.text);
    }
    if (why == NULL && catalog_create(x.catalog, &id, &first, &e) == -1)
        why = is_wrong("a new session", e.text);
    script_end(&x);
    return why;
}

const char *
script_check(struct io *io, const char *want, const char *or_else, bool again)
{
    uint64_t first, second;
    const char *why = recover(io, want, or_else, &first);

    if (why != NULL || !again)
        return why;
    why = recover(io, want, or_else, &second);
    if (why == NULL && first != second)
        why = "a second recovery changed something";
    return why != NULL ? why : use_it(io);
}
