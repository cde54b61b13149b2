/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROTO_LINK_H
#define PROTO_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/*
 * The link between fathomd and its engine: packets over one SOCK_SEQPACKET pair, both ends the
 * same build, so fixed structs in native byte order. Payload follows the struct directly.
 *
 * Jobs. Everything that the daemon sends, except LINK_CANCEL and LINK_QUIT, is a job: it has
 * a number, chosen by the daemon and unlike that of any job under way, and it ends with
 * exactly one LINK_END, whatever goes wrong with it; nothing of a job follows its LINK_END.
 * Jobs that name the same sequence run in the order in which they were sent (LINK_FORK names
 * two), those of different sequences side by side. At most LINK_MAX_JOBS may be under way:
 * one more ends at once with ERR_BUSY. A job number used twice, or a packet whose head is
 * wrong, has no answer: the engine exits with LINK_EXIT_PROTOCOL.
 *
 * A sequence, known by a number below link_ready.max_seqs that the daemon hands out, is a list
 * of tokens. The engine keeps those tokens and, lazily, the caches that belong to them: a
 * token drawn by LINK_SAMPLE is in the sequence as soon as LINK_TOKENS says so, though its
 * cache rows are computed only by the next step; a job that needs them (FEED, SAMPLE, LOGITS)
 * computes first whatever is missing. So the length is always: tokens acknowledged by LINK_FED
 * and LINK_TOKENS, less what was rewound. Every LINK_END carries it.
 *
 * Results depend on the sequence's tokens and the job's parameters only: not on other
 * sequences, on how the tokens were cut into FEEDs, nor on the past (restart, rewind, fork).
 *
 * Errors. A job that fails or is cancelled leaves the sequence with what LINK_FED and
 * LINK_TOKENS have told so far: LINK_END says the length, and the next job goes on there.
 * ERR_NOT_FOUND: the sequence is not open. ERR_EXISTS: it is (OPEN, FORK). ERR_CONFLICT: wrong
 * position. ERR_CONTEXT_FULL: tokens past max_positions (a FEED too long does nothing at all).
 * ERR_QUOTA: no room for caches. ERR_INVALID: a token id, count or parameter. ERR_PROTOCOL: a
 * packet of the wrong size.
 *
 * Flow. Neither side ever blocks in a send. The engine queues what the socket does not take;
 * while much is queued it begins no step, and past that it stops reading, so its queue is
 * bounded as long as the daemon always reads, also while it cannot write: it must. During a
 * step the engine does not read, so the daemon keeps a queue too (link_send: ERR_BUSY).
 *
 * Restart. A new engine knows nothing. What the daemon has received is the truth: for each
 * sequence it sends OPEN, FEEDs with all tokens from position 0, and for a SAMPLE that was
 * under way the same again, with pos the length and n_drawn what it has already: this gives
 * exactly the tokens that the first engine would have sent, and ends at once if what was
 * received was complete. FEEDs under way go on behind the last LINK_FED, forks and rewinds
 * need not be repeated as such.
 */
enum {
    LINK_VERSION = 5,
    LINK_MAX_PACKET = 65536,
    LINK_MAX_JOBS = 512,
    LINK_MAX_FEED = 8192, /* tokens in one FEED */
    LINK_BEAT_MS = 500,   /* between two beats when no step is under way, at most */
};

enum link_type {
    /* daemon -> engine; jobs */
    LINK_OPEN = 1, /* struct link_open */
    LINK_FORK,     /* struct link_fork */
    LINK_CLOSE, /* nothing more; waits for earlier jobs of the sequence: cancel them first */
    LINK_REWIND, /* struct link_rewind */
    LINK_FEED,   /* struct link_feed, u32 tokens[n] */
    LINK_SAMPLE, /* struct link_sample, struct sample_params; one descriptor if it has rows */
    LINK_LOGITS, /* nothing more; one descriptor: a memfd of vocab * 4 bytes to be filled
                      with the f32 row for the token that would come next */
    LINK_KV_OUT, /* struct link_kv_out, struct link_kv_run[n_runs] */
    LINK_KV_IN,  /* struct link_kv_in, u32 tokens[n] */
    LINK_KV_SET, /* struct link_kv_set */
    /* daemon -> engine; not jobs */
    LINK_CANCEL, /* nothing more; FEED, SAMPLE or LOGITS: the job named ends with ERR_CANCELLED
                    after the step under way; ignored if it is over or another kind */
    LINK_QUIT, /* finish the step under way and exit 0; jobs get no LINK_END */

    /* engine -> daemon */
    LINK_READY = 64, /* struct link_ready: once, when the model is loaded; jobs sent before
                        wait for it */
    LINK_FED,        /* struct link_fed: part of a FEED is in the caches */
    LINK_SCORES,     /* struct link_scores, f32 logprobs[n]; comes before the LINK_FED */
    LINK_TOKENS,     /* struct link_tokens, struct sample_choice[n] */
    LINK_SAVED, /* struct link_saved: in front of a KV_OUT's LINK_END, if it went well */
    LINK_END,   /* struct link_end */
    LINK_FATAL, /* struct err: why the engine exits now, loading or later; the last
                        packet, jobs get no LINK_END. Exits without one happen too. */
};

/* Exit status of the engine. */
enum link_exit {
    LINK_EXIT_OK = 0,        /* LINK_QUIT, or the daemon is gone */
    LINK_EXIT_USAGE = 64,    /* its command line */
    LINK_EXIT_MODEL = 65,    /* the model cannot be loaded; again would be the same */
    LINK_EXIT_FAULT = 70,    /* the device is lost; a new engine may work */
    LINK_EXIT_PROTOCOL = 76, /* the daemon broke the rules above */
};

struct link_head {
    uint16_t version, type;
    uint32_t bytes; /* of the whole packet, head included */
    uint32_t seq, job;
};

struct link_open {
    uint32_t owner; /* uid: the scheduler is fair between owners first */
};

struct link_fork {
    uint32_t from; /* head.seq is the new one: the same tokens; rewind it to fork earlier */
    uint32_t owner; /* of the new one */
};

struct link_rewind {
    uint64_t len; /* at most the sequence's length; however far back */
};

struct link_feed {
    uint64_t pos;   /* of tokens[0]; must be the sequence's length when the job starts */
    uint32_t n;     /* 1 .. LINK_MAX_FEED */
    uint32_t score; /* 1: LINK_SCORES with the log-probability of each token */
};

/*
 * The sample ends (LINK_END's reason) when n_drawn and the tokens drawn now make max_tokens
 * (LINK_LIMIT), with a stop token (it is in the sequence), or with a stop string. Stop strings
 * are looked for in the raw bytes (tokenizer_bytes) of the drawn tokens, the first n_drawn
 * included, where control tokens count as nothing. The tokens that hold a stop string are in
 * the sequence; who does not want them rewinds. At least one token must have been fed.
 */
struct link_sample {
    uint64_t pos;     /* of the first token to be drawn; must be the sequence's length */
    uint32_t n_drawn; /* the sequence's last tokens that this request has drawn before */
    uint32_t params_bytes; /* sizeof(struct sample_params) */
    uint32_t rows;         /* slots in the memfd that comes along; 0: none comes */
    uint32_t zero;
};

/*
 * Logits beside the tokens. The memfd has `rows` slots of link_row_bytes(), sealed against
 * shrinking; before a LINK_TOKENS the row that its token at position pos was drawn from is put into
 * slot pos % rows. Nobody waits for the reader: the daemon copies what it wants when LINK_TOKENS
 * comes, and sees by the stamp whether the engine was there again. The engine never has memory of a
 * client, and a client never memory that the engine writes.
 */
struct link_row {
    uint64_t stamp; /* pos + 1; 0 while it is being written */
    double log_sum; /* log of the sum of exp over the row */
    /* f32 [vocab] */
};

static inline uint64_t
link_row_bytes(uint32_t vocab)
{
    return (sizeof(struct link_row) + vocab * sizeof(float) + 63) / 64 * 64;
}

/*
 * Caches between the engine and the arena: host memory that the daemon made (a memfd, given to
 * the engine when it starts) and that holds them in the form of model/kvlayout.h. All offsets are
 * the arena's, multiples of 8; what does not lie inside it is ERR_INVALID. The daemon leaves the
 * memory of a job alone until its LINK_END.
 *
 * KV_OUT first computes what is missing of the sequence's tokens if a state is wanted and there
 * is no row of logits at the position of the caches, or if a page is wanted whose last token is
 * among them; then copies whole pages (all of them must be whole) and the state. LINK_SAVED tells
 * where that is: at most one token behind the length. Behind a FEED or a SAMPLE nothing is
 * missing; behind a REWIND the last token runs again, unless that is where a KV_SET made it.
 *
 * KV_IN and KV_SET bring a sequence back that was opened and has no tokens yet. KV_IN appends
 * tokens, and pages for each whole 128 of them; all but the last one bring whole pages only.
 * KV_SET makes it a sequence like any other. In between it takes nothing else but CLOSE, and an
 * error leaves it so. They need not wait for each other's LINK_END: all of them may be sent at
 * once, and copies queue up. What the caches hold cannot be checked: the daemon must have.
 * ERR_UNAVAILABLE: the engine has no arena.
 */
enum { LINK_KV_RUNS = 256 };

#define LINK_NOWHERE UINT64_MAX

struct link_kv_run {
    uint64_t first, n; /* pages */
    uint64_t at;
};

struct link_kv_out {
    uint64_t state_at; /* LINK_NOWHERE: pages only */
    uint64_t row_at;   /* f32 [vocab]: the logits behind the state */
    uint32_t n_runs, zero;
};

struct link_saved {
    uint64_t pos, state_bytes; /* 0 if none was wanted */
};

struct link_kv_in {
    uint64_t pos; /* of tokens[0]: a multiple of 128 */
    uint64_t at;  /* of n / 128 pages */
    uint32_t n, zero;
};

struct link_kv_set {
    uint64_t pos; /* tokens that KV_IN has brought */
    uint64_t state_at, row_at;
};

struct link_ready {
    uint32_t vocab, max_seqs, max_step_tokens;
    uint32_t pid;
    uint32_t
        max_rewind; /* tokens; a REWIND further back makes the engine compute again from
                            the start. Behind a KV_SET no further than there */
    uint32_t draft; /* 1: its layout has the draft block's parts */
    uint64_t max_positions, weight_bytes, page_bytes, seq_fixed_bytes, kv_limit;
    uint64_t layout; /* kv_layout.hash */
    uint8_t fingerprint[32];
    char backend[32], detail[96];
};

struct link_fed {
    uint64_t pos; /* the sequence's length now */
};

struct link_scores {
    uint64_t pos; /* of the first token scored; position 0 has no score and gives 0 */
    uint32_t n, zero;
};

struct link_tokens {
    uint64_t pos;             /* of choices[0]; these tokens are part of the sequence */
    uint32_t n, choice_bytes; /* sizeof(struct sample_choice) */
};

enum link_reason { LINK_DONE, LINK_LIMIT, LINK_STOP_TOKEN, LINK_STOP_STRING, LINK_FAILED };

struct link_end {
    uint64_t pos;      /* the sequence's length; 0 if it is not open (any more) */
    uint64_t computed; /* of these tokens the caches hold the rows; the next job that needs
                          them computes the others, without a word, before anything else */
    uint64_t stop_at;  /* LINK_STOP_STRING: raw bytes drawn, from the first of the n_drawn
                         tokens on, in front of the stop string */
    uint32_t reason;   /* enum link_reason */
    struct err err;    /* LINK_FAILED */
};

/*
 * Written by the engine, read by the daemon, in a memfd that the daemon made. Each field is
 * one aligned word, read and written with relaxed atomics; they need not agree with each other.
 * While the model is loaded the beat may stand still; load_permille tells how far it is.
 */
struct link_status {
    uint64_t beat_ns;       /* clock_ns() at the last turn of the engine's loop */
    uint64_t step_began_ns; /* 0 between steps */
    uint64_t step_tokens;   /* in the step under way */
    uint64_t load_permille; /* 1000 before LINK_READY is sent */
    uint64_t steps, prefill_tokens, decode_tokens, step_ns; /* since the start */
    uint64_t kv_used;
    uint64_t packets; /* that were sent, or wait to be: what does not arrive is missed */
};

/* Room for any packet, aligned for any struct above. */
union link_packet {
    struct link_head head;
    uint64_t align;
    uint8_t bytes[LINK_MAX_PACKET];
};

/* Both ends, close-on-exec and non-blocking. */
int link_pair(int sock[2], struct err *e);

/*
 * Sends one packet: head, then up to LINK_MAX_IOV pieces. The caller sets type, seq and job of
 * the head; version and bytes are filled in. fd is -1 or a descriptor to pass on, which stays
 * the caller's. 0, or -1: ERR_BUSY if the socket is full, ERR_UNAVAILABLE if the peer is gone.
 */
struct iovec;

enum { LINK_MAX_IOV = 3 };

int link_send(int sock, struct link_head *h, const struct iovec *iov, int n_iov, int fd,
              struct err *e);

/*
 * Receives one packet of at most LINK_MAX_PACKET bytes into p, which is aligned for the structs
 * above, and checks its head and size. 1: got one, *len bytes; 0: none waiting; -1:
 * ERR_UNAVAILABLE at the end, ERR_PROTOCOL for a bad packet (it is gone; the next call reads
 * on). *fd is the descriptor that came along, the caller's, or -1. Only LINK_LOGITS may bring
 * one: others are closed here and their packet is bad, as are all if fd is NULL.
 */
int link_recv(int sock, void *p, size_t *len, int *fd, struct err *e);

/* What follows the head, if that is at least `need` bytes: NULL and ERR_PROTOCOL if not. */
const void *link_body(const void *packet, size_t len, size_t need, struct err *e);

/* Copies an error out of a packet: its text ended, its code one that we know. */
void link_err(struct err *to, const struct err *from);

#endif /* PROTO_LINK_H */
