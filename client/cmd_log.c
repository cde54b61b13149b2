/* SPDX-License-Identifier: Apache-2.0 */
/* fathom log NAME: the transcript, byte for byte. */
#include "config.h"

#include "client/client.h"

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
    const uint64_t n = arg_u64(c, "max-tokens", UINT64_MAX, 0);
    struct fathom_watch w = {.struct_size = sizeof w, .arg = c};
    const struct fathom_result *r;

    if (arg_given(c, "tokens"))
        w.ids = print_ids;
    else
        w.text = print_text;
    if (arg_given(c, "max-tokens") && n == 0)
        return 0;
    client_open(c);
    r = client_run(c, fathom_transcript(c->f, c->values.args[0], from, n, &w, &c->e));
    if (r == NULL)
        client_fail(c);
    return client_end(c);
}
