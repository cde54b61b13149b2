/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_OUT_H
#define ENGINE_OUT_H

#include <stddef.h>
#include <stdint.h>

struct err;
struct iovec;

/*
 * What the engine has to say and the socket has not taken yet, in order. Never blocks. The
 * engine's loop looks at `bytes` to slow down: over OUT_NO_STEP it begins no step, over
 * OUT_NO_READ it takes no more packets, so OUT_MAX is passed only through a bug of ours.
 */
enum {
    OUT_NO_STEP = 1 << 20,
    OUT_NO_READ = 2 << 20,
    OUT_MAX = 16 << 20,
};

struct out_packet;

struct out {
    int sock;
    struct out_packet *first, **last;
    size_t bytes;    /* waiting */
    uint64_t pushed; /* packets, since the start */
};

void out_init(struct out *o, int sock);
void out_done(struct out *o);

/* 0, or -1: ERR_UNAVAILABLE if the daemon is gone, ERR_INTERNAL past OUT_MAX or without memory. */
int out_push(struct out *o, uint16_t type, uint32_t seq, uint32_t job,
             const struct iovec *iov, int n_iov, struct err *e);
int out_flush(struct out *o, struct err *e); /* as much as the socket takes now */

#endif /* ENGINE_OUT_H */
