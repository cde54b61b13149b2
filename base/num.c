/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/num.h"

struct unit {
    const char *name;
    uint64_t times;
};

/* Digits, then one of the units; `units` ends in a NULL name. */
static int
scaled(const char *s, const struct unit *units, uint64_t *out, struct err *e)
{
    char *end;
    uint64_t n;

    errno = 0;
    n = isdigit((unsigned char)s[0]) ? strtoull(s, &end, 10) : 0;
    if (!isdigit((unsigned char)s[0]) || errno != 0)
        return err_set(e, ERR_INVALID, errno, "'%s' is not a number", s);
    for (const struct unit *u = units; u->name != NULL; u++) {
        if (strcmp(end, u->name) != 0)
            continue;
        if (n > UINT64_MAX / u->times)
            return err_set(e, ERR_INVALID, 0, "'%s' is too large", s);
        *out = n * u->times;
        return 0;
    }
    return err_set(e, ERR_INVALID, 0, "'%s': unknown unit '%s'", s, end);
}

static int
in_range(const char *s, uint64_t n, uint64_t min, uint64_t max, uint64_t *out,
         struct err *e)
{
    if (n < min || n > max)
        return err_set(e, ERR_INVALID, 0, "'%s' is not between %" PRIu64 " and %" PRIu64, s,
                       min, max);
    *out = n;
    return 0;
}

int
num_u64(const char *s, uint64_t min, uint64_t max, uint64_t *out, struct err *e)
{
    static const struct unit units[] = {{"", 1}, {NULL, 0}};
    uint64_t n;

    if (scaled(s, units, &n, e) == -1)
        return -1;
    return in_range(s, n, min, max, out, e);
}

int
num_bytes(const char *s, uint64_t min, uint64_t max, uint64_t *out, struct err *e)
{
    static const struct unit units[] = {{"", 1},           {"B", 1},
                                        {"K", 1ull << 10}, {"KiB", 1ull << 10},
                                        {"M", 1ull << 20}, {"MiB", 1ull << 20},
                                        {"G", 1ull << 30}, {"GiB", 1ull << 30},
                                        {"T", 1ull << 40}, {"TiB", 1ull << 40},
                                        {NULL, 0}};
    uint64_t n;

    if (scaled(s, units, &n, e) == -1)
        return -1;
    return in_range(s, n, min, max, out, e);
}

int
num_duration_ms(const char *s, uint64_t min, uint64_t max, uint64_t *out, struct err *e)
{
    static const struct unit units[] = {{"", 1000},     {"s", 1000},    {"ms", 1},
                                        {"min", 60000}, {"h", 3600000}, {"d", 86400000},
                                        {NULL, 0}};
    uint64_t n;

    if (scaled(s, units, &n, e) == -1)
        return -1;
    return in_range(s, n, min, max, out, e);
}

int
num_i64(const char *s, int64_t min, int64_t max, int64_t *out, struct err *e)
{
    const char *digits = s[0] == '-' ? s + 1 : s;
    char *end;
    int64_t n;

    errno = 0;
    n = isdigit((unsigned char)digits[0]) ? strtoll(s, &end, 10) : 0;
    if (!isdigit((unsigned char)digits[0]) || errno != 0 || *end != '\0')
        return err_set(e, ERR_INVALID, errno, "'%s' is not a whole number", s);
    if (n < min || n > max)
        return err_set(e, ERR_INVALID, 0, "'%s' is not between %" PRId64 " and %" PRId64, s,
                       min, max);
    *out = n;
    return 0;
}

int
num_f64(const char *s, double min, double max, double *out, struct err *e)
{
    char *end;
    double x;

    errno = 0;
    x = strtod(s, &end);
    if (end == s || *end != '\0' || isspace((unsigned char)s[0]) || !isfinite(x))
        return err_set(e, ERR_INVALID, errno, "'%s' is not a number", s);
    if (x < min || x > max)
        return err_set(e, ERR_INVALID, 0, "'%s' is not between %g and %g", s, min, max);
    *out = x;
    return 0;
}

int
num_bool(const char *s, int *out, struct err *e)
{
    static const char *const words[2][4] = {{"no", "false", "off", "0"},
                                            {"yes", "true", "on", "1"}};

    for (int v = 0; v < 2; v++) {
        for (int i = 0; i < 4; i++) {
            if (strcmp(s, words[v][i]) == 0) {
                *out = v;
                return 0;
            }
        }
    }
    return err_set(e, ERR_INVALID, 0, "'%s' is neither yes nor no", s);
}
