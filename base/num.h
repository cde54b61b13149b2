/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_NUM_H
#define BASE_NUM_H

#include <stdint.h>

struct err;

/*
 * Numbers that people type: the one strict parser. The whole string must be the number, in
 * range; else ERR_INVALID says what was wrong with it, and *out is left alone.
 */
int num_u64(const char *s, uint64_t min, uint64_t max, uint64_t *out, struct err *e);
int num_i64(const char *s, int64_t min, int64_t max, int64_t *out, struct err *e);
int num_f64(const char *s, double min, double max, double *out, struct err *e); /* finite */
int num_bytes(const char *s, uint64_t min, uint64_t max, uint64_t *out,
              struct err *e); /* "64G", "512M", "4096": powers of 1024 */
int num_duration_ms(
    const char *s, uint64_t min, uint64_t max, uint64_t *out,
    struct err *e); /* "30s", "5min", "250ms", "2h"; a bare number is seconds */
int num_bool(const char *s, int *out, struct err *e); /* yes no true false on off 1 0 */

#endif /* BASE_NUM_H */
