/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SIM_IMPL_H
#define TESTS_SIM_IMPL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "kvstore/io.h"
#include "tests/sim_fs.h"

/* What sim_fs.c (files as they seem) and sim_states.c (as they may be after a crash) share. */

enum { SIM_NAME_MAX = 128, SIM_ROOT = 0, SIM_NO_INODE = -1, SIM_HANDLES = 512 };

/* The bytes of a file; shared until somebody changes them. */
struct blob {
    size_t refs, n;
    size_t held,
        room;      /* p[held]; behind that zeros up to n, as in a file with room reserved */
    uint8_t *p;    /* [room] */
    uint64_t hash; /* of the bytes, if hashed; states share most files, so it is kept */
    bool hashed;
};

struct entry {
    char name[SIM_NAME_MAX];
    int inode;
};

struct inode {
    bool is_dir;
    struct blob *data;     /* of a file */
    struct entry *entries; /* of a folder, [n_entries], in no order */
    size_t n_entries, room;
};

struct tree {
    struct inode *inodes; /* a number is never used twice */
    size_t n, room;
};

enum record_kind {
    R_WRITE,
    R_LENGTH, /* truncate */
    R_GROW,   /* reserve */
    R_SYNC,
    R_SYNC_FAILED,
    R_SET,   /* create, mkdir, name, link: an entry */
    R_CLEAR, /* unlink, rmdir */
    R_RENAME,
    R_SYNC_DIR,
    R_SYNC_DIR_FAILED,
    R_MARK,
};

struct record {
    enum record_kind kind;
    bool grows;     /* R_WRITE: past the end that the file had */
    int inode;      /* whose data, or what is named */
    int dirs[2];    /* of the entry; R_RENAME: from and to */
    char *names[2]; /* owned */
    uint64_t at, n; /* R_WRITE; R_LENGTH, R_GROW: n; R_MARK: n */
    uint8_t *bytes; /* R_WRITE: [n], owned */
    uint64_t call;  /* which one did it */
};

struct handle {
    bool used, locked;
    int inode;
    int flags;
    char *path; /* owned */
};

struct sim {
    struct io io;
    pthread_mutex_t mu;
    struct tree now;  /* as calls see it */
    struct tree base; /* durable, when the records begin */
    struct record *records;
    size_t n_records, room;
    struct handle handles[SIM_HANDLES];
    struct sim_fault fault;
    bool faulty, failed;
    uint64_t met;       /* calls of the fault's kinds since it was set */
    uint64_t calls[32]; /* by bit of the kind */
};

void *sim_must(void *p); /* or abort() */
int tree_new_inode(struct tree *t, bool is_dir);
void tree_copy(struct tree *to, const struct tree *from);
void tree_done(struct tree *t);
int tree_find(const struct tree *t, int dir, const char *name); /* or SIM_NO_INODE */
void tree_set(struct tree *t, int dir, const char *name, int inode);
void tree_clear(struct tree *t, int dir, const char *name);
void tree_write(struct tree *t, int inode, const uint8_t *p, uint64_t n, uint64_t at);
void tree_length(struct tree *t, int inode, uint64_t n);
void tree_read(const struct tree *t, int inode, uint8_t *p, uint64_t n, uint64_t at);
uint64_t tree_hash(struct tree *t, int inode); /* of a file's bytes */
struct sim *sim_from(const struct tree *t);    /* all of it durable; copies */

#endif /* TESTS_SIM_IMPL_H */
