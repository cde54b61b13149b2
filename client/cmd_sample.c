/* SPDX-License-Identifier: Apache-2.0 */
/* fathom sample NAME: only the text goes to stdout, with nothing added. */
#include "config.h"

#include <math.h>
#include <unistd.h>

#include "client/client.h"

struct printing {
    struct client *c;
    uint64_t n;
};

static void
print_json(const struct fathom_token *t)
{
    json_begin(NULL);
    json_u64("pos", t->pos);
    json_u64("id", t->id);
    json_bytes("text", t->text, t->len);
    if (!isnan(t->logprob))
        json_f64("logprob", t->logprob);
    if (t->n_top > 0) {
        json_list("top");
        for (size_t i = 0; i < t->n_top; i++) {
            json_begin(NULL);
            json_u64("id", t->top[i].id);
            json_f64("logprob", t->top[i].logprob);
            json_end();
        }
        json_list_end();
    }
    json_end();
}

static int
on_token(void *arg, const struct fathom_token *t)
{
    struct printing *p = arg;

    p->n++;
    if (p->c->json)
        print_json(t);
    else
        fwrite(t->text, 1, t->len, stdout);
    return ferror(stdout) != 0;
}

int
cmd_sample(struct client *c)
{
    static struct sampling s;
    struct printing p = {c, 0};
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = &p, .token = on_token};
    const struct fathom_result *r;

    sampling_init(&s, c, c->values.args[0]);
    s.a.logprobs = arg_given(c, "logprobs") || arg_given(c, "top-logprobs");
    s.a.top_logprobs = (int)arg_u64(c, "top-logprobs", 20, 0);
    s.a.control = arg_given(c, "control");
    s.a.detach = arg_given(c, "detach");
    if (arg_given(c, "if-pos"))
        s.a.if_pos = (int64_t)arg_u64(c, "if-pos", INT64_MAX, 0);
    client_open(c);
    do {
        r = client_run(c, fathom_sample(c->f, &s.a, &w, &c->e));
    } while (r == NULL && p.n == 0 && client_again(c));
    if (r == NULL)
        client_fail(c);
    if (c->json) {
        json_begin(NULL);
        json_begin("result");
        sampling_json(r);
        json_end();
        json_end();
    } else if (isatty(STDOUT_FILENO)) {
        putchar('\n');
    }
    return client_end(c);
}
