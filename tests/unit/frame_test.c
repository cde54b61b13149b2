/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames however the bytes arrive: cut at each place, all at once, with descriptors that
 * belong to one, to none, or are too many. The socket tests use a real socketpair, because the
 * rules for descriptors are the kernel's.
 */
#include "config.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "proto/frame.h"
#include "tests/test.h"

static void
add(struct frame_out *out, const char *text, int fd)
{
    struct err e;
    size_t mark;

    assert_int_equal(frame_begin(out, &mark, &e), 0);
    assert_int_equal(buf_adds(&out->b, text, &e), 0);
    assert_int_equal(frame_end(out, mark, fd, &e), 0);
}

static void
expect(struct frame_in *in, const char *text)
{
    const uint8_t *p;
    struct err e = {0};
    size_t len;

    if (frame_in_next(in, &p, &len, &e) != 1)
        fail_msg("no '%s': %s", text, e.text);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(p, text, len);
}

static void
expect_none(struct frame_in *in)
{
    const uint8_t *p;
    struct err e;
    size_t len;

    assert_int_equal(frame_in_next(in, &p, &len, &e), 0);
}

static void
expect_broken(struct frame_in *in, const char *says)
{
    const uint8_t *p;
    struct err e = {0};
    size_t len;

    assert_int_equal(frame_in_next(in, &p, &len, &e), -1);
    assert_int_equal(e.code, ERR_PROTOCOL);
    if (strstr(e.text, says) == NULL)
        fail_msg("'%s' lacks '%s'", e.text, says);
}

static int
some_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static bool
is_open(int fd)
{
    return fcntl(fd, F_GETFD) != -1;
}

static void
test_any_two_cuts(void **state)
{
    struct frame_out out;
    struct err e;

    (void)state;
    frame_out_init(&out, 1000);
    add(&out, "one", -1);
    add(&out, "a second one", -1);
    add(&out, "3", -1);
    for (size_t i = 0; i <= out.b.len; i++) {
        for (size_t k = i; k <= out.b.len; k++) {
            const size_t cuts[] = {0, i, k, out.b.len};
            static const char *const texts[] = {"one", "a second one", "3"};
            struct frame_in in;
            const uint8_t *p;
            size_t len, n = 0;

            frame_in_init(&in);
            for (int c = 0; c < 3; c++) {
                assert_int_equal(
                    frame_in_feed(&in, out.b.p + cuts[c], cuts[c + 1] - cuts[c], -1, &e),
                    0);
                while (frame_in_next(&in, &p, &len, &e) == 1) {
                    assert_true(n < 3);
                    assert_int_equal(len, strlen(texts[n]));
                    assert_memory_equal(p, texts[n], len);
                    n++;
                }
            }
            assert_int_equal(n, 3);
            frame_in_done(&in);
        }
    }
    frame_out_done(&out);
}

static void
test_bad_lengths(void **state)
{
    static const struct {
        const char *bytes, *says;
    } cases[] = {{"\0\0\0\0", "frame of 0 bytes"},
                 {"\0\x10\0\1", "frame of 1048577 bytes"},
                 {"\xff\xff\xff\xff", "frame of 4294967295"},
                 {"GET / HTTP/1.1\r\n\r\n", "HTTP"}};
    struct frame_in in;
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        frame_in_init(&in);
        assert_int_equal(frame_in_feed(&in, cases[i].bytes, 4, -1, &e), 0);
        expect_broken(&in, cases[i].says);
        frame_in_done(&in);
    }
    frame_in_init(&in);
    assert_int_equal(frame_in_feed(&in, "\0\x10\0\0", 4, -1, &e), 0);
    expect_none(&in); /* the largest one, still to come */
    frame_in_done(&in);
}

static void
test_out_keeps_its_cap(void **state)
{
    struct frame_out out;
    struct err e = {0};
    size_t mark;

    (void)state;
    frame_out_init(&out, 20);
    add(&out, "0123456789", -1);
    assert_int_equal(frame_begin(&out, &mark, &e), 0);
    assert_int_equal(buf_adds(&out.b, "0123456789", &e), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    frame_abort(&out, mark);
    assert_int_equal(frame_out_waiting(&out), 14);
    frame_out_done(&out);

    frame_out_init(&out, 4 << 20);
    assert_int_equal(frame_begin(&out, &mark, &e), 0);
    assert_int_equal(buf_reserve(&out.b, FRAME_MAX + 1, &e), 0);
    memset(out.b.p + out.b.len, 0, FRAME_MAX + 1);
    out.b.len += FRAME_MAX + 1;
    assert_int_equal(frame_end(&out, mark, -1, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_int_equal(frame_out_waiting(&out), 0);
    frame_out_done(&out);
}

/* Sends all, receives all, through a pair whose buffers are small. */
static void
test_through_a_socket(void **state)
{
    enum { N = 50 };

    static char text[N][40000];
    struct frame_out out;
    struct frame_in in;
    int pair[2], n = 0, r, small = 8192;
    struct err e = {0};
    const uint8_t *p;
    size_t len;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    frame_out_init(&out, 4 << 20);
    frame_in_init(&in);
    for (int i = 0; i < N; i++) {
        memset(text[i], 'a' + i % 26, (size_t)(i * 797 % 39999 + 1));
        add(&out, text[i], i % 7 == 0 && i < 28 ? some_fd() : -1);
    }
    while (n < N) {
        assert_int_not_equal(frame_out_send(&out, pair[0], &e), -1);
        r = frame_in_recv(&in, pair[1], &e);
        assert_int_not_equal(r, -1);
        while (frame_in_next(&in, &p, &len, &e) == 1) {
            const bool declared = n % 7 == 0 && n < 28;
            const int fd = declared ? frame_in_take_fd(&in) : -1;

            assert_int_equal(len, strlen(text[n]));
            assert_memory_equal(p, text[n], len);
            assert_int_equal(fd != -1, declared);
            if (fd != -1) {
                assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
                close(fd);
            }
            n++;
        }
    }
    assert_int_equal(frame_in_recv(&in, pair[1], &e), 0);
    close(pair[0]);
    assert_int_equal(frame_in_recv(&in, pair[1], &e), -1);
    assert_int_equal(e.code, ERR_UNAVAILABLE);
    close(pair[1]);
    frame_out_done(&out);
    frame_in_done(&in);
}

static void
test_end_within_a_frame(void **state)
{
    struct frame_in in;
    struct err e = {0};
    int pair[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    frame_in_init(&in);
    assert_int_equal(write(pair[0], "\0\0\0\5ab", 6), 6);
    close(pair[0]);
    assert_int_equal(frame_in_recv(&in, pair[1], &e), 1);
    expect_none(&in);
    assert_int_equal(frame_in_recv(&in, pair[1], &e), -1);
    assert_int_equal(e.code, ERR_PROTOCOL);
    close(pair[1]);
    frame_in_done(&in);
}

static void
test_undeclared_descriptor(void **state)
{
    struct frame_in in;
    int fd = some_fd();
    struct err e;

    (void)state;
    frame_in_init(&in);
    assert_int_equal(frame_in_feed(&in, "\0\0\0\1a\0\0\0\1b", 10, -1, &e), 0);
    assert_int_equal(frame_in_feed(&in, "\0\0\0\1c", 5, fd, &e), 0);
    expect(&in, "a");
    assert_int_equal(frame_in_take_fd(&in), -1); /* not for this one */
    expect(&in, "b");
    expect(&in, "c");
    expect_broken(&in, "descriptor");
    assert_true(is_open(fd));
    frame_in_done(&in);
    assert_false(is_open(fd));

    /* The same, taken: no error. */
    frame_in_init(&in);
    fd = some_fd();
    assert_int_equal(frame_in_feed(&in, "\0\0\0\1c", 5, fd, &e), 0);
    expect(&in, "c");
    assert_int_equal(frame_in_take_fd(&in), fd);
    assert_int_equal(frame_in_take_fd(&in), -1);
    expect_none(&in);
    close(fd);
    frame_in_done(&in);
}

/* On the tail of a frame, in one read with the next one: only that one may take it. */
static void
test_descriptor_with_two_frames(void **state)
{
    struct frame_in in;
    int fd = some_fd();
    struct err e;

    (void)state;
    frame_in_init(&in);
    assert_int_equal(frame_in_feed(&in, "\0\0\0\3a", 5, -1, &e), 0);
    expect_none(&in);
    assert_int_equal(frame_in_feed(&in, "aa\0\0\0\2b", 7, fd, &e), 0);
    expect(&in, "aaa");
    expect_none(&in); /* might still be the next one's */
    assert_int_equal(frame_in_feed(&in, "b", 1, -1, &e), 0);
    expect(&in, "bb");
    assert_int_equal(frame_in_take_fd(&in), fd);
    close(fd);
    frame_in_done(&in);
}

static void
send_fds(int sock, const char *bytes, const int *fds, size_t n)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(16 * sizeof(int))];
    } control = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, 5};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = CMSG_SPACE(n * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    assert_int_equal(sendmsg(sock, &m, 0), 5);
}

static int
count_fds(void)
{
    int n = 0;

    for (int i = 0; i < 256; i++)
        n += is_open(i);
    return n;
}

/* Two in one message, and so many that the kernel cuts the list: refused, none leaked. */
static void
test_too_many_descriptors(void **state)
{
    const int fd = some_fd();
    int fds[16], pair[2];
    struct frame_in in;
    struct err e = {0};

    (void)state;
    for (int i = 0; i < 16; i++)
        fds[i] = fd;
    for (size_t n = 2; n <= 16; n += 7) {
        const int before = count_fds();

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        frame_in_init(&in);
        send_fds(pair[0], "\0\0\0\1a", fds, n);
        assert_int_equal(frame_in_recv(&in, pair[1], &e), -1);
        assert_int_equal(e.code, ERR_PROTOCOL);
        frame_in_done(&in);
        close(pair[0]);
        close(pair[1]);
        assert_int_equal(count_fds(), before);
    }

    /* Five waiting for their frames. */
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    frame_in_init(&in);
    for (int i = 0; i < FRAME_MAX_FDS + 1; i++)
        assert_int_equal(frame_in_feed(&in, "\0", 1, dup(fd), &e),
                         i < FRAME_MAX_FDS ? 0 : -1);
    assert_int_equal(e.code, ERR_PROTOCOL);
    frame_in_done(&in);
    close(pair[0]);
    close(pair[1]);
    close(fd);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_two_cuts),
        cmocka_unit_test(test_bad_lengths),
        cmocka_unit_test(test_out_keeps_its_cap),
        cmocka_unit_test(test_through_a_socket),
        cmocka_unit_test(test_end_within_a_frame),
        cmocka_unit_test(test_undeclared_descriptor),
        cmocka_unit_test(test_descriptor_with_two_frames),
        cmocka_unit_test(test_too_many_descriptors),
    };

    return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
