/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct buf;

/*
 * Byte-level BPE as tokenizer.json describes it (docs/MODEL.md 11): cut at added tokens, three
 * Split stages, byte alphabet, merges by rank. Immutable once loaded: any number of threads may
 * encode and decode with one tokenizer at the same time.
 */
struct tokenizer;

struct tokenizer *tokenizer_load(const char *dir, struct err *e); /* DIR/tokenizer.json */
struct tokenizer *tokenizer_parse(const char *json, size_t len, struct err *e);
void tokenizer_free(struct tokenizer *t);

enum tokenizer_flags {
    TOKENIZE_CONTROL =
        1, /* literal control tokens in the text become their ids; else text */
};

/*
 * Appends the ids of `text` to `ids` as native u32 (4 bytes each); on failure `ids` is as it
 * was. Any bytes are accepted: those that are not UTF-8 become the tokens of their bytes, so
 * decoding gives them back. A single word (letters, blanks or signs in a row) of more than
 * 8 MiB is ERR_INVALID.
 */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, int flags,
                     struct buf *ids, struct err *e);

uint32_t tokenizer_n_ids(const struct tokenizer *t); /* one more than the largest id */

/* The raw bytes of one token (not NUL-terminated, may be part of a character); *len is 0 and
 * the result "" for an id that has none. Lives as long as t. */
const char *tokenizer_bytes(const struct tokenizer *t, uint32_t id, size_t *len);
bool tokenizer_is_control(const struct tokenizer *t, uint32_t id);

/* The id of an added token by its literal text, or -1. */
int64_t tokenizer_control_id(const struct tokenizer *t, const char *literal);

/*
 * Streaming detokenizer: appends to `out` the bytes that the token completes, and holds back
 * a character whose bytes have not all arrived. Bytes that can never become UTF-8 come out as
 * they are when `raw`, else as U+FFFD. Control tokens come out as their literal text only if
 * `control`; an id that has no bytes adds nothing. Ready when all but `t` is zero; at the
 * end detokenize_flush releases what is held. On failure (`out` is full) nothing has changed.
 */
struct detokenizer {
    const struct tokenizer *t;
    bool raw, control;
    uint8_t held[4];
    uint8_t n_held;
};

int detokenize(struct detokenizer *d, uint32_t id, struct buf *out, struct err *e);
int detokenize_flush(struct detokenizer *d, struct buf *out, struct err *e);

#endif /* MODEL_TOKENIZER_H */
