/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON that somebody sent, before jansson sees it. jansson spends up to a few hundred bytes
 * on a value that takes three ("{},"), so the number of values is bounded first; and it knows
 * where an error is only by its offset, which is turned into the number of a message here.
 * No state.
 */
#include <config.h>

#include <string.h>

#include "base/err.h"
#include "model/chat.h"
#include "model/chat_turns.h"

/* Where the walk over the text is. */
struct walk {
    size_t depth, list_depth; /* list_depth: of the array of messages; 0 outside it */
    const char *key;          /* the last string at depth 1, with its length */
    size_t key_len;
    bool object; /* the root is one */
};

static void
open_or_close(struct walk *w, char c, struct chat_outline *out)
{
    static const char name[] = "messages";

    if (c == '{' || c == '[') {
        if (w->depth == 0)
            w->object = c == '{';
        w->depth++;
        if (w->depth > out->depth)
            out->depth = w->depth;
        if (c == '[' && ((w->depth == 1 && !w->object) ||
                         (w->depth == 2 && w->object && w->key_len == sizeof name - 1 &&
                          memcmp(w->key, name, sizeof name - 1) == 0))) {
            w->list_depth = w->depth;
            out->message = 0;
        }
    } else {
        if (w->depth > 0 && w->depth == w->list_depth)
            w->list_depth = 0;
        w->depth -= w->depth > 0;
    }
}

/* The offset behind the string whose quote is at i. */
static size_t
skip_string(const char *json, size_t len, size_t i)
{
    for (i++; i < len && json[i] != '"'; i++) {
        if (json[i] == '\\')
            i++;
    }
    return i < len ? i + 1 : len;
}

void
chat_outline(const char *json, size_t len, size_t at, struct chat_outline *out)
{
    struct walk w = {0};

    *out = (struct chat_outline){.values = 1};
    for (size_t i = 0; i < len;) {
        const size_t from = i;

        switch (json[i]) {
        case '"':
            i = skip_string(json, len, i);
            if (w.depth == 1) {
                w.key = json + from + 1;
                w.key_len = i - from >= 2 ? i - from - 2 : 0;
            }
            break;
        case '{':
        case '[':
        case '}':
        case ']':
            open_or_close(&w, json[i++], out);
            out->values++; /* twice for a container: itself and its first element */
            break;
        case ',':
            out->values++;
            out->message += w.list_depth > 0 && w.depth == w.list_depth && i < at;
            i++;
            break;
        default: i++; break;
        }
        if (from <= at && at < i)
            out->in_message = w.list_depth > 0;
        if (from > at && at < len)
            break;
    }
}

json_t *
chat_json(const char *s, size_t len, size_t flags, bool *syntax, struct err *e)
{
    struct chat_outline shape;
    json_error_t why;
    json_t *v;
    char *near;

    *syntax = false;
    chat_outline(s, len, len, &shape);
    if (shape.depth > CHAT_MAX_DEPTH) {
        err_set(e, ERR_INVALID, 0, "JSON is nested %zu deep, at most %d are allowed",
                shape.depth, CHAT_MAX_DEPTH);
        return NULL;
    }
    if (shape.values > CHAT_MAX_VALUES) {
        err_set(e, ERR_INVALID, 0, "JSON of about %zu values, at most %d are allowed",
                shape.values, CHAT_MAX_VALUES);
        return NULL;
    }
    v = json_loadb(s, len, flags | JSON_ALLOW_NUL, &why);
    if (v != NULL)
        return v;
    /* What follows is the client's text, which may be anything. */
    near = strstr(why.text, " near ");
    if (near != NULL)
        *near = '\0';
    *syntax = json_error_code(&why) != json_error_numeric_overflow &&
              json_error_code(&why) != json_error_out_of_memory;
    chat_outline(s, len, why.position > 0 ? (size_t)why.position - 1 : 0, &shape);
    if (shape.in_message)
        err_set(e, ERR_INVALID, 0, "message %zu: not JSON at byte %d: %s", shape.message,
                why.position, why.text);
    else
        err_set(e, ERR_INVALID, 0, "not JSON at byte %d: %s", why.position, why.text);
    return NULL;
}
