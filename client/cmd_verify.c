/* SPDX-License-Identifier: Apache-2.0 */
/* fathom verify NAME: exit status 0 if all that the disk has of it is good, 74 if not. */
#include "config.h"

#include "client/client.h"

enum { EXIT_DAMAGED = 74 };

struct verifying {
    const struct client *c;
    bool good;
};

static void
as_json(const struct client *c, const struct fathom_verified *v)
{
    json_begin(NULL);
    json_str("name", c->values.args[0]);
    json_bool("good", v->good);
    json_u64("wrong", v->wrong);
    json_bool("ledger", v->ledger);
    json_u64("tokens", v->tokens);
    json_u64("files", v->files);
    json_u64("files_good", v->files_good);
    json_u64("states", v->states);
    json_u64("best", v->best);
    json_u64("recompute", v->recompute);
    json_u64("salvage", v->salvage);
    json_list("problems");
    for (size_t i = 0; i < v->n_problems; i++)
        json_str(NULL, v->problems[i]);
    json_list_end();
    json_end();
}

static void
print_found(void *arg, const struct fathom_verified *v)
{
    struct verifying *x = arg;
    char a[32], b[32];

    x->good = v->good;
    if (x->c->json) {
        as_json(x->c, v);
        return;
    }
    for (size_t i = 0; i < v->n_problems; i++)
        printf("wrong   %s\n", v->problems[i]);
    if (v->wrong > v->n_problems)
        printf("wrong   and %llu more\n", (unsigned long long)(v->wrong - v->n_problems));
    if (v->ledger)
        printf("tokens  %s\n", fmt_count(a, sizeof a, v->tokens));
    else
        printf("tokens  the ledger cannot be read; the caches' files hold the first %s\n",
               fmt_count(a, sizeof a, v->salvage));
    printf("files   %llu of %llu good, %llu states\n", (unsigned long long)v->files_good,
           (unsigned long long)v->files, (unsigned long long)v->states);
    printf("go on   from position %s, %s tokens to be computed again\n",
           fmt_count(a, sizeof a, v->best), fmt_count(b, sizeof b, v->recompute));
}

int
cmd_verify(struct client *c)
{
    struct verifying x = {.c = c};
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = &x, .verified = print_found};
    uint32_t (*ask)(struct fathom * f, const char *name, const struct fathom_watch *w,
                    struct fathom_error *e) = arg_given(c, "give-up") ? fathom_give_up
                                                                      : fathom_verify;
    const struct fathom_result *r;

    client_open(c);
    do {
        r = client_run(c, ask(c->f, c->values.args[0], &w, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    note(c, x.good ? "%s is good" : "%s is damaged", c->values.args[0]);
    return c->interrupted ? client_end(c) : x.good ? 0 : EXIT_DAMAGED;
}
