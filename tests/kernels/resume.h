/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KERNELS_RESUME_H
#define TESTS_KERNELS_RESUME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/backend.h"
#include "model/kvlayout.h"
#include "model/weights.h"

/* How a test saves sequences and brings them back: a model, its tokens, the rows that they give
 * when nothing happens to them, and images. */
enum { RESUME_ROWS = 64, RESUME_MOST = 2049 + RESUME_ROWS };

struct resume {
    const char *name, *isa; /* of the model, of the table of operations */
    struct model_config c;
    struct weights *w;
    struct kv_layout layout;
    size_t vocab;
    uint32_t tokens[RESUME_MOST];
    float *want, *want_draft; /* f32 [n_want][vocab] */
    int n_want;
    float *got, *got_draft; /* f32 [RESUME_ROWS][vocab] */
};

bool resume_present(const char *name); /* is the model here? */
void resume_load(struct resume *r, const char *name, const char *isa);
void resume_unload(struct resume *r);
void resume_answers(struct resume *r, int n); /* want, of the first n positions */

/* With the draft block, room for three sequences; 0 threads: all. */
struct backend *resume_backend(const struct resume *r, int threads);
void resume_open(struct backend *b, uint32_t seq); /* closed before, if need be */

/* The right tokens from..from + n in steps of `cut`; no rows, or rows to got. */
void resume_run(struct resume *r, struct backend *b, uint32_t seq, int from, int n,
                int cut);
void resume_rows(struct resume *r, struct backend *b, uint32_t seq, int from, int n,
                 int cut);
void resume_run_wrong(struct resume *r, struct backend *b, uint32_t seq, int n);

/* The next RESUME_ROWS rows, and the draft's, are the wanted ones, all bits of them. */
bool resume_goes_on(struct resume *r, struct backend *b, uint32_t seq, int from, int cut);

/* A fresh sequence 1 of n tokens; sequences 0 and 2 may be used for it, and are left alone. */
enum {
    BY_SINGLE_STEPS,
    IN_COMPANY,
    WITH_REFUSED_DRAFTS,
    AFTER_A_ROLLBACK,
    AS_A_FORK,
    AFTER_ITS_FORK_WENT_ON,
    AFTER_A_RESTORE,
    WAYS
};

void resume_way(struct resume *r, struct backend *b, int n, int way);

struct image {
    uint64_t pos;
    uint8_t *pages, *state;
};

void image_take(const struct resume *r, struct backend *b, uint32_t seq, struct image *im);
void image_put(const struct resume *r, struct backend *b, uint32_t seq,
               const struct image *im); /* to an empty one, in two or three portions */
bool image_same(const struct resume *r, const struct image *a, const struct image *b);
void image_free(struct image *im);

/* The image, and the rows that are wanted behind it. */
void image_write(const struct resume *r, const struct image *im, int fd);
void image_read(struct resume *r, struct image *im, int fd);

#endif /* TESTS_KERNELS_RESUME_H */
