/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CHECK_H
#define GPU_CHECK_H

#include "gpu/backend.h"
#include "model/config.h"

/* What every backend refuses, in the same words. *e is set where -1 comes back. */

struct step_bounds {
    const struct backend *b;
    const struct model_config *c;
    uint32_t max_seqs, max_tokens;
    bool draft; /* opened with the draft block */
    bool draws; /* backend_info's */
    int (*find)(const struct backend *b, uint32_t seq,
                struct err *e); /* open, and not coming */
    uint64_t (*len)(const struct backend *b, uint32_t seq);
};

int check_step(const struct step *s, const struct step_bounds *k, struct err *e);

/* A sequence of `len` tokens back to `to`: written up to `high`, set by kv_set at `floor`. */
int check_rewind(uint64_t to, uint64_t len, uint64_t high, uint64_t floor, struct err *e);

/* Caches come (kv_in, kv_set) to an empty sequence, n pages more than `had`. */
int check_empty(uint32_t seq, uint64_t len, struct err *e);
int check_come(const struct model_config *c, uint64_t had, uint64_t n, struct err *e);
int check_set(const struct model_config *c, uint64_t len, uint64_t come, struct err *e);

#endif /* GPU_CHECK_H */
