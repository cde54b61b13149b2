/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_LOAD_H
#define GPU_LOAD_H

#include "gpu/network.h"
#include "model/tensor.h"
#include "model/weights.h"

/*
 * From a checkpoint to a struct network. Names and shapes have been compared with the manifest by
 * weights_open; what is checked here is what the manifest leaves open: the type of a linear
 * decides how it is computed. Where the bytes go is the backend's, by these calls; each of them
 * sets *e before it returns -1.
 */
struct load_ops {
    /* t, F32 or BF16, n elements: as f32. */
    int (*vector)(void *arg, const struct tensor *t, size_t n, const float **out,
                  struct err *e);

    /* t, I64, n numbers from 0 to below - 1: as int32. */
    int (*table)(void *arg, const struct tensor *t, size_t n, int64_t below,
                 const int32_t **out, struct err *e);

    /* m: kind, out and in are set. scale: of quantised ones, else NULL. rows: it is not only
     * multiplied, so m->w is wanted, row by row. */
    int (*matrix)(void *arg, const struct tensor *t, const struct tensor *scale, bool rows,
                  struct matrix *m, struct err *e);

    /* The same for n matrices whose rows lie behind each other in one tensor: all is that one,
     * m[n] are to be set (load_group). */
    int (*groups)(void *arg, const struct tensor *t, const struct tensor *scale,
                  struct matrix *all, int n, struct matrix *m, struct err *e);

    /* All experts of a layer are there. NULL: nothing more is wanted. */
    int (*experts)(void *arg, struct layer *l, struct err *e);
};

/* What network_new has made, filled. experts: 0, or so many of a layer are loaded, and the others'
 * numbers stand for the same ones (timing only). */
int load_network(struct network *net, const struct model_config *c, const struct weights *w,
                 int experts, const struct load_ops *ops, void *arg, struct err *e);

/* For the calls: group g of n equal ones, of what is there of `all`. */
struct matrix load_group(const struct matrix *all, int n, int g);

/* Elements of t, whose bytes are `data`, converted. */
void load_floats(const struct tensor *t, const uint8_t *data, size_t n, float *out);
int load_ids(const struct tensor *t, const uint8_t *data, size_t n, int64_t below,
             int32_t *out, struct err *e);

#endif /* GPU_LOAD_H */
