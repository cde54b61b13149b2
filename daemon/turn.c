/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "daemon/turn.h"
#include "model/tokenizer.h"

struct turn_ids
turn_ids(const struct tokenizer *t)
{
    return (struct turn_ids){
        .user = tokenizer_control_id(t, "<｜User｜>"),
        .assistant = tokenizer_control_id(t, "<｜Assistant｜>"),
        .think = tokenizer_control_id(t, "<think>"),
        .think_end = tokenizer_control_id(t, "</think>"),
        .dsml = tokenizer_control_id(t, "｜DSML｜"),
        .action = tokenizer_control_id(t, "<｜action｜>"),
    };
}

static bool
holds(const uint32_t *tokens, size_t n, int64_t id)
{
    for (size_t i = 0; i < n; i++) {
        if ((int64_t)tokens[i] == id)
            return true;
    }
    return false;
}

bool
turn_asks(const struct turn_ids *id, const uint32_t *tokens, size_t n)
{
    return holds(tokens, n, id->user);
}

bool
turn_has_tools(const struct turn_ids *id, const uint32_t *tokens, size_t n)
{
    return holds(tokens, n, id->dsml);
}

/* The first answer with reasoning behind the last question. A quick instruction (<｜action｜>) has
 * the same beginning and is no reasoning. */
static bool
find_think(const struct turn_ids *id, const uint32_t *tokens, uint64_t len, uint64_t *at)
{
    bool found = false;

    for (uint64_t i = len; i-- > 1 && (int64_t)tokens[i] != id->user;) {
        if ((int64_t)tokens[i] != id->think || (int64_t)tokens[i - 1] != id->assistant)
            continue;
        if (i + 1 < len && (int64_t)tokens[i + 1] == id->action)
            continue;
        *at = i;
        found = true;
    }
    return found;
}

bool
turn_reasoning(const struct turn_ids *id, const uint32_t *tokens, uint64_t len,
               struct turn_cut *out)
{
    if (id->think < 0 || id->think_end < 0 || !find_think(id, tokens, len, &out->at) ||
        out->at + 1 == len)
        return false;
    out->from = out->at + 1;
    while (out->from < len && (int64_t)tokens[out->from] != id->think_end)
        out->from++;
    if (out->from < len)
        out->from++;
    return true;
}
