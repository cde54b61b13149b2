/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_BPE_H
#define MODEL_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct buf;

/*
 * Byte-pair merges: the adjacent pair of lowest rank is merged first, the leftmost of equals,
 * until no pair has a rank. Constant once built: any thread, each with its own bpe_work.
 */
enum {
    BPE_WORD_MAX = 8 << 20
}; /* bytes; a longer word is refused: it would take 224 MiB */

struct bpe {
    uint32_t byte_id[256]; /* the token that a byte begins as */
    struct bpe_merge *slots;
    uint32_t mask;
};

/* Memory that words of one call share, and what they have cost. Zero-initialised is ready. */
struct bpe_work {
    struct bpe_node *nodes; /* owned */
    uint64_t *heap;         /* owned */
    size_t room;
    uint64_t steps; /* pairs looked up and heap levels walked, of all words */
};

int bpe_init(struct bpe *b, size_t n_merges, struct err *e);
void bpe_done(struct bpe *b);

/* False if the pair has a rank already. No more pairs than bpe_init was told. */
bool bpe_add(struct bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

/* Appends the ids of one word to `ids`, as native u32. */
int bpe_word(const struct bpe *b, struct bpe_work *work, const char *word, size_t len,
             struct buf *ids, struct err *e);
void bpe_work_done(struct bpe_work *work);

#endif /* MODEL_BPE_H */
