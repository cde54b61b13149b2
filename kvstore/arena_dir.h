/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_ARENA_DIR_H
#define KVSTORE_ARENA_DIR_H

#include <stddef.h>

#include "kvstore/arena.h"
#include "kvstore/kvfile.h"

struct err;

/*
 * The arena's directory: what a daemon that ends in order leaves of images, for the one that is
 * given the arena next (docs/KVFORMAT.md). It lies in the arena itself, so it can neither outlive
 * the images nor be taken for that of others, and costs the disk nothing. It is taken back before
 * the first byte of the arena is written: after a crash there is none. Main thread.
 */
struct arena_image {
    struct kvfile_about about;
    struct extent at; /* as arena_take() gave it */
};

/* First of all that is done with an arena: keeps its first page for the directory, and takes what
 * an earlier one says, if all of it is so and of this model. Those images' extents are taken, what
 * is in them is to be checked (kvfile_check()) before it is used. *v: [*n], the caller's to free.
 * e->code says why there are none: ERR_NOT_FOUND, ERR_DAMAGED, ERR_MODEL_MISMATCH, ERR_QUOTA. */
void arena_dir_take(struct arena *a, const struct kvfile_model *m, struct arena_image **v,
                    size_t *n, struct err *e);

/* Last of all: nobody writes to the arena any more. -1: no room for it, and there is none. */
int arena_dir_leave(struct arena *a, const struct kvfile_model *m,
                    const struct arena_image *v, size_t n, struct err *e);

#endif /* KVSTORE_ARENA_DIR_H */
