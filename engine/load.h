/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_LOAD_H
#define ENGINE_LOAD_H

#include "engine/args.h"
#include "engine/engine.h"
#include "model/config.h"
#include "model/kvlayout.h"

struct err;
struct link_status;
struct tokenizer;
struct weights;

/* A model, loaded and tried. */
struct loaded {
    struct model_config config;
    struct kv_layout layout;
    struct weights *weights;
    struct tokenizer *tokenizer;
    struct backend *backend;
    struct engine_model model; /* for engine_new */
};

/*
 * Everything up to the first step, which it runs: a model whose logits are not finite is not
 * loaded. Says how far it is in status->load_permille (status may be NULL), and all that is
 * wrong with the checkpoint in the log. Free with load_done also after a failure.
 */
int load(struct loaded *l, const struct engine_args *a, struct link_status *status,
         struct err *e);
void load_done(struct loaded *l);

#endif /* ENGINE_LOAD_H */
