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
 * The daemon decides on sequence and job numbers. A job is one FEED, SAMPLE or LOGITS; the engine
 * answers each with any number of LINK_FED, LINK_SCORES, LINK_TOKENS and exactly one LINK_END.
 * Jobs of one sequence run in the order in which they were sent; those of different ones are
 * batched. OPEN, FORK, REWIND and CLOSE are jobs too (ended by LINK_END) and keep that order
 * with respect to the sequences that they name. The engine never blocks on a full link: the daemon
 * keeps at most LINK_MAX_JOBS jobs under way and always reads.
 */
enum {
    LINK_VERSION = 1,
    LINK_MAX_PACKET = 65536,
    LINK_MAX_JOBS = 512,
    LINK_MAX_FEED = 8192, /* tokens in one FEED */
};

enum link_type {
    /* daemon -> engine */
    LINK_OPEN = 1, /* struct link_open */
    LINK_FORK,     /* struct link_fork */
    LINK_CLOSE,    /* nothing more */
    LINK_REWIND,   /* struct link_rewind */
    LINK_FEED,     /* struct link_feed, u32 tokens[n] */
    LINK_SAMPLE,   /* struct link_sample */
    LINK_LOGITS, /* nothing more; one descriptor: a memfd of vocab * 4 bytes to be filled */
    LINK_CANCEL, /* nothing more; the job named ends with ERR_CANCELLED unless it is over */
    LINK_QUIT,   /* finish the step under way and exit 0 */

    /* engine -> daemon */
    LINK_READY = 64, /* struct link_ready: once, when the model is loaded */
    LINK_FED,        /* struct link_fed: part of a FEED is in the caches */
    LINK_SCORES,     /* struct link_scores, f32 logprobs[n] */
    LINK_TOKENS,     /* struct link_tokens, struct sample_choice[n] */
    LINK_END,        /* struct link_end */
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
    uint32_t from; /* head.seq is the new one */
};

struct link_rewind {
    uint64_t len;
};

struct link_feed {
    uint64_t pos; /* of tokens[0]; must be the sequence's length when the job starts */
    uint32_t n;
    uint32_t score; /* 1: LINK_SCORES with the log-probability of each token */
};

/* LINK_SAMPLE: struct link_sample, then struct sample_params. history is taken from what the
 * sequence was fed: the engine keeps its tokens. */
struct link_sample {
    uint64_t pos; /* of the first token to be drawn; must be the sequence's length */
    uint32_t
        n_drawn; /* drawn already by the request that this job continues (after a restart) */
    uint32_t
        stop_fed; /* bytes of drawn text to be fed to the stop matcher first: they follow */
};

struct link_ready {
    uint32_t vocab, max_seqs, max_step_tokens;
    uint32_t pid;
    uint64_t max_positions, weight_bytes, page_bytes, seq_fixed_bytes, kv_limit;
    uint8_t fingerprint[32];
    char backend[32], detail[96];
};

struct link_fed {
    uint64_t pos; /* the sequence's length now */
};

struct link_scores {
    uint64_t pos; /* of the first token scored; position 0 has no score and gives 0 */
    uint32_t n;
};

struct link_tokens {
    uint64_t pos; /* of choices[0]; these tokens are part of the sequence */
    uint32_t n, choice_bytes;
};

enum link_reason { LINK_DONE, LINK_LIMIT, LINK_STOP_TOKEN, LINK_STOP_STRING, LINK_FAILED };

struct link_end {
    uint64_t pos; /* the sequence's length */
    uint64_t
        stop_at;     /* LINK_STOP_STRING: bytes of drawn text in front of the stop string */
    uint32_t reason; /* enum link_reason */
    struct err err;  /* LINK_FAILED */
};

/*
 * Written by the engine, read by the daemon, in a memfd that the daemon made. Each field is
 * one aligned word, read and written with relaxed atomics; they need not agree with each other.
 */
struct link_status {
    uint64_t beat_ns;       /* clock_ns() at the last turn of the engine's loop */
    uint64_t step_began_ns; /* 0 between steps */
    uint64_t step_tokens;   /* in the step under way */
    uint64_t load_permille;
    uint64_t steps, prefill_tokens, decode_tokens, step_ns; /* since the start */
    uint64_t kv_used;
};

/* Sends one packet: head, then up to two pieces. 0, or -1: ERR_BUSY if the socket is full,
 * ERR_UNAVAILABLE if the peer is gone. fd is -1 or a descriptor to pass on. */
struct iovec;
int link_send(int sock, struct link_head *h, const struct iovec *iov, int n_iov, int fd,
              struct err *e);

/* Receives one packet of at most LINK_MAX_PACKET bytes into p and checks its head and size.
 * 1: got one; 0: none waiting; -1: ERR_UNAVAILABLE at the end, ERR_PROTOCOL for a bad packet.
 * *fd is the descriptor that came along, the caller's, or -1. */
int link_recv(int sock, void *p, size_t *len, int *fd, struct err *e);

/* The packet's own struct is at least `need` bytes: NULL and ERR_PROTOCOL if not. */
const void *link_body(const void *packet, size_t len, size_t need, struct err *e);

#endif /* PROTO_LINK_H */
