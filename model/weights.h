/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include <stdint.h>

#include "model/config.h"
#include "model/tensor.h"

struct err;

struct weights; /* a checkpoint directory, mapped; read-only, any thread may look up */

/*
 * Maps DIR/model.safetensors or the shards of DIR/model.safetensors.index.json and compares
 * them with the manifest of c. Every missing, extra or misshaped tensor goes to report() (may be
 * NULL), one call each; any of them is ERR_DAMAGED. ERR_NOT_FOUND: DIR has neither file.
 * c->fp4_experts does not count: the experts' own format does (spec 1.1), see weights_config.
 *
 * The files must not be cut short while they are open: reading what is gone kills the process.
 */
typedef void weights_report_fn(void *arg, const char *line);
struct weights *weights_open(const char *dir, const struct model_config *c,
                             weights_report_fn *report, void *arg, struct err *e);
void weights_close(struct weights *w);

/*
 * Not a checkpoint at all: every tensor that c asks for, made up from `seed` (model/synthetic.h).
 * Up to SYNTHETIC_HOST bytes in all they have data like any other; beyond that data is NULL, and
 * who loads them makes it where it is wanted, from weights_made(). Not to be fingerprinted then.
 */
enum { SYNTHETIC_HOST = 1 << 30 };

struct synthetic;
struct weights *weights_synthetic(const struct model_config *c, uint64_t seed,
                                  struct err *e);
struct synthetic weights_made(const struct weights *w, const struct tensor *t);

/* NULL if the checkpoint has no tensor of that name. The result lives as long as w. */
const struct tensor *weights_find(const struct weights *w, const char *name);
const struct tensor *weights_findf(const struct weights *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The config given, with fp4_experts as the files have it. */
const struct model_config *weights_config(const struct weights *w);

uint64_t weights_bytes(const struct weights *w); /* tensor payload */

/*
 * 32 bytes that name this model: config, every tensor's name, dtype and shape, and payload. Up
 * to 1 GiB of tensors all payload is hashed, beyond that samples of each tensor, so a flipped bit
 * may go unseen there: the fingerprint tells models apart, it is no checksum. Equal
 * fingerprints: caches may be exchanged. Reads from the mapped files on each call.
 */
void weights_fingerprint(const struct weights *w, uint8_t out[32]);

#endif /* MODEL_WEIGHTS_H */
