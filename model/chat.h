/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

struct err;
struct tokenizer;

/*
 * The chat encoding of DeepSeek-V4 (docs/MODEL.md 12), both directions. Messages are JSON in
 * OpenAI's shape (role, content, reasoning_content, tool_calls, tool_call_id, tools, task,
 * wo_eos ...). No state, no locks: any thread.
 */
enum {
    CHAT_MAX_JSON = 16 << 20,  /* bytes of JSON in one call */
    CHAT_MAX_MESSAGES = 16384, /* in it */
    CHAT_MAX_CALLS = 1024,     /* tool calls of one message */
    CHAT_MAX_DEPTH = 64,       /* of JSON, that in arguments included */
    CHAT_MAX_VALUES = 1 << 18, /* JSON values: they cost memory, whatever their length */
};

enum chat_effort { CHAT_EFFORT_NONE, CHAT_EFFORT_LOW, CHAT_EFFORT_HIGH, CHAT_EFFORT_MAX };

enum chat_release {
    CHAT_PREVIEW, /* April 2026: "low" is refused, "max" is the strongest prefix of that time */
    CHAT_0731, /* 0731 and 0813 */
};

struct chat_opts {
    bool thinking;
    bool keep_reasoning; /* of earlier turns: drop_thinking = false */
    bool in_context;     /* rendered behind other messages: no BOS, no effort prefix */
    enum chat_effort effort;
    enum chat_release release;
};

/*
 * Rendered text in pieces, so that control tokens come only from the format itself: a user
 * who types "<｜User｜>" gets those characters, not a turn.
 */
struct chat_text {
    struct buf text;   /* all pieces, one after the other */
    struct buf pieces; /* struct chat_piece [n] */
};

struct chat_piece {
    size_t len;
    bool control; /* the literal text of a control token */
};

void chat_text_init(struct chat_text *t, size_t cap); /* cap: most bytes of text */
void chat_text_done(struct chat_text *t);

/* `json`: an array of messages, or {"messages": [...], "tools": [...]}. Replaces what is in
 * out, which is empty after a failure. Errors name the message by its index and the key. */
int chat_encode(const char *json, size_t len, const struct chat_opts *o,
                struct chat_text *out, struct err *e);

/* Pieces to token ids: native u32, appended to ids. */
int chat_tokenize(const struct tokenizer *t, const struct chat_text *text, struct buf *ids,
                  struct err *e);

/*
 * A completion taken apart. Malformed output loses nothing: whatever does not parse as a tool
 * call stays in content, and `note` says what was wrong (empty: nothing). All strings are
 * owned by the struct and end in NUL, but may hold other NULs and bytes that are not UTF-8,
 * if the model wrote such; chat_message_json() writes U+FFFD for the latter.
 */
struct chat_call {
    char *name, *arguments; /* arguments: a JSON object as text */
};

struct chat_message {
    char *reasoning; /* NULL: none */
    char *content;   /* never NULL */
    size_t reasoning_len, content_len;
    size_t n_calls;
    struct chat_call *calls;
    char note[128];
    bool complete; /* ended by the end-of-sentence token, or by the end of a tool block */
};

/* `text`: what was generated, control tokens as their literal text. thinking: the prompt ended
 * in <think>. Fails only for want of memory. */
int chat_parse(const char *text, size_t len, bool thinking, struct chat_message *out,
               struct err *e);
void chat_message_done(struct chat_message *m);

/* The message as a JSON object in OpenAI's shape, appended to out. Call ids are "call_0" and so
 * on: unique within the message, which is all that the order of tool results needs. */
int chat_message_json(const struct chat_message *m, struct buf *out, struct err *e);

#endif /* MODEL_CHAT_H */
