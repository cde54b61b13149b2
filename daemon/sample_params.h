/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SAMPLE_PARAMS_H
#define DAEMON_SAMPLE_PARAMS_H

#include <stddef.h>
#include <stdint.h>

#include "model/sampler.h"
#include "proto/wire.h"

struct err;

/* A sample request's keys as the sampler's parameters; a seed that was not given is drawn.
 * Ranges that depend on the model are checked later, by sample_params_check(). */
int sample_params_read(struct sample_params *p, const struct wire_sample *q, uint32_t eos,
                       struct err *e);

/* The parameters in force, into the result. */
void sample_params_tell(const struct sample_params *p, struct wire_sample_result *res);

/* Little-endian copy, the caller's to free(); NULL: no memory. */
uint32_t *sample_tokens_le(const uint32_t *ids, size_t n);

#endif /* DAEMON_SAMPLE_PARAMS_H */
