/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From counts to the text that Prometheus reads. No label needs escaping: none of their values
 * comes from outside.
 */
#include "config.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "daemon/metrics.h"

enum kind { COUNTER, GAUGE };

enum unit { PLAIN, PERMILLE, MS, NS };

enum { LABEL_MAX = 64 };

struct page {
    struct buf *out;
    struct err *e;
    int rc;
};

static const char *
method_label(int i)
{
    return wire_methods[i].name;
}

static const char *
error_label(int i)
{
    return err_name((enum err_code)(i + 1)); /* 0 is no error */
}

static const char *
state_label(int i)
{
    return session_state_id((enum session_state)i);
}

static const char *
tier_label(int i)
{
    static const char *const names[METRICS_TIERS] = {"engine", "arena", "disk"};

    return names[i];
}

static void __attribute__((format(printf, 2, 3))) put(struct page *p, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    assert(n >= 0 && (size_t)n < sizeof line);
    if (p->rc == 0)
        p->rc = buf_add(p->out, line, (size_t)n, p->e);
}

static void
head(struct page *p, const char *name, const char *type, const char *help)
{
    put(p, "# HELP %s %s.\n# TYPE %s %s\n", name, help, name, type);
}

/* Exact: no count is rounded on its way through a double. */
static void
value(struct page *p, uint64_t v, enum unit unit)
{
    static const struct {
        uint64_t one;
        int digits;
    } units[] = {
        [PLAIN] = {1, 0}, [PERMILLE] = {1000, 3}, [MS] = {1000, 3}, [NS] = {1000000000, 9}};

    const uint64_t one = units[unit].one;

    if (one == 1)
        put(p, " %" PRIu64 "\n", v);
    else
        put(p, " %" PRIu64 ".%0*" PRIu64 "\n", v / one, units[unit].digits, v % one);
}

static void
metric(struct page *p, const char *name, enum kind kind, enum unit unit, uint64_t v,
       const char *help)
{
    head(p, name, kind == COUNTER ? "counter" : "gauge", help);
    put(p, "%s", name);
    value(p, v, unit);
}

static void
family(struct page *p, const char *name, enum kind kind, enum unit unit, const char *label,
       int n, const char *(*name_of)(int i), const uint64_t *v, const char *help)
{
    head(p, name, kind == COUNTER ? "counter" : "gauge", help);
    for (int i = 0; i < n; i++) {
        char small[LABEL_MAX];
        const char *s = name_of(i);
        size_t k = 0;

        for (; s[k] != '\0' && k < sizeof small - 1; k++)
            small[k] = (char)tolower((unsigned char)s[k]);
        small[k] = '\0';
        put(p, "%s{%s=\"%s\"}", name, label, small);
        value(p, v[i], unit);
    }
}

/* 0.0001, 1, 2.5: as short as Prometheus' own clients write it. */
static void
bound(struct page *p, uint64_t ns)
{
    char digits[16];
    size_t n;

    snprintf(digits, sizeof digits, "%09" PRIu64, ns % 1000000000);
    for (n = strlen(digits); n > 0 && digits[n - 1] == '0'; n--)
        digits[n - 1] = '\0';
    put(p, "%" PRIu64 "%s%s", ns / 1000000000, n > 0 ? "." : "", digits);
}

static void
histogram(struct page *p, const char *name, const struct histogram *h, const char *help)
{
    uint64_t n = 0;

    head(p, name, "histogram", help);
    for (int i = 0; i < HISTOGRAM_STEPS; i++) {
        n += h->n[i];
        put(p, "%s_bucket{le=\"", name);
        bound(p, histogram_ns[i]);
        put(p, "\"} %" PRIu64 "\n", n);
    }
    n += h->n[HISTOGRAM_STEPS];
    put(p, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n%s_sum", name, n, name);
    value(p, h->sum_ns, NS);
    put(p, "%s_count %" PRIu64 "\n", name, n);
}

int
metrics_write(const struct metrics_values *v, struct buf *out, struct err *e)
{
    struct page p = {.out = out, .e = e};

#define METRIC(id, name, kind, unit, help) metric(&p, name, kind, unit, v->id, help);
#define FAMILY(id, name, kind, unit, label, n, values, help) \
    family(&p, name, kind, unit, label, n, values, v->id, help);
#define HISTOGRAM(id, name, help) histogram(&p, name, &v->id, help);
#include "daemon/metrics.def"
#undef METRIC
#undef FAMILY
#undef HISTOGRAM
    return p.rc;
}
