/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

struct err;

/*
 * Frames on a stream socket: four bytes of length, big-endian, then that many bytes. A frame
 * may bring one descriptor (SCM_RIGHTS on its first byte). No thread of its own; one owner.
 */
enum {
    FRAME_HEAD = 4,
    FRAME_MAX = 1 << 20, /* bytes behind the head */
    FRAME_MAX_FDS = 4,   /* waiting for their frames, on one connection */
};

struct frame_fd {
    int fd;
    uint64_t low, high; /* it came with a byte of the stream in [low, high) */
};

/* What comes in. */
struct frame_in {
    struct buf b;
    size_t used;  /* of b: frames handed out already */
    uint64_t got; /* bytes of the stream received, up to the end of b */
    uint64_t end; /* of the frame handed out last */
    struct frame_fd fds[FRAME_MAX_FDS];
    int n_fds;
};

void frame_in_init(struct frame_in *in);
void frame_in_done(struct frame_in *in); /* closes descriptors that nobody took */

/* Reads once. 1: got bytes; 0: none waiting (EAGAIN); -1: ERR_UNAVAILABLE at the end of the
 * stream, ERR_PROTOCOL if that cuts a frame, too many descriptors came, or they were lost.
 * Take all frames with frame_in_next() before the next call. */
int frame_in_recv(struct frame_in *in, int sock, struct err *e);

/* The same from memory, for bytes that came another way. fd is -1 or now owned by `in`. */
int frame_in_feed(struct frame_in *in, const void *p, size_t len, int fd, struct err *e);

/* 1: *p and *len are the next frame without its head, good until the next call with `in`.
 * 0: not all of it is here yet. -1: ERR_PROTOCOL, the connection is of no use any more: a bad
 * length, or the last frame brought a descriptor that nobody took. */
int frame_in_next(struct frame_in *in, const uint8_t **p, size_t *len, struct err *e);

/* The descriptor of the frame handed out last, the caller's from now on; -1 if it has none. */
int frame_in_take_fd(struct frame_in *in);

/* What goes out: appended frame by frame, sent as the socket takes it. */
struct frame_out {
    struct buf b;
    size_t sent;                        /* of b */
    struct frame_fd fds[FRAME_MAX_FDS]; /* low: where in b its frame begins */
    int n_fds;
};

void frame_out_init(struct frame_out *out, size_t cap); /* cap: most bytes waiting */
void frame_out_done(struct frame_out *out); /* closes descriptors not yet sent */
size_t frame_out_waiting(const struct frame_out *out);

/* A frame is begun, filled by adding to out->b, and ended, which puts its length in front.
 * frame_end() refuses one above FRAME_MAX (ERR_INVALID) and takes it back; frame_abort() takes
 * it back too. With fd != -1 frame_end() takes the descriptor over, also if it fails. */
int frame_begin(struct frame_out *out, size_t *mark, struct err *e);
int frame_end(struct frame_out *out, size_t mark, int fd, struct err *e);
void frame_abort(struct frame_out *out, size_t mark);

/* 1: all sent; 0: the socket is full; -1: ERR_UNAVAILABLE, the peer is gone. */
int frame_out_send(struct frame_out *out, int sock, struct err *e);

#endif /* PROTO_FRAME_H */
