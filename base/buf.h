/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stddef.h>
#include <stdint.h>

struct err;

/*
 * Growable bytes with a hard cap. Nothing is ever cut short: a write that would pass the cap
 * or finds no memory fails with ERR_QUOTA and leaves the contents as they were. One thread.
 */
struct buf {
    uint8_t *p; /* owned; NULL while empty */
    size_t len, room, cap;
};

void buf_init(struct buf *b, size_t cap); /* allocates nothing */
void buf_done(struct buf *b);             /* frees; ready to be used again */
int buf_add(struct buf *b, const void *p, size_t len, struct err *e);
int buf_adds(struct buf *b, const char *s, struct err *e); /* without the final NUL */
int buf_addf(struct buf *b, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int buf_reserve(struct buf *b, size_t more,
                struct err *e);         /* room for `more` bytes at p + len */
void buf_drop(struct buf *b, size_t n); /* the first n bytes */

/* The bytes with a NUL behind them (not counted in len), the caller's to free(); b is empty. */
char *buf_take(struct buf *b, struct err *e);

#endif /* BASE_BUF_H */
