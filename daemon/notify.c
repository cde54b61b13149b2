/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "base/clock.h"
#include "daemon/notify.h"

void
notify_status(const char *fmt, ...)
{
    static char last[256];
    char line[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (strcmp(line, last) == 0)
        return;
    memcpy(last, line, sizeof last);
    sd_notifyf(0, "STATUS=%s", line);
}

void
notify_ready(void)
{
    sd_notify(0, "READY=1");
}

void
notify_reloading(void)
{
    /* systemd 253 and later match the reload by its time. */
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_ns() / 1000);
}

void
notify_stopping(void)
{
    sd_notify(0, "STOPPING=1");
}

void
notify_extend(uint64_t usec)
{
    sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, usec);
}

void
notify_watchdog(void)
{
    sd_notify(0, "WATCHDOG=1");
}

void
notify_errno(int sys)
{
    sd_notifyf(0, "ERRNO=%d", sys);
}

void
notify_forget(const char *name)
{
    sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

void
notify_keep(const char *name, int fd)
{
    char text[128];

    notify_forget(name);
    snprintf(text, sizeof text, "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
    sd_pid_notify_with_fds(0, 0, text, &fd, 1);
}

uint64_t
notify_watchdog_usec(void)
{
    uint64_t usec = 0;

    return sd_watchdog_enabled(0, &usec) > 0 ? usec / 2 : 0;
}
