/* SPDX-License-Identifier: Apache-2.0 */
/* fathom sample NAME: only the text goes to stdout, with nothing added. */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "client/client.h"

enum { EXIT_CANNOT_MAKE = 73 };

struct printing {
    struct client *c;
    uint64_t n;
    FILE *rows; /* --logits */
    uint64_t n_rows;
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

/* --logits: a ring with a place for each token, so that none is lost however slow we are. */
static struct fathom_reader *
open_rows(struct client *c, struct printing *p, struct fathom_sample *a)
{
    const char *path = arg_value(c, "logits");
    const struct fathom_result *r;
    struct fathom_reader *reader;

    if (path == NULL)
        return NULL;
    r = client_run(c, fathom_ring(c->f, FATHOM_RING_LOGITS, a->n, &c->e));
    if (r == NULL)
        client_fail(c);
    a->ring = r->ring;
    reader = fathom_reader_open(r->fd, &c->e);
    close(r->fd);
    if (reader == NULL)
        client_fail(c);
    p->rows = fopen(path, "we");
    if (p->rows == NULL)
        die(EXIT_CANNOT_MAKE, "%s: %s", path, strerror(errno));
    return reader;
}

static void
write_rows(struct printing *p, struct fathom_reader *reader)
{
    struct client *c = p->c;
    const char *path = arg_value(c, "logits");
    struct fathom_record rec;
    int got;

    while ((got = fathom_reader_next(reader, &rec, &c->e)) == 1) {
        p->n_rows += !rec.over;
        if (!rec.over && fwrite(rec.row, sizeof(float), rec.vocab, p->rows) != rec.vocab)
            die(EXIT_OUTPUT, "%s: %s", path, strerror(errno));
    }
    fathom_reader_close(reader);
    if (got == -1)
        client_fail(c);
    if (fclose(p->rows) != 0)
        die(EXIT_OUTPUT, "%s: %s", path, strerror(errno));
}

int
cmd_sample(struct client *c)
{
    static struct sampling s;
    struct printing p = {.c = c};
    struct fathom_reader *rows;
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = &p, .token = on_token};
    const struct fathom_result *r;

    sampling_init(&s, c, c->values.args[0]);
    s.a.logprobs = arg_given(c, "logprobs") || arg_given(c, "top-logprobs");
    s.a.top_logprobs = (int)arg_u64(c, "top-logprobs", 20, 0);
    s.a.control = arg_given(c, "control");
    s.a.detach = arg_given(c, "detach");
    if (arg_given(c, "if-pos"))
        s.a.if_pos = (int64_t)arg_u64(c, "if-pos", INT64_MAX, 0);
    if (arg_given(c, "logits") && s.a.n == 0)
        usage_error(c, "--logits needs -n: so many rows are kept until they are written");
    client_open(c);
    rows = open_rows(c, &p, &s.a);
    do {
        r = client_run(c, fathom_sample(c->f, &s.a, &w, &c->e));
    } while (r == NULL && p.n == 0 && rows == NULL && client_again(c));
    if (rows != NULL)
        write_rows(&p, rows);
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
