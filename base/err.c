/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"

static const struct {
    const char *name, *meaning;
    int status, retryable;
} codes[ERR_CODES] = {
    [ERR_NONE] = {"none", "no error", 0, 0},

#define E(number, id, name, status, retry, text) [number] = {name, text, status, retry},
#include "base/errors.def"
#undef E
};

int
err_set(struct err *e, enum err_code code, int sys, const char *fmt, ...)
{
    va_list ap;

    e->code = code;
    e->sys = sys;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    return -1;
}

int
err_prefix(struct err *e, const char *fmt, ...)
{
    char was[sizeof e->text];
    va_list ap;
    int n;

    memcpy(was, e->text, sizeof was);
    va_start(ap, fmt);
    n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->text)
        snprintf(e->text + n, sizeof e->text - (size_t)n, ": %s", was);
    return -1;
}

const char *
err_name(enum err_code code)
{
    return (size_t)code < ERR_CODES ? codes[code].name : "unknown";
}

int
err_exit_status(enum err_code code)
{
    return (size_t)code < ERR_CODES ? codes[code].status : 70;
}

const char *
err_meaning(enum err_code code)
{
    return (size_t)code < ERR_CODES ? codes[code].meaning : "unknown";
}

int
err_is_retryable(enum err_code code)
{
    return (size_t)code < ERR_CODES && codes[code].retryable;
}
