/* SPDX-License-Identifier: Apache-2.0 */
/* fathom show NAME: everything about one session, what it costs above all. */
#include "config.h"

#include <string.h>

#include "client/client.h"

static void
as_json(const struct fathom_stat *s)
{
    json_begin(NULL);
    json_str("name", s->name);
    json_str("owner", s->owner);
    json_str("group", s->group);
    json_u64("mode", s->mode);
    json_str("state", s->state);
    json_str("chat", s->chat);
    json_u64("turns", s->turns);
    json_u64("pos", s->pos);
    json_u64("kv_pos", s->kv_pos);
    json_u64("max_positions", s->max_positions);
    json_u64("bytes", s->bytes);
    json_u64("kv_bytes", s->kv_bytes);
    json_u64("transcript_bytes", s->transcript_bytes);
    json_f64("bytes_per_token", s->bytes_per_token);
    json_u64("created_ms", s->created_ms);
    json_u64("used_ms", s->used_ms);
    json_u64("durable_pos", s->durable_pos);
    json_str("tier", s->tier);
    json_u64("memory_bytes", s->memory_bytes);
    json_u64("disk_bytes", s->disk_bytes);
    json_u64("file_bytes", s->file_bytes);
    json_u64("written_rows", s->written_rows);
    json_u64("written_states", s->written_states);
    json_u64("written_tokens", s->written_tokens);
    json_str("why", s->why);
    json_list("checkpoints");
    for (size_t i = 0; i < s->n_points; i++) {
        json_begin(NULL);
        json_str("name", s->points[i].name);
        json_u64("pos", s->points[i].pos);
        json_bool("durable", s->points[i].durable);
        json_end();
    }
    json_list_end();
    json_end();
}

static void
print_stat(void *arg, const struct fathom_stat *s)
{
    const struct client *c = arg;
    char a[32], b[32], mode[10];

    if (c->json) {
        as_json(s);
        return;
    }
    printf("name         %s\n", s->name);
    printf("owner        %s%s%s, %s\n", s->owner, s->group[0] != '\0' ? ":" : "", s->group,
           fmt_mode(mode, s->mode));
    printf("state        %s%s%s\n", s->state, s->why[0] != '\0' ? ": " : "", s->why);
    printf("position     %s of %s tokens\n", fmt_count(a, sizeof a, s->pos),
           fmt_count(b, sizeof b, s->max_positions));
    printf("chat         %s, %llu turns\n", s->chat, (unsigned long long)s->turns);
    printf("memory       %s: %s of caches", fmt_bytes(a, sizeof a, (double)s->bytes),
           fmt_bytes(b, sizeof b, (double)s->kv_bytes));
    printf(", %s of transcript\n", fmt_bytes(b, sizeof b, (double)s->transcript_bytes));
    printf("caches       %s, %s in the host's memory\n",
           strcmp(s->tier, "tokens") == 0   ? "to be computed again"
           : strcmp(s->tier, "disk") == 0   ? "on the disk"
           : strcmp(s->tier, "memory") == 0 ? "in memory"
                                            : "in the engine",
           fmt_bytes(a, sizeof a, (double)s->memory_bytes));
    printf("disk         %s: %s of caches", fmt_bytes(a, sizeof a, (double)s->disk_bytes),
           fmt_bytes(b, sizeof b, (double)s->file_bytes));
    printf("; tokens up to %s\n", fmt_count(a, sizeof a, s->durable_pos));
    if (s->written_tokens > 0)
        printf("written      %.0f bytes a token, and %s of states\n",
               (double)s->written_rows / (double)s->written_tokens,
               fmt_bytes(a, sizeof a, (double)s->written_states));
    printf("a token      %.0f bytes\n", s->bytes_per_token);
    printf("made         %s\n", fmt_age(a, sizeof a, s->created_ms));
    printf("used         %s\n", fmt_age(a, sizeof a, s->used_ms));
    for (size_t i = 0; i < s->n_points; i++)
        printf("checkpoint   %-20s at %s%s\n", s->points[i].name,
               fmt_count(a, sizeof a, s->points[i].pos),
               s->points[i].durable ? ", on the disk" : "");
}

int
cmd_show(struct client *c)
{
    const struct fathom_watch w = {.struct_size = sizeof w, .arg = c, .stat = print_stat};
    const struct fathom_result *r;

    client_open(c);
    do {
        r = client_run(c, fathom_stat(c->f, c->values.args[0], &w, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    return client_end(c);
}
