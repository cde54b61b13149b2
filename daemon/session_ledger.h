/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SESSION_LEDGER_H
#define DAEMON_SESSION_LEDGER_H

struct err;
struct ledger_content;
struct session;
struct store_job;

/*
 * A session as its ledger has it: what has changed, written into a job's change; and the content
 * of a ledger, read. Main thread.
 */

/* What session_log_take() is about to take, and the files touched: all of it copied. Nothing is
 * changed in the session. */
int session_to_ledger(const struct session *s, struct store_job *job, struct err *e);

/* Believes nothing that it can check; ERR_DAMAGED. Takes tokens and files out of c. */
int session_from_ledger(struct session *s, struct ledger_content *c, struct err *e);

#endif /* DAEMON_SESSION_LEDGER_H */
