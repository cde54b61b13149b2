/* SPDX-License-Identifier: Apache-2.0 */
/* fathom new NAME */
#include "config.h"

#include "client/client.h"

int
cmd_new(struct client *c)
{
    const char *name = c->values.args[0];
    const int flags = arg_given(c, "if-absent") ? FATHOM_IF_ABSENT : 0;
    const struct fathom_result *r;

    client_open(c);
    do {
        r = client_run(c, fathom_new(c->f, name, flags, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    if (c->json) {
        json_begin(NULL);
        json_str("name", name);
        json_u64("pos", r->pos);
        json_bool("created", r->created);
        json_end();
    }
    if (r->created)
        note(c, "made %s", name);
    else
        note(c, "%s was there, at position %llu", name, (unsigned long long)r->pos);
    return client_end(c);
}
