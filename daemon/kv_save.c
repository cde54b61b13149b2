/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saving. The engine copies what is not saved yet into images in the arena (LINK_KV_OUT, between
 * its other jobs); from there on it is not needed any more. Bulk threads seal the images and
 * write them to files, and when they are there the session's ledger is told, in one commit with
 * the rows that have become superfluous. Data durable before the row that names it; row gone
 * before the data that it named.
 *
 * The list of pieces (kv_plan.h) says what is saved or on its way. A piece that a rollback takes
 * out of it while it is under way comes to nothing: that is all the bookkeeping there is.
 *
 * Nothing here ever waits or makes others wait: without room in the arena or in the table of
 * jobs, a save is put off, and the session stays due.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "daemon/kv_impl.h"
#include "daemon/options.h"
#include "daemon/session.h"
#include "daemon/session_files.h"
#include "daemon/store.h"
#include "daemon/work_impl.h"

enum { AGAIN_MS = 5000, SOON_MS = 200, MOST_DROPPED = 64 };

static const uint64_t MS = 1000000;

/* --- what is to be saved, and when --------------------------------------------------------- */

static void
make_due(struct kv *k, struct session *s, uint64_t at_ns)
{
    struct kv_session *ks = kv_of(k, s);

    if (ks == NULL)
        return; /* no memory: it is saved at its next operation */
    if (!ks->is_due) {
        kv_hold(s);
        ks->is_due = true;
        ks->next_due = k->due;
        k->due = ks;
        ks->due_ns = at_ns;
    } else if (at_ns < ks->due_ns) {
        ks->due_ns = at_ns;
    }
}

void
kv_not_due(struct kv *k, struct kv_session *ks)
{
    struct kv_session **at = &k->due;

    if (!ks->is_due)
        return;
    while (*at != ks)
        at = &(*at)->next_due;
    *at = ks->next_due;
    ks->is_due = false;
    kv_release(k, ks->s);
}

static bool rewrite(struct kv *k, struct session *s);

/* Of the session that is due: true if there is no more to be done for it. */
static bool
serve_due(struct kv *k, struct kv_session *ks, uint64_t now)
{
    struct session *s = ks->s;
    const bool dirty = s->slot != NULL && !kv_is_saved(s, KV_COMING);

    if (s->state == SESSION_GONE || s->kept.quarantined ||
        (!dirty && (k->io == NULL || !kv_has_only_copy(ks))))
        return true;
    if (now < ks->due_ns)
        return false;
    if (dirty ? !kv_save(k, s, s->slot, KV_ALL) : ks->saves == 0 && !rewrite(k, s))
        ks->due_ns = now + SOON_MS * MS; /* it works, or there is no room */
    return false;
}

void
kv_saves_tick(struct kv *k, uint64_t now)
{
    struct kv_session **at = &k->due, *ks;

    while ((ks = *at) != NULL) {
        if (serve_due(k, ks, now)) {
            *at = ks->next_due;
            ks->is_due = false;
            kv_release(k, ks->s);
        } else {
            at = &ks->next_due;
        }
    }
}

void
kv_op_over(struct kv *k, struct session *s)
{
    kv_touch(k, s);
    if (s->slot != NULL && !s->kept.quarantined && !kv_is_saved(s, KV_COMING))
        make_due(k, s, clock_ns() + k->w->o->save_after * MS);
}

void
kv_named(struct kv *k, struct session *s)
{
    struct kv_session *ks = kv_of(k, s);

    if (ks == NULL || s->slot == NULL || s->kept.quarantined || kv_is_saved(s, KV_COMING))
        return;
    ks->turn = true;
    kv_save_now(k, s); /* what is left of it goes on by itself */
}

void
kv_keep(struct kv *k, struct session *s)
{
    struct kv_session *ks = kv_of(k, s);
    bool turn;

    if (ks == NULL || s->slot == NULL || s->kept.quarantined)
        return;
    turn = ks->turn;
    ks->turn = true;
    kv_save(k, s, s->slot, KV_STATE);
    ks->turn = turn;
}

void
kv_save_now(struct kv *k, struct session *s)
{
    make_due(k, s, clock_ns());
    if (s->slot != NULL && !kv_is_saved(s, KV_COMING))
        kv_save(k, s, s->slot, KV_ALL);
}

/* One batch is on its way: the next one of a session that is in a hurry. */
static void
go_on(struct kv *k, struct session *s)
{
    const struct kv_session *ks = s->kv;

    if (ks->is_due && s->slot != NULL && s->state != SESSION_GONE &&
        clock_ns() >= ks->due_ns && !kv_is_saved(s, KV_COMING))
        kv_save(k, s, s->slot, KV_ALL);
}

void
kv_fed(struct kv *k, struct session *s)
{
    if (s->slot != NULL && !s->kept.quarantined)
        kv_save(k, s, s->slot, KV_BLOCKS);
}

/* --- a save ------------------------------------------------------------------------------ */

void
kv_save_free(struct kv_save *v)
{
    for (size_t i = 0; i < v->n; i++)
        free(v->files[i].tokens);
    free(v->gone);
    free(v);
}

/* It is over, well or not. */
static void
end_save(struct kv *k, struct kv_save *v)
{
    struct kv_save **at = &k->saves;
    struct session *s = v->s;
    struct kv_session *ks = s->kv;

    while (*at != v)
        at = &(*at)->next;
    *at = v->next;
    k->saving -= v->bytes;
    ks->saves--;
    ks->save_err = v->err;
    if (v->err.code == ERR_NONE) {
        k->counts.saves++;
        histogram_add(&k->counts.save, clock_ns() - v->began_ns);
        if (v->more && s->slot != NULL && s->state != SESSION_GONE &&
            !kv_is_saved(s, KV_COMING))
            make_due(k, s, clock_ns());
    } else if (s->state != SESSION_GONE) {
        k->counts.saves_failed++;
        log_line(LOG_WARNING, "cache-not-saved session=%s uid=%" PRIu32 " why=\"%s\"",
                 s->name, s->user->uid, v->err.text);
        make_due(k, s, clock_ns() + AGAIN_MS * MS);
    }
    kv_save_free(v);
    go_on(k, s);
    kv_wake(k, s);
    kv_restores_step(k); /* there is room again */
    kv_release(k, s);
}

static void
fail(struct kv_save *v, const struct err *e)
{
    if (v->err.code == ERR_NONE)
        v->err = *e;
}

/* A file of a save that will not be: its piece is taken back, so it is planned anew. */
static void
give_up(struct kv *k, struct kv_save *v, struct kv_save_file *f)
{
    struct kv_image *x = f->image;

    if (x == NULL)
        return;
    kv_pieces_remove(&v->s->kv->pieces, &f->about.id);
    x->sealed = false; /* nobody else knows it: it goes with the last pin */
    x->owner = NULL;
    f->image = NULL;
    kv_image_unpin(k, x);
}

static void
give_up_all(struct kv *k, struct kv_save *v)
{
    for (size_t i = 0; i < v->n; i++)
        give_up(k, v, &v->files[i]);
}

static struct kv_save_file *
state_of(struct kv_save *v)
{
    struct kv_save_file *f = &v->files[v->n - 1];

    return v->n > 0 && f->about.type == KVFILE_STATE ? f : NULL;
}

static struct kv_save_file *
file_of(struct kv_save *v, const struct kvfile_id *id)
{
    for (size_t i = 0; i < v->n; i++) {
        if (memcmp(&v->files[i].about.id, id, sizeof *id) == 0)
            return &v->files[i];
    }
    return NULL;
}

/* Adds a file: its image, pinned, and its piece. False: no room. */
static bool
add_file(struct kv *k, struct kv_save *v, struct kvfile_about *about)
{
    struct kv_save_file *f = &v->files[v->n];
    struct ledger_file row = {.about = *about, .n_pages = about->n_tokens / KV_PAGE};
    struct kvfile_plan plan;
    struct kv_image *x;
    uint32_t *tokens = NULL;
    uint64_t most = arena_bytes(k->arena) / 2;

    kvfile_plan(&k->model, about, &plan);
    /* Half of the arena is left for those who come back, and beside chunks a state has room: it
     * cannot be had later. */
    if (about->type == KVFILE_CHUNK)
        most -= k->state_bytes;
    if (k->saving + v->bytes + plan.bytes > most)
        return false;
    catalog_new_id(&about->id);
    row.about.id = about->id;
    if (about->type == KVFILE_CHUNK) {
        tokens = malloc(about->n_tokens * sizeof *tokens);
        if (tokens == NULL)
            return false;
        memcpy(tokens, v->s->log.tokens + about->pos, about->n_tokens * sizeof *tokens);
    }
    x = kv_image_new(k, about);
    if (x == NULL || kv_pieces_add(&v->s->kv->pieces, &row) == NULL) {
        free(tokens);
        if (x != NULL)
            kv_image_unpin(k, x);
        return false;
    }
    x->owner = v->s->kv;
    *f = (struct kv_save_file){.about = *about, .image = x, .tokens = tokens};
    v->bytes += x->at.bytes;
    v->n++;
    return true;
}

/* The state where the sequence will be then, or one token before. */
static bool
add_state(struct kv *k, struct kv_save *v, uint64_t len)
{
    const uint64_t here = kv_state_bytes(k->layout, len);
    const uint64_t before = kv_state_bytes(k->layout, len - 1);
    struct kvfile_about about = {.type = KVFILE_STATE,
                                 .pos = len,
                                 .state_bytes = here > before ? here : before,
                                 .logits = true};

    if (!add_file(k, v, &about))
        return false;
    v->files[v->n - 1].row_at = v->files[v->n - 1].image->plan.logits_at;
    v->files[v->n - 1].turn = v->s->kv->turn;
    v->s->kv->turn = false;
    return true;
}

/* True: all of the runs are in. */
static bool
add_chunks(struct kv *k, struct kv_save *v, uint64_t pages, bool whole_blocks)
{
    struct kv_run runs[KV_SAVE_FILES - 1];
    const size_t n = kv_plan_runs(&v->s->kv->pieces, pages, whole_blocks, runs,
                                  sizeof runs / sizeof *runs);

    for (size_t i = 0; i < n; i++) {
        struct kvfile_about about = {.type = KVFILE_CHUNK,
                                     .pos = runs[i].first * KV_PAGE,
                                     .n_tokens = (uint32_t)(runs[i].n * KV_PAGE)};

        if (!add_file(k, v, &about))
            return false;
        v->files[v->n - 1].merge = runs[i].merge;
    }
    return n < sizeof runs / sizeof *runs;
}

static int
send_copy(struct kv *k, struct kv_save *v, struct slot *sl, struct err *e)
{
    struct link_kv_out out = {.state_at = LINK_NOWHERE, .row_at = LINK_NOWHERE};
    struct link_kv_run runs[KV_SAVE_FILES];

    for (size_t i = 0; i < v->n; i++) {
        const struct kv_save_file *f = &v->files[i];

        if (f->about.type == KVFILE_STATE) {
            out.state_at = f->image->at.at + f->image->plan.state_at;
            out.row_at = f->image->at.at + f->row_at;
        } else {
            runs[out.n_runs++] =
                (struct link_kv_run){.first = f->about.pos / KV_PAGE,
                                     .n = f->about.n_tokens / KV_PAGE,
                                     .at = f->image->at.at + f->image->plan.pages_at};
        }
    }
    return slots_kv_out(&k->w->slots, sl, &out, runs, v, e);
}

static bool
has_state_at(const struct kv_session *ks, uint64_t pos)
{
    for (size_t i = ks->pieces.n; i > 0 && kv_is_state(&ks->pieces.v[i - 1]); i--) {
        if (ks->pieces.v[i - 1].file.about.pos == pos)
            return true;
    }
    return false;
}

/* A slot's content is the transcript's, and what is under way does not go beyond it but by
 * tokens that are being appended. */
static bool
can_save(const struct kv *k, const struct session *s, const struct slot *sl)
{
    return k->usable && sl->open && !sl->filling && sl->sent > 1 && !s->log.parked &&
           slots_room(&k->w->slots, WORK_JOBS_SPARE) &&
           slot_working(sl) == sl->feeds; /* while it draws nobody knows where it will be */
}

static bool
is_time_for(const struct kv_session *ks, const struct slot *sl, uint64_t have,
            unsigned what)
{
    switch (what) {
    case KV_STATE: return !has_state_at(ks, sl->sent);
    case KV_BLOCKS:
        return sl->len <= ks->s->log.len &&
               kv_covered(&ks->pieces, KV_COMING, KV_SOUND) + KV_BLOCK <= have / KV_PAGE;
    default: return sl->len <= ks->s->log.len && sl->feeds == 0;
    }
}

static struct kv_save *
new_save(struct kv *k, struct session *s)
{
    struct kv_save *v = calloc(1, sizeof *v);

    if (v == NULL)
        return NULL;
    v->k = k;
    v->s = s;
    v->began_ns = clock_ns();
    return v;
}

static void
begin(struct kv *k, struct kv_save *v)
{
    v->next = k->saves;
    k->saves = v;
    k->saving += v->bytes;
    v->s->kv->saves++;
    kv_hold(v->s);
}

bool
kv_save(struct kv *k, struct session *s, struct slot *sl, unsigned what)
{
    struct kv_session *ks = kv_of(k, s);
    const uint64_t have = sl->computed < s->log.len ? sl->computed : s->log.len;
    struct kv_save *v;
    struct err e;

    if (ks == NULL || !can_save(k, s, sl) || !is_time_for(ks, sl, have, what) ||
        (v = new_save(k, s)) == NULL)
        return false;
    if (what == KV_STATE)
        add_state(k, v, sl->sent);
    else if (add_chunks(k, v, have / KV_PAGE, what == KV_BLOCKS) && what == KV_ALL &&
             !kv_is_saved(s, KV_COMING))
        add_state(k, v, sl->sent);
    if (v->n == 0 || send_copy(k, v, sl, &e) == -1) {
        give_up_all(k, v);
        kv_save_free(v);
        return false;
    }
    begin(k, v);
    v->more = what == KV_ALL && !kv_is_saved(s, KV_COMING);
    if (!v->more && what == KV_ALL)
        ks->due_ns = UINT64_MAX; /* until something else makes it due */
    return true;
}

/* --- sealing and writing ------------------------------------------------------------------- */

static void on_written(struct kv_bulk_job *job);
static void commit(struct kv *k, struct kv_save *v);

/* One job for each file that is still wanted; none: false. */
static bool
post_all(struct kv *k, struct kv_save *v, enum kv_bulk_kind kind,
         void (*done)(struct kv_bulk_job *))
{
    v->left = 0;
    for (size_t i = 0; i < v->n; i++) {
        struct kv_save_file *f = &v->files[i];
        struct kv_bulk_job *job;
        struct err e;

        if (f->image == NULL)
            continue;
        job = kv_bulk_job_new(kind, done, v, &e);
        if (job == NULL) {
            fail(v, &e);
            give_up(k, v, f);
            continue;
        }
        if (kind == KV_BULK_SEAL) {
            job->tokens = f->tokens;
            f->tokens = NULL;
        }
        job->model = &k->model;
        job->about = f->about;
        job->image = kv_image_bytes(k, f->image);
        job->room = kind == KV_BULK_WRITE ? f->image->plan.bytes : f->image->at.bytes;
        job->row_at = f->row_at;
        job->session = v->s->id;
        catalog_dir(&v->s->id, job->dir);
        v->left++;
        kv_bulk_post(k->bulk, job);
    }
    return v->left > 0;
}

/* Pieces that a rollback took out of the list, or a deletion. */
static void
forget_dropped(struct kv *k, struct kv_save *v)
{
    for (size_t i = 0; i < v->n; i++) {
        struct kv_save_file *f = &v->files[i];

        if (f->image != NULL && kv_pieces_find(&v->s->kv->pieces, &f->about.id) == NULL)
            give_up(k, v, f);
    }
}

static void
write_all(struct kv *k, struct kv_save *v)
{
    forget_dropped(k, v);
    v->stage = KV_SAVE_WRITE;
    if (k->io != NULL && post_all(k, v, KV_BULK_WRITE, on_written))
        return;
    for (size_t i = 0; i < v->n; i++) { /* memory is the last tier */
        if (v->files[i].image != NULL)
            kv_image_unpin(k, v->files[i].image);
    }
    end_save(k, v);
}

static void
on_sealed(struct kv_bulk_job *job)
{
    struct kv_save *v = job->owner;
    struct kv *k = v->k;
    struct kv_save_file *f = file_of(v, &job->about.id);
    struct kv_piece *p = kv_pieces_find(&v->s->kv->pieces, &job->about.id);

    if (job->err.code != ERR_NONE) {
        fail(v, &job->err);
        give_up(k, v, f);
    } else if (p != NULL) {
        f->image->sealed = true;
        p->file.bytes = job->bytes;
        p->file.turn = f->turn;
        p->at = KV_SEALED;
        kv_image_used(k, f->image);
    }
    kv_bulk_job_free(job);
    if (--v->left > 0)
        return;
    kv_wake(k, v->s); /* it is in memory: who waits for that may go on */
    kv_restores_step(k);
    write_all(k, v);
}

/* What was sealed before and could not be written then. */
static bool
rewrite(struct kv *k, struct session *s)
{
    struct kv_session *ks = s->kv;
    struct kv_save *v = new_save(k, s);

    if (v == NULL)
        return false;
    for (size_t i = 0; i < ks->pieces.n && v->n < KV_SAVE_FILES; i++) {
        const struct kv_piece *p = &ks->pieces.v[i];
        struct kv_image *x = kv_image_find(k, &p->file.about.id);

        if (p->at != KV_SEALED || x == NULL)
            continue;
        x->pins++;
        v->files[v->n++] =
            (struct kv_save_file){.about = p->file.about, .image = x, .turn = p->file.turn};
    }
    if (v->n == 0) {
        kv_save_free(v);
        return false;
    }
    begin(k, v);
    write_all(k, v);
    return true;
}

static void
count_written(struct kv *k, struct kv_save *v, const struct kv_save_file *f, uint64_t bytes)
{
    struct ledger_meta *m = &v->s->kept;

    if (f->about.type == KVFILE_STATE) {
        k->counts.state_bytes += bytes;
        m->state_written += bytes;
        return;
    }
    k->counts.rows_bytes += bytes;
    m->rows_written += bytes;
    if (!f->merge) { /* those tokens have been counted before */
        k->counts.rows_tokens += f->about.n_tokens;
        m->rows_tokens += f->about.n_tokens;
    }
}

static void
on_written(struct kv_bulk_job *job)
{
    struct kv_save *v = job->owner;
    struct kv *k = v->k;
    struct kv_save_file *f = file_of(v, &job->about.id);
    struct kv_image *x = f->image;

    k->counts.write_ns += job->ns;
    if (job->err.code == ERR_NONE) {
        f->written = true;
        x->stored = true;
        x->owner = NULL;
        count_written(k, v, f, job->room);
    } else {
        fail(v,
             &job->err); /* it stays in memory: perhaps there is room on the disk later */
    }
    kv_image_unpin(k, x);
    f->image = NULL;
    kv_bulk_job_free(job);
    if (--v->left == 0)
        commit(k, v);
}

/* --- the ledger ---------------------------------------------------------------------------- */

/* The pieces that a merged chunk stands for. */
static size_t
find_merged(const struct kv_save *v, const struct kv_save_file *f, struct kvfile_id *out)
{
    const struct kv_pieces *all = &v->s->kv->pieces;
    const uint64_t end = f->about.pos + f->about.n_tokens;
    size_t n = 0;

    for (size_t i = 0; i < all->n; i++) {
        const struct kvfile_about *a = &all->v[i].file.about;

        if (a->type == KVFILE_CHUNK && all->v[i].at == KV_STORED &&
            a->pos >= f->about.pos && a->pos + a->n_tokens <= end &&
            memcmp(&a->id, &f->about.id, sizeof a->id) != 0)
            out[n++] = a->id;
    }
    return n;
}

/* Ids of what need not be kept any more; NULL: no memory, or nothing. */
static struct kvfile_id *
find_superfluous(const struct kv_save *v, size_t *n)
{
    const struct kv_session *ks = v->s->kv;
    const struct session_log *l = &v->s->log;
    struct kvfile_id *ids = calloc(2 * MOST_DROPPED + ks->pieces.n, sizeof *ids);
    uint64_t *named = calloc(l->n_checkpoints + 1, sizeof *named);
    size_t n_named = 0;

    *n = 0;
    for (size_t i = 0; named != NULL && i < l->n_checkpoints; i++) {
        if (!l->checkpoints[i].automatic)
            named[n_named++] = l->checkpoints[i].pos;
    }
    if (ids != NULL && named != NULL) {
        *n = kv_plan_drop(&ks->pieces, named, n_named, ids, MOST_DROPPED);
        *n += kv_plan_replaced(&ks->pieces, ids + *n, MOST_DROPPED);
        for (size_t i = 0; i < v->n; i++) {
            if (v->files[i].merge && v->files[i].written)
                *n += find_merged(v, &v->files[i], ids + *n);
        }
    }
    free(named);
    return ids;
}

static void
on_unlinked(struct kv_bulk_job *job)
{
    if (job->err.code != ERR_NONE && job->err.code != ERR_NOT_FOUND)
        log_line(LOG_INFO, "cache-file-left why=\"%s\"", job->err.text);
    kv_bulk_job_free(job);
}

/* Its row is gone, or never was. */
static void
unlink_file(struct kv *k, const struct session *s, const struct kvfile_about *about)
{
    struct err e;
    struct kv_bulk_job *job = kv_bulk_job_new(KV_BULK_UNLINK, on_unlinked, NULL, &e);
    struct kv_image *x = kv_image_find(k, &about->id);

    if (x != NULL && x->pins == 0)
        kv_image_free(k, x);
    if (job == NULL)
        return; /* the store's sweep finds it */
    job->about = *about;
    catalog_dir(&s->id, job->dir);
    kv_bulk_post(k->bulk, job);
}

static void
on_committed(struct store_wait *wait, const struct err *why)
{
    struct kv_save *v = wait->arg;
    struct kv *k = v->k;

    /* A ledger that takes no more: then nobody knows which rows it has. The files stay. */
    if (why != NULL)
        fail(v, why);
    for (size_t i = 0; why == NULL && i < v->n_gone; i++)
        unlink_file(k, v->s, &v->gone[i]);
    end_save(k, v);
}

/* The rows of what is written and still wanted; how many. */
static size_t
collect_rows(struct kv *k, struct kv_save *v, struct ledger_file rows[KV_SAVE_FILES])
{
    size_t n = 0;

    for (size_t i = 0; i < v->n; i++) {
        const struct kv_save_file *f = &v->files[i];
        struct kv_piece *p = kv_pieces_find(&v->s->kv->pieces, &f->about.id);

        if (p != NULL && f->written) {
            p->at = KV_STORED;
            rows[n++] = p->file;
        } else if (f->written && v->s->state != SESSION_GONE) {
            unlink_file(k, v->s, &f->about); /* rolled back in the meantime */
        }
    }
    return n;
}

/* From here on nobody looks for them; their files go when their rows are gone. */
static int
take_out(struct kv_save *v, const struct kvfile_id *ids, size_t n)
{
    v->gone = calloc(n + 1, sizeof *v->gone);
    if (v->gone == NULL)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const struct kv_piece *p = kv_pieces_find(&v->s->kv->pieces, &ids[i]);

        if (p == NULL)
            continue; /* for two reasons */
        v->gone[v->n_gone++] = p->file.about;
        kv_pieces_remove(&v->s->kv->pieces, &ids[i]);
    }
    return 0;
}

/* All rows in one change with those that go. */
static void
commit(struct kv *k, struct kv_save *v)
{
    struct session *s = v->s;
    struct ledger_file rows[KV_SAVE_FILES];
    const size_t n = collect_rows(k, v, rows);
    struct kvfile_id *ids;
    size_t n_ids;
    struct err e;

    v->stage = KV_SAVE_COMMIT;
    if (n == 0 || s->state == SESSION_GONE) {
        end_save(k, v);
        return;
    }
    ids = find_superfluous(v, &n_ids);
    if (n_ids > 0 && take_out(v, ids, n_ids) == -1)
        n_ids = 0; /* with the next save */
    if (session_files_change(s, rows, n, ids, n_ids, &e) == -1) {
        free(ids);
        fail(v, &e);
        end_save(k, v);
        return;
    }
    free(ids);
    v->wait = (struct store_wait){.fn = on_committed, .arg = v};
    if (store_commit(k->w->store, s, &v->wait))
        on_committed(&v->wait, NULL);
}

/* --- the engine's answers ------------------------------------------------------------------ */

static int
on_saved(struct kv *k, struct kv_save *v, const struct link_saved *saved, struct err *e)
{
    struct kv_save_file *f = state_of(v);
    struct kv_piece *p;
    struct ledger_file row;

    if (f == NULL)
        return 0;
    if (saved->state_bytes != kv_state_bytes(k->layout, saved->pos))
        return err_set(e, ERR_PROTOCOL, 0,
                       "a state of %" PRIu64 " bytes at position %" PRIu64,
                       saved->state_bytes, saved->pos);
    /* Its place in the list is that of its position. */
    p = kv_pieces_find(&v->s->kv->pieces, &f->about.id);
    f->about.pos = f->image->about.pos = saved->pos;
    f->about.state_bytes = f->image->about.state_bytes = saved->state_bytes;
    kvfile_plan(&k->model, &f->about, &f->image->plan);
    if (p == NULL)
        return 0;
    row = p->file;
    row.about = f->about;
    kv_pieces_remove(&v->s->kv->pieces, &f->about.id);
    if (saved->pos <= v->s->log.len)
        kv_pieces_add(&v->s->kv->pieces, &row); /* there is room: one was just removed */
    return 0;
}

int
kv_save_news(struct kv *k, const struct slots_news *news, struct err *e)
{
    struct kv_save *v = news->owner;
    struct session *s = v->s;
    struct err why;

    if (news->type == LINK_SAVED)
        return on_saved(k, v, news->saved, e);
    if (news->end->reason == LINK_FAILED) {
        link_err(&why, &news->end->err);
        fail(v, &why);
        give_up_all(k, v);
        end_save(k, v);
        return 0;
    }
    forget_dropped(k, v);
    v->stage = KV_SAVE_SEAL;
    if (!post_all(k, v, KV_BULK_SEAL, on_sealed))
        end_save(k, v);
    go_on(k, s); /* beside the writing, as far as there is room */
    return 0;
}

/* What the engine was copying is lost; what it has copied is not. */
void
kv_saves_lost(struct kv *k)
{
    struct kv_save *v, *next;
    struct err why;

    err_set(&why, ERR_UNAVAILABLE, 0, "the engine is gone");
    for (v = k->saves; v != NULL; v = next) {
        next = v->next;
        if (v->stage != KV_SAVE_COPY)
            continue;
        fail(v, &why);
        give_up_all(k, v);
        end_save(k, v);
    }
}
