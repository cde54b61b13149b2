/* SPDX-License-Identifier: Apache-2.0 */
/*
 * talk: fathomd's protocol by hand, for shell tests.
 *
 *   talk [-n] [-u UID] SOCKET < lines
 *
 * -u: as that user, in the group of the same number and no other. -n: no hello by itself.
 * Each line is a request, `method key=value key=value ...`, sent and waited for before the next.
 * %XX stands for a byte. text=@FILE is a file's bytes; document=@FILE a sealed memfd of them,
 * document=!FILE one that is not sealed; tokens, ban and stop_tokens are numbers with commas;
 * stop is strings with commas.
 * The answer is one line: `ok key=value ...` or `error NAME key=value ...`, in front of it a
 * line `item key=value ...` for each item of a stream. Lines with other meanings:
 *
 *   cancel-after N   the next request is cancelled after N items of its stream
 *   quit-after N     the connection is dropped after N items of the next request
 *   burst N          the next N requests are sent at once, their answers come as they come
 *   credit N         sent after each item of the next requests
 *   raw HEX          bytes straight to the socket; then what the daemon says until it closes or is silent
 *   crowd N          opens N more connections and counts those that are told to go
 *   flood REQUEST    sends it again and again and reads nothing, until the daemon takes no more
 *   sleep MS
 */
#include "config.h"

#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "proto/frame.h"
#include "proto/wire.h"

enum {
    LINE_BYTES = 4 << 20,
    BODY_BYTES = 4096,
    WAIT_MS = 120000,
    RAW_MS = 1500,
    KEPT = 64,
    BURST = 64,
    FILE_MAX = 1 << 28
};

static struct {
    int fd;
    struct frame_in in;
    struct frame_out out;
    uint32_t next_id;
    struct sockaddr_un address;
    int patience; /* milliseconds */
    long cancel_after, quit_after, credit, burst;
    const struct wire_method *asked[BURST]; /* by id */
    char *kept[KEPT];                       /* what values point to */
    int n_kept;
} t;

static _Noreturn void
die(const char *what)
{
    printf("dead %s\n", what);
    fflush(stdout);
    exit(1);
}

static char *
keep(char *p)
{
    if (p == NULL || t.n_kept == KEPT)
        die("no memory");
    t.kept[t.n_kept++] = p;
    return p;
}

/* --- values in ---------------------------------------------------------------------------- */

static size_t
unescape(char *s)
{
    char *out = s;

    for (const char *p = s; *p != '\0'; p++) {
        unsigned byte;

        if (*p == '%' && sscanf(p + 1, "%2x", &byte) == 1) {
            *out++ = (char)byte;
            p += 2;
        } else {
            *out++ = *p;
        }
    }
    *out = '\0';
    return (size_t)(out - s);
}

static int
make_memfd(const char *path, bool seal)
{
    struct err e;
    size_t len;
    char *p = file_read(path, FILE_MAX, &len, &e);
    const int fd = memfd_create("talk", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (p == NULL || fd == -1 || write(fd, p, len) != (ssize_t)len)
        die("document");
    if (seal && fcntl(fd, F_ADD_SEALS,
                      F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == -1)
        die("seal");
    free(p);
    return fd;
}

static struct wire_bin
read_bin(const char *key, char *value)
{
    uint32_t *ids;
    size_t n = 0;

    if (strcmp(key, "tokens") != 0 && strcmp(key, "ban") != 0 &&
        strcmp(key, "stop_tokens") != 0)
        return wire_bin(value, unescape(value));
    ids = (uint32_t *)(void *)keep(malloc((strlen(value) + 2) * sizeof *ids));
    for (char *save, *w = strtok_r(value, ",", &save); w != NULL;
         w = strtok_r(NULL, ",", &save))
        ids[n++] = htole32((uint32_t)strtoul(w, NULL, 10));
    return wire_bin(ids, n * sizeof *ids);
}

static struct wire_str
read_str(char *value)
{
    struct err e;
    size_t len;

    if (value[0] != '@')
        return wire_strn(value, unescape(value));
    value = file_read(value + 1, FILE_MAX, &len, &e);
    return wire_strn(keep(value), len);
}

static void
set_field(uint8_t *body, const struct wire_message *m, const char *key, char *value)
{
    for (uint32_t i = 0; i < m->n_fields; i++) {
        const struct wire_field *f = &m->fields[i];
        void *at = body + f->offset;

        if (strcmp(f->key, key) != 0)
            continue;
        *(uint64_t *)(void *)body |= UINT64_C(1) << i;
        switch (f->type) {
        case WIRE_TYPE_str:
        case WIRE_TYPE_text: *(struct wire_str *)at = read_str(value); break;
        case WIRE_TYPE_bin: *(struct wire_bin *)at = read_bin(key, value); break;
        case WIRE_TYPE_u64: *(uint64_t *)at = strtoull(value, NULL, 0); break;
        case WIRE_TYPE_f64: *(double *)at = strtod(value, NULL); break;
        case WIRE_TYPE_flag: *(bool *)at = value[0] == '1'; break;
        case WIRE_TYPE_fd: *(int *)at = make_memfd(value + 1, value[0] == '@'); break;
        case WIRE_TYPE_strs: {
            struct wire_strs *s = at;

            s->v = (struct wire_str *)(void *)keep(calloc(64, sizeof *s->v));
            for (char *save, *w = strtok_r(value, ",", &save); w != NULL && s->n < 64;
                 w = strtok_r(NULL, ",", &save))
                s->v[s->n++] = read_str(w);
            break;
        }
        default: die("a key of this type cannot be given");
        }
        return;
    }
    die(key);
}

/* --- values out --------------------------------------------------------------------------- */

static void
put_bytes(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)p[i];

        if (c > ' ' && c != '%' && c != 0x7f)
            putchar(c);
        else
            printf("%%%02x", c);
    }
}

static void put_struct(const struct wire_message *m, const uint8_t *body, char sep);

static void
put_bin(const char *key, struct wire_bin b)
{
    if (strcmp(key, "tokens") != 0 && strcmp(key, "logprobs") != 0) {
        for (uint32_t i = 0; i < b.len; i++)
            printf("%02x", b.p[i]);
        return;
    }
    for (uint32_t i = 0; i + 4 <= b.len; i += 4) {
        uint32_t bits;
        float f;

        memcpy(&bits, b.p + i, 4);
        bits = le32toh(bits);
        memcpy(&f, &bits, 4);
        if (i > 0)
            putchar(',');
        if (key[0] == 't')
            printf("%" PRIu32, bits);
        else
            printf("%g", (double)f);
    }
}

static void
put_fd(int fd)
{
    struct stat st;
    float best = 0, f;
    uint32_t at = 0;

    if (fstat(fd, &st) == -1)
        die("descriptor");
    for (uint32_t i = 0; pread(fd, &f, sizeof f, (off_t)(i * sizeof f)) == sizeof f; i++) {
        if (i == 0 || f > best) {
            best = f;
            at = i;
        }
    }
    printf("%lld-bytes,best-%" PRIu32, (long long)st.st_size, at);
    close(fd);
}

static void
put_field(const struct wire_field *f, const uint8_t *at)
{
    const struct wire_str *s = (const void *)at;
    const struct wire_strs *strs = (const void *)at;

    switch (f->type) {
    case WIRE_TYPE_str:
    case WIRE_TYPE_text: put_bytes(s->p, s->len); break;
    case WIRE_TYPE_bin: put_bin(f->key, *(const struct wire_bin *)(const void *)at); break;
    case WIRE_TYPE_u64: printf("%" PRIu64, *(const uint64_t *)(const void *)at); break;
    case WIRE_TYPE_f64: printf("%g", *(const double *)(const void *)at); break;
    case WIRE_TYPE_flag: printf("%d", *(const bool *)at); break;
    case WIRE_TYPE_fd: put_fd(*(const int *)(const void *)at); break;
    case WIRE_TYPE_strs:
        for (uint32_t i = 0; i < strs->n; i++) {
            put_bytes(strs->v[i].p, strs->v[i].len);
            putchar(',');
        }
        break;
    case WIRE_TYPE_list: {
        const struct {
            uint8_t *v;
            uint32_t n;
        } *list = (const void *)at;

        for (uint32_t i = 0; i < list->n; i++) {
            putchar('{');
            put_struct(f->item, list->v + i * f->item->size, ';');
            putchar('}');
        }
        break;
    }
    default: break;
    }
}

static void
put_struct(const struct wire_message *m, const uint8_t *body, char sep)
{
    uint64_t has;
    bool first = true;

    memcpy(&has, body, sizeof has);
    for (uint32_t i = 0; i < m->n_fields; i++) {
        if ((has >> i & 1) == 0)
            continue;
        if (!first)
            putchar(sep);
        first = false;
        printf("%s=", m->fields[i].key);
        put_field(&m->fields[i], body + m->fields[i].offset);
    }
}

/* --- the conversation --------------------------------------------------------------------- */

static void
send_out(void)
{
    struct err e;
    struct pollfd p = {.fd = t.fd, .events = POLLOUT};

    while (frame_out_waiting(&t.out) > 0) {
        const int rc = frame_out_send(&t.out, t.fd, &e);

        if (rc == -1)
            die("cannot send");
        if (rc == 0 && poll(&p, 1, WAIT_MS) != 1)
            die("cannot send for long");
    }
}

/* The next frame, or the end. */
static void
receive(const uint8_t **p, size_t *len)
{
    struct pollfd in = {.fd = t.fd, .events = POLLIN};
    struct err e;

    for (;;) {
        int rc = frame_in_next(&t.in, p, len, &e);

        if (rc == 1)
            return;
        if (rc == -1)
            die(e.text);
        if (poll(&in, 1, t.patience) != 1)
            die("no answer");
        if (frame_in_recv(&t.in, t.fd, &e) == -1)
            die("closed");
    }
}

static void
show_body(struct wire_in *in, const struct wire_message *m)
{
    _Alignas(max_align_t) uint8_t body[BODY_BYTES] = {0};
    struct err e;

    if (m->size > sizeof body || wire_decode(in, m, body, NULL, &e) == -1)
        die(e.text);
    put_struct(m, body, ' ');
    putchar('\n');
}

static void
show_error(struct wire_in *in, const char *word)
{
    struct wire_error w = {0};
    struct err e;

    if (wire_decode(in, WIRE_MSG(error), &w, NULL, &e) == -1)
        die(e.text);
    printf("%s %.*s ", word, (int)w.name.len, w.name.p);
    put_struct(WIRE_MSG(error), (const uint8_t *)&w, ' ');
    putchar('\n');
}

static void
show_items(struct wire_in *in, const struct wire_message *m)
{
    for (uint32_t i = 0; i < in->n_items; i++) {
        _Alignas(max_align_t) uint8_t body[BODY_BYTES] = {0};
        struct err e;

        if (wire_decode_item(in, i, m, body, &e) == -1)
            die(e.text);
        printf("item ");
        put_struct(m, body, ' ');
        putchar('\n');
        if (t.cancel_after > 0 && --t.cancel_after == 0)
            wire_cancel(&t.out, in->id, &e);
        if (t.quit_after > 0 && --t.quit_after == 0) {
            fflush(stdout);
            _exit(0);
        }
        if (t.credit > 0)
            wire_credit(&t.out, in->id, (uint32_t)t.credit, &e);
    }
    fflush(stdout); /* a script may wait for it */
    send_out();
}

static bool
show_answer(struct wire_in *in, const struct wire_method *method)
{
    if (in->failed) {
        show_error(in, "error");
    } else {
        printf("ok ");
        show_body(in, method->result);
    }
    return true;
}

/* Until the answer to `id`. */
static void
listen_for(uint32_t id, const struct wire_method *method)
{
    bool over = false;

    while (!over) {
        const uint8_t *p;
        size_t len;
        struct wire_in in;
        struct err e;

        receive(&p, &len);
        if (wire_open(&in, &t.in, p, len, &e) == -1)
            die(e.text);
        if (in.shape == WIRE_NOTIFY) {
            show_error(&in, "bye");
        } else if (in.shape == WIRE_STREAM && in.id == id) {
            show_items(&in, method->item);
        } else if (in.shape == WIRE_RESPONSE && in.id == id) {
            over = show_answer(&in, method);
        }
        wire_close(&in);
    }
    fflush(stdout);
}

static const struct wire_method *
queue_request(char *line, uint32_t id)
{
    _Alignas(max_align_t) uint8_t body[BODY_BYTES] = {0};
    char *save, *name = strtok_r(line, " ", &save), *word;
    const struct wire_method *m = wire_find(wire_str(name));
    struct err e;

    if (m == NULL)
        die("no such method");
    while ((word = strtok_r(NULL, " ", &save)) != NULL) {
        char *value = strchr(word, '=');

        if (value == NULL)
            die(word);
        *value++ = '\0';
        set_field(body, m->request, word, value);
    }
    if (wire_request(&t.out, id, (enum wire_method_id)(m - wire_methods), body, &e) == -1)
        die(e.text);
    return m;
}

static void
request(char *line)
{
    const uint32_t id = ++t.next_id;
    const struct wire_method *m = queue_request(line, id);

    send_out();
    listen_for(id, m);
}

/* The answers of all n requests up to this one. */
static void
burst(char *line)
{
    const uint32_t id = ++t.next_id;
    static uint32_t first;

    if (first == 0)
        first = id;
    if (id - first >= BURST)
        die("a burst of too many");
    t.asked[id - first] = queue_request(line, id);
    if (--t.burst > 0)
        return;
    send_out();
    for (uint32_t left = id - first + 1; left > 0;) {
        const uint8_t *p;
        size_t len;
        struct wire_in in;
        struct err e;

        receive(&p, &len);
        if (wire_open(&in, &t.in, p, len, &e) == -1)
            die(e.text);
        if (in.id < first || in.id > id || in.shape == WIRE_NOTIFY)
            die("an answer to nothing");
        if (in.shape == WIRE_STREAM)
            show_items(&in, t.asked[in.id - first]->item);
        else
            left -= show_answer(&in, t.asked[in.id - first]);
        wire_close(&in);
    }
    first = 0;
    fflush(stdout);
}

static void
raw(const char *hex)
{
    uint8_t byte;
    const uint8_t *p;
    size_t len;

    for (; sscanf(hex, "%2hhx", &byte) == 1; hex += 2) {
        if (send(t.fd, &byte, 1, MSG_NOSIGNAL) != 1)
            break;
    }
    /* hello's answer and one more may take their time; then it has said all, if not closed. */
    for (int n = 0;; n++) {
        struct wire_in in;
        struct err e;

        if (n == 2)
            t.patience = RAW_MS;
        receive(&p, &len);
        if (wire_open(&in, &t.in, p, len, &e) == -1)
            die(e.text);
        if (in.shape == WIRE_RESPONSE && !in.failed)
            puts("ok");
        else
            show_error(&in, in.shape == WIRE_NOTIFY ? "bye" : "error");
        wire_close(&in);
    }
}

static int
dial_one(void)
{
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd == -1 ||
        connect(fd, (const struct sockaddr *)&t.address, sizeof t.address) == -1)
        die(strerror(errno));
    return fd;
}

/* Each is let in (and hears nothing) or told why not. */
static void
crowd(long n)
{
    int *fds = calloc((size_t)n, sizeof *fds);
    struct pollfd last = {.events = POLLIN};
    long in = 0, out = 0;
    char byte;

    for (long i = 0; fds != NULL && i < n; i++)
        fds[i] = dial_one();
    /* They are accepted in order: when the last one has been told, all have. */
    last.fd = fds != NULL && n > 0 ? fds[n - 1] : -1;
    if (poll(&last, 1, WAIT_MS) != 1)
        die("the last of the crowd was let in");
    for (long i = 0; fds != NULL && i < n; i++) {
        if (recv(fds[i], &byte, 1, MSG_DONTWAIT) == 1)
            out++;
        else
            in++;
        close(fds[i]);
    }
    free(fds);
    printf("crowd in=%ld out=%ld\n", in, out);
    fflush(stdout);
}

static void
flood(const char *line)
{
    struct pollfd p = {.fd = t.fd, .events = POLLOUT};
    char copy[4096];
    long sent = 0;
    struct err e;

    for (;;) {
        snprintf(copy, sizeof copy, "%s", line);
        queue_request(copy, ++t.next_id);
        sent++;
        if (frame_out_send(&t.out, t.fd, &e) != 1 && poll(&p, 1, 1000) != 1)
            break;
    }
    printf("flood sent=%ld\n", sent);
    fflush(stdout);
    _exit(0);
}

static void
run_line(char *line)
{
    char *arg = strchr(line, ' ');
    const long n = arg != NULL ? strtol(arg, NULL, 10) : 0;

    if (strncmp(line, "cancel-after ", 13) == 0)
        t.cancel_after = n;
    else if (strncmp(line, "quit-after ", 11) == 0)
        t.quit_after = n;
    else if (strncmp(line, "credit ", 7) == 0)
        t.credit = n;
    else if (strncmp(line, "sleep ", 6) == 0)
        nanosleep(&(struct timespec){n / 1000, n % 1000 * 1000000}, NULL);
    else if (strncmp(line, "crowd ", 6) == 0)
        crowd(n);
    else if (strncmp(line, "flood ", 6) == 0)
        flood(line + 6);
    else if (strncmp(line, "raw ", 4) == 0)
        raw(line + 4);
    else if (strncmp(line, "burst ", 6) == 0)
        t.burst = n;
    else if (line[0] != '\0' && t.burst > 0)
        burst(line);
    else if (line[0] != '\0')
        request(line);
    while (t.n_kept > 0)
        free(t.kept[--t.n_kept]);
}

static void
dial(const char *path)
{
    t.address.sun_family = AF_UNIX;
    snprintf(t.address.sun_path, sizeof t.address.sun_path, "%s", path);
    t.fd = dial_one();
    frame_in_init(&t.in);
    frame_out_init(&t.out, 64 << 20);
}

int
main(int argc, char **argv)
{
    static char line[LINE_BYTES];
    char hello[] = "hello proto_min=1 proto_max=1 client=talk";
    bool greeted = false;
    int c;

    t.patience = WAIT_MS;
    while ((c = getopt(argc, argv, "u:n")) != -1) {
        if (c == 'u' && setgroups(0, NULL) == -1)
            die("setgroups");
        if (c == 'u' && setgid((gid_t)strtoul(optarg, NULL, 10)) == -1)
            die("setgid");
        if (c == 'u' && setuid((uid_t)strtoul(optarg, NULL, 10)) == -1)
            die("setuid");
        if (c == 'n')
            greeted = true; /* no hello by itself */
    }
    if (optind + 1 != argc)
        die("usage: talk [-n] [-u UID] SOCKET");
    dial(argv[optind]);
    if (!greeted)
        request(hello);
    while (fgets(line, LINE_BYTES, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        run_line(line);
    }
    close(t.fd);
    frame_in_done(&t.in);
    frame_out_done(&t.out);
    return 0;
}
