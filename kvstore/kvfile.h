/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_KVFILE_H
#define KVSTORE_KVFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct io;

/*
 * The files of class B (docs/KVFORMAT.md): immutable, self-describing, checked as a whole.
 *
 *   chunk  .kvc   whole pages of up to 4,096 tokens, not across a multiple of 4,096
 *   state  .kvt   the state at one position, and the logits behind it
 *
 * A file is built and read as one image in memory, aligned to 4096 bytes: head and table of
 * sections, layout, payload. What the payload means is the engine's matter (model/kvlayout.h);
 * here it is bytes, with a table of parts that says how they divide. Little-endian. Any thread.
 */
enum kvfile_type { KVFILE_CHUNK = 1, KVFILE_STATE };

enum kvfile_kind {
    KVFILE_LAYOUT = 1, /* struct kvfile_part [n] */
    KVFILE_TOKENS,     /* u32 [n_tokens]: a chunk's */
    KVFILE_PAGES,      /* page_bytes each */
    KVFILE_STATE_DATA, /* model/kvlayout.h, state */
    KVFILE_LOGITS,     /* f32 [vocab] */
    KVFILE_KINDS
};

enum {
    KVFILE_VERSION = 1,
    KVFILE_ALIGN = 4096,
    KVFILE_CHUNK_TOKENS = 4096,
    KVFILE_PAGE_TOKENS = 128,
    KVFILE_MAX_PARTS = 1024,
};

/* As struct kv_part of model/kvlayout.h, which this folder does not know. */
struct kvfile_part {
    uint16_t kind, dtype, layer, ratio;
    uint32_t row_bytes, span;
    uint64_t page_at;
};

/* What all files of one model have in common. */
struct kvfile_model {
    uint8_t fingerprint[32];
    uint64_t layout, page_bytes, state_most;
    uint32_t vocab, n_parts;
    const struct kvfile_part *parts;
};

struct kvfile_id {
    uint8_t b[16]; /* random: two files of one id are the same bytes */
};

/* What a file is about. */
struct kvfile_about {
    enum kvfile_type type;
    struct kvfile_id id;
    uint64_t pos; /* chunk: of its first token, a multiple of 128; state: tokens so far */
    uint32_t n_tokens;    /* chunk: a multiple of 128; state: 0 */
    uint64_t state_bytes; /* state: of its data */
    bool logits;          /* state: has them */
};

/* Where the payload lies in the image of such a file; all at multiples of 4096. */
struct kvfile_plan {
    uint64_t bytes; /* of the whole file: a multiple of 4096 */
    uint64_t pages_at, state_at, logits_at;
};

void kvfile_plan(const struct kvfile_model *m, const struct kvfile_about *a,
                 struct kvfile_plan *out);

/* Completes an image whose payload is in place: head, table, layout, tokens (u32 [n_tokens] of a
 * chunk, else NULL), padding, checksums. */
void kvfile_seal(const struct kvfile_model *m, const struct kvfile_about *a,
                 const uint32_t *tokens, uint8_t *image);

/*
 * Looks at an image that was read, believing nothing: magic, version, sizes, every section's
 * XXH3-128, the head's own, and that it is of this model (ERR_MODEL_MISMATCH, said with both
 * fingerprints) and about what `want` says (ERR_DAMAGED). want NULL: anything; *about, *plan and
 * *tokens (into the image; a chunk's) are filled in. A newer version is ERR_MODEL_MISMATCH too,
 * naming both versions. m NULL: any model (fathom verify, import).
 */
int kvfile_check(const uint8_t *image, uint64_t bytes, const struct kvfile_model *m,
                 const struct kvfile_about *want, struct kvfile_about *about,
                 struct kvfile_plan *plan, const uint32_t **tokens, struct err *e);

/* The model that an image is of which kvfile_check() took; its parts are in the image. */
void kvfile_model_of(const uint8_t *image, struct kvfile_model *out);

/* "c/00000000-0123...cdef.kvc", "k/0000000000012345-0123...cdef.kvt": in a session's folder. */
enum { KVFILE_NAME_MAX = 80 };

void kvfile_name(const struct kvfile_about *a, char name[KVFILE_NAME_MAX]);

/*
 * Writes an image under its name, in this order: reserve, write, sync, name, sync of the
 * directory. When it returns 0 the file is there after any crash. On failure there is nothing, or,
 * when it could not even be taken back, a whole file that no ledger names.
 * A file of that name already is not an error: same id, same bytes. A failed sync is never
 * repeated on the same file: once more with a new one, then ERR_READ_ONLY.
 */
int kvfile_publish(struct io *io, const char *session_dir, const struct kvfile_about *a,
                   const uint8_t *image, uint64_t bytes, struct err *e);

/* Reads a whole file of at most `room` bytes into image (aligned); nothing is checked. */
int kvfile_read(struct io *io, const char *session_dir, const struct kvfile_about *a,
                uint8_t *image, uint64_t room, uint64_t *bytes, struct err *e);

#endif /* KVSTORE_KVFILE_H */
