/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TOOLS_BENCHMARKS_STORE_H
#define TOOLS_BENCHMARKS_STORE_H

#include <stdint.h>
#include <sys/types.h>

struct err;
struct fathom;

/* The parts of bench-store and bench-sessions. */

/* store_disk.c: what the disk under a directory and the memory can do, in bytes/s and seconds:
 * O_DIRECT by the calls that the store makes, the best of all rounds, with one stream and
 * with two: shares of it are the least that they can be. */
struct disk_rates {
    double write, read; /* 512 MiB a stream, in pieces of 128 MiB */
    double sync;        /* 4 KiB appended to a file, fdatasync */
    double copy;        /* memcpy, one core, arrays larger than the caches */
    char how[16];       /* io_uring, threads */
};

int disk_measure(const char *dir, struct disk_rates *out, struct err *e);

/* store_rig.c: a fathomd of this build in a directory of its own, with the fake engine, on a
 * model directory that has the configuration of Flash (but the small model's vocabulary and
 * tokenizer, so that it can be given text). */
struct rig {
    char dir[512], sock[600], log[600], state[600];
    char daemon[600], engine[600], top[600];
    pid_t pid;
};

int rig_make(struct rig *r, const char *argv0, const char *where, struct err *e);
/* Starts it and waits until it serves; NULL ends the settings. *seconds: until it listened. */
int rig_start(struct rig *r, const char *const *settings, double *seconds, struct err *e);
void rig_stop(struct rig *r); /* cleanly; nothing if it does not run */
void rig_remove(struct rig *r);
/* Of the daemon, from /proc: bytes that it has had written to disks, its resident memory,
 * seconds of processors. */
uint64_t rig_written(const struct rig *r);
uint64_t rig_resident(const struct rig *r);
double rig_cpu(const struct rig *r);
/* Bytes of all files in the state directory whose names end so. */
uint64_t rig_bytes(const struct rig *r, const char *ending);
/* Lines of its log that have this in them. */
unsigned rig_logged(const struct rig *r, const char *text);
/* Of the numbers behind key ("read=") in its lines with this text. */
uint64_t rig_sum(const struct rig *r, const char *text, const char *key);

#endif /* TOOLS_BENCHMARKS_STORE_H */
