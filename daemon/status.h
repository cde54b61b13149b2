/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_STATUS_H
#define DAEMON_STATUS_H

#include <stddef.h>
#include <stdint.h>

struct server;

/* How the daemon is: a word for programs and a sentence for people, the same in the status
 * method, in systemd's STATUS= and in the log. */
const char *status_word(const struct server *sv);
uint64_t status_number(const struct server *sv); /* as in proto/page.def */
void status_sentence(const struct server *sv, char *room, size_t size);

#endif /* DAEMON_STATUS_H */
