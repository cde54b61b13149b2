/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Write-ahead logs with bits that turned over: nothing is lost by one bit anywhere, as the same ledger
 * read by SQLite alone shows it would be; damage in front of whole transactions is refused until
 * somebody gives them up; and nothing that a power cut leaves is taken for damage.
 */
#include "config.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#include "base/err.h"
#include "base/file.h"
#include "kvstore/io.h"
#include "kvstore/wal.h"
#include "tests/store_rig.h"
#include "tests/test.h"

enum {
    FIRST = 300,
    COMMITS = 6,
    EACH = 5,
    HEAD = 32,
    FRAME = 24 + 4096,
    NAME_ROOM = 64,
    WITNESS = 32
};

static struct io *io;
static char root[32];
static struct err e;
static struct ledger_content want[COMMITS + 1]; /* after so many commits to the log */
static uint8_t *db, *wal;
static uint8_t witness[COMMITS + 1][WITNESS];
static size_t db_bytes, wal_bytes, ends[COMMITS + 1]; /* of the log, after so many */
static char path_db[NAME_ROOM], path_wal[NAME_ROOM];
static bool nightly;

#define OK(call)                               \
    do {                                       \
        if ((call) == -1)                      \
            fail_msg("%s: %s", #call, e.text); \
    } while (0)

static void
write_file(const char *path, const uint8_t *p, size_t n)
{
    const int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd != -1);
    assert_int_equal(write(fd, p, n), n);
    close(fd);
}

/* A session in `s` whose log has COMMITS transactions, as a daemon that was killed leaves it. */
static void
make(void)
{
    uint32_t tokens[FIRST + COMMITS * EACH];
    char from[NAME_ROOM], log[NAME_ROOM];
    struct ledger_meta meta;
    struct ledger_change change = {
        .meta = &meta, .has_tokens = true, .tokens = tokens, .n_tokens = FIRST};
    struct ledger *l;
    struct stat st;
    int fd;

    rig_meta(&meta, "thesis");
    rig_tokens(tokens, 1, 0, sizeof tokens / sizeof *tokens);
    OK(io->ops->mkdir(io, "s", &e));
    OK(io->ops->mkdir(io, "t", &e));
    OK(ledger_open(io, "s", true, &l, &e));
    OK(ledger_commit(l, &change, &e));
    ledger_close(l);
    OK(ledger_open(io, "s", false, &l, &e));
    OK(ledger_load(l, &want[0], &e));
    snprintf(from, sizeof from, "%s/s/session.db", root);
    snprintf(log, sizeof log, "%s/s/session.db-wal", root);
    for (uint64_t i = 1; i <= COMMITS; i++) {
        change.from = FIRST + (i - 1) * EACH;
        change.tokens = tokens + change.from;
        change.n_tokens = EACH;
        meta.turns = i;
        OK(ledger_commit(l, &change, &e));
        OK(ledger_load(l, &want[i], &e));
        assert_int_equal(stat(log, &st), 0);
        ends[i] = (size_t)st.st_size - WITNESS;
        fd = open(log, O_RDONLY | O_CLOEXEC);
        assert_int_equal(pread(fd, witness[i], WITNESS, (off_t)ends[i]), WITNESS);
        close(fd);
    }
    db = (uint8_t *)file_read(from, 1 << 24, &db_bytes, &e);
    wal = (uint8_t *)file_read(log, 1 << 24, &wal_bytes, &e);
    assert_non_null(db);
    assert_non_null(wal);
    ledger_close(l);
    snprintf(path_db, sizeof path_db, "%s/t/session.db", root);
    snprintf(path_wal, sizeof path_wal, "%s/t/session.db-wal", root);
    wal_bytes -= WITNESS; /* but for test_witness() a power cut has lost it */
    assert_int_equal(wal_bytes, ends[COMMITS]);
    assert_int_equal((wal_bytes - HEAD) % FRAME, 0);
}

static void
put(const uint8_t *log, size_t n)
{
    write_file(path_db, db, db_bytes);
    write_file(path_wal, log, n);
}

/* What is in `t`: after so many commits; -1: refused; -2: something else. */
static int
commits(int (*open_it)(struct ledger **l))
{
    struct ledger_content c;
    struct ledger *l;
    int found = -2;

    if (open_it(&l) == -1)
        return -1;
    if (ledger_load(l, &c, &e) == -1) {
        ledger_close(l);
        return -1;
    }
    for (int i = 0; i <= COMMITS; i++) {
        if (rig_differ(&c, &want[i]) == NULL)
            found = i;
    }
    ledger_content_done(&c);
    ledger_close(l);
    return found;
}

static int
by_look(struct ledger **l)
{
    return ledger_look(io, "t", l, &e);
}

static int
by_write(struct ledger **l)
{
    return ledger_open(io, "t", false, l, &e);
}

/* The number of tokens that SQLite alone finds: the control. */
static uint64_t
sqlite_alone(void)
{
    sqlite3_stmt *s;
    sqlite3 *x;
    uint64_t n = 0;

    assert_int_equal(sqlite3_open(path_db, &x), SQLITE_OK);
    if (sqlite3_prepare_v2(x, "SELECT len FROM meta", -1, &s, NULL) == SQLITE_OK &&
        sqlite3_step(s) == SQLITE_ROW)
        n = (uint64_t)sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    sqlite3_close(x);
    return n;
}

static const char *
class_of(size_t at)
{
    static const char *const head[] = {"magic", "version", "page-size", "counter",
                                       "salt",  "salt",    "sum",       "sum"};
    static const char *const frame[] = {"page-number", "commit",    "frame-salt",
                                        "frame-salt",  "frame-sum", "frame-sum"};

    if (at < HEAD)
        return head[at / 4];
    at = (at - HEAD) % FRAME;
    return at < 24 ? frame[at / 4] : "page";
}

/* Every bit of the head and of each frame's, bits all over the pages. */
static void
test_every_bit(void **state)
{
    const size_t step = nightly ? 1 : 97;
    uint64_t n = 0, told = 0, n_pages = 0, told_pages = 0;
    uint8_t byte;
    int fd;

    (void)state;
    write_file(path_wal, wal, wal_bytes);
    fd = open(path_wal, O_WRONLY | O_CLOEXEC);
    assert_true(fd != -1);
    for (size_t at = 0; at < wal_bytes;) {
        const bool page = at >= HEAD && (at - HEAD) % FRAME >= 24;

        for (unsigned bit = 0; bit < 8; bit++) {
            struct wal_found w;

            if (page && !nightly && bit != at % 8)
                continue;
            byte = (uint8_t)(wal[at] ^ 1u << bit);
            assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
            OK(wal_look(io, "t/session.db-wal", &w, &e));
            told += !w.damaged;
            if (w.damaged
                    ? (w.at > at || w.at + FRAME <= at || w.n_fixes != 0)
                    : (w.n_fixes != 1 || w.fixes[0].at != at || w.fixes[0].is != wal[at]))
                fail_msg("byte %zu (%s), bit %u: %" PRIu32 " fixes, damaged %d", at,
                         class_of(at), bit, w.n_fixes, w.damaged);
            n++;
            n_pages += page;
            told_pages += page && !w.damaged;
        }
        assert_int_equal(pwrite(fd, &wal[at], 1, (off_t)at), 1);
        at += page && (at - HEAD) % FRAME + step < FRAME ? step : 1;
    }
    close(fd);
    print_message("# %" PRIu64 " bits of a log of %zu bytes: each was noticed, %" PRIu64
                  " were put right (of %" PRIu64 " in pages %" PRIu64 ")\n",
                  n, wal_bytes, told, n_pages, told_pages);
    assert_true(n > 4000 && told > n * 9 / 10 && told_pages > n_pages / 2);
}

/* The same through the ledger, some bytes of each class in each frame. */
static void
test_nothing_is_lost(void **state)
{
    uint64_t n = 0, older = 0, refused = 0;
    uint8_t *log = malloc(wal_bytes);

    (void)state;
    assert_non_null(log);
    for (size_t k = 0; k < wal_bytes; k += k < HEAD ? 3 : nightly ? 411 : 1233) {
        int looked, written;

        memcpy(log, wal, wal_bytes);
        log[k] ^= (uint8_t)(1u << (n + k / 8) % 8);
        put(log, wal_bytes);
        looked = commits(by_look);
        if (looked == -1)
            assert_int_equal(e.code, ERR_DAMAGED);
        written = commits(by_write);
        if ((looked != COMMITS && looked != -1) || written != looked)
            fail_msg("byte %zu (%s): after %d commits, written %d", k, class_of(k), looked,
                     written);
        refused += looked == -1;
        assert_int_equal(access(path_wal, F_OK), looked == -1 ? 0 : -1);
        put(log, wal_bytes);
        older += sqlite_alone() < want[COMMITS].len;
        unlink(path_wal);
        n++;
    }
    free(log);
    print_message("# %" PRIu64 " bits turned over: in %" PRIu64 " cases all %d commits are "
                  "there, %" PRIu64
                  " were refused; SQLite alone had lost some of them %" PRIu64 " times\n",
                  n, n - refused, COMMITS, refused, older);
    assert_true(n > 60 && older > n / 2 && refused < n / 3);
}

/* More than a bit: refused if it is in front of a transaction that somebody built on, and given up
 * when asked to; what was written last is as good as torn. */
static void
test_damage(void **state)
{
    unsigned refused = 0, given_up = 0, whole = 0, last = 0;
    uint8_t *log = malloc(wal_bytes);

    (void)state;
    assert_non_null(log);
    for (size_t k = HEAD; k + 512 <= wal_bytes; k += nightly ? 512 : 2048) {
        const bool in_last = k >= ends[COMMITS - 2];
        int found;

        memcpy(log, wal, wal_bytes);
        for (size_t i = k; i < k + 512; i++)
            log[i] = (uint8_t)~log[i];
        put(log, wal_bytes);
        found = commits(by_look);
        if (found == -1) {
            if (e.code != ERR_DAMAGED || strstr(e.text, "t/session.db-wal") == NULL ||
                strstr(e.text, "--give-up") == NULL)
                fail_msg("byte %zu: %s", k, e.text);
            refused++;
            assert_int_equal(commits(by_write), -1);
            OK(ledger_give_up(io, "t", &e));
            found = commits(by_write);
            if (found < 0 || found == COMMITS || (found > 0 && ends[found - 1] > k))
                fail_msg("byte %zu, given up: after %d commits: %s", k, found, e.text);
            given_up++;
        } else {
            if (!in_last && found != COMMITS)
                fail_msg("bytes %zu to %zu: silently after %d commits", k, k + 512, found);
            last += found >= 0 && found < COMMITS;
            whole += found == COMMITS;
        }
        unlink(path_wal);
    }
    free(log);
    print_message("# 512 bytes inverted: %u refused, %u given up by command, %u as if torn "
                  "(the last two commits), %u without effect\n",
                  refused, given_up, last, whole);
    assert_true(refused > 10 && given_up == refused);
}

/* In several frames at once, and in too many. */
static void
test_several(void **state)
{
    uint8_t *log = malloc(wal_bytes);
    struct wal_found w;

    (void)state;
    assert_non_null(log);
    memcpy(log, wal, wal_bytes);
    log[9] ^= 1;
    for (size_t k = 0; HEAD + k * FRAME < wal_bytes; k++)
        log[HEAD + k * FRAME + 24 + k * 332 % 4000] ^= (uint8_t)(1u << k % 8);
    put(log, wal_bytes);
    assert_int_equal(commits(by_look), COMMITS);
    assert_int_equal(commits(by_write), COMMITS);
    /* The first half of the head is known anyway; of the second one bit can be told. */
    memcpy(log, wal, wal_bytes);
    memset(log, 0xff, 16);
    put(log, wal_bytes);
    assert_int_equal(commits(by_look), COMMITS);
    memset(log + 16, 0xff, 8);
    put(log, wal_bytes);
    OK(wal_look(io, "t/session.db-wal", &w, &e));
    assert_true(w.damaged);
    assert_int_equal(w.at, 0);
    assert_int_equal(commits(by_look), -1);
    unlink(path_wal);
    free(log);
}

/* With it nothing is older in silence, whatever was hit; it may be hit itself, and that of an earlier
 * commit says nothing about a torn one. */
static void
test_witness(void **state)
{
    unsigned refused = 0, whole = 0;
    const size_t all = wal_bytes + WITNESS, before = ends[COMMITS - 1];
    uint8_t *log = malloc(all), *old = calloc(1, all);

    (void)state;
    assert_non_null(log);
    assert_non_null(old);
    for (size_t k = HEAD; k + 512 <= wal_bytes; k += nightly ? 512 : 1536) {
        int found;

        memcpy(log, wal, wal_bytes);
        memcpy(log + wal_bytes, witness[COMMITS], WITNESS);
        for (size_t i = k; i < k + 512; i++)
            log[i] = (uint8_t)~log[i];
        put(log, all);
        found = commits(by_look);
        if (found != -1 && found != COMMITS)
            fail_msg("bytes %zu to %zu: silently after %d commits", k, k + 512, found);
        refused += found == -1;
        whole += found == COMMITS;
    }
    for (size_t k = wal_bytes; k < all; k++) {
        memcpy(log, wal, wal_bytes);
        memcpy(log + wal_bytes, witness[COMMITS], WITNESS);
        log[k] ^= (uint8_t)(1u << k % 8);
        put(log, all);
        assert_int_equal(commits(by_look), COMMITS);
    }
    memcpy(old, wal, before);
    memcpy(old + before, witness[COMMITS - 1], WITNESS);
    for (uint64_t dice = 1; dice < (nightly ? 2000 : 200); dice++) {
        int found;

        memcpy(log, wal, wal_bytes);
        for (size_t k = before / 512 * 512; k < wal_bytes; k += 512) {
            if ((dice * 0x9e3779b97f4a7c15u >> (17 + (k - before / 512 * 512) / 512 % 40) &
                 1) != 0)
                memcpy(log + k, old + k, k + 512 < wal_bytes ? 512 : wal_bytes - k);
        }
        put(log, wal_bytes);
        found = commits(by_look);
        if (found != COMMITS - 1 && found != COMMITS)
            fail_msg("torn, %" PRIu64 ": after %d commits: %s", dice, found,
                     found == -1 ? e.text : "");
    }
    unlink(path_wal);
    free(log);
    free(old);
    print_message("# 512 bytes inverted in front of the witness: %u refused, %u without "
                  "effect\n",
                  refused, whole);
    assert_true(refused > 20);
}

/* Anything at all may be in a log: what is served is what was there after some commit, or it is refused;
 * silently older only where the last two commits were hit. */
static void
test_anything(void **state)
{
    unsigned refused = 0, whole = 0, older = 0;
    uint64_t dice = 7;
    uint8_t *log = malloc(wal_bytes);

    (void)state;
    assert_non_null(log);
    for (unsigned k = 0; k < (nightly ? 20000 : 600); k++) {
        const unsigned hits = 1 + k % 7;
        size_t first = wal_bytes, n = wal_bytes;
        int found;

        memcpy(log, wal, wal_bytes);
        for (unsigned i = 0; i < hits; i++) {
            size_t at, end;

            dice = dice * 6364136223846793005u + 1442695040888963407u;
            at = (dice >> 20) % (k % 3 == 0 ? 200 : wal_bytes);
            end = at + (k % 2 == 0 ? 1 : (dice >> 50) % 5000);
            first = at < first ? at : first;
            for (; at < end && at < wal_bytes; at++) {
                dice = dice * 6364136223846793005u + 1442695040888963407u;
                log[at] = (uint8_t)(dice >> 40);
            }
        }
        if (k % 11 == 0)
            n = (dice >> 33) % wal_bytes;
        put(log, n);
        found = commits(by_look);
        if (found == -2)
            fail_msg("%u: it serves what never was", k);
        if (found >= 0 && found < COMMITS - 2 && n == wal_bytes && hits == 1)
            fail_msg("%u, from byte %zu: silently after %d commits", k, first, found);
        refused += found == -1;
        whole += found == COMMITS;
        older += found >= 0 && found < COMMITS;
    }
    unlink(path_wal);
    free(log);
    print_message("# random bytes: %u refused, %u whole, %u as if torn\n", refused, whole,
                  older);
    assert_true(refused > 50);
}

/* A head whose sum is off by a power of two, as if it were a bit of the last salt, in front of a first
 * frame that is gone: the transactions behind it were acknowledged, so it is refused or they are there. */
static void
test_head_like_a_salt(void **state)
{
    uint8_t *log = malloc(wal_bytes);
    uint32_t sum = 0;

    (void)state;
    assert_non_null(log);
    memcpy(log, wal, wal_bytes);
    memset(log + HEAD, 0xa5, FRAME);
    for (int i = 0; i < 4; i++)
        sum = sum << 8 | wal[HEAD - 4 + i];
    for (unsigned k = 0; k < 64; k++) {
        const uint32_t d = UINT32_C(1) << k / 2, off = k % 2 == 0 ? sum + d : sum - d;

        for (int i = 0; i < 4; i++)
            log[HEAD - 4 + i] = (uint8_t)(off >> (24 - 8 * i));
        put(log, wal_bytes);
        if (commits(by_look) != -1)
            fail_msg("2^%u: not refused", k / 2);
    }
    unlink(path_wal);
    free(log);
}

/* Every length, and each sector of the last transaction as it was before it: no damage, and the
 * commits that were over are there. What was there before: nothing, or frames of an earlier log
 * or of a commit that had failed for want of room. */
static void
test_torn(void **state)
{
    const size_t begin = ends[COMMITS - 1];
    uint8_t *log = malloc(wal_bytes);
    uint64_t n = 0;

    (void)state;
    assert_non_null(log);
    for (size_t k = 0; k <= wal_bytes; k += k < HEAD ? 1 : 512) {
        int found, over = 0;

        for (int i = 1; i <= COMMITS; i++)
            over = ends[i] <= k ? i : over;
        put(wal, k);
        found = commits(by_look);
        if (found != over && found != over + 1) /* without its padding it is whole, too */
            fail_msg("%zu bytes: after %d commits", k, found);
        n++;
    }
    for (int before = 0; before < 3; before++) {
        for (uint64_t dice = 1; dice < (nightly ? 2000 : 200); dice++) {
            int found;

            memcpy(log, wal, wal_bytes);
            for (size_t k = begin / 512 * 512; k < wal_bytes; k += 512) {
                const size_t from = k < begin ? begin : k;
                const size_t to = k + 512 < wal_bytes ? k + 512 : wal_bytes;

                if ((dice * 0x9e3779b97f4a7c15u >> (17 + (k - begin) / 512 % 40) & 1) == 0)
                    continue;
                for (size_t i = from; i < to; i++)
                    log[i] = before == 0   ? 0
                             : before == 1 ? (uint8_t)(wal[i - 2 * FRAME] ^ 0x5a)
                                           : wal[i - FRAME];
            }
            put(log, wal_bytes);
            found = commits(by_look);
            if (found != COMMITS - 1 && found != COMMITS)
                fail_msg("a torn commit, %d, %" PRIu64 ": after %d commits: %s", before,
                         dice, found, found == -1 ? e.text : "");
            n++;
        }
    }
    unlink(path_wal);
    free(log);
    print_message("# %" PRIu64 " torn logs, none taken for a damaged one\n", n);
}

static int
setup(void **state)
{
    (void)state;
    io = rig_folder(root);
    make();
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    for (int i = 0; i <= COMMITS; i++)
        ledger_content_done(&want[i]);
    free(db);
    free(wal);
    rig_folder_done(io, root);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_bit), cmocka_unit_test(test_nothing_is_lost),
        cmocka_unit_test(test_damage),    cmocka_unit_test(test_several),
        cmocka_unit_test(test_torn),      cmocka_unit_test(test_witness),
        cmocka_unit_test(test_anything),  cmocka_unit_test(test_head_like_a_salt),
    };

    nightly = getenv("FATHOM_NIGHTLY") != NULL;
    return cmocka_run_group_tests_name("write-ahead logs", tests, setup, teardown);
}
