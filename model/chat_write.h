/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_CHAT_WRITE_H
#define MODEL_CHAT_WRITE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "model/chat.h"

struct err;

/* Control tokens of the format (spec 12), literally. */
#define CHAT_BOS       "<｜begin▁of▁sentence｜>"
#define CHAT_EOS       "<｜end▁of▁sentence｜>"
#define CHAT_USER      "<｜User｜>"
#define CHAT_ASSISTANT "<｜Assistant｜>"
#define CHAT_REMINDER  "<｜latest_reminder｜>"
#define CHAT_THINK     "<think>"
#define CHAT_THINK_END "</think>"
#define CHAT_DSML      "｜DSML｜"

/*
 * Writes to a chat_text and remembers the first failure, so that rendering reads as a list of
 * what comes after what. After a failure nothing more is written; ask writer_done().
 */
struct chat_writer {
    struct chat_text *out;
    struct err *e;
    bool failed;
};

/* Text of the format: control tokens in it are control pieces. */
void put_format(struct chat_writer *w, const char *s);

/* Text of somebody else: plain, whatever is in it. */
void put_plain(struct chat_writer *w, const char *s, size_t len);
void put_json(struct chat_writer *w, json_t *v); /* the same, as Python prints it */

/* The block that tells the model which tools there are (spec 12.3); tools: an array. */
void put_tools(struct chat_writer *w, const json_t *tools);

/* "\n\n" and the tool calls of an assistant message (spec 12.2). Errors name the key. */
void put_calls(struct chat_writer *w, const json_t *calls, size_t message);

#endif /* MODEL_CHAT_WRITE_H */
