/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hear: the other end of sd_notify(3), for tests. Prints each line that comes to the datagram
 * socket PATH, until somebody ends it.
 *
 *   hear PATH >FILE &
 */
#include "config.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    char text[4096];
    ssize_t n;
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (argc != 2 || fd == -1)
        return 64;
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s", argv[1]);
    if (bind(fd, (const struct sockaddr *)&sa, sizeof sa) == -1)
        return 73;
    while ((n = recv(fd, text, sizeof text - 1, 0)) >= 0) {
        text[n] = '\0';
        puts(text);
        fflush(stdout);
    }
    return 0;
}
