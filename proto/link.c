/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets between fathomd and its engine. Sequenced packets keep borders and order, and fail
 * with the peer, so there is nothing to reassemble: a packet is right or it is refused. Either
 * end may be broken (that is why they are two processes), so the receiver trusts no length and
 * keeps no descriptor that it did not ask for. No state, any thread.
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "proto/link.h"

enum {
    MAX_FDS = 4
}; /* one is used; room for more so that the kernel hands them out to close */

int
link_pair(int sock[2], struct err *e)
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sock) == -1)
        return err_set(e, ERR_INTERNAL, errno, "socketpair: %s", strerror(errno));
    return 0;
}

static int
send_failed(int sys, struct err *e)
{
    switch (sys) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
    case ETOOMANYREFS: return err_set(e, ERR_BUSY, sys, "the link is full");
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN:
        return err_set(e, ERR_UNAVAILABLE, sys, "the other end of the link is gone");
    default: return err_set(e, ERR_INTERNAL, sys, "sendmsg on the link: %s", strerror(sys));
    }
}

int
link_send(int sock, struct link_head *h, const struct iovec *iov, int n_iov, int fd,
          struct err *e)
{
    struct iovec all[1 + LINK_MAX_IOV];

    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof fd)];
    } control = {0};
    struct msghdr m = {.msg_iov = all};
    size_t bytes = sizeof *h;
    ssize_t n;

    if (n_iov < 0 || n_iov > LINK_MAX_IOV)
        return err_set(e, ERR_INTERNAL, 0, "a packet of %d pieces", n_iov);
    all[0] = (struct iovec){.iov_base = h, .iov_len = sizeof *h};
    for (int i = 0; i < n_iov; i++) {
        if (iov[i].iov_len > LINK_MAX_PACKET - bytes)
            return err_set(e, ERR_INTERNAL, 0, "packet of type %u is too long for the link",
                           h->type);
        bytes += iov[i].iov_len;
        all[1 + i] = iov[i];
    }
    h->version = LINK_VERSION;
    h->bytes = (uint32_t)bytes;
    m.msg_iovlen = 1 + (size_t)n_iov;
    if (fd != -1) {
        struct cmsghdr *c;

        m.msg_control = control.room;
        m.msg_controllen = sizeof control.room;
        c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    do
        n = sendmsg(sock, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n == -1 && errno == EINTR);
    return n == -1 ? send_failed(errno, e) : 0;
}

/* All descriptors that came with the message; how many. */
static int
take_fds(struct msghdr *m, int fds[MAX_FDS])
{
    int n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        size_t bytes;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        bytes = c->cmsg_len - CMSG_LEN(0);
        for (size_t at = 0; at + sizeof(int) <= bytes && n < MAX_FDS; at += sizeof(int))
            memcpy(&fds[n++], CMSG_DATA(c) + at, sizeof(int));
    }
    return n;
}

static int
check_head(const struct link_head *h, size_t got, const struct msghdr *m, int n_fds,
           int takes_fd, struct err *e)
{
    if ((m->msg_flags & MSG_TRUNC) != 0)
        return err_set(e, ERR_PROTOCOL, 0, "packet of more than %d bytes", LINK_MAX_PACKET);
    if (got < sizeof *h)
        return err_set(e, ERR_PROTOCOL, 0, "packet of %zu bytes, less than its head", got);
    if (h->version != LINK_VERSION)
        return err_set(e, ERR_PROTOCOL, 0, "link version %u, this build speaks %d",
                       h->version, LINK_VERSION);
    if (h->bytes != got)
        return err_set(e, ERR_PROTOCOL, 0, "packet of %zu bytes claims %u", got, h->bytes);
    if ((m->msg_flags & MSG_CTRUNC) != 0 || n_fds > 1 ||
        (n_fds == 1 && (!takes_fd || (h->type != LINK_LOGITS && h->type != LINK_SAMPLE))))
        return err_set(e, ERR_PROTOCOL, 0, "packet of type %u with unexpected descriptors",
                       h->type);
    return 0;
}

int
link_recv(int sock, void *p, size_t *len, int *fd, struct err *e)
{
    struct iovec iov = {.iov_base = p, .iov_len = LINK_MAX_PACKET};

    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control = {0};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.room,
                       .msg_controllen = sizeof control.room};
    int fds[MAX_FDS], n_fds;
    ssize_t n;

    *len = 0;
    if (fd != NULL)
        *fd = -1;
    do
        n = recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n == -1 && errno == EINTR);
    if (n == -1 && errno == EAGAIN)
        return 0;
    if (n == -1 && errno != ECONNRESET)
        return err_set(e, ERR_INTERNAL, errno, "recvmsg on the link: %s", strerror(errno));

    n_fds = n == -1 ? 0 : take_fds(&m, fds);
    /* No packet of ours is empty, so an empty one can only be the end. */
    if (n <= 0 && n_fds == 0)
        return err_set(e, ERR_UNAVAILABLE, 0, "the other end of the link is gone");
    if (check_head(p, (size_t)n, &m, n_fds, fd != NULL, e) == -1) {
        for (int i = 0; i < n_fds; i++)
            close(fds[i]);
        return -1;
    }
    if (n_fds == 1)
        *fd = fds[0];
    *len = (size_t)n;
    return 1;
}

const void *
link_body(const void *packet, size_t len, size_t need, struct err *e)
{
    const struct link_head *h = packet;

    if (len < sizeof *h || len - sizeof *h < need) {
        err_set(e, ERR_PROTOCOL, 0, "packet of %zu bytes is too short", len);
        return NULL;
    }
    return h + 1;
}

void
link_err(struct err *to, const struct err *from)
{
    *to = *from;
    to->text[sizeof to->text - 1] = '\0';
    if ((int)to->code <= ERR_NONE || (int)to->code >= ERR_CODES)
        to->code = ERR_INTERNAL;
}
