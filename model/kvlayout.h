/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_KVLAYOUT_H
#define MODEL_KVLAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/config.h"

struct err;

/*
 * The caches of a sequence as bytes that may leave the engine: the same for every backend, so
 * that what one wrote another goes on from. Two things make up a sequence of `pos` tokens:
 *
 *   pages   one for each whole 128 tokens: the packed compressed rows (kvsize.h) of those tokens
 *           in all layers, page_bytes each. A page depends on its tokens and those before only,
 *           and never changes once it is whole.
 *   state   all else, at one position only: the compressed rows of the page that is not whole
 *           yet, the window rows of each layer, what the compressors still need, and the same of
 *           the draft block. kv_state_bytes(pos) bytes; parts in order, without gaps.
 *
 * Both are divided by the same list of parts (a part without rows in one of them is just not
 * there). Rows are in order of position; f32 and bf16 are little-endian. Sources: spec 5.3, 6.1,
 * 6.4, 15.3 (model) and 1.1 (systems).
 */
enum kv_kind {
    KV_PART_MAIN = 1, /* compressed main rows: page, and (pos % 128) / ratio in the state */
    KV_PART_INDEX,    /* compressed index rows, likewise */
    KV_PART_WINDOW,   /* packed rows of the last min(pos, window) positions: state only */
    KV_PART_FRONTIER, /* f32 [2][width] a position, value and score with ape: state only.
                         Positions that rows to come look at: at ratio 4 from the start of the
                         last complete block on, else from the end of it */
    KV_PART_INDEX_FRONTIER, /* the same of the index compressor */
    KV_PART_DRAFT_WINDOW,   /* the draft block's window, one position behind */
    KV_PART_DRAFT_STREAMS,  /* bf16 [hc_mult][hidden] behind the last token; none at 0 */
};

enum kv_dtype { KV_DTYPE_PACKED = 1, KV_DTYPE_FP4, KV_DTYPE_F32, KV_DTYPE_BF16 };

struct kv_part {
    uint16_t kind, dtype;
    uint16_t layer; /* the draft block is n_layers */
    uint16_t ratio; /* MAIN, INDEX: tokens a row stands for; FRONTIER: of a block; else 1 */
    uint32_t row_bytes;
    uint32_t span; /* WINDOW, DRAFT: how many positions; FRONTIER: 1 with overlap, else 0 */
    uint64_t page_at; /* MAIN, INDEX: offset of its rows in a page */
};

struct kv_layout {
    struct kv_part *parts; /* [n_parts], owned */
    size_t n_parts;
    uint64_t page_bytes;
    uint64_t state_most; /* kv_state_bytes() of any position is at most that */
    uint64_t hash;       /* of all parts: two layouts of one hash are the same */
};

/* draft: with the parts of the draft block. */
int kv_layout_init(struct kv_layout *l, const struct model_config *c, bool draft,
                   struct err *e);
void kv_layout_done(struct kv_layout *l);

/* Rows that a part has in the state of a sequence of pos tokens, and the position of the first
 * one (of MAIN and INDEX: its number among the rows of the session). */
uint64_t kv_state_rows(const struct kv_part *p, uint64_t pos);
uint64_t kv_state_first(const struct kv_part *p, uint64_t pos);
uint64_t kv_state_bytes(const struct kv_layout *l, uint64_t pos);

#endif /* MODEL_KVLAYOUT_H */
