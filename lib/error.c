/* SPDX-License-Identifier: Apache-2.0 */
/* Errors as users of the library see them, from our own and from the daemon's. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "lib/lib.h"

#define E(number, id, name, status, retry, text) \
    _Static_assert((int)FATHOM_##id == number, "fathom.h and errors.def agree");
#include "base/errors.def"
#undef E

const char *
fathom_version(void)
{
    return PACKAGE_VERSION;
}

void
lib_error(struct fathom_error *to, const struct err *from)
{
    *to = (struct fathom_error){.code = from->code};
    snprintf(to->name, sizeof to->name, "%s", err_name(from->code));
    snprintf(to->text, sizeof to->text, "%s", from->text);
}

void
lib_wire_error(struct fathom_error *to, const struct wire_error *from)
{
    *to = (struct fathom_error){.code = (int)from->code};
    snprintf(to->name, sizeof to->name, "%.*s", (int)from->name.len, from->name.p);
    snprintf(to->text, sizeof to->text, "%.*s", (int)from->text.len, from->text.p);
    if (wire_has(from, error, key))
        snprintf(to->key, sizeof to->key, "%.*s", (int)from->key.len, from->key.p);
    to->has_pos = wire_has(from, error, pos);
    to->pos = from->pos;
    to->retry_ms = from->retry_ms;
}

uint32_t
lib_no(struct fathom_error *to, const struct err *from)
{
    lib_error(to, from);
    return 0;
}

int
fathom_error_is_retryable(const struct fathom_error *e)
{
    return err_is_retryable((enum err_code)e->code);
}

int
fathom_error_exit_status(const struct fathom_error *e)
{
    return err_exit_status((enum err_code)e->code);
}
