/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KVFILE_SAMPLE_H
#define TESTS_KVFILE_SAMPLE_H

#include <stdint.h>

#include "kvstore/kvfile.h"

/*
 * Files of class B of a model that there is not, small and with gaps behind every section: a chunk,
 * a state with logits, and one without.
 */
struct kvfile_sample {
    struct kvfile_about about;
    const uint32_t *tokens; /* a chunk's */
};

extern const struct kvfile_model kvfile_sample_model;
extern const struct kvfile_sample kvfile_sample_chunk, kvfile_sample_state,
    kvfile_sample_plain;

/* The sealed image, the caller's to free(). */
uint8_t *kvfile_sample_make(const struct kvfile_sample *s, struct kvfile_plan *plan);

#endif /* TESTS_KVFILE_SAMPLE_H */
