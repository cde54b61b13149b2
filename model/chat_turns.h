/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_CHAT_TURNS_H
#define MODEL_CHAT_TURNS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct chat_opts;
struct err;

enum chat_role {
    ROLE_SYSTEM,
    ROLE_DEVELOPER,
    ROLE_USER,
    ROLE_ASSISTANT,
    ROLE_TOOL, /* in the JSON only: part of a user turn afterwards */
    ROLE_REMINDER,
    N_ROLES
};

struct chat_block {
    bool tool_result;
    json_t *content; /* string, array of parts, or NULL; of the root */
    const char *id;  /* tool_call_id; "" if it has none */
    size_t rank;     /* what the tool results of a turn are sorted by, then by seq */
    size_t seq;
};

/* A message after merging (spec 12.1). Pointers are into the JSON document. */
struct chat_turn {
    enum chat_role role;
    size_t message;               /* the index that the client knows it by */
    json_t *json;                 /* NULL: made from the document's "tools" */
    json_t *tools;                /* NULL or not empty */
    const char *task;             /* NULL: none; one of the known ones else */
    size_t first_block, n_blocks; /* of a user turn */
};

struct chat_turns {
    json_t *root;
    struct chat_turn *turns;
    size_t n;
    struct chat_block *blocks;
    size_t n_blocks;
    size_t last_user; /* the last user or developer turn; n: there is none */
    bool drop;        /* reasoning of earlier turns is left out */
};

/* Parses, checks, merges, sorts and drops. On failure *t needs no chat_turns_done(). */
int chat_turns_read(struct chat_turns *t, const char *json, size_t len,
                    const struct chat_opts *o, struct err *e);
void chat_turns_done(struct chat_turns *t);

/* What a quick instruction ends with, or NULL for an unknown task. */
const char *chat_task_token(const char *task);

/*
 * A look over JSON text without parsing it: how many values it has at most, how deep it goes,
 * and in which message offset `at` lies. Strings are skipped as strings.
 */
struct chat_outline {
    size_t values, depth;
    size_t message; /* at `at`, if in_message */
    bool in_message;
};

void chat_outline(const char *json, size_t len, size_t at, struct chat_outline *out);

/* json_loadb() within CHAT_MAX_DEPTH and CHAT_MAX_VALUES. NULL: *e is set; *syntax says
 * whether it is only that this is no JSON. */
json_t *chat_json(const char *s, size_t len, size_t flags, bool *syntax, struct err *e);

#endif /* MODEL_CHAT_TURNS_H */
