/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rendered text in pieces. Neighbouring plain pieces are one piece, because the tokenizer's
 * splits and merges must see such a run as a whole; a control token ends the run, as an added
 * token does in the reference tokenizer. Any thread, one at a time for one text.
 */
#include <config.h>

#include <string.h>

#include "base/err.h"
#include "model/chat_write.h"
#include "model/json_py.h"

static const char *const control_tokens[] = {
    CHAT_BOS,          CHAT_EOS,       CHAT_USER,     CHAT_ASSISTANT,   CHAT_REMINDER,
    CHAT_THINK,        CHAT_THINK_END, CHAT_DSML,     "<｜action｜>",   "<｜query｜>",
    "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜read_url｜>",
};

enum { SHORTEST_CONTROL = sizeof CHAT_THINK - 1 };

void
chat_text_init(struct chat_text *t, size_t cap)
{
    const size_t most = SIZE_MAX / sizeof(struct chat_piece) / 2;

    buf_init(&t->text, cap);
    if (cap > most)
        cap = most;
    /* At worst control and plain pieces take turns, and the plain ones have one byte. */
    buf_init(&t->pieces,
             (2 * (cap / (SHORTEST_CONTROL + 1)) + 2) * sizeof(struct chat_piece));
}

void
chat_text_done(struct chat_text *t)
{
    buf_done(&t->text);
    buf_done(&t->pieces);
}

static int
add_piece(struct chat_text *t, const char *s, size_t len, bool control, struct err *e)
{
    const struct chat_piece piece = {.len = len, .control = control};
    struct chat_piece *last = NULL;

    if (len == 0)
        return 0;
    if (t->pieces.len > 0)
        last = (struct chat_piece *)(void *)(t->pieces.p + t->pieces.len) - 1;
    if (last != NULL && !last->control && !control) {
        if (buf_add(&t->text, s, len, e) == -1)
            return -1;
        last->len += len;
        return 0;
    }
    if (buf_reserve(&t->pieces, sizeof piece, e) == -1 ||
        buf_add(&t->text, s, len, e) == -1)
        return -1;
    return buf_add(&t->pieces, &piece, sizeof piece, e);
}

static void
put(struct chat_writer *w, const char *s, size_t len, bool control)
{
    if (!w->failed && add_piece(w->out, s, len, control, w->e) == -1)
        w->failed = true;
}

void
put_plain(struct chat_writer *w, const char *s, size_t len)
{
    put(w, s, len, false);
}

/* The length of the control token that s starts with; 0 if it starts with none. */
static size_t
control_at(const char *s)
{
    for (size_t i = 0; i < sizeof control_tokens / sizeof *control_tokens; i++) {
        const size_t n = strlen(control_tokens[i]);

        if (strncmp(s, control_tokens[i], n) == 0)
            return n;
    }
    return 0;
}

void
put_format(struct chat_writer *w, const char *s)
{
    const char *from = s;

    while (*s != '\0') {
        const size_t n = control_at(s);

        if (n == 0) {
            s++;
            continue;
        }
        put(w, from, (size_t)(s - from), false);
        put(w, s, n, true);
        from = s += n;
    }
    put(w, from, (size_t)(s - from), false);
}

void
put_json(struct chat_writer *w, json_t *v)
{
    struct buf b;

    if (w->failed)
        return;
    buf_init(&b, w->out->text.cap);
    if (json_py_dump(v, &b, w->e) == -1)
        w->failed = true;
    else
        put(w, (const char *)b.p, b.len, false);
    buf_done(&b);
}
