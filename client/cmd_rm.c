/* SPDX-License-Identifier: Apache-2.0 */
/* fathom rm and chmod */
#include "config.h"

#include "base/err.h"
#include "client/client.h"

int
cmd_rm(struct client *c)
{
    const bool force = arg_given(c, "force");

    client_open(c);
    for (int i = 0; i < c->values.n_args && !c->interrupted; i++) {
        const char *name = c->values.args[i];
        const struct fathom_result *r;

        do {
            r = client_run(c, fathom_delete(c->f, name, &c->e));
        } while (r == NULL && client_again(c));
        if (r == NULL && !(force && c->e.code == FATHOM_NOT_FOUND))
            client_fail(c);
        if (c->json) {
            json_begin(NULL);
            json_str("name", name);
            json_bool("deleted", r != NULL);
            json_end();
        }
        if (r != NULL)
            note(c, "deleted %s", name);
    }
    return client_end(c);
}

int
cmd_chmod(struct client *c)
{
    const char *text = c->values.args[0], *name = c->values.args[1];
    const struct fathom_result *r;
    unsigned mode = 0;
    char shown[10];

    for (const char *p = text; *p != '\0'; p++) {
        if (*p < '0' || *p > '7' || mode > 0777 / 8)
            usage_error(c, "mode '%s' is no octal number up to 777", text);
        mode = mode * 8 + (unsigned)(*p - '0');
    }
    if (text[0] == '\0')
        usage_error(c, "the mode is empty");
    client_open(c);
    do {
        r = client_run(c, fathom_chmod(c->f, name, mode, arg_value(c, "group"), &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    if (c->json) {
        json_begin(NULL);
        json_str("name", name);
        json_u64("mode", mode);
        json_end();
    }
    note(c, "%s is %s now", name, fmt_mode(shown, mode));
    return client_end(c);
}
