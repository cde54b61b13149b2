/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom ask NAME [QUESTION]: one chat turn. The session keeps the chat: we append the user's
 * message, with the system message in front if it is the first one, and sample the answer.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/err.h"
#include "client/client.h"

enum { MOST_JSON = 1 << 20 };

struct turn {
    struct client *c;
    bool has_chat, want_json, in_reasoning;
    uint64_t n;
};

static void
on_stat(void *arg, const struct fathom_stat *s)
{
    struct turn *t = arg;

    t->has_chat = strcmp(s->chat, "none") != 0;
}

static int
on_token(void *arg, const struct fathom_token *token)
{
    struct turn *t = arg;
    FILE *to = token->reasoning ? stderr : stdout;

    t->n++;
    if (t->want_json || (token->reasoning && t->c->quiet))
        return 0;
    if (t->in_reasoning && !token->reasoning)
        fputs("\n\n", stderr);
    t->in_reasoning = token->reasoning;
    fwrite(token->text, 1, token->len, to);
    return ferror(stdout) != 0;
}

/* With --tools or --json: the daemon has taken the answer apart. */
static void
on_message(void *arg, const char *json, size_t len)
{
    struct turn *t = arg;

    if (!t->want_json)
        return;
    fwrite(json, 1, len, stdout);
    putchar('\n');
}

static void
must(int r, const struct err *e)
{
    if (r == -1)
        die(err_exit_status(e->code), "the question: %s", e->text);
}

/* s as a JSON string; the daemon checks its UTF-8. */
static void
add_string(struct buf *b, const char *s, size_t len)
{
    struct err e;

    must(buf_adds(b, "\"", &e), &e);
    for (size_t i = 0; i < len; i++) {
        const unsigned char ch = (unsigned char)s[i];

        if (ch == '"' || ch == '\\')
            must(buf_addf(b, &e, "\\%c", ch), &e);
        else if (ch < 0x20)
            must(buf_addf(b, &e, "\\u%04x", ch), &e);
        else
            must(buf_add(b, &ch, 1, &e), &e);
    }
    must(buf_adds(b, "\"", &e), &e);
}

static char *
messages(struct client *c, bool has_chat, const char *question, size_t len)
{
    const char *system = arg_value(c, "system"), *tools = arg_value(c, "tools");
    struct input in;
    struct buf b;
    struct err e;
    char *json;

    if (has_chat && (system != NULL || tools != NULL)) {
        note(c, "the chat has begun already: --system and --tools are as they were");
        system = tools = NULL;
    }
    buf_init(&b, MOST_JSON);
    must(buf_adds(&b, "{\"messages\":[", &e), &e);
    if (system != NULL || tools != NULL) {
        must(buf_adds(&b, "{\"role\":\"system\",\"content\":", &e), &e);
        add_string(&b, system != NULL ? system : "", system != NULL ? strlen(system) : 0);
        must(buf_adds(&b, "},", &e), &e);
    }
    must(buf_adds(&b, "{\"role\":\"user\",\"content\":", &e), &e);
    add_string(&b, question, len);
    must(buf_adds(&b, "}]", &e), &e);
    if (tools != NULL) {
        input_read(c, tools, &in);
        must(buf_adds(&b, ",\"tools\":", &e), &e);
        must(buf_add(&b, in.p, in.len, &e), &e);
        input_done(&in);
    }
    must(buf_adds(&b, "}", &e), &e);
    json = buf_take(&b, &e);
    if (json == NULL)
        die(err_exit_status(e.code), "the question: %s", e.text);
    return json;
}

/* The question from the arguments or from stdin, without newlines at its end. */
static const char *
read_question(struct client *c, struct input *in, size_t *len)
{
    const char *text = c->values.n_args > 1 ? c->values.args[1] : NULL;

    *in = (struct input){.fd = -1};
    if (text != NULL && strcmp(text, "-") != 0) {
        *len = strlen(text);
        return text;
    }
    input_read(c, NULL, in);
    *len = in->len;
    while (*len > 0 && in->p[*len - 1] == '\n')
        --*len;
    return in->p;
}

static const struct fathom_result *
append(struct client *c, const char *name, const char *json)
{
    const struct fathom_result *r;
    struct fathom_append a;
    uint8_t id[16];

    FATHOM_APPEND_INIT(&a);
    a.name = name;
    a.messages = json;
    a.thinking = arg_given(c, "think");
    a.effort = arg_value(c, "effort");
    a.keep_reasoning = arg_given(c, "keep-reasoning");
    op_id(id);
    a.op_id = id;
    do {
        r = client_run(c, fathom_append(c->f, &a, NULL, &c->e));
    } while (r == NULL && client_again(c));
    return r;
}

int
cmd_ask(struct client *c)
{
    static struct sampling s;
    struct turn t = {.c = c};
    const struct fathom_watch stat = {
        .struct_size = sizeof stat, .arg = &t, .stat = on_stat};
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = &t, .token = on_token, .message = on_message};
    const char *name = c->values.args[0];
    const struct fathom_result *r;
    const char *question;
    struct input in;
    size_t len;
    char *json;

    t.want_json = c->json || arg_given(c, "tools");
    sampling_init(&s, c, name);
    s.a.parse = 1;
    question = read_question(c, &in, &len);
    client_open(c);
    do {
        r = client_run(c, fathom_stat(c->f, name, &stat, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    json = messages(c, t.has_chat, question, len);
    r = append(c, name, json);
    free(json);
    if (in.fd != -1)
        input_done(&in);
    if (r == NULL)
        client_fail(c);
    if (c->interrupted)
        return client_end(c);
    do {
        r = client_run(c, fathom_sample(c->f, &s.a, &w, &c->e));
    } while (r == NULL && t.n == 0 && client_again(c));
    if (r == NULL)
        client_fail(c);
    if (!t.want_json)
        putchar('\n');
    if (r->reason == FATHOM_REASON_LIMIT)
        note(c, "[cut off after %llu tokens]", (unsigned long long)r->n);
    if (r->note[0] != '\0')
        note(c, "[%s]", r->note);
    return client_end(c);
}
