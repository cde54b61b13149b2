/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a crash can have done to a write-ahead log, and what it cannot: see wal.h. The format is
 * SQLite's (fileformat2.html, 4): a head of 32 bytes, then frames of 24 bytes and a page. Each frame
 * has two numbers, the salts, that are the log's since it was last begun anew, and a checksum of
 * all frames up to it. A commit is the last frame of a transaction; SQLite writes it once more, as often as
 * it takes to fill the sector (padding).
 *
 * The checksum is a linear one, mod 2^32: what one bit adds to it depends on its place alone, so
 * which bit it was can be told from the difference, without trying. Of the higher bits of a word not
 * always: then it is known that it was one bit, which no power cut does, but not which. That 64 bits
 * match by accident is ruled out as well as that a damaged frame does. A torn frame in which exactly
 * one bit is still the old one is mended too, which makes the commit whole that was being written: as
 * good as torn.
 *
 * Why a pair of frames proves that a commit was synced: a frame's checksum begins with that of the
 * frame before it. Whoever wrote a frame behind a commit (its padding aside) had been told by SQLite
 * that the commit was on the disk; a commit that failed is overwritten, and what was behind it then
 * does not follow from what is there now. Any thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/wal.h"

enum {
    HEAD = 32,
    HEAD_SUMMED = 24, /* of these bytes the sum behind them is */
    SALTS = 16,       /* in the head; eight bytes */
    FRAME_HEAD = 24,
    FRAME_SALTS = 8,
    FRAME_SUM = 16,
    FRAME_SUMMED = 8, /* of the frame's head: page number, size if it is a commit */
    PAGE = 4096,
    FRAME = FRAME_HEAD + PAGE,
    AT_ONCE = 64,           /* frames */
    LOG_MAGIC = 0x377f0682, /* sums of little-endian words */
    LOG_VERSION = 3007000,
    WITNESS = 32,
};

/* Behind the last frame. Less than one, so that SQLite never looks at it. */
struct witness {
    uint8_t magic[8];
    uint64_t frames; /* that were synced */
    uint8_t salts[8];
    uint64_t hash; /* XXH3-64 of what is before */
};

static_assert(sizeof(struct witness) == WITNESS, "no padding");
static const uint8_t witness_magic[8] = {'F', 'W', 'I', 'T', '\r', '\n', 0x1a, '\n'};

struct sum {
    uint32_t a, b;
};

struct look {
    struct io *io;
    int h;
    uint64_t n_frames;
    uint64_t first, have; /* frames in the buffer */
    uint8_t *buffer;      /* [AT_ONCE * FRAME] */
    uint8_t salts[8];
    struct wal_found *out;
    struct err *e;
};

static uint32_t
word_le(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
           (uint32_t)p[3] << 24;
}

static uint32_t
word_be(const uint8_t *p)
{
    return (uint32_t)p[3] | (uint32_t)p[2] << 8 | (uint32_t)p[1] << 16 |
           (uint32_t)p[0] << 24;
}

static void
put_be(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static struct sum
add(struct sum s, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        s.a += word_le(p + i) + s.b;
        s.b += word_le(p + i + 4) + s.a;
    }
    return s;
}

static struct sum
stored(const uint8_t *p)
{
    return (struct sum){word_be(p), word_be(p + 4)};
}

static bool
same(struct sum x, struct sum y)
{
    return x.a == y.a && x.b == y.b;
}

static bool
one_bit(uint64_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

static bool
one_bit_off(struct sum x, struct sum y)
{
    return one_bit((uint64_t)(x.a ^ y.a) << 32 | (x.b ^ y.b));
}

/* What summing a frame's bytes in order gives. */
static struct sum
frame_sum(struct sum before, const uint8_t *f)
{
    return add(add(before, f, FRAME_SUMMED), f + FRAME_HEAD, PAGE);
}

/* Byte i of those that are summed is at this one of the frame. */
static size_t
summed_at(size_t i)
{
    return i < FRAME_SUMMED ? i : FRAME_HEAD + i - FRAME_SUMMED;
}

/* -1: the byte at `at` is to be `is`, but there are too many such. */
static int
fix(struct look *l, uint64_t at, uint8_t is)
{
    if (l->out->n_fixes == WAL_FIXES)
        return -1;
    l->out->fixes[l->out->n_fixes++] = (struct wal_fix){at, is};
    return 0;
}

/* Bits that, turned over, explain a sum. */
struct suspects {
    unsigned n;
    size_t byte; /* of the frame: the last one found */
    uint8_t bit;
};

/*
 * The bits of a frame's summed bytes with which the sum is the stored one. From the last pair of
 * words to the first: a word that is d larger makes the sum larger by d * x, if it is the first of its
 * pair, else by d * y. For the higher bits of a word that is the same at several places.
 */
static struct suspects
suspects_of(const uint8_t *f, struct sum got)
{
    const struct sum want = stored(f + FRAME_SUM);
    const uint32_t da = want.a - got.a, db = want.b - got.b;
    struct suspects s = {0};
    struct sum x = {1, 1}, y = {0, 1};

    for (size_t i = FRAME_SUMMED + PAGE; i > 0; i -= 8) {
        for (unsigned k = 0; k < 64; k++) {
            const size_t byte = summed_at(i - 8 + k / 8);
            const uint8_t bit = (uint8_t)(1u << k % 8);
            const uint32_t value = UINT32_C(1) << k % 32;
            const uint32_t d = f[byte] & bit ? -value : value;
            const struct sum c = k < 32 ? x : y;

            if (d * c.a == da && d * c.b == db)
                s = (struct suspects){s.n + 1, byte, bit};
        }
        x = (struct sum){x.a + x.b, x.a + 2 * x.b};
        y = (struct sum){y.a + y.b, y.a + 2 * y.b};
    }
    return s;
}

/* The bits in which two frames, a commit and its padding, differ. */
static struct suspects
differences(const uint8_t *f, const uint8_t *other)
{
    struct suspects s = {0};

    for (size_t i = 0; i < FRAME_SUMMED + PAGE; i++) {
        const size_t byte = summed_at(i);
        const uint8_t bits = f[byte] ^ other[byte];

        if (bits != 0)
            s = (struct suspects){s.n + (one_bit(bits) ? 1 : 2), byte, bits};
    }
    return s;
}

/* The n bytes at f + from are to be p: those that are not. */
static int
mend_bytes(struct look *l, uint8_t *f, size_t from, const uint8_t *p, size_t n, uint64_t at)
{
    for (size_t i = 0; i < n; i++) {
        if (f[from + i] != p[i] && fix(l, at + from + i, p[i]) == -1)
            return -1;
        f[from + i] = p[i];
    }
    return 0;
}

static bool
has_salts(const struct look *l, const uint8_t *f)
{
    return memcmp(f + FRAME_SALTS, l->salts, sizeof l->salts) == 0;
}

static bool
is_whole(const struct look *l, const uint8_t *f, struct sum before)
{
    return has_salts(l, f) && word_be(f) != 0 &&
           same(frame_sum(before, f), stored(f + FRAME_SUM));
}

static bool
is_whole_head(const uint8_t head[HEAD])
{
    return word_be(head) == LOG_MAGIC && word_be(head + 4) == LOG_VERSION &&
           word_be(head + 8) == PAGE &&
           same(add((struct sum){0, 0}, head, HEAD_SUMMED), stored(head + HEAD_SUMMED));
}

static uint64_t
place(uint64_t frame)
{
    return HEAD + frame * FRAME;
}

/* In the buffer until another one is asked for that is not: NULL if it cannot be read. The one
 * before it is there, too. */
static uint8_t *
get(struct look *l, uint64_t frame)
{
    const uint64_t from = frame > 0 ? frame - 1 : 0;
    ssize_t got;

    if (frame >= l->first + l->have || from < l->first) {
        l->first = from;
        l->have = 0;
        got = l->io->ops->read(l->io, l->h, l->buffer, (size_t)AT_ONCE * FRAME, place(from),
                               l->e);
        if (got == -1)
            return NULL;
        wal_mend(l->out, l->buffer, (uint64_t)got, place(from));
        l->have = (uint64_t)got / FRAME;
        if (l->have <= frame - from) {
            err_set(l->e, ERR_DAMAGED, 0, "a write-ahead log ends while it is read");
            return NULL;
        }
    }
    return l->buffer + (frame - l->first) * FRAME;
}

/* What can be said of a frame that is not whole. */
enum frame_is {
    MENDED,
    ONE_BIT, /* but which one cannot be told */
    TORN,    /* or worse */
};

static enum frame_is
mended(int rc)
{
    return rc == 0 ? MENDED : TORN;
}

/* Its own sum, or one bit of what that is of. Which one, the next frame says, whose sum begins with this one's, and a
 * commit's padding, or the commit that this one is the padding of. */
static enum frame_is
mend_sum(struct look *l, uint64_t k, uint8_t *f, struct sum got)
{
    const uint8_t *next = k + 1 < l->n_frames ? f + FRAME : NULL;
    const uint8_t *before = k > 0 ? f - FRAME : NULL;
    const bool sum_off = one_bit_off(got, stored(f + FRAME_SUM));
    const bool sum_right = next != NULL && is_whole(l, next, stored(f + FRAME_SUM));
    const bool sum_wrong = next != NULL && is_whole(l, next, got);
    struct suspects s = suspects_of(f, got), d = {0};
    uint8_t sum[8];

    if (sum_off && !sum_right && (s.n == 0 || sum_wrong)) {
        put_be(sum, got.a);
        put_be(sum + 4, got.b);
        return mended(mend_bytes(l, f, FRAME_SUM, sum, sizeof sum, place(k)));
    }
    if (s.n == 0)
        return TORN;
    if (s.n > 1 || (sum_off && !sum_right)) {
        if (next != NULL)
            d = differences(f, next);
        if (d.n != 1 && before != NULL)
            d = differences(f, before);
        if (d.n != 1)
            return ONE_BIT;
        s = d;
    }
    f[s.byte] ^= s.bit;
    return mended(fix(l, place(k) + s.byte, f[s.byte]));
}

/* What it needs around it is in the buffer. */
static enum frame_is
mend_frame(struct look *l, uint64_t k, uint8_t *f, struct sum before)
{
    const struct sum got = frame_sum(before, f);
    uint64_t salts, ours;

    if (has_salts(l, f))
        return mend_sum(l, k, f, got);
    memcpy(&salts, f + FRAME_SALTS, sizeof salts);
    memcpy(&ours, l->salts, sizeof ours);
    return one_bit(salts ^ ours) && same(got, stored(f + FRAME_SUM))
               ? mended(mend_bytes(l, f, FRAME_SALTS, l->salts, sizeof l->salts, place(k)))
               : TORN;
}

/* The first half of a head is known but for a counter, which the sum tells. It is the second word of the
 * second of three pairs, so that much goes into the first sum, and twice that into the second. */
static void
known_half(uint8_t t[HEAD])
{
    uint32_t n;

    put_be(t, LOG_MAGIC);
    put_be(t + 4, LOG_VERSION);
    put_be(t + 8, PAGE);
    memset(t + 12, 0, 4);
    n = stored(t + HEAD_SUMMED).a - add((struct sum){0, 0}, t, HEAD_SUMMED).a;
    for (int i = 0; i < 4; i++)
        t[12 + i] = (uint8_t)(n >> 8 * i);
}

/*
 * Anything may have happened to the first half, half a write of the next log's head too, in front of
 * which all frames went to the database; to the rest what one bit does. -1: neither, or both could
 * be and the first frame does not tell. Salts that the first frame does not have either are not taken: a sum
 * that is off by a power of two looks like a bit of the last salt, and behind a wrong salt no
 * frame is one of this log's.
 */
static int
mend_head(struct look *l, uint8_t head[HEAD])
{
    const uint8_t *first = get(l, 0);
    uint8_t t[HEAD], one[HEAD];
    unsigned n = 0;

    if (first == NULL)
        return -1;
    for (size_t i = 8 * SALTS - 1; i < 8 * HEAD; i++) {
        memcpy(t, head, sizeof t);
        if (i < 8 * SALTS)
            known_half(t);
        else
            t[i / 8] ^= (uint8_t)(1u << i % 8);
        if (!is_whole_head(t))
            continue;
        memcpy(l->salts, t + SALTS, sizeof l->salts);
        if (memcmp(t + SALTS, head + SALTS, sizeof l->salts) != 0 && !has_salts(l, first))
            continue;
        n++;
        memcpy(one, t, sizeof one);
        if (is_whole(l, first, stored(t + HEAD_SUMMED))) {
            n = 1; /* the first frame says that this is the right one */
            break;
        }
    }
    return n == 1 ? mend_bytes(l, head, 0, one, sizeof one, 0) : -1;
}

static bool
is_commit(const uint8_t *f)
{
    return word_be(f + 4) != 0;
}

/* A commit once more. */
static bool
is_padding(const uint8_t *f, const uint8_t *before)
{
    return memcmp(f, before, FRAME_SUMMED) == 0 &&
           memcmp(f + FRAME_HEAD, before + FRAME_HEAD, PAGE) == 0;
}

static bool
is_witness(const struct look *l, const uint8_t *p, uint64_t k)
{
    struct witness w;

    memcpy(&w, p, sizeof w);
    return memcmp(w.magic, witness_magic, sizeof w.magic) == 0 && w.frames == k &&
           memcmp(w.salts, l->salts, sizeof w.salts) == 0 &&
           w.hash == XXH3_64bits(&w, offsetof(struct witness, hash));
}

/* Whether there is a witness of that frame. A commit's padding does not count: SQLite syncs when the
 * sector is full, and writes the rest of that frame behind it. */
static int
look_for_witness(struct look *l, uint64_t from)
{
    const uint8_t *before = from > 0 ? get(l, from - 1) : NULL;
    uint8_t p[WITNESS];

    if (from > 0 && before == NULL)
        return -1;
    for (uint64_t k = from + (before != NULL && is_commit(before) ? 2 : 1);
         k <= l->n_frames; k++) {
        const ssize_t got = l->io->ops->read(l->io, l->h, p, sizeof p, place(k), l->e);

        if (got == -1)
            return -1;
        if (got == (ssize_t)sizeof p && is_witness(l, p, k)) {
            l->out->damaged = true;
            l->out->at = place(from);
            return 0;
        }
    }
    return 0;
}

/* Whether there is, from that frame on, a commit that somebody built on, or the witness of one. */
static int
look_behind(struct look *l, uint64_t from)
{
    bool whole = false; /* the one before, with the sum that the one before that has */

    if (look_for_witness(l, from) == -1)
        return -1;
    for (uint64_t k = from + 1; k < l->n_frames; k++) {
        const uint8_t *f = get(l, k), *before = f - FRAME;
        bool is;

        if (f == NULL)
            return -1;
        is = has_salts(l, before) && is_whole(l, f, stored(before + FRAME_SUM));
        if (is && whole && is_commit(before) && !is_padding(f, before)) {
            l->out->damaged = true;
            l->out->at = place(from);
            return 0;
        }
        whole = is;
    }
    return 0;
}

static int
look_at_frames(struct look *l, struct sum before)
{
    for (uint64_t k = 0; k < l->n_frames; k++) {
        uint8_t *f = get(l, k);

        if (f != NULL && !is_whole(l, f, before)) {
            enum frame_is is;

            l->have = 0; /* so that its neighbours come with it */
            f = get(l, k);
            if (f == NULL)
                return -1;
            is = mend_frame(l, k, f, before);
            if (is == ONE_BIT) {
                l->out->damaged = true;
                l->out->at = place(k);
                return 0;
            }
            if (is == TORN || !is_whole(l, f, before))
                return look_behind(l, k);
        }
        if (f == NULL)
            return -1;
        before = stored(f + FRAME_SUM);
    }
    return 0;
}

static int
look(struct look *l, uint64_t bytes)
{
    uint8_t head[HEAD];
    ssize_t got;

    if (bytes < HEAD)
        return 0; /* its first write was torn */
    got = l->io->ops->read(l->io, l->h, head, sizeof head, 0, l->e);
    if (got == -1)
        return -1;
    l->n_frames = (bytes - HEAD) / FRAME;
    if (got != HEAD || l->n_frames == 0)
        return 0; /* it is synced before there is a frame */
    if (!is_whole_head(head) && mend_head(l, head) == -1) {
        l->out->damaged = true;
        return 0;
    }
    memcpy(l->salts, head + SALTS, sizeof l->salts);
    return look_at_frames(l, stored(head + HEAD_SUMMED));
}

int
wal_look(struct io *io, const char *path, struct wal_found *out, struct err *e)
{
    struct look l = {.io = io, .out = out, .e = e};
    uint64_t bytes;
    int rc;

    memset(out, 0, sizeof *out);
    l.h = io->ops->open(io, path, IO_READ, e);
    if (l.h == -1)
        return -1;
    rc = io->ops->size(io, l.h, &bytes, e);
    if (rc == 0) {
        l.buffer = malloc((size_t)AT_ONCE * FRAME);
        rc = l.buffer == NULL
                 ? err_set(e, ERR_QUOTA, errno, "no memory to look at %s", path)
                 : look(&l, bytes);
    }
    free(l.buffer);
    io->ops->close(io, l.h);
    return rc;
}

void
wal_witness(struct io *io, int h, uint32_t n)
{
    struct witness w = {.frames = n};
    uint8_t frame[FRAME_HEAD];
    struct err ignored;

    if (n == 0 ||
        io->ops->read(io, h, frame, sizeof frame, place(n - 1), &ignored) != FRAME_HEAD)
        return;
    memcpy(w.magic, witness_magic, sizeof w.magic);
    memcpy(w.salts, frame + FRAME_SALTS, sizeof w.salts);
    w.hash = XXH3_64bits(&w, offsetof(struct witness, hash));
    io->ops->write(io, h, &w, sizeof w, place(n), &ignored);
}

void
wal_mend(const struct wal_found *w, uint8_t *p, uint64_t n, uint64_t at)
{
    for (uint32_t i = 0; i < w->n_fixes; i++) {
        if (w->fixes[i].at >= at && w->fixes[i].at - at < n)
            p[w->fixes[i].at - at] = w->fixes[i].is;
    }
}
