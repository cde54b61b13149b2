/* SPDX-License-Identifier: Apache-2.0 */
/* fathom fork, checkpoint, rollback and mv: one position in, one position out. */
#include "config.h"

#include "client/client.h"

static void
print_pos(const struct client *c, const char *name, const struct fathom_result *r)
{
    if (!c->json)
        return;
    json_begin(NULL);
    json_str("name", name);
    json_u64("pos", r->pos);
    json_u64("dropped", r->dropped);
    json_u64("replay", r->replay);
    json_u64("restored", r->restored);
    json_end();
}

/* What it costs to go on there. */
static const char *
cost(char *to, size_t size, const struct fathom_result *r)
{
    char again[32], back[32];

    snprintf(to, size, "%s tokens to be computed again",
             fmt_count(again, sizeof again, r->replay));
    if (r->restored > 0)
        snprintf(to, size, "%s tokens to be restored, %s to be computed again",
                 fmt_count(back, sizeof back, r->restored),
                 fmt_count(again, sizeof again, r->replay));
    return to;
}

static int64_t
position(const struct client *c, const char *label)
{
    if (!arg_given(c, "pos"))
        return FATHOM_ANY_POS;
    if (label != NULL)
        usage_error(c, "a checkpoint or --pos, not both");
    return (int64_t)arg_u64(c, "pos", INT64_MAX, 0);
}

int
cmd_fork(struct client *c)
{
    const char *name = c->values.args[0], *to = c->values.args[1];
    const char *at = arg_value(c, "at");
    const int64_t pos = position(c, at);
    const struct fathom_result *r;
    char n[32], m[120];

    client_open(c);
    do {
        r = client_run(c, fathom_fork(c->f, name, to, at, pos, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    print_pos(c, to, r);
    note(c, "%s is a copy of %s at position %s; %s", to, name,
         fmt_count(n, sizeof n, r->pos), cost(m, sizeof m, r));
    return client_end(c);
}

int
cmd_checkpoint(struct client *c)
{
    const char *name = c->values.args[0], *label = c->values.args[1];
    const bool remove = arg_given(c, "remove");
    const struct fathom_result *r;
    char n[32];

    client_open(c);
    do {
        r = client_run(c, remove ? fathom_checkpoint_remove(c->f, name, label, &c->e)
                                 : fathom_checkpoint(c->f, name, label, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    print_pos(c, name, r);
    if (remove)
        note(c, "%s is no checkpoint of %s any more", label, name);
    else
        note(c, "position %s of %s is %s", fmt_count(n, sizeof n, r->pos), name, label);
    return client_end(c);
}

int
cmd_rollback(struct client *c)
{
    const char *name = c->values.args[0], *to = arg_value(c, "to");
    const int64_t pos = position(c, to);
    const struct fathom_result *r;
    char n[32], m[32], again[120];

    if (to == NULL && pos == FATHOM_ANY_POS)
        usage_error(c, "where to? --to LABEL or --pos N");
    client_open(c);
    do {
        r = client_run(c, fathom_rollback(c->f, name, to, pos, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    print_pos(c, name, r);
    note(c, "%s is back at position %s; %s dropped, %s", name,
         fmt_count(n, sizeof n, r->pos), fmt_count(m, sizeof m, r->dropped),
         cost(again, sizeof again, r));
    return client_end(c);
}

int
cmd_mv(struct client *c)
{
    const char *name = c->values.args[0], *to = c->values.args[1];
    const struct fathom_result *r;

    client_open(c);
    do {
        r = client_run(c, fathom_rename(c->f, name, to, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    print_pos(c, to, r);
    note(c, "%s is %s now", name, to);
    return client_end(c);
}
