/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "model/tensor.h"

struct err;

/*
 * One safetensors file: u64 length, a JSON header, then the payload. Opening checks the whole
 * header: known dtypes, shapes that multiply out to the bytes claimed, and tensors that tile the
 * payload without overlap, hole or rest. Payload bytes are not looked at: the format has no
 * checksums, so a flipped bit in them is nobody's to see. Read-only, any thread.
 */
struct safetensors;

enum {
    SAFETENSORS_MAX_HEADER = 32
                             << 20, /* Pro's 145,116 tensors in one file would be 19 MB */
    SAFETENSORS_MAX_NAME = 255,
};

struct safetensors *safetensors_open(const char *path, struct err *e);

/* The same from memory, which must outlive the result. */
struct safetensors *safetensors_parse(const void *data, size_t len, struct err *e);
void safetensors_close(struct safetensors *st); /* NULL is fine */

/* In name order. */
size_t safetensors_count(const struct safetensors *st);
const struct tensor *safetensors_at(const struct safetensors *st, size_t i);

/* NULL if there is none. */
const struct tensor *safetensors_find(const struct safetensors *st, const char *name);
const char *safetensors_meta(const struct safetensors *st, const char *key);

#endif /* MODEL_SAFETENSORS_H */
