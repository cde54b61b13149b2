/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_STORE_RIG_H
#define TESTS_STORE_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvstore/ledger.h"

struct err;
struct io;

/*
 * What tests of the store have in common: ledgers with content that can be told apart, and a
 * comparison that says what differs.
 */

/* A folder of its own under the current one, with the real io; gone with rig_folder_done(). */
struct io *rig_folder(char name[32]);
void rig_folder_done(struct io *io, const char *name);

void rig_meta(struct ledger_meta *m, const char *name);
uint32_t rig_token(uint64_t seed, uint64_t pos);
void rig_tokens(uint32_t *ids, uint64_t seed, uint64_t pos, size_t n);
void rig_point(struct ledger_point *p, const char *label, uint64_t pos);
void rig_op(struct ledger_op *o, unsigned n);
void rig_id(struct kvfile_id *id, unsigned n);
void rig_chunk(struct ledger_file *f, unsigned n, uint64_t pos, uint32_t n_tokens);
void rig_state(struct ledger_file *f, unsigned n, uint64_t pos);

/* A real file of kvfile_sample_model for it, of a session with these tokens; sets f->bytes. */
int rig_publish(struct io *io, const char *dir, struct ledger_file *f,
                const uint32_t *tokens, struct err *e);

/* Gives a database of the store, changed by others, the checksums of its pages. */
void rig_seal_pages(const char *path);

/* NULL if they are the same, else what is not. */
const char *rig_differ(const struct ledger_content *a, const struct ledger_content *b);

#endif /* TESTS_STORE_RIG_H */
