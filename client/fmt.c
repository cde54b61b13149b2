/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers for people, and the progress line. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/client.h"

const char *
fmt_count(char *to, size_t size, uint64_t n)
{
    char digits[24];
    const int len = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n);
    size_t at = 0;

    for (int i = 0; i < len && at + 2 < size; i++) {
        if (i > 0 && (len - i) % 3 == 0)
            to[at++] = ',';
        to[at++] = digits[i];
    }
    to[at] = '\0';
    return to;
}

const char *
fmt_bytes(char *to, size_t size, double n)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t i = 0;

    while (n >= 1024 && i + 1 < sizeof units / sizeof *units) {
        n /= 1024;
        i++;
    }
    snprintf(to, size, i == 0 ? "%.0f %s" : "%.1f %s", n, units[i]);
    return to;
}

const char *
fmt_age(char *to, size_t size, uint64_t then_ms)
{
    const uint64_t now = clock_wall_ms();
    const uint64_t s = now > then_ms ? (now - then_ms) / 1000 : 0;

    if (s < 60)
        snprintf(to, size, "%llu s ago", (unsigned long long)s);
    else if (s < 3600)
        snprintf(to, size, "%llu min ago", (unsigned long long)s / 60);
    else if (s < 2 * 86400)
        snprintf(to, size, "%llu h ago", (unsigned long long)s / 3600);
    else
        snprintf(to, size, "%llu days ago", (unsigned long long)s / 86400);
    return to;
}

const char *
fmt_mode(char *to, uint64_t mode)
{
    for (int i = 0; i < 9; i++)
        to[i] = mode >> (8 - i) & 1 ? "rwx"[i % 3] : '-';
    to[9] = '\0';
    return to;
}

void
bar_begin(struct bar *b, const struct client *c)
{
    const char *term = getenv("TERM");

    *b = (struct bar){.began_ns = clock_ns(), .from = UINT64_MAX};
    b->on = !c->quiet && !c->json && isatty(STDERR_FILENO) && term != NULL &&
            strcmp(term, "dumb") != 0;
}

void
bar_show(struct bar *b, uint64_t pos, uint64_t total)
{
    enum { CELLS = 24, REDRAW_NS = 50000000 };

    char done[32], all[32], cells[CELLS + 1];
    const uint64_t now = clock_ns();
    uint64_t full;
    double rate;

    if (b->from == UINT64_MAX) {
        b->from = pos;
        b->began_ns = now;
    }
    if (!b->on || total <= b->from || pos > total ||
        (b->drawn && now - b->drawn_ns < REDRAW_NS && pos != total))
        return;
    full = (pos - b->from) * CELLS / (total - b->from);
    for (uint64_t i = 0; i < CELLS; i++)
        cells[i] = i < full ? '#' : '.';
    cells[CELLS] = '\0';
    rate = now > b->began_ns ? (double)(pos - b->from) * 1e9 / (double)(now - b->began_ns)
                             : 0;
    fprintf(stderr, "\r\033[K[%s] %s of %s tokens", cells,
            fmt_count(done, sizeof done, pos - b->from),
            fmt_count(all, sizeof all, total - b->from));
    if (rate > 0)
        fprintf(stderr, ", %.0f/s", rate);
    if (rate > 0 && pos < total)
        fprintf(stderr, ", %.0f s left", (double)(total - pos) / rate);
    fflush(stderr);
    b->drawn = true;
    b->drawn_ns = now;
}

void
bar_end(struct bar *b)
{
    if (b->drawn)
        fputs("\r\033[K", stderr);
    b->drawn = false;
}
