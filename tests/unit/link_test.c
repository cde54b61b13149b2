/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The link's packets: what arrives is what was sent, what is malformed is refused by name, and
 * no descriptor stays behind. Bad packets are made with sendmsg itself, as a broken peer would.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "proto/link.h"
#include "tests/test.h"

static union link_packet packet;

struct ends {
    int us, them;
};

static int
setup(void **state)
{
    static struct ends ends;
    struct err e;
    int sock[2];

    if (link_pair(sock, &e) == -1)
        return -1;
    ends = (struct ends){sock[0], sock[1]};
    *state = &ends;
    return 0;
}

static int
teardown(void **state)
{
    struct ends *s = *state;

    if (s->us != -1)
        close(s->us);
    if (s->them != -1)
        close(s->them);
    return 0;
}

/* The lowest free descriptor: the same before and after if none was left open. */
static int
next_fd(void)
{
    int fd = dup(0);

    assert_true(fd >= 0);
    close(fd);
    return fd;
}

/* As a peer without link_send would: any bytes, any descriptors. */
static void
send_raw(int sock, const void *p, size_t len, const int *fds, size_t n_fds)
{
    struct iovec iov = {.iov_base = (void *)p, .iov_len = len};
    char control[CMSG_SPACE(8 * sizeof(int))] = {0};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n_fds > 0) {
        struct cmsghdr *c;

        m.msg_control = control;
        m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    assert_int_equal(sendmsg(sock, &m, 0), len);
}

static void
test_a_packet_arrives_whole(void **state)
{
    struct ends *s = *state;
    struct link_head h = {.type = LINK_FEED, .seq = 3, .job = 77};
    struct link_feed f = {.pos = 12, .n = 3};
    const uint32_t tokens[3] = {5, 6, 7};
    const struct iovec iov[2] = {{&f, sizeof f}, {(void *)tokens, sizeof tokens}};
    const struct link_feed *got;
    struct err e;
    size_t len;
    int fd = 99;

    assert_int_equal(link_recv(s->them, &packet, &len, &fd, &e), 0);
    assert_int_equal(link_send(s->us, &h, iov, 2, -1, &e), 0);
    assert_int_equal(link_recv(s->them, &packet, &len, &fd, &e), 1);
    assert_int_equal(len, sizeof h + sizeof f + sizeof tokens);
    assert_int_equal(fd, -1);
    assert_memory_equal(&packet.head, &h, sizeof h);
    got = link_body(&packet, len, sizeof f + sizeof tokens, &e);
    assert_memory_equal(got, &f, sizeof f);
    assert_memory_equal(got + 1, tokens, sizeof tokens);

    assert_null(link_body(&packet, len, sizeof f + sizeof tokens + 1, &e));
    assert_int_equal(e.code, ERR_PROTOCOL);
    assert_null(link_body(&packet, 3, 0, &e));
}

static void
test_a_descriptor_comes_along(void **state)
{
    struct ends *s = *state;
    struct link_head h = {.type = LINK_LOGITS, .seq = 1, .job = 2};
    const int before = next_fd();
    struct err e;
    size_t len;
    char text[5] = "";
    int fd, mem = memfd_create("row", MFD_CLOEXEC);

    assert_int_equal(pwrite(mem, "abcd", 4, 0), 4);
    assert_int_equal(link_send(s->us, &h, NULL, 0, mem, &e), 0);
    close(mem);
    assert_int_equal(link_recv(s->them, &packet, &len, &fd, &e), 1);
    assert_true(fd >= 0);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(pread(fd, text, 4, 0), 4);
    assert_string_equal(text, "abcd");
    close(fd);
    assert_int_equal(next_fd(), before);
}

static void
test_bad_packets_are_refused(void **state)
{
    struct ends *s = *state;

    static const struct {
        const char *name;
        struct link_head head;
        size_t len;
        int n_fds, no_fd_wanted;
    } cases[] = {
        {"older version", {LINK_VERSION - 1, LINK_CLOSE, 16, 0, 1}, 16, 0, 0},
        {"claims more", {LINK_VERSION, LINK_CLOSE, 17, 0, 1}, 16, 0, 0},
        {"claims less", {LINK_VERSION, LINK_CLOSE, 16, 0, 1}, 24, 0, 0},
        {"half a head", {LINK_VERSION, LINK_CLOSE, 8, 0, 1}, 8, 0, 0},
        {"too long",
         {LINK_VERSION, LINK_CLOSE, LINK_MAX_PACKET + 1, 0, 1},
         LINK_MAX_PACKET + 1,
         0,
         0},
        {"too long, says not",
         {LINK_VERSION, LINK_CLOSE, LINK_MAX_PACKET, 0, 1},
         LINK_MAX_PACKET + 1,
         0,
         0},
        {"descriptor where none belongs", {LINK_VERSION, LINK_CLOSE, 16, 0, 1}, 16, 1, 0},
        {"two descriptors", {LINK_VERSION, LINK_LOGITS, 16, 0, 1}, 16, 2, 0},
        {"eight descriptors", {LINK_VERSION, LINK_LOGITS, 16, 0, 1}, 16, 8, 0},
        {"descriptor nobody asked for", {LINK_VERSION, LINK_LOGITS, 16, 0, 1}, 16, 1, 1},
        {"bad head with descriptor", {99, LINK_LOGITS, 16, 0, 1}, 16, 1, 0},
        {"too long with descriptor",
         {LINK_VERSION, LINK_LOGITS, 16, 0, 1},
         LINK_MAX_PACKET + 1,
         1,
         0},
    };

    static uint8_t bytes[LINK_MAX_PACKET + 1];
    const int fds[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    const struct link_head good = {LINK_VERSION, LINK_CLOSE, 16, 4, 5};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int before = next_fd();
        struct err e = {0};
        size_t len;
        int fd, r;

        memcpy(bytes, &cases[i].head, sizeof cases[i].head);
        send_raw(s->us, bytes, cases[i].len, fds, (size_t)cases[i].n_fds);
        send_raw(s->us, &good, sizeof good, NULL, 0);
        r = link_recv(s->them, &packet, &len, cases[i].no_fd_wanted ? NULL : &fd, &e);
        if (r != -1 || e.code != ERR_PROTOCOL)
            fail_msg("%s: %d, code %d %s", cases[i].name, r, e.code, e.text);
        if (next_fd() != before)
            fail_msg("%s: a descriptor stayed open", cases[i].name);
        /* The bad one is gone, the one behind it is not. */
        if (link_recv(s->them, &packet, &len, &fd, &e) != 1 || packet.head.job != 5)
            fail_msg("%s: the next packet is lost: %s", cases[i].name, e.text);
    }
}

static void
test_full_and_gone_are_told_apart(void **state)
{
    struct ends *s = *state;
    static const uint8_t zeros[LINK_MAX_PACKET];
    struct link_head h = {.type = LINK_FED, .seq = 1, .job = 2};
    struct iovec iov = {(void *)zeros, LINK_MAX_PACKET - sizeof h};
    struct err e;
    size_t len;
    int fd, n = 0, got = 0;

    while (link_send(s->us, &h, &iov, 1, -1, &e) == 0)
        assert_in_range(++n, 1, 10000);
    assert_int_equal(e.code, ERR_BUSY);
    assert_true(n > 0);
    assert_int_equal(link_recv(s->them, &packet, &len, &fd, &e), 1);
    assert_int_equal(len, LINK_MAX_PACKET);
    assert_int_equal(link_send(s->us, &h, &iov, 1, -1, &e), 0);

    /* What was sent before the end is still read. */
    close(s->us);
    s->us = -1;
    while (link_recv(s->them, &packet, &len, &fd, &e) == 1)
        got++;
    assert_int_equal(got, n);
    assert_int_equal(e.code, ERR_UNAVAILABLE);
    assert_int_equal(link_send(s->them, &h, NULL, 0, -1, &e), -1);
    assert_int_equal(e.code, ERR_UNAVAILABLE);
}

static void
test_what_cannot_be_sent(void **state)
{
    struct ends *s = *state;
    static const uint8_t zeros[LINK_MAX_PACKET];
    struct link_head h = {.type = LINK_FED};
    const struct iovec iov[LINK_MAX_IOV + 1] = {{(void *)zeros, LINK_MAX_PACKET}};
    const struct iovec huge[2] = {{(void *)zeros, 8}, {(void *)zeros, SIZE_MAX - 4}};
    struct err e;

    assert_int_equal(link_send(s->us, &h, iov, 1, -1, &e), -1);
    assert_int_equal(e.code, ERR_INTERNAL);
    assert_int_equal(link_send(s->us, &h, iov, LINK_MAX_IOV + 1, -1, &e), -1);
    assert_int_equal(link_send(s->us, &h, huge, 2, -1, &e), -1);
}

static void
test_an_error_from_the_peer_is_made_safe(void **state)
{
    struct err bad, e;

    (void)state;
    memset(&bad, 'x', sizeof bad);
    link_err(&e, &bad);
    assert_int_equal(e.code, ERR_INTERNAL);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    err_set(&bad, ERR_QUOTA, 0, "full");
    link_err(&e, &bad);
    assert_int_equal(e.code, ERR_QUOTA);
    assert_string_equal(e.text, "full");
}

int
main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_a_packet_arrives_whole),
        T(test_a_descriptor_comes_along),
        T(test_bad_packets_are_refused),
        T(test_full_and_gone_are_told_apart),
        T(test_what_cannot_be_sent),
        cmocka_unit_test(test_an_error_from_the_peer_is_made_safe),
    };
#undef T

    return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
