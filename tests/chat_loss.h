/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_CHAT_LOSS_H
#define TESTS_CHAT_LOSS_H

#include <stdbool.h>
#include <stddef.h>

struct chat_message;

/*
 * Whether m accounts for every byte of the completion that it was parsed from: reasoning,
 * content, names and values are found in the text where they belong, byte for byte, and what
 * lies between them is nothing but tags and the white space around tags.
 */
bool chat_nothing_lost(const char *text, size_t len, const struct chat_message *m);

#endif /* TESTS_CHAT_LOSS_H */
