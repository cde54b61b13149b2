/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which sequences run in the next step, and how much of each. Fair queueing by service got
 * (the start-time rule of SFQ) for two kinds of room; sched.h says what is promised. A step
 * holds a few dozen sequences, so plain scans are faster than any heap. No backend, no clock,
 * no threads: table-tested in tests/unit/sched_test.c.
 */
#include "config.h"

#include <stdlib.h>

#include "base/err.h"
#include "engine/sched.h"

int
sched_init(struct sched *s, uint32_t max_seqs, struct err *e)
{
    *s = (struct sched){.picks = 1};
    s->seqs = calloc(max_seqs, sizeof *s->seqs);
    if (s->seqs == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for %u sequences", max_seqs);
    return 0;
}

void
sched_done(struct sched *s)
{
    free(s->seqs);
    s->seqs = NULL;
}

void
sched_forget(struct sched *s, uint32_t seq)
{
    s->seqs[seq] = (struct sched_share){0};
}

static int
kind_of(const struct sched_item *it)
{
    return it->tokens == 1 && !it->scored ? SCHED_DECODE : SCHED_PREFILL;
}

/* The owner's place; a new one takes that of whoever was seen longest ago. */
static uint32_t
find_owner(struct sched *s, uint32_t id)
{
    uint32_t old = 0;
    uint64_t oldest = UINT64_MAX;

    for (uint32_t i = 0; i < s->n_owners; i++) {
        const uint64_t *seen = s->owners[i].seen;
        const uint64_t last = seen[0] > seen[1] ? seen[0] : seen[1];

        if (s->owner_ids[i] == id)
            return i;
        if (last < oldest) {
            oldest = last;
            old = i;
        }
    }
    if (s->n_owners < SCHED_MAX_OWNERS)
        old = s->n_owners++;
    s->owner_ids[old] = id;
    s->owners[old] = (struct sched_share){0};
    return old;
}

/* It wants room in this pick. Whoever did not in the last one starts at the level. */
static void
appear(struct sched_share *who, int kind, uint64_t pick, uint64_t level)
{
    if (who->seen[kind] + 1 < pick && who->used[kind] < level)
        who->used[kind] = level;
    who->seen[kind] = pick;
}

static void
all_appear(struct sched *s, struct sched_item *items, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct sched_item *it = &items[i];
        const int kind = kind_of(it);
        struct sched_share *owner;

        it->take = 0;
        it->share = find_owner(s, it->owner);
        owner = &s->owners[it->share];
        if (owner->seen[kind] != s->picks)
            appear(owner, kind, s->picks, s->level[kind]);
        appear(&s->seqs[it->seq], kind, s->picks, owner->level[kind]);
    }
}

/*
 * The levels for those who come at the next pick: what the poorest had in front of this one,
 * so that who comes now and then finds itself in front of those who were served meanwhile,
 * not level with them. They never sink.
 */
static void
set_levels(struct sched *s, const struct sched_item *items, size_t n)
{
    uint64_t least[SCHED_KINDS] = {UINT64_MAX, UINT64_MAX};

    for (size_t i = 0; i < n; i++) {
        const int kind = kind_of(&items[i]);
        struct sched_share *owner = &s->owners[items[i].share];
        uint64_t of_owner = UINT64_MAX;

        if (owner->used[kind] < least[kind])
            least[kind] = owner->used[kind];
        for (size_t k = 0; k < n; k++)
            if (items[k].share == items[i].share && kind_of(&items[k]) == kind &&
                s->seqs[items[k].seq].used[kind] < of_owner)
                of_owner = s->seqs[items[k].seq].used[kind];
        if (owner->level[kind] < of_owner)
            owner->level[kind] = of_owner;
    }
    for (int kind = 0; kind < SCHED_KINDS; kind++)
        if (least[kind] != UINT64_MAX && s->level[kind] < least[kind])
            s->level[kind] = least[kind];
}

/* Poorest owner first, then its poorest sequence, then the lower numbers. */
static bool
is_before(const struct sched *s, int kind, const struct sched_item *a,
          const struct sched_item *b)
{
    const uint64_t oa = s->owners[a->share].used[kind], ob = s->owners[b->share].used[kind];
    const uint64_t sa = s->seqs[a->seq].used[kind], sb = s->seqs[b->seq].used[kind];

    if (oa != ob)
        return oa < ob;
    if (a->owner != b->owner)
        return a->owner < b->owner;
    return sa != sb ? sa < sb : a->seq < b->seq;
}

static void
give(struct sched *s, int kind, struct sched_item *it, uint32_t take)
{
    it->take = take;
    s->owners[it->share].used[kind] += take;
    s->seqs[it->seq].used[kind] += take;
}

static uint32_t
pick_decode(struct sched *s, struct sched_item *items, size_t n, uint32_t room)
{
    uint32_t taken = 0;

    while (taken < room) {
        struct sched_item *best = NULL;

        for (size_t i = 0; i < n; i++) {
            struct sched_item *it = &items[i];

            if (it->take == 0 && kind_of(it) == SCHED_DECODE &&
                (best == NULL || is_before(s, SCHED_DECODE, it, best)))
                best = it;
        }
        if (best == NULL)
            break;
        give(s, SCHED_DECODE, best, 1);
        taken++;
    }
    return taken;
}

/* As much of it as fits, up to a page's end; 0 if that is a crumb behind another chunk. */
static uint32_t
chunk_of(const struct sched_item *it, uint32_t room, bool first)
{
    uint32_t take = it->tokens < room ? it->tokens : room;
    uint32_t over;

    if (take == it->tokens)
        return take;
    over = (uint32_t)((it->pos + take) % SCHED_ALIGN);
    if (over < take)
        return take - over;
    return first ? take : 0;
}

static void
pick_prefill(struct sched *s, struct sched_item *items, size_t n, uint32_t room,
             uint32_t scored)
{
    bool first = true;

    while (room > 0) {
        struct sched_item *best = NULL;
        uint32_t best_take = 0;

        for (size_t i = 0; i < n; i++) {
            struct sched_item *it = &items[i];
            const uint32_t fits = it->scored && scored < room ? scored : room;
            uint32_t take;

            if (it->take > 0 || kind_of(it) != SCHED_PREFILL || fits == 0 ||
                (best != NULL && !is_before(s, SCHED_PREFILL, it, best)))
                continue;
            take = chunk_of(it, fits, first);
            if (take > 0) {
                best = it;
                best_take = take;
            }
        }
        if (best == NULL)
            break;
        give(s, SCHED_PREFILL, best, best_take);
        room -= best_take;
        if (best->scored)
            scored -= best_take;
        first = false;
    }
}

void
sched_pick(struct sched *s, const struct sched_limits *l, struct sched_item *items,
           size_t n)
{
    uint64_t waiting = 0; /* tokens of the prefill kind */
    uint32_t kept, decode;

    s->picks++;
    all_appear(s, items, n);
    set_levels(s, items, n);
    for (size_t i = 0; i < n; i++)
        if (kind_of(&items[i]) == SCHED_PREFILL)
            waiting += items[i].tokens;
    kept = l->step / 2 < l->prefill ? l->step / 2 : l->prefill;
    if (waiting < kept)
        kept = (uint32_t)waiting;

    decode = pick_decode(s, items, n, l->step - kept);
    pick_prefill(s, items, n, l->prefill < l->step - decode ? l->prefill : l->step - decode,
                 l->scored);
}
