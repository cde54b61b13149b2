/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_KV_H
#define DAEMON_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/histogram.h"
#include "kvstore/ledger.h"

struct err;
struct event_base;
struct io;
struct op;
struct options;
struct session;
struct slot;
struct slots_news;
struct work;

/*
 * Caches that outlive engine and daemon (class B). They are saved while they are young: what the
 * engine has computed is copied to the host arena between its other jobs, sealed, written to a
 * file, and named by a row of the session's ledger, in this order. A session that is not in the
 * engine comes back from the arena or from its files; whatever cannot be had or does not check is
 * computed again from the tokens, which are the truth. Main thread; see docs/ARCHITECTURE.md.
 *
 * Tiers, from fast to slow. Moving down never loses tokens; moving a saved session moves nothing.
 */
enum kv_tier { KV_TOKENS, KV_ON_DISK, KV_IN_MEMORY, KV_IN_ENGINE };

struct kv;

struct kv_counts {
    uint64_t memory_bytes, memory_limit;  /* of the arena: used, in all */
    uint64_t engine_bytes;                /* caches in the engine, as it says */
    uint64_t saves, saves_failed, saving; /* saving: under way */
    uint64_t rows_bytes, rows_tokens;     /* chunk files written, of so many tokens */
    uint64_t state_bytes;                 /* state files written */
    uint64_t restores, restores_failed, restoring;
    uint64_t restored_tokens, restored_bytes; /* into the engine; of files read for it: */
    uint64_t read_bytes;
    uint64_t damaged, dropped;                 /* files that did not check; rows given up */
    uint64_t parks, unparks, evictions, idles; /* by command, for want of room, by time */
    uint64_t write_ns, read_ns;                /* of files, sums */
    struct histogram save, restore;            /* from the beginning to the end */
    uint64_t quarantined;                      /* sessions, since the start */
    bool stalled; /* the disk has not answered for store-timeout */
};

/*
 * io NULL: there is no disk, memory is the last tier. arena_fd: one of an earlier fathomd, or
 * -1. A store that cannot be had is no error: then there are tokens only, and the log says why.
 */
struct kv *kv_new(struct work *w, struct event_base *base, struct io *io, int arena_fd,
                  struct err *e);
/* The end: nothing is under way any more, sessions may be freed; NULL is fine. False: a thread
 * hangs in the disk, and what it may touch (the store's io too) must stay: end the process. */
bool kv_end(struct kv *k);
void kv_free(struct kv *k); /* after kv_end(), and after all sessions; NULL is fine */
uint64_t kv_arena_bytes(const struct kv *k);
int kv_arena_fd(
    const struct kv *k); /* to be given to engines, and to the service manager */
void kv_count(const struct kv *k, struct kv_counts *out);
/* What files of caches must be made for, to be of use here; NULL until an engine was ready. */
const struct kvfile_model *kv_model(const struct kv *k);

/* --- sessions ---------------------------------------------------------------------------- */

/* It has these files (session.files): its ledger was read, or a fork was given them. */
int kv_loaded(struct kv *k, struct session *s, struct err *e);
/* It is unloaded, or freed. What is in memory and in files stays in memory by its id. */
void kv_unload(struct kv *k, struct session *s);
/* It was deleted: what is under way for it comes to nothing. */
void kv_forget(struct kv *k, struct session *s);

/* Its transcript ends at pos now: what lies behind goes from its list, and with the next commit
 * from its ledger. */
void kv_truncate(struct kv *k, struct session *s, uint64_t pos);
/* Its caches may be used again, if they had failed before: they were looked over, or cut. */
void kv_trust(struct session *s);
/* Sessions whose caches are in the engine and nowhere else, in whole or in part, or are being
 * saved: while fathomd stops this goes to 0. */
uint64_t kv_unsaved(const struct kv *k);
const char *kv_tier_name(enum kv_tier t);
enum kv_tier kv_tier(const struct kv *k, const struct session *s);
/* Bytes of it in memory and on the disk; loaded sessions only. */
void kv_sizes(const struct kv *k, const struct session *s, uint64_t *memory,
              uint64_t *disk);
/* The longest start of its transcript, at most len, that need not be computed again. */
uint64_t kv_position(const struct kv *k, const struct session *s, uint64_t len);

/*
 * park and unpark are operations like any other (op.h): OP_PARK, with op->tier KV_IN_MEMORY or
 * KV_ON_DISK, and OP_UNPARK. They wait for their turn, so they are in order with all else that
 * is asked of the session, and can be cancelled.
 */

#endif /* DAEMON_KV_H */
