/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a crash may leave: replays the records of a simulated file system, keeps what is certain
 * (`base`) and a list of what is not yet, and after each record builds states from the two.
 *
 * A record is applied in order or left out; in order, because the same bytes or the same name can
 * be written twice. Certain ones are moved into the base only when no earlier one is left that
 * could come out differently: of the same file for data, of any folder for names. States are hashed
 * as trees of names and bytes, so that each is looked at once a mark, whatever led to it.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "tests/sim_impl.h"

enum { MAX_CHOICES = 8 };

/* What becomes of an uncertain record. Blocks are those of the file. */
enum fate {
    GONE,
    THERE,
    ZEROS,     /* a write: only the length that it gave the file */
    FIRST_512, /* torn: the first half of its blocks of 512 bytes */
    LAST_512,
    FIRST_4096,
    LAST_4096,
    ANY_512, /* torn: blocks by a random mask; in samples only */
    ANY_4096,
    FATES
};

static const char fate_letters[FATES + 1] = "-+0aAbBrR";

struct pending {
    const struct record *r;
    bool synced[2]; /* of each folder; of data [0] */
    bool never;     /* a sync has failed: no later one counts */
};

struct replay {
    struct sim *s;
    const struct sim_bounds *bounds;
    sim_look *look;
    void *arg;
    struct tree base;
    struct pending *list;
    size_t n, room;
    size_t *open; /* indices into list: those that may come out differently; [n_open] */
    size_t n_open;
    enum fate *fates; /* [n_open] */
    uint64_t mark, call, n_looked;
    uint64_t random;
    uint64_t *seen; /* hashes, open addressing; 0: free */
    size_t n_seen, seen_room;
    int rc; /* what look() said */
};

static uint64_t
next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static bool
is_data(const struct record *r)
{
    return r->kind == R_WRITE || r->kind == R_LENGTH || r->kind == R_GROW;
}

static bool
is_certain(const struct pending *p)
{
    if (p->never)
        return false;
    if (p->r->kind == R_RENAME && p->r->dirs[0] != p->r->dirs[1])
        return p->synced[0] && p->synced[1];
    return p->synced[0];
}

static bool
block_is_there(enum fate f, uint64_t block, uint64_t n_blocks, uint64_t mask)
{
    switch (f) {
    case FIRST_512:
    case FIRST_4096: return block < (n_blocks + 1) / 2;
    case LAST_512:
    case LAST_4096: return block >= n_blocks / 2;
    default: return mask >> block % 64 & 1;
    }
}

static void
apply_write(struct tree *t, const struct record *r, enum fate f, uint64_t mask)
{
    const uint64_t size = f == FIRST_4096 || f == LAST_4096 || f == ANY_4096 ? 4096 : 512;
    const uint64_t first = r->at / size, n = (r->at + r->n - 1) / size - first + 1;

    if (f == THERE) {
        tree_write(t, r->inode, r->bytes, r->n, r->at);
        return;
    }
    if (f == ZEROS) {
        if (r->at + r->n > t->inodes[r->inode].data->n)
            tree_length(t, r->inode, r->at + r->n);
        return;
    }
    for (uint64_t b = 0; b < n; b++) {
        uint64_t from = (first + b) * size, to = from + size;

        if (from < r->at)
            from = r->at;
        if (to > r->at + r->n)
            to = r->at + r->n;
        if (block_is_there(f, b, n, mask))
            tree_write(t, r->inode, r->bytes + (from - r->at), to - from, from);
    }
}

static void
apply(struct tree *t, const struct record *r, enum fate f, uint64_t mask)
{
    if (f == GONE)
        return;
    switch (r->kind) {
    case R_WRITE: apply_write(t, r, f, mask); break;
    case R_LENGTH: tree_length(t, r->inode, r->n); break;
    case R_GROW:
        if (r->n > t->inodes[r->inode].data->n)
            tree_length(t, r->inode, r->n);
        break;
    case R_SET: tree_set(t, r->dirs[0], r->names[0], r->inode); break;
    case R_CLEAR:
        if (tree_find(t, r->dirs[0], r->names[0]) == r->inode)
            tree_clear(t, r->dirs[0], r->names[0]);
        break;
    case R_RENAME:
        if (tree_find(t, r->dirs[0], r->names[0]) == r->inode)
            tree_clear(t, r->dirs[0], r->names[0]);
        tree_set(t, r->dirs[1], r->names[1], r->inode);
        break;
    default: abort();
    }
}

/* Moves into the base what can no more come out differently. */
static void
fold(struct replay *p)
{
    bool *blocked = sim_must(calloc(p->base.n + 1, sizeof *blocked));
    bool names_blocked = false;
    size_t kept = 0;

    for (size_t i = 0; i < p->n; i++) {
        const struct pending *d = &p->list[i];
        bool *b = is_data(d->r) ? &blocked[d->r->inode] : &names_blocked;

        if (is_certain(d) && !*b) {
            apply(&p->base, d->r, THERE, 0);
        } else {
            *b = true;
            p->list[kept++] = *d;
        }
    }
    p->n = kept;
    free(blocked);
}

static void
add_pending(struct replay *p, const struct record *r)
{
    if (p->n == p->room) {
        p->room = p->room != 0 ? 2 * p->room : 64;
        p->list = sim_must(realloc(p->list, p->room * sizeof *p->list));
        p->open = sim_must(realloc(p->open, p->room * sizeof *p->open));
        p->fates = sim_must(realloc(p->fates, p->room * sizeof *p->fates));
    }
    p->list[p->n++] = (struct pending){.r = r};
}

static void
sync_inode(struct replay *p, int inode, bool data, bool failed)
{
    for (size_t i = 0; i < p->n; i++) {
        struct pending *d = &p->list[i];

        if (is_data(d->r) != data)
            continue;
        for (int k = 0; k < (d->r->kind == R_RENAME ? 2 : 1); k++) {
            if ((data ? d->r->inode : d->r->dirs[k]) != inode || d->synced[k])
                continue;
            if (failed)
                d->never = true;
            else
                d->synced[k] = true;
        }
    }
    fold(p);
}

/* Whether any state can have this file: else what became of its data is no question. */
static bool
can_be_reached(const struct replay *p, int inode)
{
    for (size_t d = 0; d < p->base.n; d++)
        for (size_t k = 0; k < p->base.inodes[d].n_entries; k++)
            if (p->base.inodes[d].entries[k].inode == inode)
                return true;
    for (size_t i = 0; i < p->n; i++)
        if (!is_data(p->list[i].r) && p->list[i].r->inode == inode)
            return true;
    return false;
}

static void
find_open(struct replay *p)
{
    p->n_open = 0;
    for (size_t i = 0; i < p->n; i++)
        if (!is_certain(&p->list[i]) &&
            (!is_data(p->list[i].r) || can_be_reached(p, p->list[i].r->inode)))
            p->open[p->n_open++] = i;
}

static unsigned
choices(const struct record *r, enum fate out[MAX_CHOICES])
{
    unsigned n = 0;

    out[n++] = GONE;
    out[n++] = THERE;
    if (r->kind != R_WRITE)
        return n;
    if (r->grows)
        out[n++] = ZEROS;
    if (r->at / 512 != (r->at + r->n - 1) / 512) {
        out[n++] = FIRST_512;
        out[n++] = LAST_512;
    }
    if (r->at / 4096 != (r->at + r->n - 1) / 4096) {
        out[n++] = FIRST_4096;
        out[n++] = LAST_4096;
    }
    return n;
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* Of all that can be reached from there. Sorts the entries, which are in no order anyway. */
static void
hash_tree(struct tree *t, int inode, XXH3_state_t *h)
{
    struct inode *i = &t->inodes[inode];

    if (!i->is_dir) {
        const uint64_t bytes = tree_hash(t, inode);

        XXH3_64bits_update(h, &bytes, sizeof bytes);
        return;
    }
    if (i->n_entries > 1)
        qsort(i->entries, i->n_entries, sizeof *i->entries, by_name);
    for (size_t k = 0; k < i->n_entries; k++) {
        XXH3_64bits_update(h, "/", 1);
        XXH3_64bits_update(h, i->entries[k].name, strlen(i->entries[k].name) + 1);
        hash_tree(t, i->entries[k].inode, h);
    }
    XXH3_64bits_update(h, "^", 1);
}

static bool
put_hash(uint64_t *table, size_t room, uint64_t hash)
{
    size_t at = hash & (room - 1);

    while (table[at] != 0 && table[at] != hash)
        at = (at + 1) & (room - 1);
    if (table[at] == hash)
        return false;
    table[at] = hash;
    return true;
}

/* True the first time. */
static bool
is_new(struct replay *p, struct tree *t)
{
    XXH3_state_t *h = sim_must(XXH3_createState());
    uint64_t hash;

    XXH3_64bits_reset_withSeed(h, p->mark);
    hash_tree(t, SIM_ROOT, h);
    hash = XXH3_64bits_digest(h) | 1;
    XXH3_freeState(h);
    if (2 * p->n_seen >= p->seen_room) {
        const size_t room = p->seen_room != 0 ? 2 * p->seen_room : 1024;
        uint64_t *more = sim_must(calloc(room, sizeof *more));

        for (size_t i = 0; i < p->seen_room; i++)
            if (p->seen[i] != 0)
                put_hash(more, room, p->seen[i]);
        free(p->seen);
        p->seen = more;
        p->seen_room = room;
    }
    if (!put_hash(p->seen, p->seen_room, hash))
        return false;
    p->n_seen++;
    return true;
}

/* "after call 12: ++-aW", a letter for each uncertain record, oldest first. */
static void
describe(const struct replay *p, char *out, size_t room)
{
    size_t n = (size_t)snprintf(out, room,
                                "after call %llu, mark %llu: ", (unsigned long long)p->call,
                                (unsigned long long)p->mark);

    for (size_t i = 0; i < p->n_open && n + 2 < room; i++)
        out[n++] = fate_letters[p->fates[i]];
    out[n] = '\0';
}

/* The state that the fates make. */
static void
look_at(struct replay *p, uint64_t mask)
{
    char what[400];
    struct tree t;
    size_t k = 0;

    if (p->rc != 0)
        return;
    tree_copy(&t, &p->base);
    for (size_t i = 0; i < p->n; i++) {
        enum fate f = THERE; /* certain, or of a file that nothing leads to */

        if (k < p->n_open && p->open[k] == i)
            f = p->fates[k++];
        apply(&t, p->list[i].r, f, mask);
    }
    if (is_new(p, &t)) {
        struct sim *s = sim_from(&t);

        p->n_looked++;
        describe(p, what, sizeof what);
        p->rc = p->look(p->arg, &s->io, p->mark, what);
        sim_free(s);
    }
    tree_done(&t);
}

static uint64_t
combinations(const struct replay *p, uint64_t most)
{
    uint64_t n = 1;

    for (size_t i = 0; i < p->n_open && n <= most; i++) {
        enum fate f[MAX_CHOICES];

        n *= choices(p->list[p->open[i]].r, f);
    }
    return n;
}

static void
look_at_all(struct replay *p, uint64_t n)
{
    for (uint64_t c = 0; c < n; c++) {
        uint64_t rest = c;

        for (size_t i = 0; i < p->n_open; i++) {
            enum fate f[MAX_CHOICES];
            const unsigned k = choices(p->list[p->open[i]].r, f);

            p->fates[i] = f[rest % k];
            rest /= k;
        }
        look_at(p, 0);
    }
}

static void
set_all(struct replay *p, enum fate data, enum fate names)
{
    for (size_t i = 0; i < p->n_open; i++) {
        const struct record *r = p->list[p->open[i]].r;

        p->fates[i] = is_data(r) ? data : names;
        if (data == ZEROS && is_data(r) && r->kind != R_WRITE)
            p->fates[i] = THERE;
    }
}

/* The ones that find most, each with everything else there and gone. */
static void
look_at_special(struct replay *p)
{
    static const enum fate pairs[][2] = {
        {GONE, GONE}, {GONE, THERE}, {THERE, GONE}, {THERE, THERE}, {ZEROS, THERE},
    };

    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        set_all(p, pairs[i][0], pairs[i][1]);
        look_at(p, 0);
    }
    for (size_t i = 0; i < p->n_open; i++) {
        enum fate f[MAX_CHOICES];
        const unsigned n = choices(p->list[p->open[i]].r, f);

        for (unsigned k = 0; k < n; k++) {
            for (int others = 0; others < 3; others++) {
                set_all(p, others == 0 ? GONE : THERE, others == 0 ? GONE : THERE);
                for (size_t later = i + 1; others == 2 && later < p->n_open; later++)
                    p->fates[later] = GONE;
                p->fates[i] = f[k];
                look_at(p, 0);
            }
        }
    }
}

static void
look_at_random(struct replay *p)
{
    for (unsigned s = 0; s < p->bounds->samples; s++) {
        /* How much survives is drawn too: else all states were about half of everything. */
        const uint64_t share = next_random(&p->random) % 9;

        for (size_t i = 0; i < p->n_open; i++) {
            const struct record *r = p->list[p->open[i]].r;
            const uint64_t x = next_random(&p->random);

            p->fates[i] = x % 8 < share ? THERE : GONE;
            if (r->kind == R_WRITE && (x >> 8) % 4 == 0)
                p->fates[i] = (x >> 16) % 3 == 0   ? ZEROS
                              : (x >> 16) % 3 == 1 ? ANY_512
                                                   : ANY_4096;
        }
        look_at(p, next_random(&p->random));
    }
}

static void
look_at_states(struct replay *p)
{
    uint64_t n;

    if (p->mark < p->bounds->from)
        return;
    find_open(p);
    n = combinations(p, p->bounds->all);
    if (n <= p->bounds->all) {
        look_at_all(p, n);
        return;
    }
    look_at_special(p);
    look_at_random(p);
}

static void
take_record(struct replay *p, const struct record *r)
{
    switch (r->kind) {
    case R_SYNC:
    case R_SYNC_FAILED: sync_inode(p, r->inode, true, r->kind == R_SYNC_FAILED); break;
    case R_SYNC_DIR:
    case R_SYNC_DIR_FAILED:
        sync_inode(p, r->inode, false, r->kind == R_SYNC_DIR_FAILED);
        break;
    case R_MARK: p->mark = r->n; break;
    default: add_pending(p, r); break;
    }
    if (r->kind != R_MARK)
        p->call = r->call;
}

int
sim_states(struct sim *s, const struct sim_bounds *bounds, sim_look *look, void *arg,
           uint64_t *n)
{
    static const struct sim_bounds usual = {.all = 256, .samples = 64, .seed = 1};
    struct replay p = {
        .s = s, .bounds = bounds != NULL ? bounds : &usual, .look = look, .arg = arg};

    p.random = p.bounds->seed;
    tree_copy(&p.base, &s->base);
    while (p.base.n < s->now.n) /* those that are made later, still in no folder */
        tree_new_inode(&p.base, s->now.inodes[p.base.n].is_dir);
    look_at_states(&p);
    for (size_t i = 0; i < s->n_records && p.rc == 0; i++) {
        take_record(&p, &s->records[i]);
        look_at_states(&p);
    }
    tree_done(&p.base);
    free(p.list);
    free(p.open);
    free(p.fates);
    free(p.seen);
    if (n != NULL)
        *n = p.n_looked;
    return p.rc;
}
