/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_ENGINE_RIG_H
#define TESTS_ENGINE_RIG_H

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "model/kvlayout.h"
#include "tests/link_peer.h"
#include "tests/toy_backend.h"

/*
 * The engine's loop on the toy backend, turn by turn in the test's own thread, so that every
 * interleaving is the same in every run, with the daemon's end of its link. The toy's logits
 * hash all tokens in front of them: a token lost, doubled or out of place anywhere changes
 * what is drawn behind it.
 */
enum { VOCAB = 300, SEQS = 16, CONTEXT = 20000, ARENA = 4 << 20 };

struct rig {
    struct backend *backend;
    struct kv_layout layout;
    uint8_t *arena; /* ARENA bytes */
    struct engine *en;
    struct link_status status;
    int sock, exit;
    struct peer *p;
};

void rig_start(struct rig *r, uint64_t kv_bytes);
void rig_start_without_arena(struct rig *r);
void rig_stop(struct rig *r);
uint64_t rig_bytes(uint64_t seqs, uint64_t pages); /* that many are room for, as kv_bytes */
int rig_turn(
    void *rig); /* one; what engine_turn gave, now and for good once it is an exit */

/* For cmocka: *state is a fresh rig. */
int rig_setup(void **state);
int rig_teardown(void **state);

/* Tokens that look like nothing, the same for the same seed. */
void rig_tokens(uint32_t *tokens, size_t n, uint32_t seed);

/* Parameters that use position, seed and, with an even one, history: then the engine draws, else the
 * backend does. */
struct sample_params rig_params(uint64_t seed, uint32_t max_tokens);

/* Texts of the toy's tokens: one to three letters, so that stop strings cross their borders. */
const char *rig_text(const void *arg, uint32_t id, size_t *len);

/* LINK_LOGITS must give the row behind these n tokens. */
void rig_check_logits(struct peer *p, uint32_t seq, const uint32_t *tokens, size_t n);

/* A sample in an engine of its own, which has drawn n_before tokens already. The lists of
 * tokens and choices in *out are the caller's to free. */
void rig_sample(const uint32_t *prompt, uint32_t n_prompt, const uint32_t *before,
                uint32_t n_before, const struct sample_params *params,
                struct peer_job *out);

#endif /* TESTS_ENGINE_RIG_H */
