/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_TOKENIZER_SPLIT_H
#define MODEL_TOKENIZER_SPLIT_H

#include <stddef.h>

struct err;

enum { SPLIT_STAGES = 8 };

/*
 * The pre-tokenizer: stages of Split(Isolated), each with one regular expression (spec 11).
 * A stage cuts every piece of the stage before it into matches and the gaps between them;
 * an expression sees its piece and nothing around it. Constant once built: any thread.
 */
struct split {
    struct pcre2_real_code_8 *stage[SPLIT_STAGES];
    unsigned n;
};

/* Adds a stage. Refuses an expression that would mean something else to PCRE2 than to the
 * library that tokenizers are made with. */
int split_add(struct split *s, const char *pattern, struct err *e);
void split_done(struct split *s);

/* Calls word(arg, at, len) for each piece that leaves the last stage, in order; stops at the
 * first that returns -1. `text` must be UTF-8. */
int split_text(const struct split *s, const char *text, size_t len,
               int (*word)(void *arg, size_t at, size_t len, struct err *e), void *arg,
               struct err *e);

#endif /* MODEL_TOKENIZER_SPLIT_H */
