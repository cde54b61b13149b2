/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include <stdint.h>

/*
 * What fathomd tells systemd (sd_notify(3)); all of it is nothing without NOTIFY_SOCKET. Main
 * thread. Messages are datagrams to a socket that systemd always reads; a failure is ignored.
 */
void notify_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void notify_ready(void); /* once; later calls after notify_reloading() end the reload */
void notify_reloading(void);
void notify_stopping(void);
void notify_extend(uint64_t usec); /* EXTEND_TIMEOUT_USEC */
void notify_watchdog(void);
void notify_errno(int sys);

/* systemd keeps a copy of fd while we are restarted, and passes it to the next of us under this
 * name (activation.h), in place of what it kept so before; or lets it go. */
void notify_keep(const char *name, int fd);
void notify_forget(const char *name);

/* Microseconds between WATCHDOG=1 messages, half of what systemd asks for; 0: none wanted. */
uint64_t notify_watchdog_usec(void);

#endif /* DAEMON_NOTIFY_H */
