/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ops-doc: what is made from daemon/journal.def and daemon/metrics.def.
 *
 *   ops-doc catalog >FILE   the message catalogue for journald (`journalctl -x`)
 *   ops-doc update FILE     the tables of docs/OPERATIONS.md, in a copy on stdout
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "tools/doc.h"

static const char begin_mark[] = "<!-- tables: made by tools/ops-doc -->\n",
                  end_mark[] = "<!-- end of tables -->\n";

static const struct {
    const char *name, *id;
    int a_minute;
    const char *subject, *text;
} events[] = {

#define EVENT(name, id, a_minute, subject, text) {name, id, a_minute, subject, text},
#include "daemon/journal.def"
#undef EVENT
};

static const struct {
    const char *name, *kind, *label, *help;
} metrics[] = {

#define METRIC(id, name, kind, unit, help)                   {name, #kind, "", help},
#define FAMILY(id, name, kind, unit, label, n, values, help) {name, #kind, label, help},
#define HISTOGRAM(id, name, help)                            {name, "HISTOGRAM", "", help},
#include "daemon/metrics.def"
#undef METRIC
#undef FAMILY
#undef HISTOGRAM
};

static void
print_catalog(void)
{
    printf("# The events of fathomd, made by tools/ops-doc from daemon/journal.def.\n");
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        printf("\n-- %s\nSubject: %s\nDefined-By: fathom\nSupport: %s\n"
               "Documentation: man:fathomd(8)\n\n%s\n",
               events[i].id, events[i].subject, PACKAGE_URL, events[i].text);
}

static void
print_tables(void)
{
    printf("\n### Log events\n\n| event | MESSAGE_ID | a minute | what it means |\n"
           "| --- | --- | --- | --- |\n");
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++) {
        char limit[16] = "";

        if (events[i].a_minute > 0)
            snprintf(limit, sizeof limit, "%d", events[i].a_minute);
        printf("| `%s` | `%s` | %s | %s. %s |\n", events[i].name, events[i].id, limit,
               events[i].subject, events[i].text);
    }
    printf("\n### Metrics\n\n| metric | kind | label | what it counts |\n"
           "| --- | --- | --- | --- |\n");
    for (size_t i = 0; i < sizeof metrics / sizeof metrics[0]; i++) {
        const char *const kind = metrics[i].kind;

        printf("| `%s` | %s | %s%s%s | %s. |\n", metrics[i].name,
               kind[0] == 'C'   ? "counter"
               : kind[0] == 'G' ? "gauge"
                                : "histogram",
               metrics[i].label[0] != '\0' ? "`" : "", metrics[i].label,
               metrics[i].label[0] != '\0' ? "`" : "", metrics[i].help);
    }
    printf("\n");
}

int
main(int argc, char **argv)
{
    int status = 0;

    if (argc == 2 && strcmp(argv[1], "catalog") == 0)
        print_catalog();
    else if (argc == 3 && strcmp(argv[1], "update") == 0)
        status = doc_update("ops-doc", argv[2], begin_mark, end_mark, print_tables);
    else
        status = 64;
    if (status == 64)
        fprintf(stderr, "usage: ops-doc catalog | update FILE\n");
    return fflush(stdout) == EOF ? 74 : status;
}
