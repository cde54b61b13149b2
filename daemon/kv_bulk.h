/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_KV_BULK_H
#define DAEMON_KV_BULK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/workers.h"
#include "kvstore/catalog.h"
#include "kvstore/kvfile.h"

struct event_base;
struct io;

/*
 * The threads that move bytes of class B: one that checks and seals (CPU only), one that writes,
 * two that read. A disk that hangs holds up those that touch it and nobody else; no ledger ever
 * waits for them. Main posts jobs and gets them back; one image is in one job at a time.
 */
enum kv_bulk_kind {
    KV_BULK_SEAL,  /* the payload is in place: make it a file's image */
    KV_BULK_CHECK, /* an image and its tokens are what they should be, or an error */
    KV_BULK_WRITE, /* kvfile_publish(), with the session's id hot */
    KV_BULK_READ,  /* kvfile_read() */
    KV_BULK_UNLINK
};

struct kv_bulk_job {
    struct worker_job work;
    enum kv_bulk_kind kind;
    void (*done)(struct kv_bulk_job *job); /* main thread; frees the job */
    void *owner;

    const struct kvfile_model *model;
    struct kvfile_about about;
    struct kvfile_id session;  /* WRITE */
    char dir[CATALOG_DIR_MAX]; /* the session's folder */
    uint32_t *tokens; /* owned. SEAL: all of the chunk; CHECK: the first n_tokens */
    uint32_t n_tokens;
    uint8_t *image; /* its holder's until the job is back */
    uint64_t room;  /* READ: at most so many bytes; SEAL, CHECK, WRITE: of the image */
    uint64_t bytes; /* READ: of the file */
    uint64_t
        row_at; /* SEAL: where the engine has put the logits; they move to their place */

    uint64_t posted_ns, ns; /* and how long it took */
    struct err err;         /* code ERR_NONE: fine */
};

struct kv_bulk;

/* io and catalogue must outlive it. */
struct kv_bulk *kv_bulk_new(struct event_base *base, struct io *io, struct catalog *catalog,
                            struct err *e);

/* Waits for the jobs under way, but not for ever: false if one hangs in the disk. Then its
 * thread is left behind, with all that it may touch: end the process. Jobs are freed unseen. */
bool kv_bulk_free(struct kv_bulk *b);

struct kv_bulk_job *kv_bulk_job_new(enum kv_bulk_kind kind,
                                    void (*done)(struct kv_bulk_job *), void *owner,
                                    struct err *e);
void kv_bulk_job_free(struct kv_bulk_job *job);
void kv_bulk_post(struct kv_bulk *b, struct kv_bulk_job *job);

/* Since when the oldest job that touches the disk has been waiting for it; 0: none does. */
uint64_t kv_bulk_waits_since(const struct kv_bulk *b);

#endif /* DAEMON_KV_BULK_H */
