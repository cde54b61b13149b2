/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_KV_PLAN_H
#define DAEMON_KV_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvstore/ledger.h"

/*
 * What a session has of class B, and what follows from that: which pages are still to be saved,
 * from where it can come back, which states may go. Pure functions over a list of pieces. They
 * take nothing for granted: pieces may overlap, leave gaps, or be of no use.
 */
enum {
    KV_PAGE = KVFILE_PAGE_TOKENS,
    KV_BLOCK = KVFILE_CHUNK_TOKENS / KVFILE_PAGE_TOKENS, /* pages; no chunk goes across */
    KV_BLOCK_PIECES = 8,    /* a block of more is written as one when it is complete */
    KV_STATE_EVERY = 32768, /* tokens: states at multiples are kept */
    KV_TURNS_KEPT = 8,
};

/* How much of a piece is there. */
enum kv_at {
    KV_COMING, /* the engine is told to copy it */
    KV_SEALED, /* in the arena, complete */
    KV_STORED  /* a file, and a row that names it or will as soon as the disk lets it */
};

struct kv_piece {
    struct ledger_file file;
    enum kv_at at;
    uint32_t failed; /* restores that found it wanting */
    uint32_t round;  /* of its session's restore under way: it failed in that */
};

struct kv_pieces {
    struct kv_piece *v; /* chunks by position, then states by position */
    size_t n, room;
};

/* Where it belongs; NULL: no memory. Pointers to other pieces are good no longer. */
struct kv_piece *kv_pieces_add(struct kv_pieces *p, const struct ledger_file *f);
struct kv_piece *kv_pieces_find(const struct kv_pieces *p, const struct kvfile_id *id);
void kv_pieces_remove(struct kv_pieces *p, const struct kvfile_id *id);
void kv_pieces_done(struct kv_pieces *p);

static inline bool
kv_is_state(const struct kv_piece *p)
{
    return p->file.about.type == KVFILE_STATE;
}

static inline uint64_t
kv_first_page(const struct kv_piece *p)
{
    return p->file.about.pos / KV_PAGE;
}

/* Which of the pieces that have failed do not count: none, those of this round, or all. */
#define KV_ALL_COUNT 0u
#define KV_SOUND     UINT32_MAX

/* The first page that no chunk at `least` or further has. */
uint64_t kv_covered(const struct kv_pieces *p, enum kv_at least, uint32_t round);

/* The chunk to take page `page` from: the one that goes furthest. NULL: none has it. */
const struct kv_piece *kv_cover(const struct kv_pieces *p, uint64_t page, enum kv_at least,
                                uint32_t round);

/* The state nearest to len, at most there, all of whose pages are covered; NULL. */
const struct kv_piece *kv_best(const struct kv_pieces *p, uint64_t len, enum kv_at least,
                               uint32_t round);

/* Runs of pages to save, of the first `pages`; whole_blocks: only those that are complete. */
struct kv_run {
    uint64_t first, n;
    bool merge; /* the chunks within it are not needed any more once it is there */
};

size_t kv_plan_runs(const struct kv_pieces *p, uint64_t pages, bool whole_blocks,
                    struct kv_run *out, size_t most);

/* States that need not be kept: not the newest, nor at a multiple of KV_STATE_EVERY, nor one of
 * the last KV_TURNS_KEPT ends of turns, nor for one of the positions `named` (in any order).
 * Their ids to out[most]; how many. */
size_t kv_plan_drop(const struct kv_pieces *p, const uint64_t *named, size_t n_named,
                    struct kvfile_id *out, size_t most);

/* Chunks that have failed and are not needed: others have all their pages. Likewise. */
size_t kv_plan_replaced(const struct kv_pieces *p, struct kvfile_id *out, size_t most);

#endif /* DAEMON_KV_PLAN_H */
