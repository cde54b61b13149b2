/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SIM_FS_H
#define TESTS_SIM_FS_H

#include <stdbool.h>
#include <stdint.h>

struct io;

/*
 * A file system in memory behind struct io, for tests of the store: it fails when it is told to,
 * and remembers what was done to it, so that afterwards every state can be looked at that a power
 * cut might have left. Any thread, one call at a time inside.
 *
 *     struct sim *s = sim_new();
 *     work(sim_io(s));                     up to the first promise
 *     sim_mark(s, 1);                      from here on it holds
 *     more_work(sim_io(s));
 *     sim_states(s, NULL, look, &all);     look() is called for each state
 *
 * The model is more pessimistic than ext4: nothing is ordered but by sync. What sync() returned
 * 0 for and entries that sync_dir() returned 0 for survive. A file's sync does not make its name
 * durable, nor a name its data. Of all else any part may be there or not: each write whole, not
 * at all, as zeros, or torn at 512 or 4096 bytes; each length; each entry made, linked, renamed or
 * removed. A rename is atomic; from one folder to another it is certain when both are synced.
 * A file without a name is never there. After a failed sync what was written or named before
 * stays uncertain for ever, whatever later syncs say.
 */
struct sim;

struct sim *sim_new(void); /* an empty root; aborts without memory, as all of this does */
void sim_free(struct sim *s);
struct io *sim_io(struct sim *s);
struct sim *sim_of(struct io *io); /* of what sim_io() or a state gave */
void sim_settle(struct sim *s);    /* all that is there is durable; forgets what was done */
void sim_mark(struct sim *s, uint64_t mark); /* passed to look() for states from here on */

enum sim_kind {
    SIM_OPEN = 1 << 0,
    SIM_OPEN_NAMELESS = 1 << 1,
    SIM_READ = 1 << 2,
    SIM_WRITE = 1 << 3,
    SIM_RESERVE = 1 << 4,
    SIM_TRUNCATE = 1 << 5,
    SIM_SYNC = 1 << 6,
    SIM_SYNC_DIR = 1 << 7,
    SIM_NAME = 1 << 8,
    SIM_LINK = 1 << 9,
    SIM_RENAME = 1 << 10,
    SIM_UNLINK = 1 << 11,
    SIM_MKDIR = 1 << 12,
    SIM_RMDIR = 1 << 13,
    SIM_LIST = 1 << 14,
    SIM_STAT = 1 << 15, /* and size */
    SIM_SPACE = 1 << 16,
    SIM_LOCK = 1 << 17,
    SIM_ALL = (1 << 18) - 1,
};

/* How many calls of these kinds there were since sim_new(), failed ones included. */
uint64_t sim_calls(const struct sim *s, unsigned kinds);
uint64_t sim_ops(const struct sim *s); /* of all kinds */

unsigned sim_handles(const struct sim *s); /* that are open */

enum sim_how {
    SIM_BEFORE, /* nothing is done */
    SIM_HALF,   /* of a write the first half, else nothing */
    SIM_AFTER,  /* all is done, and reported as an error */
    SIM_LIE, /* sync, sync_dir: nothing is done, and reported as done. A mutant: a test of
                   the store that still passes does not need that sync, or does not test it */
};

struct sim_fault {
    unsigned kinds; /* 0: all */
    uint64_t at;    /* the so-manieth call of them from now on, from 0 */
    int sys;        /* errno */
    enum sim_how how;
    bool for_good; /* and all of these kinds after it */
};

void sim_fault(struct sim *s, const struct sim_fault *f); /* one at a time; NULL: none */
void sim_fail_at(struct sim *s, uint64_t k, int sys);     /* any kind, SIM_BEFORE, once */
bool sim_failed(const struct sim *s); /* the fault has been met since it was set */

/*
 * Calls look() with each state that a crash after any of the calls so far could leave, each
 * once for a mark. io: a file system of its own in that state, all durable, gone after look();
 * it can be written to, be given faults and marks, and have states. `what` tells for a person
 * which state that is. Not 0 from look() ends it with that.
 *
 * Where there are few uncertain things all combinations are made. Else: none, all, all up to
 * one, all but one, one alone, each torn, names without data, data without names, and `samples`
 * random ones. Returns 0 or what look() did; *n (not NULL) is how many states were looked at.
 */
struct sim_bounds {
    unsigned all;     /* combinations, at most: 256 */
    unsigned samples; /* 64 */
    uint64_t seed;    /* 1 */
    uint64_t from;    /* only states of this mark and above: 0 */
};

typedef int sim_look(void *arg, struct io *io, uint64_t mark, const char *what);
int sim_states(struct sim *s, const struct sim_bounds *bounds, sim_look *look, void *arg,
               uint64_t *n);

#endif /* TESTS_SIM_FS_H */
