/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_OP_H
#define DAEMON_OP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/kv.h"
#include "daemon/session_log.h"
#include "daemon/store.h"
#include "model/chat.h"
#include "model/sampler.h"
#include "proto/link.h"

struct session;
struct text_job;
struct user;
struct work;

/*
 * An operation on a session: what a request asks for, as the session's queue holds it. It may
 * outlive its request (a client that leaves does not stop an append). Main thread.
 */
enum op_kind {
    OP_APPEND,
    OP_SAMPLE,
    OP_SCORE, /* feeds, reads the scores, takes it back */
    OP_LOGITS,
    OP_PARK,   /* out of the engine, saved: to op->tier */
    OP_UNPARK, /* all of it into the engine */
    OP_CALL,   /* only keeps its place in the queue: rollback, checkpoint, fork */
};

enum op_stage { OP_WAITS, OP_IN_TEXT, OP_IN_ENGINE, OP_IN_STORE, OP_OVER };

enum op_input { OP_TOKENS, OP_TEXT, OP_MESSAGES };

struct op;

/* All may be NULL but done. Called from the loop, never from inside work_submit(). */
struct op_calls {
    void (*progress)(struct op *op); /* it is further than before */
    void (*drawn)(struct op *op, uint64_t pos, const struct sample_choice *c, uint32_t n);
    int (*run)(struct op *op, struct err *e); /* OP_CALL, when its turn has come */
    bool reads;                               /* OP_CALL: it leaves the session as it is */
    void (*stored)(struct op *op); /* more of the session is durable than before */
    void (*done)(struct op *op);   /* op->err says how; op is freed after it */
};

struct op {
    struct op *next;
    struct session *session;
    struct user *payer; /* held */
    uint64_t paid;      /* QUOTA_BYTES, given back when it is freed */
    enum op_kind kind;
    enum op_stage stage;
    const struct op_calls *calls;
    void *owner; /* the calls'; NULL once nobody wants to know */

    bool has_op_id, has_if_pos;
    uint8_t op_id[OP_ID_BYTES];
    uint64_t if_pos;

    /* OP_APPEND, OP_SCORE: what goes in. */
    enum op_input input;
    char *text;
    size_t n_text;
    void *mapped; /* text lies in this mapping of n_text bytes */
    int control;  /* flags of tokenizer_encode() */
    int bos;      /* -1: at position 0, where text begins with it */
    struct chat_opts chat;
    uint32_t *ids; /* owned; with TEXT and MESSAGES once tokenised */
    size_t n_ids;
    size_t most_ids; /* more than these are refused; 0: no limit of its own */
    float *scores;   /* OP_SCORE: [n_ids] */
    size_t n_scores;
    struct text_job *text_job; /* under way */
    struct work *work;         /* for when it comes back */

    /* OP_SAMPLE */
    struct sample_params params;
    bool to_end; /* no max_tokens was asked for: to the end of the context */
    bool paused; /* its reader is slow: see work_pause() */

    struct session *made; /* OP_CALL: a fork, whose ledger is waited for, too */
    struct store_wait wait, wait_made; /* OP_IN_STORE */

    enum kv_tier tier; /* OP_PARK: KV_IN_MEMORY or KV_ON_DISK */
    bool asked;        /* OP_PARK: to be saved */
    uint64_t again;    /* tokens of the transcript that were fed for it once more */

    int fd;        /* OP_LOGITS: the memfd to be filled; OP_SAMPLE: for rows; owned; -1 */
    uint32_t rows; /* OP_SAMPLE: slots in it */

    /* What has come of it. */
    uint64_t begin, end; /* the session's length when its turn came, and now */
    uint64_t n_drawn, stop_at;
    enum link_reason reason;
    bool context_full; /* the sample ended there */
    bool recorded;     /* its result is in the log */
    bool repeated;     /* op_id was known: begin, end, reason are those of the first time */
    struct err err;    /* code ERR_NONE: fine */
    uint64_t queued_ns, began_ns, first_ns, end_ns;

    bool sized; /* it fits the model: checked once, the model stays the same */
    uint64_t
        rest_at; /* OP_APPEND: on the way a copy of the caches is kept there; 0: none */
    uint64_t dropped,
        replay;       /* OP_APPEND of messages: of reasoning; computed again for it */
    bool held;        /* another one is on trial */
    bool was_stopped; /* its jobs were cancelled for paused or held, not to end it */

    /* A fault of the engine while it was running: see work.c. The tokens of the step that
     * failed are among [fault_from, fault_to). */
    bool suspect;
    uint64_t fault_from, fault_to;
};

/* It has its turn and does nothing with it: its place in the engine may be another's. */
static inline bool
op_stands(const struct op *op)
{
    return op->paused || op->held;
}

/* It leaves its session as it is, and so needs nothing of it on the disk. */
static inline bool
op_reads(const struct op *op)
{
    return op->kind == OP_SCORE || op->kind == OP_LOGITS || op->kind == OP_PARK ||
           op->kind == OP_UNPARK || (op->kind == OP_CALL && op->calls->reads);
}

struct op *op_new(enum op_kind kind, struct session *s, struct user *payer,
                  const struct op_calls *calls, void *owner, struct err *e);

/* Takes n of the payer's QUOTA_BYTES for as long as the operation lives. */
int op_pay(struct op *op, uint64_t n, struct err *e);
void op_free(struct op *op);

/* It ends with this error, unless it has one already: the first is the one to tell. */
void op_fail(struct op *op, const struct err *e);

#endif /* DAEMON_OP_H */
