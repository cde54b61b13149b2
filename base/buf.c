/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"

enum { FIRST_ROOM = 256 };

void
buf_init(struct buf *b, size_t cap)
{
    *b = (struct buf){.cap = cap};
}

void
buf_done(struct buf *b)
{
    free(b->p);
    buf_init(b, b->cap);
}

int
buf_reserve(struct buf *b, size_t more, struct err *e)
{
    size_t room = b->room > 0 ? b->room : FIRST_ROOM;
    uint8_t *p;

    if (more > b->cap - b->len)
        return err_set(e, ERR_QUOTA, 0, "more than %zu bytes", b->cap);
    if (b->len + more <= b->room)
        return 0;
    while (room < b->len + more)
        room *= 2;
    if (room > b->cap)
        room = b->cap;
    p = realloc(b->p, room);
    if (p == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu bytes", room);
    b->p = p;
    b->room = room;
    return 0;
}

int
buf_add(struct buf *b, const void *p, size_t len, struct err *e)
{
    if (buf_reserve(b, len, e) == -1)
        return -1;
    if (len > 0)
        memcpy(b->p + b->len, p, len);
    b->len += len;
    return 0;
}

int
buf_adds(struct buf *b, const char *s, struct err *e)
{
    return buf_add(b, s, strlen(s), e);
}

int
buf_addf(struct buf *b, struct err *e, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    assert(n >= 0);
    /* vsnprintf wants room for its NUL, which is not kept. */
    if (buf_reserve(b, (size_t)n + 1, e) == -1)
        return -1;
    va_start(ap, fmt);
    vsnprintf((char *)b->p + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return 0;
}

void
buf_drop(struct buf *b, size_t n)
{
    assert(n <= b->len);
    b->len -= n;
    if (b->len > 0)
        memmove(b->p, b->p + n, b->len);
}

char *
buf_take(struct buf *b, struct err *e)
{
    char *s;

    if (buf_reserve(b, 1, e) == -1)
        return NULL;
    b->p[b->len] = '\0';
    s = (char *)b->p;
    buf_init(b, b->cap);
    return s;
}
