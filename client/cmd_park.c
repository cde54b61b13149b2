/* SPDX-License-Identifier: Apache-2.0 */
/* fathom park and unpark: a session's caches out of the engine, and back. */
#include "config.h"

#include <string.h>

#include "client/client.h"

static void
print_place(const struct client *c, const char *name, const struct fathom_result *r)
{
    if (!c->json)
        return;
    json_begin(NULL);
    json_str("name", name);
    json_u64("pos", r->pos);
    json_str("tier", r->tier);
    json_u64("memory_bytes", r->memory_bytes);
    json_u64("disk_bytes", r->disk_bytes);
    json_u64("replay", r->replay);
    json_end();
}

int
cmd_park(struct client *c)
{
    const char *name = c->values.args[0], *to = arg_value(c, "to");
    const struct fathom_result *r;
    char bytes[32], n[32];
    bool memory;

    if (to != NULL && strcmp(to, "memory") != 0 && strcmp(to, "disk") != 0)
        usage_error(c, "--to %s: neither memory nor disk", to);
    memory = to != NULL && strcmp(to, "memory") == 0;
    client_open(c);
    do {
        r = client_run(c, fathom_park(c->f, name, memory, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    print_place(c, name, r);
    if (strcmp(r->tier, "tokens") == 0)
        note(c, "%s is parked as tokens; %s to be computed again", name,
             fmt_count(n, sizeof n, r->replay));
    else
        note(c, "%s is parked, %s of caches in %s; %s tokens to be computed again", name,
             fmt_bytes(bytes, sizeof bytes,
                       (double)(strcmp(r->tier, "memory") == 0 ? r->memory_bytes
                                                               : r->disk_bytes)),
             strcmp(r->tier, "memory") == 0 ? "memory" : "files",
             fmt_count(n, sizeof n, r->replay));
    return client_end(c);
}

int
cmd_unpark(struct client *c)
{
    const char *name = c->values.args[0];
    const struct fathom_result *r;
    char n[32];

    client_open(c);
    do {
        r = client_run(c, fathom_unpark(c->f, name, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    print_place(c, name, r);
    note(c, "%s is in the engine; %s tokens were computed again", name,
         fmt_count(n, sizeof n, r->replay));
    return client_end(c);
}
