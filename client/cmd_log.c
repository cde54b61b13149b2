/* SPDX-License-Identifier: Apache-2.0 */
/* fathom log NAME: the transcript, byte for byte. */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "base/num.h"
#include "client/client.h"

/* --at: which position that is. */
struct place {
    const char *label;
    uint64_t pos;
    bool found;
};

static void
find_label(void *arg, const struct fathom_stat *s)
{
    struct place *p = arg;
    struct err e;

    for (size_t i = 0; i < s->n_points; i++) {
        if (strcmp(s->points[i].name, p->label) == 0) {
            p->pos = s->points[i].pos;
            p->found = true;
        }
    }
    if (!p->found && num_u64(p->label, 0, UINT64_MAX, &p->pos, &e) == 0) {
        p->found = p->pos <= s->pos;
        if (!p->found)
            die(65, "position %s is past the end, %llu", p->label,
                (unsigned long long)s->pos);
    }
}

static uint64_t
resolve(struct client *c, const char *label)
{
    struct place p = {.label = label};
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = &p, .stat = find_label};

    if (client_run(c, fathom_stat(c->f, c->values.args[0], &w, &c->e)) == NULL)
        client_fail(c);
    if (!p.found)
        die(66, "no checkpoint '%s'; `fathom show %s` lists them", label,
            c->values.args[0]);
    return p.pos;
}

static void
print_text(void *arg, const char *text, size_t len)
{
    const struct client *c = arg;

    if (c->json) {
        json_begin(NULL);
        json_bytes("text", text, len);
        json_end();
    } else {
        fwrite(text, 1, len, stdout);
    }
}

static void
print_ids(void *arg, const uint32_t *ids, size_t n)
{
    const struct client *c = arg;

    if (c->json) {
        json_begin(NULL);
        json_list("tokens");
    }
    for (size_t i = 0; i < n; i++) {
        if (c->json)
            json_u64(NULL, ids[i]);
        else
            printf("%lu\n", (unsigned long)ids[i]);
    }
    if (c->json) {
        json_list_end();
        json_end();
    }
}

int
cmd_log(struct client *c)
{
    const uint64_t from = arg_u64(c, "from", UINT64_MAX, 0);
    const char *at = arg_value(c, "at");
    uint64_t n = arg_u64(c, "max-tokens", UINT64_MAX, 0), end;
    struct fathom_watch w = {.struct_size = sizeof w, .arg = c};
    const struct fathom_result *r;

    if (arg_given(c, "tokens"))
        w.ids = print_ids;
    else
        w.text = print_text;
    if (arg_given(c, "max-tokens") && n == 0)
        return 0;
    client_open(c);
    if (at != NULL) {
        end = resolve(c, at);
        if (from >= end)
            return client_end(c);
        if (n == 0 || n > end - from)
            n = end - from;
    }
    r = client_run(c, fathom_transcript(c->f, c->values.args[0], from, n, &w, &c->e));
    if (r == NULL)
        client_fail(c);
    return client_end(c);
}
