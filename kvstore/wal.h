/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_WAL_H
#define KVSTORE_WAL_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct io;

/*
 * A write-ahead log of SQLite's, looked at before SQLite sees it. To SQLite the first frame that does
 * not match its checksum is where a power cut ended the log, and what is behind it never was. But a
 * bit that turned over looks the same, and then what is behind it was acknowledged. So:
 *
 * - one bit that turned over, anywhere, is found from the checksum that it breaks: it is a fix,
 *   which the VFS applies to what SQLite reads (vfs.h), and nothing is lost; or, if that tells only
 *   that it was one bit, damage;
 * - what cannot be mended so, with a transaction behind it that was begun after the one it is in
 *   was synced, is damage: SQLite must not go through this log;
 * - what cannot be mended in front of the witness of a commit is damage, too: a few bytes behind the last
 *   frame, where SQLite sees half a frame and its next commit writes, put there when a commit has been
 *   synced, and not synced themselves: a crash may lose them, but they never say too much;
 * - what cannot be mended and has neither behind it is a commit that a power cut tore, which nobody was
 *   told of.
 */
enum { WAL_FIXES = 32 };

struct wal_fix {
    uint64_t at;
    uint8_t is; /* what the byte there is to be */
};

struct wal_found {
    struct wal_fix fixes[WAL_FIXES];
    uint32_t n_fixes;
    bool damaged; /* what cannot be mended, at `at`, and no power cut has done */
    uint64_t at;
};

/* For pages of 4096 bytes. 0: *out says what was found. -1: it could not be read. */
int wal_look(struct io *io, const char *path, struct wal_found *out, struct err *e);

/* Puts the fixes into n bytes that were read at `at`. */
void wal_mend(const struct wal_found *w, uint8_t *p, uint64_t n, uint64_t at);

/* All frames of the log, n of them, have been synced by a commit: writes the witness. h: the log. Without
 * it nothing is wrong, so nothing is said if that fails. */
void wal_witness(struct io *io, int h, uint32_t n);

#endif /* KVSTORE_WAL_H */
