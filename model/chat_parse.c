/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A completion taken apart (spec 12.6): reasoning, content, tool calls. The reference raises on
 * any deviation; a server must not, because a model that is cut off or slips in its syntax has
 * still written something. So white space between tags is free, and a block of calls is taken
 * whole or not at all: what is not understood stays in the content, byte for byte. Every step
 * is linear in the text. No state.
 */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/utf8.h"
#include "model/chat_turns.h"
#include "model/chat_write.h"
#include "model/json_py.h"

#define CHAT_CALLS "<" CHAT_DSML "tool_calls"

enum { MAX_PARAMETERS = 256 }; /* of one call: names are compared with each other */

struct span {
    const char *p;
    size_t len;
};

/* What is left to read. */
struct cursor {
    const char *p, *end;
};

static struct span
find(const char *p, const char *end, const char *what)
{
    const char *at = memmem(p, (size_t)(end - p), what, strlen(what));

    return (struct span){.p = at, .len = strlen(what)};
}

static void
skip_space(struct cursor *c)
{
    while (c->p < c->end &&
           (*c->p == ' ' || *c->p == '\n' || *c->p == '\r' || *c->p == '\t'))
        c->p++;
}

/* White space, then this literal. */
static bool
take(struct cursor *c, const char *literal)
{
    const size_t n = strlen(literal);
    struct cursor at = *c;

    skip_space(&at);
    if ((size_t)(at.end - at.p) < n || memcmp(at.p, literal, n) != 0)
        return false;
    c->p = at.p + n;
    return true;
}

/*
 * `name="NAME">`, or with string not NULL `name="NAME" string="true">`. NAME may hold quotes,
 * as in the reference, but no end of line, so that a missing quote stays a local mistake, and
 * no NUL, because names are handed out as C strings.
 */
static bool
take_name(struct cursor *c, struct span *name, bool *string)
{
    if (!take(c, "name=") || !take(c, "\""))
        return false;
    for (const char *q = c->p; q < c->end && *q != '\n' && *q != '\0'; q++) {
        struct cursor at = {.p = q + 1, .end = c->end};

        if (*q != '"')
            continue;
        if (string != NULL) {
            if (!take(&at, "string="))
                continue;
            *string = take(&at, "\"true\"");
            if (!*string && !take(&at, "\"false\""))
                continue;
        }
        if (!take(&at, ">"))
            continue;
        *name = (struct span){.p = c->p, .len = (size_t)(q - c->p)};
        c->p = at.p;
        return true;
    }
    return false;
}

enum taken { TAKEN, NOT_UNDERSTOOD, NO_MEMORY };

static bool
is_json(struct span v)
{
    bool syntax;
    struct err why;
    json_t *parsed = NULL;

    if (v.len > 0)
        parsed = chat_json(v.p, v.len, JSON_DECODE_ANY, &syntax, &why);
    json_decref(parsed);
    return parsed != NULL;
}

/* `"name": value`. Raw JSON goes in as it is; what claims to be JSON and is not, as a string. */
static enum taken
take_parameter(struct cursor *c, struct span *name, struct buf *arguments,
               const char **note, struct err *e)
{
    struct span value, end;
    bool string;

    if (!take_name(c, name, &string))
        return NOT_UNDERSTOOD;
    end = find(c->p, c->end, "</" CHAT_DSML "parameter>");
    if (end.p == NULL)
        return NOT_UNDERSTOOD;
    value = (struct span){.p = c->p, .len = (size_t)(end.p - c->p)};
    c->p = end.p + end.len;
    if (!string && !is_json(value)) {
        *note = "a parameter is no JSON and was taken as a string";
        string = true;
    }
    if (json_py_string(name->p, name->len, arguments, e) == -1 ||
        buf_adds(arguments, ": ", e) == -1)
        return NO_MEMORY;
    if (string)
        return json_py_string(value.p, value.len, arguments, e) == -1 ? NO_MEMORY : TAKEN;
    return buf_add(arguments, value.p, value.len, e) == -1 ? NO_MEMORY : TAKEN;
}

static enum taken
take_parameters(struct cursor *c, struct buf *arguments, const char **note, struct err *e)
{
    struct span names[MAX_PARAMETERS];
    size_t n = 0;

    while (take(c, "<" CHAT_DSML "parameter")) {
        enum taken t;

        if (n == MAX_PARAMETERS)
            return NOT_UNDERSTOOD;
        if (n > 0 && buf_adds(arguments, ", ", e) == -1)
            return NO_MEMORY;
        t = take_parameter(c, &names[n], arguments, note, e);
        if (t != TAKEN)
            return t;
        /* A JSON object cannot hold both of two values with one name. */
        for (size_t i = 0; i < n; i++) {
            if (names[i].len == names[n].len &&
                memcmp(names[i].p, names[n].p, names[n].len) == 0)
                return NOT_UNDERSTOOD;
        }
        n++;
    }
    return TAKEN;
}

static enum taken
take_call(struct cursor *c, struct chat_message *m, const char **note, struct err *e)
{
    struct chat_call *calls, call = {0};
    struct span name;
    struct buf arguments;
    enum taken t = NO_MEMORY;

    if (m->n_calls == CHAT_MAX_CALLS || !take_name(c, &name, NULL))
        return NOT_UNDERSTOOD;
    buf_init(&arguments, SIZE_MAX / 2);
    if (buf_adds(&arguments, "{", e) == 0)
        t = take_parameters(c, &arguments, note, e);
    if (t == TAKEN && !take(c, "</" CHAT_DSML "invoke>"))
        t = NOT_UNDERSTOOD;
    if (t == TAKEN) {
        calls = realloc(m->calls, (m->n_calls + 1) * sizeof *calls);
        if (calls != NULL)
            m->calls = calls;
        call.name = strndup(name.p, name.len);
        if (buf_adds(&arguments, "}", e) == 0)
            call.arguments = buf_take(&arguments, e);
        if (calls == NULL || call.name == NULL || call.arguments == NULL) {
            err_set(e, ERR_QUOTA, errno, "no memory for a tool call");
            free(call.name);
            free(call.arguments);
            t = NO_MEMORY;
        } else {
            m->calls[m->n_calls++] = call;
        }
    }
    buf_done(&arguments);
    return t;
}

static void
forget_calls(struct chat_message *m)
{
    for (size_t i = 0; i < m->n_calls; i++) {
        free(m->calls[i].name);
        free(m->calls[i].arguments);
    }
    free(m->calls);
    m->calls = NULL;
    m->n_calls = 0;
}

/* A block of calls whose start is at c. Whole or not at all: m->calls and c are as before if
 * it is not understood. */
static enum taken
take_block(struct cursor *c, struct chat_message *m, const char **note, struct err *e)
{
    struct cursor at = *c;
    const char *first_note = *note;
    enum taken t = TAKEN;
    bool closed;

    if (!take(&at, CHAT_CALLS) || !take(&at, ">"))
        return NOT_UNDERSTOOD;
    while (t == TAKEN && take(&at, "<" CHAT_DSML "invoke"))
        t = take_call(&at, m, note, e);
    closed = take(&at, "</" CHAT_DSML "tool_calls>");
    skip_space(&at);
    /* Cut off behind a whole call: that call was meant. Anything else there was not. */
    if (t == TAKEN && (m->n_calls == 0 || (!closed && at.p < at.end)))
        t = NOT_UNDERSTOOD;
    if (t == TAKEN) {
        if (!closed)
            *note = "the block of tool calls is not closed";
        m->complete = m->complete || closed;
        *c = at;
    } else {
        *note = first_note;
        forget_calls(m);
    }
    return t;
}

/*
 * The first block of calls in the text, or, if that is not understood, the last one: a model
 * may write about the syntax before it uses it. Trying every one would not be linear.
 */
static enum taken
find_block(const char *p, const char *end, struct chat_message *m, struct span *block,
           const char **note, struct err *e)
{
    const struct span first = find(p, end, CHAT_CALLS);
    struct span last = first;
    struct cursor c = {.p = first.p, .end = end};
    enum taken t;

    if (first.p == NULL)
        return NOT_UNDERSTOOD;
    t = take_block(&c, m, note, e);
    if (t == NOT_UNDERSTOOD) {
        for (struct span s = first; s.p != NULL; s = find(s.p + s.len, end, CHAT_CALLS))
            last = s;
        c.p = last.p;
        if (last.p != first.p)
            t = take_block(&c, m, note, e);
        if (t == NOT_UNDERSTOOD)
            *note = "a block of tool calls was not understood and is in the content";
    }
    *block = (struct span){.p = last.p, .len = (size_t)(c.p - last.p)};
    return t;
}

/* A copy of two spans, one behind the other, with a NUL. */
static char *
join(struct span a, struct span b, size_t *len, struct err *e)
{
    char *s = malloc(a.len + b.len + 1);

    if (s == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a message");
        return NULL;
    }
    memcpy(s, a.p, a.len);
    memcpy(s + a.len, b.p, b.len);
    s[a.len + b.len] = '\0';
    *len = a.len + b.len;
    return s;
}

/* Tokens that the model has no business to write within its content. */
static bool
has_control(const char *s, size_t len)
{
    static const char *const odd[] = {CHAT_BOS,   CHAT_EOS,       CHAT_USER, CHAT_ASSISTANT,
                                      CHAT_THINK, CHAT_THINK_END, CHAT_DSML};

    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        if (find(s, s + len, odd[i]).p != NULL)
            return true;
    }
    return false;
}

/* Content in front of p .. end, the calls, and what came behind them. */
static int
parse_content(const char *p, const char *end, struct chat_message *m, const char **note,
              struct err *e)
{
    struct span before = {.p = p, .len = (size_t)(end - p)}, after = {.p = end, .len = 0};
    struct span block;
    const enum taken t = find_block(p, end, m, &block, note, e);

    if (t == NO_MEMORY)
        return -1;
    if (t == TAKEN) {
        before.len = (size_t)(block.p - p);
        for (int i = 0; i < 2 && before.len > 0 && p[before.len - 1] == '\n'; i++)
            before.len--;
        after.p = block.p + block.len;
        after.len = (size_t)(end - after.p);
        if (after.len > 0)
            *note = "there is text behind the tool calls; it is at the end of the content";
    }
    m->content = join(before, after, &m->content_len, e);
    if (m->content == NULL)
        return -1;
    if (*note == NULL && has_control(m->content, m->content_len))
        *note = "there are control tokens in the content";
    return 0;
}

int
chat_parse(const char *text, size_t len, bool thinking, struct chat_message *out,
           struct err *e)
{
    const size_t eos = sizeof CHAT_EOS - 1;
    const char *p = len > 0 ? text : "", *end = p + len, *note = NULL;
    struct chat_message m = {0};
    struct span stop;

    if (len >= eos && memcmp(end - eos, CHAT_EOS, eos) == 0) {
        m.complete = true;
        end -= eos;
    }
    if (thinking) {
        stop = find(p, end, CHAT_THINK_END);
        if (stop.p == NULL) {
            note = "the reasoning has no end";
            stop = find(p, end, CHAT_CALLS); /* calls are not thoughts */
            stop = (struct span){.p = stop.p != NULL ? stop.p : end, .len = 0};
        }
        m.reasoning = join((struct span){.p = p, .len = (size_t)(stop.p - p)},
                           (struct span){.p = p, .len = 0}, &m.reasoning_len, e);
        if (m.reasoning == NULL)
            return -1;
        p = stop.p + stop.len;
        if (note == NULL && has_control(m.reasoning, m.reasoning_len))
            note = "there are control tokens in the reasoning";
    }
    if (parse_content(p, end, &m, &note, e) == -1) {
        chat_message_done(&m);
        return -1;
    }
    snprintf(m.note, sizeof m.note, "%s", note != NULL ? note : "");
    *out = m;
    return 0;
}

void
chat_message_done(struct chat_message *m)
{
    free(m->reasoning);
    free(m->content);
    forget_calls(m);
    *m = (struct chat_message){0};
}

/* `before`, then s as a JSON string that is UTF-8 whatever s is. */
static int
add_string(const char *before, const char *s, size_t len, struct buf *out, struct err *e)
{
    struct buf clean;
    size_t from = 0;
    int r = 0;

    buf_init(&clean, out->cap);
    for (size_t i = 0; i < len && r == 0;) {
        const int n = utf8_char(s + i, len - i);

        if (n > 0) {
            i += (size_t)n;
            continue;
        }
        r = buf_add(&clean, s + from, i - from, e);
        if (r == 0)
            r = buf_adds(&clean, "\xEF\xBF\xBD", e);
        i = n < 0 ? i + (size_t)-n : len;
        from = i;
    }
    if (r == 0)
        r = buf_add(&clean, s + from, len - from, e);
    if (r == 0)
        r = buf_adds(out, before, e);
    if (r == 0)
        r = json_py_string(clean.len > 0 ? (const char *)clean.p : "", clean.len, out, e);
    buf_done(&clean);
    return r;
}

static int
add_calls(const struct chat_message *m, struct buf *out, struct err *e)
{
    if (m->n_calls == 0)
        return 0;
    if (buf_adds(out, ", \"tool_calls\": [", e) == -1)
        return -1;
    for (size_t i = 0; i < m->n_calls; i++) {
        const struct chat_call *c = &m->calls[i];

        if (buf_addf(out, e,
                     "%s{\"id\": \"call_%zu\", \"type\": \"function\", \"function\": {",
                     i > 0 ? ", " : "", i) == -1 ||
            add_string("\"name\": ", c->name, strlen(c->name), out, e) == -1 ||
            add_string(", \"arguments\": ", c->arguments, strlen(c->arguments), out, e) ==
                -1 ||
            buf_adds(out, "}}", e) == -1)
            return -1;
    }
    return buf_adds(out, "]", e);
}

int
chat_message_json(const struct chat_message *m, struct buf *out, struct err *e)
{
    const size_t before = out->len;

    if (buf_adds(out, "{\"role\": \"assistant\"", e) == -1 ||
        (m->reasoning != NULL && add_string(", \"reasoning_content\": ", m->reasoning,
                                            m->reasoning_len, out, e) == -1) ||
        add_string(", \"content\": ", m->content, m->content_len, out, e) == -1 ||
        add_calls(m, out, e) == -1 || buf_adds(out, "}", e) == -1) {
        out->len = before;
        return -1;
    }
    return 0;
}
