/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FATHOM_H
#define FATHOM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * libfathom: named sessions with a language model, kept by fathomd.
 *
 *     struct fathom_error e;
 *     struct fathom *f = fathom_open(NULL, &e);
 *
 *     fathom_finish(f, fathom_new(f, "notes", 0, &e), &e);
 *     fathom_append_text(f, "notes", "Once upon", 9, NULL, &e);
 *     fathom_sample_text(f, "notes", NULL, print_token, NULL, NULL, &e);
 *     fathom_close(f);
 *
 * Every request is one function that queues it and returns its number, or 0 with *e set. It
 * never blocks. What comes back goes to the callbacks of a struct fathom_watch, which are
 * called from fathom_process() and from nowhere else. In your own event loop: watch
 * fathom_fd() for fathom_events(), call fathom_process() when it is ready. Without one:
 * fathom_finish() does that until the request is over, and takes 0 as a number too, so that
 * calls can be nested as above.
 *
 * Anything of variable size is handed to a callback and is good until that returns; there is
 * nothing to free but the connection. A connection belongs to one thread at a time; different
 * connections share nothing. The library starts no threads, sets no signal handlers and prints
 * nothing. A lost connection is not reopened: close it and open another one; sessions stay,
 * and an `op_id` makes sending a request again safe.
 */
const char *fathom_version(void);

/* ---- Errors ------------------------------------------------------------------------- */

/* The codes of the protocol; new ones may be added. */
enum fathom_code {
    FATHOM_OK = 0,
    FATHOM_INVALID = 1,         /* the request itself is wrong */
    FATHOM_NOT_FOUND = 2,       /* no such session or checkpoint; no socket */
    FATHOM_PERMISSION = 3,      /* not allowed by the session's mode */
    FATHOM_EXISTS = 4,          /* the name is taken */
    FATHOM_CONFLICT = 5,        /* the session is not at if_pos; see pos */
    FATHOM_QUOTA = 6,           /* a limit is reached; out of memory */
    FATHOM_BUSY = 7,            /* in use or queue full; try again */
    FATHOM_UNAVAILABLE = 8,     /* no daemon, or its engine is loading or has given up */
    FATHOM_CONTEXT_FULL = 9,    /* the model's context length is reached */
    FATHOM_DAMAGED = 10,        /* a checksum or layout does not match */
    FATHOM_MODEL_MISMATCH = 11, /* made for another model */
    FATHOM_PROTOCOL = 12,       /* the other side does not speak this protocol */
    FATHOM_INTERNAL = 13,       /* a bug, or the machine failed */
    FATHOM_CANCELLED = 14,      /* stopped on request; see pos */
    FATHOM_DEADLINE = 15,       /* out of time */
    FATHOM_READ_ONLY = 16       /* nothing can be written now */
};

struct fathom_error {
    int code;          /* enum fathom_code */
    char name[24];     /* "not-found" */
    char text[256];    /* for a person */
    char key[64];      /* the key of the request that is wrong, or "" */
    uint64_t pos;      /* the position the session has reached, if has_pos */
    uint64_t retry_ms; /* try again after that; 0: not said */
    int has_pos;
};

int fathom_error_is_retryable(const struct fathom_error *e); /* 0 or 1 */
int fathom_error_exit_status(const struct fathom_error *e);  /* of sysexits.h */

/* ---- Connections -------------------------------------------------------------------- */

struct fathom;

/* $FATHOM_SOCKET, else $XDG_RUNTIME_DIR/fathom/sock if that exists, else /run/fathom/api.sock;
 * -1 if it does not fit. */
int fathom_socket_path(char *path, size_t size);

/* Connects and greets; blocks until the daemon has answered. path NULL: fathom_socket_path(). */
struct fathom *fathom_open(const char *path, struct fathom_error *e);

/* The same on a connected stream socket, taken over also on failure, without waiting: requests
 * may be sent at once, fathom_info() is NULL until the daemon has answered. */
struct fathom *fathom_open_fd(int fd, struct fathom_error *e);

/* Ends what is under way without calling anybody back. NULL is fine. Not from a callback. */
void fathom_close(struct fathom *f);

struct fathom_info {
    const char *server, *instance, *model, *backend; /* never NULL */
    uint64_t vocab, max_positions, uid;              /* 0: not known yet */
    uint64_t max_document, max_requests;
};

const struct fathom_info *fathom_info(const struct fathom *f);

int fathom_fd(const struct fathom *f);
int fathom_events(const struct fathom *f); /* POLLIN, maybe POLLOUT */

/* Reads and writes what can be without blocking, and calls back. -1: the connection is lost;
 * all requests under way have been ended with that error. */
int fathom_process(struct fathom *f, struct fathom_error *e);

/* Waits at most timeout_ms (-1: for ever) for the socket, then processes. 1: something came,
 * 0: time over, or a signal arrived; -1 as fathom_process(). */
int fathom_wait(struct fathom *f, int timeout_ms, struct fathom_error *e);

/* ---- What comes back ---------------------------------------------------------------- */

enum fathom_reason {
    FATHOM_REASON_NONE,
    FATHOM_REASON_LIMIT,       /* n tokens were drawn */
    FATHOM_REASON_EOS,         /* the model ended its text */
    FATHOM_REASON_STOP_TOKEN,  /* one of stop_tokens came */
    FATHOM_REASON_STOP_STRING, /* one of stop came */
    FATHOM_REASON_CONTEXT,     /* the context is full */
    FATHOM_REASON_OTHER        /* a newer daemon knows more */
};

/* How a request ended. What does not apply to it is 0. */
struct fathom_result {
    uint64_t pos; /* the session's position now */
    uint64_t n;   /* tokens: appended, drawn, read, scored, made of text */
    uint64_t
        dropped;     /* rollback: tokens taken away; append: reasoning of the turn before */
    uint64_t replay; /* tokens that the engine has to compute again */
    uint64_t vocab;  /* logits */
    double total;    /* score: sum of the log-probabilities */
    int fd; /* logits: vocab float32 values to map or read; stats, ring, ring_wake; yours
                     to close; else -1 */
    int created;          /* new: 0 if it was there */
    int repeated;         /* op_id was known: this is the first one's result */
    int reason;           /* sample: enum fathom_reason */
    char reason_name[24]; /* as the daemon calls it */
    char note[256];       /* sample with parse: what was malformed, or "" */

    /* sample: in force. */
    uint64_t seed, top_k, penalty_window, max_tokens;
    double temperature, top_p, min_p, repetition, presence, frequency;
    uint64_t queue_us, first_us, total_us;
    uint64_t ring; /* ring: its number on this connection */

    /* export, import */
    char name[65];            /* import: the session's */
    uint64_t bytes, files;    /* of the tar; of caches in it, or taken in */
    uint64_t left_out;        /* import: files of another model's caches */
    unsigned char digest[16]; /* XXH3-128 of the tar */

    uint64_t
        restored;  /* rollback, fork: tokens whose caches come back from memory or disk */
    char tier[17]; /* park, unpark: where the caches are now */
    uint64_t memory_bytes, disk_bytes; /* that they take there */
};

struct fathom_top {
    uint32_t id;
    double logprob;
};

struct fathom_token {
    uint64_t pos;
    uint32_t id;
    int reasoning;    /* sample with parse: part of the reasoning */
    const char *text; /* whole characters, maybe none; NUL-terminated */
    size_t len;
    double logprob; /* NaN if not asked for */
    const struct fathom_top *top;
    size_t n_top;
};

struct fathom_session {
    const char *name, *owner, *state;
    uint64_t pos, mode, created_ms, used_ms, bytes, checkpoints;
    uint64_t disk_bytes;
    const char *tier; /* where its caches are: "engine", "memory", "disk", "tokens" */
};

struct fathom_point {
    const char *name;
    uint64_t pos;
    int durable; /* the state there is on the disk */
};

struct fathom_stat {
    const char *name, *owner, *group, *state, *chat;
    uint64_t pos, mode, created_ms, used_ms;
    uint64_t bytes, kv_bytes, transcript_bytes, kv_pos, turns, max_positions;
    double bytes_per_token;
    const struct fathom_point *points;
    size_t n_points;
    const char *why;                 /* read-only, damaged: the reason, else "" */
    uint64_t durable_pos;            /* so many of its tokens are on the disk */
    uint64_t disk_bytes, file_bytes; /* in all; of caches */
    uint64_t written_rows, written_states,
        written_tokens;    /* bytes, bytes, of so many tokens */
    const char *tier;      /* as of a fathom_session */
    uint64_t memory_bytes; /* of the host's memory, outside the engine */
};

struct fathom_status {
    const char *state, *sentence, *server, *model, *backend;
    uint64_t pid, engine_pid, uptime_ms, load_permille, vocab, max_positions, weight_bytes;
    uint64_t connections, sessions, sessions_busy, tokens, kv_bytes, kv_limit;
    uint64_t queued, running, engine_restarts, steps, prefill_tokens, decode_tokens;
    uint64_t uid, my_sessions, my_tokens, max_sessions, max_tokens;
};

struct fathom_verified {
    int good;       /* nothing is wrong */
    uint64_t wrong; /* things that are; the first of them: */
    const char *const *problems;
    size_t n_problems;
    int ledger;                       /* tokens and names can be read */
    uint64_t tokens;                  /* on the disk */
    uint64_t files, files_good;       /* of caches */
    uint64_t states, best, recompute; /* places to go on from, the last, tokens behind it */
    uint64_t salvage; /* without a ledger: tokens that the files still hold */
};

/*
 * Callbacks of one request; any may be NULL. They may start requests and cancel them, but not
 * call fathom_process(), fathom_wait(), fathom_finish() or fathom_close(). The struct is copied.
 */
struct fathom_watch {
    size_t struct_size; /* sizeof(struct fathom_watch) */
    void *arg;
    /* Once, at the end: e is NULL if it went well, else r is. */
    void (*done)(void *arg, const struct fathom_result *r, const struct fathom_error *e);
    /* sample. Not 0: cancel; no more tokens are passed on, the end is FATHOM_CANCELLED. */
    int (*token)(void *arg, const struct fathom_token *t);
    void (*progress)(void *arg, uint64_t pos, uint64_t total); /* append */
    void (*text)(void *arg, const char *text, size_t len); /* transcript, quiet sample */
    void (*ids)(void *arg, const uint32_t *ids, size_t n); /* transcript, tokenize */
    void (*scores)(void *arg, const uint32_t *ids, const float *logprobs, size_t n);
    void (*message)(void *arg, const char *json, size_t len);   /* sample with parse */
    void (*session)(void *arg, const struct fathom_session *s); /* list, one at a time */
    void (*stat)(void *arg, const struct fathom_stat *s);
    void (*status)(void *arg, const struct fathom_status *s);
    void (*verified)(void *arg, const struct fathom_verified *v);
};

/* Works until the request, one without done(), is over and returns its result, good until the next call with f; NULL
 * with *e set if it failed, or if id is 0 (then *e is left as it is). */
const struct fathom_result *fathom_finish(struct fathom *f, uint32_t id,
                                          struct fathom_error *e);

/* What to call, with an argument of its own, when the request is over: instead of the watch's
 * done(), and for those that take no watch. -1: it is over, or
 * there is none of that number. */
int fathom_on_done(struct fathom *f, uint32_t id,
                   void (*done)(void *arg, const struct fathom_result *r,
                                const struct fathom_error *e),
                   void *arg);

/* Asks to stop a request. It still ends in its own time: with FATHOM_CANCELLED and the position
 * reached, or as if nothing had happened if it was over already. */
int fathom_cancel(struct fathom *f, uint32_t id, struct fathom_error *e);

/* ---- Requests ----------------------------------------------------------------------- */

/* Names: 1 to 64 of A-Z a-z 0-9 . _ - ; another user's session is ~USER/NAME. `w` may be NULL. */

enum { FATHOM_ANY_POS = -1 }; /* for int64_t positions: no condition */

enum fathom_new_flags { FATHOM_IF_ABSENT = 1 }; /* an existing session is no error */

uint32_t fathom_new(struct fathom *f, const char *name, int flags, struct fathom_error *e);
uint32_t fathom_list(struct fathom *f, int all_users, const struct fathom_watch *w,
                     struct fathom_error *e); /* in pages; it looks like one request */
/* Those at work first, then those used last; n at most. */
uint32_t fathom_list_recent(struct fathom *f, int all_users, uint64_t n,
                            const struct fathom_watch *w, struct fathom_error *e);
uint32_t fathom_stat(struct fathom *f, const char *name, const struct fathom_watch *w,
                     struct fathom_error *e);
uint32_t fathom_status(struct fathom *f, const struct fathom_watch *w,
                       struct fathom_error *e);

/* FATHOM_APPEND_INIT(&a), then what to append: exactly one of text, tokens, messages, document. */
struct fathom_append {
    size_t struct_size;
    const char *name;
    const char *text; /* any bytes; above 512 KiB it goes as a document by itself */
    size_t len;
    const uint32_t *tokens;
    size_t n_tokens;
    const char
        *messages; /* JSON: an array of chat messages, or {"messages": ..., "tools": ...} */
    int document;  /* descriptor of a sealed memfd; stays yours; -1: none */
    int control;   /* control tokens written out in text become control tokens */
    int bos;       /* 1, 0: with or without a beginning token; -1: at position 0 */
    int thinking;  /* messages: the answer begins with reasoning */
    int keep_reasoning; /* messages: keep that of earlier turns */
    const char *effort; /* messages: "low", "high", "max", or NULL */
    int64_t if_pos;     /* only at this position, or FATHOM_ANY_POS */
    const void *op_id;  /* 16 bytes, or NULL */
};

void fathom_append_init(struct fathom_append *a, size_t struct_size);
#define FATHOM_APPEND_INIT(a) fathom_append_init((a), sizeof *(a))

uint32_t fathom_append(struct fathom *f, const struct fathom_append *a,
                       const struct fathom_watch *w, struct fathom_error *e);

struct fathom_bias {
    uint32_t id;
    float bias;
};

/* FATHOM_SAMPLE_INIT(&a): the daemon's defaults, which are NaN here for numbers with a point. */
struct fathom_sample {
    size_t struct_size;
    const char *name;
    uint64_t n; /* tokens at most; 0: to the end of the context */
    uint64_t min_tokens;
    double temperature; /* 0: the most likely token each time */
    double top_p, min_p, repetition, presence, frequency;
    uint64_t top_k;          /* 0: off */
    uint64_t penalty_window; /* 0: the daemon's */
    uint64_t seed;           /* if has_seed */
    int has_seed;
    int ignore_eos;
    const struct fathom_bias *bias;
    size_t n_bias;
    const uint32_t *ban;
    size_t n_ban;
    const char *const *stop; /* strings; they are not passed on */
    size_t n_stop;
    const uint32_t *stop_tokens;
    size_t n_stop_tokens;
    int logprobs;
    int top_logprobs; /* of the n best too: 0 to 20 */
    int control;      /* show control tokens in the text */
    int parse;        /* it is a chat turn: message() gets it in parts */
    int quiet;        /* no token(): text() gets it in one piece */
    int detach;       /* go on if this connection is lost */
    int pause;        /* without a reader, pause (else go on into the session) */
    int64_t if_pos;
    const void *op_id; /* 16 bytes, or NULL */
    uint64_t ring;     /* what is drawn goes there too; 0: none */
};

void fathom_sample_init(struct fathom_sample *a, size_t struct_size);
#define FATHOM_SAMPLE_INIT(a) fathom_sample_init((a), sizeof *(a))

uint32_t fathom_sample(struct fathom *f, const struct fathom_sample *a,
                       const struct fathom_watch *w, struct fathom_error *e);

uint32_t fathom_fork(struct fathom *f, const char *name, const char *to,
                     const char *checkpoint, int64_t pos, struct fathom_error *e);
uint32_t fathom_checkpoint(struct fathom *f, const char *name, const char *label,
                           struct fathom_error *e);
uint32_t fathom_checkpoint_remove(struct fathom *f, const char *name, const char *label,
                                  struct fathom_error *e);
uint32_t fathom_rollback(struct fathom *f, const char *name, const char *checkpoint,
                         int64_t pos, struct fathom_error *e);
uint32_t fathom_rename(struct fathom *f, const char *name, const char *to,
                       struct fathom_error *e);
uint32_t fathom_delete(struct fathom *f, const char *name, struct fathom_error *e);
uint32_t fathom_chmod(struct fathom *f, const char *name, unsigned mode, const char *group,
                      struct fathom_error *e); /* group NULL: as it is */

/* From position `from`, n tokens or (0) all, in pages: as text, or as ids if w has those. */
uint32_t fathom_transcript(struct fathom *f, const char *name, uint64_t from, uint64_t n,
                           const struct fathom_watch *w, struct fathom_error *e);
uint32_t fathom_tokenize(struct fathom *f, const char *text, size_t len, int control,
                         const struct fathom_watch *w, struct fathom_error *e);

/* name NULL: behind nothing. The session stays as it is. */
uint32_t fathom_score(struct fathom *f, const char *name, const char *text, size_t len,
                      int control, const struct fathom_watch *w, struct fathom_error *e);
uint32_t fathom_logits(struct fathom *f, const char *name, struct fathom_error *e);

/* ---- The disk ----------------------------------------------------------------------- */

/*
 * A session as a tar, out and in. *fd is your end of a socket pair, yours to close: what comes out of
 * it until its end is the tar; or what you write to it, until you shut it down for writing, is one.
 * Meanwhile the connection must be processed too (fathom_process), at least until the request is
 * sent. The result has name, n (tokens), bytes, files, left_out and digest; if the request fails the
 * stream ends early.
 */
uint32_t fathom_export(struct fathom *f, const char *name, int tokens_only, int *fd,
                       struct fathom_error *e);
uint32_t fathom_import(struct fathom *f, const char *name, int *fd,
                       struct fathom_error *e); /* name NULL: the one that it had */

/* Takes a session's caches out of the engine: to disk, or to memory only; and back in. */
uint32_t fathom_park(struct fathom *f, const char *name, int to_memory,
                     struct fathom_error *e);
uint32_t fathom_unpark(struct fathom *f, const char *name, struct fathom_error *e);

/* Reads every byte that the disk has of a session; verified() gets what was found. fathom_give_up() first
 * gives up, for good, what is behind damage in the session's log: it goes back to what was there before. */
uint32_t fathom_verify(struct fathom *f, const char *name, const struct fathom_watch *w,
                       struct fathom_error *e);
uint32_t fathom_give_up(struct fathom *f, const char *name, const struct fathom_watch *w,
                        struct fathom_error *e);

/* ---- Shared memory ------------------------------------------------------------------- */

/*
 * Figures to look at as often as you like without asking: a page that the daemon writes several
 * times a second while the connection lives, and that nobody else can write to. name NULL: of the
 * daemon. fathom_result.fd is for fathom_page_open(), which leaves it yours.
 */
uint32_t fathom_stats(struct fathom *f, const char *name, struct fathom_error *e);

struct fathom_page;

struct fathom_page *fathom_page_open(int fd, struct fathom_error *e);
void fathom_page_close(struct fathom_page *p); /* NULL is fine */

/* The page's first n words as they stood at one moment; 0 for those that the daemon does not have.
 * What they mean is in docs/PROTOCOL.md; at most 512. -1: it cannot be read. */
int fathom_page_read(const struct fathom_page *p, uint64_t *words, size_t n);

enum fathom_page_word { FATHOM_PAGE_KIND = 2, FATHOM_PAGE_UPDATED_MS = 5 };

enum fathom_daemon_word {
    FATHOM_DAEMON_UPTIME_MS = 8,
    FATHOM_DAEMON_STATE,
    FATHOM_DAEMON_LOAD_PERMILLE,
    FATHOM_DAEMON_CONNECTIONS,
    FATHOM_DAEMON_REQUESTS,
    FATHOM_DAEMON_SESSIONS,
    FATHOM_DAEMON_SESSIONS_BUSY,
    FATHOM_DAEMON_TOKENS,
    FATHOM_DAEMON_QUEUED,
    FATHOM_DAEMON_RUNNING,
    FATHOM_DAEMON_APPENDED,
    FATHOM_DAEMON_DRAWN,
    FATHOM_DAEMON_REPLAYED,
    FATHOM_DAEMON_EVICTIONS,
    FATHOM_DAEMON_ENGINE_RESTARTS,
    FATHOM_DAEMON_STEPS,
    FATHOM_DAEMON_STEP_NS,
    FATHOM_DAEMON_PREFILL_TOKENS,
    FATHOM_DAEMON_DECODE_TOKENS,
    FATHOM_DAEMON_KV_BYTES,
    FATHOM_DAEMON_KV_LIMIT,
    FATHOM_DAEMON_SESSIONS_LOADED,
    FATHOM_DAEMON_MEMORY_BYTES,
    FATHOM_DAEMON_MEMORY_LIMIT,
    FATHOM_DAEMON_SAVES,
    FATHOM_DAEMON_RESTORES,
    FATHOM_DAEMON_RESTORES_FAILED,
    FATHOM_DAEMON_RESTORED_TOKENS,
    FATHOM_DAEMON_WRITTEN_BYTES,
    FATHOM_DAEMON_READ_BYTES,
    FATHOM_DAEMON_COMMITS,
    FATHOM_DAEMON_STORE_ERRORS,
    FATHOM_DAEMON_WORDS
};

enum fathom_session_word {
    FATHOM_SESSION_STATE = 8,
    FATHOM_SESSION_POS,
    FATHOM_SESSION_KV_POS,
    FATHOM_SESSION_WAITING,
    FATHOM_SESSION_TURNS,
    FATHOM_SESSION_CHECKPOINTS,
    FATHOM_SESSION_ROLLBACKS,
    FATHOM_SESSION_USED_MS,
    FATHOM_SESSION_TIER,
    FATHOM_SESSION_DURABLE_POS,
    FATHOM_SESSION_WORDS
};

/*
 * A ring: what a sample draws, in memory that the daemon writes and you only read. The newest
 * records push out the oldest, so a slow reader slows nobody and sees a gap. A sample of at most as
 * many tokens as the ring has records loses none. fathom_result.ring is for fathom_sample.ring,
 * fathom_result.fd for fathom_reader_open(), which leaves it yours.
 */
enum fathom_ring_kind {
    FATHOM_RING_TOKENS = 1, /* each token and its text */
    FATHOM_RING_LOGITS = 2, /* the row of logits that it was drawn from */
};

uint32_t fathom_ring(struct fathom *f, int kind, uint64_t records, struct fathom_error *e);

/* fathom_result.fd: a socket to poll; read and throw away what comes, then look at the ring. */
uint32_t fathom_ring_wake(struct fathom *f, uint64_t ring, struct fathom_error *e);

struct fathom_record {
    uint64_t pos;
    int over;      /* the sample has ended at pos; text may hold its last characters */
    int gap;       /* in front of this one some were pushed out unread */
    uint32_t id;   /* the token drawn */
    int reasoning; /* sample with parse: part of the reasoning */
    const char *text;
    size_t len;
    double logprob;   /* of the token */
    const float *row; /* FATHOM_RING_LOGITS: of all tokens */
    size_t vocab;
    double log_sum; /* row[i] - log_sum is the log-probability of token i */
};

struct fathom_reader;

struct fathom_reader *fathom_reader_open(int fd, struct fathom_error *e);
void fathom_reader_close(struct fathom_reader *r); /* NULL is fine */

/* 1: the next record, good until the next call; 0: none yet; -1: the memory makes no sense. Any
 * process and thread may read, each with a reader of its own. */
int fathom_reader_next(struct fathom_reader *r, struct fathom_record *out,
                       struct fathom_error *e);

/* ---- Short forms, which block ------------------------------------------------------- */

/* 0 or -1. *pos, if not NULL, is the session's position afterwards, also on failure if known. */
int fathom_append_text(struct fathom *f, const char *name, const char *text, size_t len,
                       uint64_t *pos, struct fathom_error *e);

/* a NULL: the defaults. name replaces a->name. */
int fathom_sample_text(struct fathom *f, const char *name, const struct fathom_sample *a,
                       int (*token)(void *arg, const struct fathom_token *t), void *arg,
                       uint64_t *pos, struct fathom_error *e);

#ifdef __cplusplus
}
#endif

#endif /* FATHOM_H */
