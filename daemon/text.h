/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_TEXT_H
#define DAEMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "daemon/workers.h"
#include "model/chat.h"

struct event_base;
struct tokenizer;

/*
 * Work on text that takes longer than the event loop may: tokenising, chat encoding and its
 * reverse, long transcripts, and names that the system has to look up. Two threads, so that a
 * large document does not keep short questions waiting. Main posts jobs and gets them back.
 */
enum text_kind {
    TEXT_TOKENIZE, /* in -> ids */
    TEXT_CHAT,     /* in: messages as JSON -> ids */
    TEXT_PARSE,    /* ids -> out: a message as JSON, note */
    TEXT_SHOW,     /* ids -> out: their exact bytes */
    TEXT_USER,     /* number -> out: user name, or nothing */
    TEXT_GROUP,    /* in: group name or number -> number */
};

enum { TEXT_BULK_BYTES = 65536 };

struct text_job {
    struct worker_job work;
    enum text_kind kind;
    void (*done)(struct text_job *job); /* main thread; frees the job */
    void *arg;                          /* the poster's */

    const char *in;
    size_t n_in;
    void *mapped; /* in lies in this mapping of n_in bytes, else it is malloc'ed */
    int flags;    /* TEXT_TOKENIZE: of tokenizer_encode() */
    bool bulk;    /* takes long: the second thread */
    struct chat_opts chat;
    bool thinking; /* TEXT_PARSE */
    uint32_t number;

    struct buf ids, out; /* u32s, bytes */
    char note[128];
    struct err err; /* code ERR_NONE: fine */

    struct user *payer; /* of QUOTA_BYTES, held, until the job is freed; NULL */
    uint64_t paid;
};

struct text;

/* max_out: most bytes of ids or text that one job may give. t must outlive it. */
struct text *text_new(struct event_base *base, const struct tokenizer *t, size_t max_out,
                      struct err *e);
void text_free(struct text *x); /* waits for the jobs under way; drops those that wait */

struct text_job *text_job_new(enum text_kind kind, void (*done)(struct text_job *),
                              void *arg, struct err *e);
void text_job_free(struct text_job *job);

/* Charges what the job keeps and may make to a user. It counts until the job is freed, also
 * when nobody waits for it any more: so no client can make jobs pile up. */
int text_job_pay(struct text_job *job, struct user *payer, struct err *e);
void text_post(struct text *x, struct text_job *job);

#endif /* DAEMON_TEXT_H */
