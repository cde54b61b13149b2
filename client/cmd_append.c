/* SPDX-License-Identifier: Apache-2.0 */
/* fathom append NAME [FILE] */
#include "config.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "client/client.h"

enum {
    TEXT_INLINE = 512 << 10,    /* more goes as a document */
    TOKENS_A_TIME = 200 * 1024, /* fits a frame; where tokens are cut makes no difference */
    JSON_MAX = 1 << 20,
};

static void
on_progress(void *arg, uint64_t pos, uint64_t total)
{
    bar_show(arg, pos, total);
}

/* One append; tried again under the same op_id, so it happens once. */
static const struct fathom_result *
append(struct client *c, struct fathom_append *a, const struct fathom_watch *w)
{
    const struct fathom_result *r;
    uint8_t id[16];

    op_id(id);
    a->op_id = id;
    do {
        r = client_run(c, fathom_append(c->f, a, w, &c->e));
    } while (r == NULL && client_again(c));
    return r;
}

static const struct fathom_result *
append_tokens(struct client *c, struct fathom_append *a, const struct fathom_watch *w,
              const struct input *in, uint64_t *appended)
{
    const size_t n = in->len / 4;
    const struct fathom_result *r = NULL;
    uint32_t *ids;
    size_t at = 0;

    if (in->len % 4 != 0 || n == 0)
        usage_error(c, "--tokens: %zu bytes are no list of 32-bit numbers", in->len);
    ids = malloc(in->len);
    if (ids == NULL)
        die(71, "no memory for %zu tokens", n);
    memcpy(ids, in->p, in->len);
    for (size_t i = 0; i < n; i++)
        ids[i] = le32toh(ids[i]);
    do {
        a->tokens = ids + at;
        a->n_tokens = n - at < TOKENS_A_TIME ? n - at : TOKENS_A_TIME;
        at += a->n_tokens;
        r = append(c, a, w);
        if (r == NULL)
            break;
        *appended += r->n;
        a->if_pos = (int64_t)r->pos;
    } while (at < n && !c->interrupted);
    free(ids);
    return r;
}

static const struct fathom_result *
append_messages(struct client *c, struct fathom_append *a, const struct fathom_watch *w,
                const struct input *in)
{
    const struct fathom_result *r;
    char *json;

    if (in->len > JSON_MAX || memchr(in->p, 0, in->len) != NULL)
        die(65, "the messages are larger than %d bytes or contain a NUL", JSON_MAX);
    json = malloc(in->len + 1);
    if (json == NULL)
        die(71, "no memory for the messages");
    memcpy(json, in->p, in->len);
    json[in->len] = '\0';
    a->messages = json;
    r = append(c, a, w);
    free(json);
    return r;
}

int
cmd_append(struct client *c)
{
    const char *path = c->values.n_args > 1 ? c->values.args[1] : NULL;
    const struct fathom_result *r;
    struct fathom_append a;
    struct bar bar;
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = &bar, .progress = on_progress};
    uint64_t appended = 0, began;
    struct input in;
    char n[32], pos[32], rate[32];
    double seconds;

    FATHOM_APPEND_INIT(&a);
    a.name = c->values.args[0];
    a.control = arg_given(c, "control");
    a.bos = arg_given(c, "bos") ? 1 : arg_given(c, "no-bos") ? 0 : -1;
    a.thinking = arg_given(c, "think");
    a.effort = arg_value(c, "effort");
    a.keep_reasoning = arg_given(c, "keep-reasoning");
    if (arg_given(c, "if-pos"))
        a.if_pos = (int64_t)arg_u64(c, "if-pos", INT64_MAX, 0);
    input_read(c, path, &in);
    client_open(c);
    began = clock_ns();
    bar_begin(&bar, c);
    if (arg_given(c, "tokens")) {
        r = append_tokens(c, &a, &w, &in, &appended);
    } else if (arg_given(c, "messages")) {
        r = append_messages(c, &a, &w, &in);
    } else {
        if (in.len > TEXT_INLINE) {
            a.document = in.fd;
        } else {
            a.text = in.p;
            a.len = in.len;
        }
        r = append(c, &a, &w);
    }
    bar_end(&bar);
    input_done(&in);
    if (r == NULL)
        client_fail(c);
    seconds = (double)(clock_ns() - began) / 1e9;
    if (appended == 0)
        appended = r->n;
    if (c->json) {
        json_begin(NULL);
        json_str("name", a.name);
        json_u64("appended", appended);
        json_u64("pos", r->pos);
        json_u64("dropped", r->dropped);
        json_u64("replay", r->replay);
        json_end();
    }
    note(c, "appended %s tokens in %.2f s (%s tokens/s); %s is at position %s",
         fmt_count(n, sizeof n, appended), seconds,
         fmt_count(rate, sizeof rate, (uint64_t)((double)appended / seconds)), a.name,
         fmt_count(pos, sizeof pos, r->pos));
    return client_end(c);
}
