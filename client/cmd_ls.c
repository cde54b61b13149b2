/* SPDX-License-Identifier: Apache-2.0 */
/* fathom ls */
#include "config.h"

#include "client/client.h"

static void
print_session(void *arg, const struct fathom_session *s)
{
    const struct client *c = arg;
    char pos[32], bytes[32], disk[32], age[32], mode[10];

    if (c->json) {
        json_begin(NULL);
        json_str("name", s->name);
        json_str("owner", s->owner);
        json_u64("pos", s->pos);
        json_str("state", s->state);
        json_u64("mode", s->mode);
        json_u64("created_ms", s->created_ms);
        json_u64("used_ms", s->used_ms);
        json_u64("bytes", s->bytes);
        json_u64("checkpoints", s->checkpoints);
        json_u64("disk_bytes", s->disk_bytes);
        json_str("tier", s->tier);
        json_end();
    } else if (arg_given(c, "names")) {
        printf("%s\n", s->name);
    } else {
        printf("%-24s %12s  %-10s %-6s %s  %10s  %10s  %-12s %s\n", s->name,
               fmt_count(pos, sizeof pos, s->pos), s->state, s->tier,
               fmt_mode(mode, s->mode), fmt_bytes(bytes, sizeof bytes, (double)s->bytes),
               fmt_bytes(disk, sizeof disk, (double)s->disk_bytes),
               fmt_age(age, sizeof age, s->used_ms), s->owner);
    }
}

int
cmd_ls(struct client *c)
{
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = c, .session = print_session};
    const struct fathom_result *r;

    client_open(c);
    do {
        r = client_run(c, fathom_list(c->f, arg_given(c, "all"), &w, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    return client_end(c);
}
