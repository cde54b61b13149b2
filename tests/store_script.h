/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_STORE_SCRIPT_H
#define TESTS_STORE_SCRIPT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kvstore/catalog.h"

struct io;

/*
 * A scripted workload on a store, as the daemon would do it, and what must be left of it. A script
 * is a list of steps; each either changes what the store holds as a whole or not at all, so that a
 * store is described after each of them by one text, and after a crash must be described by the text
 * of the last step that was acknowledged or of the one after it.
 */
enum step_kind {
    STEP_END,
    STEP_CREATE, /* session, n tokens */
    STEP_OPEN,   /* hot, and its ledger */
    STEP_APPEND, /* n tokens and the result of an operation */
    STEP_CUT,    /* back to n tokens: points and files behind it go from the ledger */
    STEP_POINT,  /* a checkpoint at the end */
    STEP_RENAME, /* n: a number in the name */
    STEP_CHUNK,  /* publishes the next n pages, then commits their row */
    STEP_STATE,  /* the same for a state at the end */
    STEP_DROP,   /* the oldest state's row, then its file */
    STEP_CLOSE,  /* noted, closed, cold */
    STEP_FORK,   /* to session n */
    STEP_DELETE,
    STEP_QUARANTINE,
    STEP_SWEEP,  /* all of it */
    STEP_REOPEN, /* the catalogue; no session may be open */
    STEP_SETTLE, /* nothing: from here on crashes are of interest */
    /* Mutants: the same in an order that is wrong. */
    STEP_CHUNK_ROW_FIRST,
    STEP_DROP_FILE_FIRST,
};

struct step {
    enum step_kind kind;
    unsigned session, n;
};

enum { SCRIPT_SESSIONS = 4, SCRIPT_TEXT = 4096 };

struct script_session {
    struct kvfile_id id;
    bool alive;
    struct ledger_content c; /* what it must be */
    struct ledger *l;        /* while it is open */
};

struct script {
    struct io *io;
    struct catalog *catalog;
    struct script_session s[SCRIPT_SESSIONS];
    unsigned n_ids; /* made so far: a step that is done again makes others */
};

int script_begin(struct script *x, struct io *io, struct err *e); /* opens the store */
int script_step(struct script *x, const struct step *step, struct err *e);
/* Closes what is open, in any state; what the ledgers and index are told is up to the io. */
void script_end(struct script *x);

/* What the store must hold now, and what an opened one does hold. */
void script_want(const struct script *x, char text[SCRIPT_TEXT]);
int script_have(struct io *io, struct catalog *c, char text[SCRIPT_TEXT], struct err *e);

/*
 * Opens a store that crashed and looks at all of it: it holds what one of the texts says; every file
 * that a row names is sound; the catalogue says what the ledgers say; sweeping leaves nothing over.
 * again: done again nothing changes, and it takes a change. NULL, or what is wrong.
 */
const char *script_check(struct io *io, const char *want, const char *or_else, bool again);

#endif /* TESTS_STORE_SCRIPT_H */
