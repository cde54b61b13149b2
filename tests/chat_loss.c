/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other way round than the parser: starts from what was parsed and looks for it in the
 * text. Shares no code with model/chat_parse.c on purpose.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "tests/chat_loss.h"

#define EOS  "<｜end▁of▁sentence｜>"
#define DSML "｜DSML｜"

struct left {
    const char *p, *end;
};

static void
space(struct left *t)
{
    while (t->p < t->end && memchr(" \n\r\t", *t->p, 4) != NULL)
        t->p++;
}

static bool
bytes(struct left *t, const char *s, size_t n)
{
    if ((size_t)(t->end - t->p) < n || (n > 0 && memcmp(t->p, s, n) != 0))
        return false;
    t->p += n;
    return true;
}

static bool
tag(struct left *t, const char *s)
{
    space(t);
    return bytes(t, s, strlen(s));
}

/* A string as the parser escapes it, undone into out, which is large enough; its length. */
static size_t
unescape(const char *s, size_t n, char *out)
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    size_t k = 0;

    for (size_t i = 1; i + 1 < n; i++) {
        const char *at;

        if (s[i] != '\\') {
            out[k++] = s[i];
            continue;
        }
        i++;
        at = memchr(from, s[i], 5);
        if (s[i] == 'u') {
            char hex[5] = "";

            memcpy(hex, s + i + 1, 4);
            out[k++] = (char)strtol(hex, NULL, 16);
            i += 4;
        } else {
            out[k++] = at != NULL ? to[at - from] : s[i];
        }
    }
    return k;
}

static const char *
string_end(const char *p)
{
    for (p++; *p != '"' && *p != '\0'; p++)
        p += *p == '\\' && p[1] != '\0';
    return *p == '"' ? p + 1 : p;
}

/* The end of the value at p, which is a member of an object. */
static const char *
value_end(const char *p)
{
    for (int depth = 0; *p != '\0'; p++) {
        if (depth == 0 && (*p == ',' || *p == '}'))
            break;
        depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
        if (*p == '"')
            p = string_end(p) - 1;
    }
    return p;
}

/* `room` is as long as the arguments. */
static bool
parameter(struct left *t, const char **member, char *room)
{
    static const char close[] = "</" DSML "parameter>";
    const char *key = *member, *key_end = string_end(key), *v = key_end + 2, *v_end, *stop;
    bool string;

    if (strncmp(key_end, ": ", 2) != 0)
        return false;
    v_end = value_end(v);
    if (!tag(t, "<" DSML "parameter") || !tag(t, "name=") || !tag(t, "\"") ||
        !bytes(t, room, unescape(key, (size_t)(key_end - key), room)) || !tag(t, "\"") ||
        !tag(t, "string="))
        return false;
    string = tag(t, "\"true\"");
    if ((!string && !tag(t, "\"false\"")) || !tag(t, ">"))
        return false;
    stop = memmem(t->p, (size_t)(t->end - t->p), close, sizeof close - 1);
    if (stop == NULL)
        return false;
    if (string || !bytes(t, v, (size_t)(v_end - v)) || t->p != stop) {
        if (*v != '"' || (!string && t->p > stop))
            return false;
        if (!bytes(t, room, unescape(v, (size_t)(v_end - v), room)) || t->p != stop)
            return false;
    }
    t->p = stop + sizeof close - 1;
    *member = strncmp(v_end, ", ", 2) == 0 ? v_end + 2 : v_end;
    return true;
}

static bool
call(struct left *t, const struct chat_call *c)
{
    const char *member = c->arguments + 1;
    char *room = malloc(strlen(c->arguments) + 1);
    bool ok = room != NULL && c->arguments[0] == '{';

    ok = ok && tag(t, "<" DSML "invoke") && tag(t, "name=") && tag(t, "\"") &&
         bytes(t, c->name, strlen(c->name)) && tag(t, "\"") && tag(t, ">");
    while (ok && *member == '"')
        ok = parameter(t, &member, room);
    free(room);
    return ok && strcmp(member, "}") == 0 && tag(t, "</" DSML "invoke>");
}

/* The calls, at k bytes into the content. */
static bool
block_at(struct left t, const struct chat_message *m, size_t k)
{
    if (!bytes(&t, m->content, k) || !tag(&t, "<" DSML "tool_calls") || !tag(&t, ">"))
        return false;
    for (size_t i = 0; i < m->n_calls; i++) {
        if (!call(&t, &m->calls[i]))
            return false;
    }
    tag(&t, "</" DSML "tool_calls>");
    space(&t);
    if (!bytes(&t, m->content + k, m->content_len - k))
        return false;
    bytes(&t, EOS, sizeof EOS - 1);
    return t.p == t.end;
}

bool
chat_nothing_lost(const char *text, size_t len, const struct chat_message *m)
{
    struct left t = {.p = text, .end = text + len};

    if (m->reasoning != NULL) {
        if (!bytes(&t, m->reasoning, m->reasoning_len))
            return false;
        bytes(&t, "</think>", 8);
    }
    for (size_t k = 0; m->n_calls > 0 && k <= m->content_len; k++) {
        if ((size_t)(t.end - t.p) < k || (k > 0 && t.p[k - 1] != m->content[k - 1]))
            return false;
        if (block_at(t, m, k))
            return true;
    }
    if (m->n_calls > 0 || !bytes(&t, m->content, m->content_len))
        return false;
    bytes(&t, EOS, sizeof EOS - 1);
    return t.p == t.end;
}
