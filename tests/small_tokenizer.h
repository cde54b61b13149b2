/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SMALL_TOKENIZER_H
#define TESTS_SMALL_TOKENIZER_H

/*
 * A tokenizer.json of about 6 KB in the published form, the caller's to free(): ids 0 to 3
 * are <bos>, <eos>, <think> and <thinking>, 4 to 259 the bytes, then a few merges. Its text
 * has one setting a line, so that a test can change one.
 */
char *small_tokenizer_json(void);

enum { SMALL_BYTES = 4, SMALL_MERGED = 260 };

#endif /* TESTS_SMALL_TOKENIZER_H */
