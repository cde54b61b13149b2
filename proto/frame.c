/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames: where one message ends and the next begins, and which descriptor goes with which.
 *
 * We frame ourselves and do not use msgpack-c's streaming unpacker, whose buffer doubles
 * without limit and which cannot go on after an error. Reading goes straight into one buffer
 * that never holds more than a frame and a read.
 *
 * Descriptors: the kernel never reads on past bytes that carry some, but it may put plain bytes
 * that came before them into the same read. So we know in which read a descriptor arrived,
 * not with which byte. A frame may take it if it begins before that read ended; and when
 * a frame that reaches to the end of that read was handed out and nobody took it, it belonged
 * to no frame that wanted one.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "proto/frame.h"

enum {
    READ_BYTES = 65536,
    CONTROL_FDS =
        8, /* room for more than we accept: so that we can close what is too many */
    KEEP_SENT = 65536, /* sent bytes kept in front before they are moved out */
};

void
frame_in_init(struct frame_in *in)
{
    *in = (struct frame_in){0};
    buf_init(&in->b, FRAME_HEAD + FRAME_MAX + READ_BYTES);
}

void
frame_in_done(struct frame_in *in)
{
    for (int i = 0; i < in->n_fds; i++)
        close(in->fds[i].fd);
    buf_done(&in->b);
    frame_in_init(in);
}

static void
drop_first_fd(struct frame_fd *fds, int *n_fds)
{
    memmove(fds, fds + 1, (size_t)(*n_fds - 1) * sizeof *fds);
    (*n_fds)--;
}

/* Bytes [got, got + len) have come, with fd unless it is -1. */
static int
arrived(struct frame_in *in, size_t len, int fd, struct err *e)
{
    const uint64_t low = in->got;

    in->got += len;
    in->b.len += len;
    if (fd == -1)
        return 0;
    if (in->n_fds == FRAME_MAX_FDS || len == 0) {
        close(fd);
        return err_set(e, ERR_PROTOCOL, 0, "more than %d descriptors waiting",
                       FRAME_MAX_FDS);
    }
    in->fds[in->n_fds++] = (struct frame_fd){fd, low, in->got};
    return 0;
}

static int
make_room(struct frame_in *in, size_t more, struct err *e)
{
    buf_drop(&in->b, in->used);
    in->used = 0;
    return buf_reserve(&in->b, more, e);
}

int
frame_in_feed(struct frame_in *in, const void *p, size_t len, int fd, struct err *e)
{
    if (make_room(in, len, e) == -1) {
        if (fd != -1)
            close(fd);
        return -1;
    }
    if (len > 0)
        memcpy(in->b.p + in->b.len, p, len);
    return arrived(in, len, fd, e);
}

/* The one descriptor of a received message, or -1 for none; -2 if there were more. */
static int
take_one_fd(struct msghdr *m)
{
    int fd = -1, n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof fd;

        for (size_t i = 0; i < count; i++) {
            if (n++ > 0)
                close(fd);
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
        }
    }
    if (n > 1 || (m->msg_flags & MSG_CTRUNC)) {
        if (n > 0)
            close(fd);
        return -2;
    }
    return fd;
}

int
frame_in_recv(struct frame_in *in, int sock, struct err *e)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CONTROL_FDS * sizeof(int))];
    } control;
    struct iovec iov;
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof control.bytes};
    ssize_t n;
    int fd;

    if (make_room(in, READ_BYTES, e) == -1)
        return -1;
    iov = (struct iovec){in->b.p + in->b.len, READ_BYTES};
    do {
        n = recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n == -1 && errno == EINTR);
    if (n == -1) {
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        return err_set(e, ERR_UNAVAILABLE, errno, "recvmsg: %s", strerror(errno));
    }
    fd = take_one_fd(&m);
    if (fd == -2)
        return err_set(e, ERR_PROTOCOL, 0, "more than one descriptor in a message");
    if (n == 0) {
        if (fd != -1)
            close(fd);
        if (in->b.len > 0)
            return err_set(e, ERR_PROTOCOL, 0,
                           "the peer closed the connection within a frame");
        return err_set(e, ERR_UNAVAILABLE, 0, "the peer closed the connection");
    }
    return arrived(in, (size_t)n, fd, e) == -1 ? -1 : 1;
}

int
frame_in_next(struct frame_in *in, const uint8_t **p, size_t *len, struct err *e)
{
    const size_t have = in->b.len - in->used;
    const uint8_t *at;
    uint32_t n;

    if (in->n_fds > 0 && in->fds[0].high <= in->end)
        return err_set(e, ERR_PROTOCOL, 0, "a descriptor came that no message declares");
    if (have < FRAME_HEAD)
        return 0;
    at = in->b.p + in->used;
    n = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
    if (n == 0 || n > FRAME_MAX) {
        const bool is_text = at[0] >= 'A' && at[0] <= 'Z' && at[1] >= 'A' && at[1] <= 'Z';

        return err_set(e, ERR_PROTOCOL, 0, "frame of %u bytes: 1 to %d are allowed%s", n,
                       FRAME_MAX, is_text ? "; this looks like HTTP or other text" : "");
    }
    if (have - FRAME_HEAD < n)
        return 0;
    *p = at + FRAME_HEAD;
    *len = n;
    in->used += FRAME_HEAD + (size_t)n;
    in->end = in->got - (in->b.len - in->used);
    return 1;
}

int
frame_in_take_fd(struct frame_in *in)
{
    int fd;

    if (in->n_fds == 0 || in->fds[0].low >= in->end)
        return -1;
    fd = in->fds[0].fd;
    drop_first_fd(in->fds, &in->n_fds);
    return fd;
}

void
frame_out_init(struct frame_out *out, size_t cap)
{
    *out = (struct frame_out){0};
    buf_init(&out->b, cap);
}

void
frame_out_done(struct frame_out *out)
{
    for (int i = 0; i < out->n_fds; i++)
        close(out->fds[i].fd);
    buf_done(&out->b);
    frame_out_init(out, out->b.cap);
}

size_t
frame_out_waiting(const struct frame_out *out)
{
    return out->b.len - out->sent;
}

static void
drop_sent(struct frame_out *out)
{
    buf_drop(&out->b, out->sent);
    for (int i = 0; i < out->n_fds; i++)
        out->fds[i].low -= out->sent;
    out->sent = 0;
}

int
frame_begin(struct frame_out *out, size_t *mark, struct err *e)
{
    static const uint8_t head[FRAME_HEAD];

    if (out->sent == out->b.len || out->sent >= KEEP_SENT)
        drop_sent(out);
    *mark = out->b.len;
    return buf_add(&out->b, head, sizeof head, e);
}

int
frame_end(struct frame_out *out, size_t mark, int fd, struct err *e)
{
    const size_t n = out->b.len - mark - FRAME_HEAD;
    uint8_t *head = out->b.p + mark;

    assert(n > 0);
    if (n > FRAME_MAX)
        err_set(e, ERR_INVALID, 0, "message of %zu bytes: at most %d fit a frame", n,
                FRAME_MAX);
    else if (fd != -1 && out->n_fds == FRAME_MAX_FDS)
        err_set(e, ERR_BUSY, 0, "%d descriptors wait to be sent already", FRAME_MAX_FDS);
    else
        goto good;
    frame_abort(out, mark);
    if (fd != -1)
        close(fd);
    return -1;

good:
    head[0] = (uint8_t)(n >> 24);
    head[1] = (uint8_t)(n >> 16);
    head[2] = (uint8_t)(n >> 8);
    head[3] = (uint8_t)n;
    if (fd != -1)
        out->fds[out->n_fds++] = (struct frame_fd){fd, mark, mark + 1};
    return 0;
}

void
frame_abort(struct frame_out *out, size_t mark)
{
    assert(mark <= out->b.len && mark >= out->sent);
    out->b.len = mark;
}

/* One sendmsg of out[sent, until), with fd on its first byte unless it is -1. */
static ssize_t
send_part(struct frame_out *out, int sock, size_t until, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {out->b.p + out->sent, until - out->sent};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (fd != -1) {
        struct cmsghdr *c;

        memset(&control, 0, sizeof control);
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof control.bytes;
        c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    do {
        n = sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n == -1 && errno == EINTR);
    return n;
}

int
frame_out_send(struct frame_out *out, int sock, struct err *e)
{
    while (out->sent < out->b.len) {
        const bool with_fd = out->n_fds > 0 && out->fds[0].low == out->sent;
        const int next = with_fd ? 1 : 0;
        const size_t until = out->n_fds > next ? out->fds[next].low : out->b.len;
        const ssize_t n = send_part(out, sock, until, with_fd ? out->fds[0].fd : -1);

        if (n == -1) {
            if (errno == EAGAIN || errno == EWOULDBLOCK)
                return 0;
            return err_set(e, ERR_UNAVAILABLE, errno, "sendmsg: %s", strerror(errno));
        }
        if (with_fd) {
            close(out->fds[0].fd);
            drop_first_fd(out->fds, &out->n_fds);
        }
        out->sent += (size_t)n;
    }
    drop_sent(out);
    return 1;
}
