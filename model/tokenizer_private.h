/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_TOKENIZER_PRIVATE_H
#define MODEL_TOKENIZER_PRIVATE_H

#include "model/bpe.h"
#include "model/tokenizer.h"
#include "model/tokenizer_split.h"

/* Added tokens, sorted by their bytes: a range of them shares a beginning. */
struct added_set {
    uint32_t *id; /* owned */
    uint32_t n;
    bool begins[256]; /* some token begins with this byte */
};

/*
 * The reference cuts at tokens that are marked `normalized` only after all the others, so
 * that they are two sets and not one.
 */
enum { ADDED_RAW, ADDED_NORMALIZED, ADDED_SETS };

struct tokenizer {
    uint32_t n_ids;
    size_t *at;          /* owned [n_ids + 1]: where each token's bytes begin */
    char *bytes;         /* owned */
    uint8_t *added_kind; /* owned [n_ids]: 1 + the set of an added token, else 0 */
    struct added_set added[ADDED_SETS];
    struct split split;
    struct bpe bpe;
};

#endif /* MODEL_TOKENIZER_PRIVATE_H */
