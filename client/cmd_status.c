/* SPDX-License-Identifier: Apache-2.0 */
/* fathom status: exit status 0 if the daemon serves, 69 if it does not. */
#include "config.h"

#include <string.h>

#include "client/client.h"

enum { EXIT_NOT_SERVING = 69 };

struct showing {
    const struct client *c;
    bool serves;
};

static void
as_json(const struct fathom_status *s)
{
    json_begin(NULL);
    json_str("state", s->state);
    json_str("sentence", s->sentence);
    json_str("server", s->server);
    json_str("model", s->model);
    json_str("backend", s->backend);
    json_u64("pid", s->pid);
    json_u64("engine_pid", s->engine_pid);
    json_u64("uptime_ms", s->uptime_ms);
    json_u64("load_permille", s->load_permille);
    json_u64("vocab", s->vocab);
    json_u64("max_positions", s->max_positions);
    json_u64("weight_bytes", s->weight_bytes);
    json_u64("connections", s->connections);
    json_u64("sessions", s->sessions);
    json_u64("sessions_busy", s->sessions_busy);
    json_u64("tokens", s->tokens);
    json_u64("kv_bytes", s->kv_bytes);
    json_u64("kv_limit", s->kv_limit);
    json_u64("queued", s->queued);
    json_u64("running", s->running);
    json_u64("engine_restarts", s->engine_restarts);
    json_u64("steps", s->steps);
    json_u64("prefill_tokens", s->prefill_tokens);
    json_u64("decode_tokens", s->decode_tokens);
    json_u64("uid", s->uid);
    json_u64("my_sessions", s->my_sessions);
    json_u64("my_tokens", s->my_tokens);
    json_u64("max_sessions", s->max_sessions);
    json_u64("max_tokens", s->max_tokens);
    json_end();
}

static void
print_status(void *arg, const struct fathom_status *s)
{
    struct showing *show = arg;
    char a[32], b[32];

    show->serves = strcmp(s->state, "serving") == 0;
    if (show->c->json) {
        as_json(s);
        return;
    }
    printf("%s\n", s->sentence);
    printf("daemon       %s, pid %llu, up %llu s\n", s->server, (unsigned long long)s->pid,
           (unsigned long long)s->uptime_ms / 1000);
    if (s->max_positions > 0) /* else the engine is loading: its size is not known yet */
        printf("model        %s, %s of weights, context %s\n", s->model,
               fmt_bytes(a, sizeof a, (double)s->weight_bytes),
               fmt_count(b, sizeof b, s->max_positions));
    else if (s->model[0] != '\0')
        printf("model        %s\n", s->model);
    printf("engine       %s%spid %llu, %llu restarts\n", s->backend,
           s->backend[0] != '\0' ? ", " : "", (unsigned long long)s->engine_pid,
           (unsigned long long)s->engine_restarts);
    printf("sessions     %llu (%llu busy), %s tokens\n", (unsigned long long)s->sessions,
           (unsigned long long)s->sessions_busy, fmt_count(a, sizeof a, s->tokens));
    printf("caches       %s of %s\n", fmt_bytes(a, sizeof a, (double)s->kv_bytes),
           fmt_bytes(b, sizeof b, (double)s->kv_limit));
    printf("requests     %llu running, %llu queued\n", (unsigned long long)s->running,
           (unsigned long long)s->queued);
    printf("computed     %s tokens read", fmt_count(a, sizeof a, s->prefill_tokens));
    printf(", %s drawn\n", fmt_count(a, sizeof a, s->decode_tokens));
    printf("yours        %llu of %llu sessions, %s of %s tokens\n",
           (unsigned long long)s->my_sessions, (unsigned long long)s->max_sessions,
           fmt_count(a, sizeof a, s->my_tokens), fmt_count(b, sizeof b, s->max_tokens));
}

int
cmd_status(struct client *c)
{
    struct showing show = {.c = c};
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = &show, .status = print_status};
    const struct fathom_result *r;

    client_open(c);
    do {
        r = client_run(c, fathom_status(c->f, &w, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    return c->interrupted ? client_end(c) : show.serves ? 0 : EXIT_NOT_SERVING;
}
