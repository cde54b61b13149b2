/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_KV_IMPL_H
#define DAEMON_KV_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/kv.h"
#include "daemon/kv_bulk.h"
#include "daemon/kv_plan.h"
#include "daemon/slots.h"
#include "daemon/store.h"
#include "kvstore/arena.h"
#include "kvstore/gdsf.h"
#include "model/kvlayout.h"

/*
 * What kv.c (life, sessions), kv_image.c (the arena), kv_save.c, kv_restore.c and kv_tier.c
 * share, and work*.c call. Nobody else includes it.
 */
enum {
    KV_BUCKETS = 4096,
    KV_SAVE_FILES = 9, /* of one save: chunks and a state */
    KV_WINDOW = 5,     /* chunks of one restore that are read ahead */
    KV_FAILURES = 2,   /* restores that a file or a session may fail */
};

/* The image of a file in the arena, found by the file's id: forks share it. */
struct kv_image {
    struct kv_image *next; /* in its bucket */
    struct kvfile_about about;
    struct kvfile_plan plan;
    struct extent at;
    uint32_t pins;            /* somebody needs it where it is */
    bool sealed;              /* complete */
    bool stored;              /* there is a file of it: this copy may go */
    struct kv_session *owner; /* sealed, not stored: whose only copy it is */
    struct gdsf_item worth;
};

struct kv_save_file {
    struct kvfile_about about;
    struct kv_image *image; /* pinned; NULL: not, or no longer, or given up */
    uint32_t *tokens;       /* chunk: its tokens, owned until it is sealed */
    uint64_t row_at;        /* state: where in the image the engine puts the logits */
    bool turn, merge, written;
};

/* A save under way: COPY by the engine, SEAL and WRITE by bulk threads, COMMIT by the ledger's. */
enum kv_save_stage { KV_SAVE_COPY, KV_SAVE_SEAL, KV_SAVE_WRITE, KV_SAVE_COMMIT };

struct kv_save {
    struct kv_save *next;
    struct kv *k;
    struct session *s;
    enum kv_save_stage stage;
    struct kv_save_file files[KV_SAVE_FILES];
    size_t n, left; /* left: jobs of this stage */
    bool more;      /* it is all that could be done at once, and there was more to do */
    uint64_t bytes; /* of the arena */
    uint64_t paid;  /* QUOTA_DISK, given back when the rows count for themselves */
    uint64_t began_ns;
    struct kvfile_about *gone; /* whose rows go with the commit: [n_gone] */
    size_t n_gone;
    struct store_wait wait;
    struct err err;
};

/* A file that a restore needs. */
enum kv_get_stage { KV_GET_WAITS, KV_GET_READ, KV_GET_CHECK, KV_GET_READY, KV_GET_GIVEN };

struct kv_get {
    struct kvfile_about about;
    uint64_t skip, n_pages; /* chunk: of its pages these are wanted */
    struct kv_image *image; /* pinned from READ to GIVEN */
    bool read;              /* from the disk: else it was in the arena */
    enum kv_get_stage stage;
};

struct kv_restore {
    struct kv_restore *next;
    struct kv *k;
    struct session *s;
    struct slot *slot; /* NULL: none yet */
    uint64_t pos;
    struct kv_get state, *chunks;
    size_t n_chunks, n_asked, n_given,
        n_in;                    /* asked for, given to the engine, taken by it */
    uint32_t jobs, link_jobs;    /* under way: of bulk threads, of the engine */
    uint64_t began_ns, moved_ns; /* moved: when it last came further */
    uint64_t read_bytes;         /* of files */
    bool set_sent, dead;
};

/* Of a session, while it is loaded. */
struct kv_session {
    struct kv_pieces pieces;
    struct kv_session *next_due; /* in k->due */
    struct session *s;
    struct kv_restore *restore; /* under way, and not dead */
    uint32_t saves;             /* under way */
    uint32_t round, fails;      /* of restores; failed in a row */
    bool is_due;                /* in k->due */
    bool turn;                  /* the next state is the end of a turn, or named */
    bool skip;                  /* this time from tokens: nothing could be restored */
    bool quarantined;
    uint64_t due_ns;  /* when it is to be saved */
    uint64_t used_ns; /* last */
    struct gdsf_item worth;
    bool save_told;      /* that saves come to nothing: once, until one goes well */
    struct err save_err; /* why the last save came to nothing; code ERR_NONE: it did not */
};

struct kv {
    struct work *w;
    struct io *io;
    struct arena *arena;
    struct kv_bulk *bulk;
    struct kv_layout layouts[2]; /* without and with the draft block */
    struct kvfile_part *parts;   /* of model */
    const struct kv_layout *layout;
    struct kvfile_model model; /* of the engine; n_parts 0: none was ready yet */
    struct kv_image *buckets[KV_BUCKETS];
    struct gdsf memory, engine;
    struct kv_save *saves;
    struct kv_restore *restores;
    uint64_t state_bytes; /* of the largest state's image */
    uint64_t saving;      /* bytes of the arena in saves that are not written yet */
    struct kv_session *due;
    struct event *tick;
    uint64_t idle_ns;               /* when idle ones were last looked for */
    double read_rate, restore_rate; /* bytes a second, measured */
    bool ended;                     /* kv_end() */
    bool hangs;                     /* a bulk thread could not be ended */
    bool
        usable; /* the engine that is ready speaks our layout, the arena can hold its files */
    struct kv_counts counts;
};

/* --- kv_image.c --- */
struct kv_image *kv_image_find(const struct kv *k, const struct kvfile_id *id);
/* Room for such a file, pinned, not sealed. NULL: there is none; what can be given up has been. */
struct kv_image *kv_image_new(struct kv *k, const struct kvfile_about *about);
void kv_image_free(struct kv *k, struct kv_image *x);
void kv_image_unpin(struct kv *k, struct kv_image *x);
void kv_image_used(struct kv *k, struct kv_image *x);
uint8_t *kv_image_bytes(const struct kv *k, const struct kv_image *x);
/* What an earlier fathomd has left in the arena; before anything else is done with it. */
void kv_images_find(struct kv *k);
void kv_images_leave(struct kv *k); /* for the next one; last of all */
/* All that nobody has used for so long. */
void kv_images_expire(struct kv *k, uint64_t idle_ns);

/* --- kv.c --- */
struct kv_session *kv_of(struct kv *k, struct session *s); /* NULL: no memory */
/* Is what the transcript says now saved, or on its way there, at least so far? */
bool kv_is_saved(const struct session *s, enum kv_at at);
/* Something of it is in the arena only. */
bool kv_has_only_copy(const struct kv_session *ks);
void kv_ready(struct kv *k); /* an engine */
void kv_lost(struct kv *k, bool own_fault);
/* A KV_* job's packet. -1: it is a lie. */
int kv_news(struct kv *k, const struct slots_news *news, struct err *e);
void kv_hold(struct session *s); /* it is not freed until kv_release() */
void kv_release(struct kv *k, struct session *s);
void kv_wake(struct kv *k, struct session *s); /* it is to be looked at again */
/* The image that was the only copy goes. */
void kv_piece_lost(struct kv *k, struct kv_image *x);
void kv_drop_row(struct kv *k, struct session *s, const struct kvfile_id *id);

/* --- kv_due.c --- */
/* The end of a turn, or a checkpoint by name: it is saved at once. */
void kv_named(struct kv *k, struct session *s);
/* An operation is over: it is saved when no other one comes. */
void kv_op_over(struct kv *k, struct session *s);
/* The session will come back to where it is now: a state there, kept as that of a turn's end. */
void kv_keep(struct kv *k, struct session *s);
/* Tokens have joined the transcript in the middle of an append. */
void kv_fed(struct kv *k, struct session *s);
/* A sample is between two of its pieces: the slot's content is the transcript. */
void kv_drawn(struct kv *k, struct session *s);
void kv_save_now(struct kv *k, struct session *s);   /* as soon as it can be */
void kv_save_next(struct kv *k, struct session *s);  /* the next batch of one in a hurry */
void kv_save_again(struct kv *k, struct session *s); /* it came to nothing: later */
void kv_make_due(struct kv *k, struct session *s, uint64_t at_ns);
void kv_not_due(struct kv *k, struct kv_session *ks);
void kv_saves_tick(struct kv *k, uint64_t now);

/* --- kv_save.c --- */
enum { KV_ALL = 1, KV_BLOCKS = 2, KV_STATE = 4 };

/* What is not saved yet of what the slot has (BLOCKS: chunks that are complete only; STATE: only
 * the state there). False: nothing to do, or not now. */
bool kv_save(struct kv *k, struct session *s, struct slot *sl, unsigned what);
int kv_save_news(struct kv *k, const struct slots_news *news, struct err *e);
void kv_saves_lost(struct kv *k);
struct kv_save *kv_save_new(struct kv *k, struct session *s); /* NULL: no memory */
void kv_save_begin(struct kv *k, struct kv_save *v);
void kv_save_fail(struct kv_save *v, const struct err *e); /* the first reason is kept */
/* A file of it will not be: its piece is taken back, so it is planned anew. */
void kv_save_give_up(struct kv *k, struct kv_save *v, struct kv_save_file *f);
void kv_save_give_up_all(struct kv *k, struct kv_save *v);
void kv_save_end(struct kv *k, struct kv_save *v); /* it is over, well or not; freed */
void kv_save_free(struct kv_save *v);

/* --- kv_write.c --- */
void kv_save_seal(struct kv *k, struct kv_save *v); /* and all that follows */
/* Writes what was sealed before and could not be written then. False: nothing. */
bool kv_save_rewrite(struct kv *k, struct session *s);

/* --- kv_restore.c --- */
enum kv_restored { KV_NOTHING, KV_UNDER_WAY };

/* The session has no slot and shall have one with more than so many of its tokens. UNDER_WAY:
 * ask again when the session is pumped the next time. */
enum kv_restored kv_restore(struct kv *k, struct session *s, uint64_t better_than);
/* It has one now, in whatever way: the next time all may be tried again. */
void kv_got_slot(struct session *s);
void kv_restore_opened(struct kv *k, const struct slots_news *news);
int kv_restore_news(struct kv *k, const struct slots_news *news, struct err *e);
void kv_restore_cancel(struct kv *k, struct kv_restore *r);
void kv_restores_step(struct kv *k); /* something has changed: room, a slot */
void kv_restores_lost(struct kv *k, bool own_fault);
void kv_restores_tick(struct kv *k, uint64_t now);
void kv_restore_free(struct kv_restore *r);

/* kv_fetch.c's: the restore failed because of this file; or for another reason, so that this time
 * it is from tokens; dead and with nothing under way it goes (true: it did). */
void kv_restore_blame(struct kv *k, struct kv_restore *r, const struct kvfile_about *about,
                      const struct err *why);
void kv_restore_give_up(struct kv *k, struct kv_restore *r, const struct err *why);
bool kv_restore_bury(struct kv *k, struct kv_restore *r);
void kv_restore_step(struct kv *k, struct kv_restore *r); /* all that can be done now */

/* --- kv_fetch.c --- */
/* Begins to get it. 1: begun; 0: not now; -1: never, *e. */
int kv_get_ask(struct kv *k, struct kv_restore *r, struct kv_get *g, struct err *e);
void kv_get_unpin(struct kv *k, struct kv_get *g);

/* --- kv_tier.c --- */
/* A session, or a snapshot, leaves the engine. True: a slot will be free soon. */
bool kv_evict(struct work *w);
bool kv_park_step(struct work *w, struct op *op); /* OP_PARK: true when it is over */
void kv_idle_tick(struct kv *k, uint64_t now);
/* Stopping: all sessions are saved as far as they can be. Begins it, and says when. */
bool kv_settled(struct kv *k);
void kv_touch(struct kv *k, struct session *s);

#endif /* DAEMON_KV_IMPL_H */
