/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#ifdef __cplusplus
extern "C" {
#endif

/*
 * One error, filled in where it happens and read where it is handled.
 *
 * Functions that can fail take a struct err last and return 0, or -1 with *e set. They do
 * not log: whoever stops passing the error on logs it, once. The caller owns the storage,
 * so failing never allocates. `code` is the same number that goes out on the wire.
 */
enum err_code {
    ERR_NONE = 0,

#define E(number, id, name, status, retry, text) ERR_##id = number,
#include "base/errors.def"
#undef E
    ERR_CODES /* one more than the last */
};

struct err {
    enum err_code code;
    int sys;        /* errno, cudaError_t or ncclResult_t; 0 if none */
    char text[248]; /* for a person: what was tried, on what, why it failed */
};

/* Both return -1, so that a failing function ends in `return err_set(...)`. */
int err_set(struct err *e, enum err_code code, int sys, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

const char *err_name(enum err_code code);    /* "not-found"; "unknown" outside the table */
int err_exit_status(enum err_code code);     /* sysexits.h; 70 outside the table */
const char *err_meaning(enum err_code code); /* the sentence in errors.def */
int err_is_retryable(enum err_code code);    /* 0 or 1 */

#ifdef __cplusplus
}
#endif

#endif /* BASE_ERR_H */
