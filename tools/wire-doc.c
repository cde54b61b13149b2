/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire-doc: the tables of docs/PROTOCOL.md and the dictionary of the message fuzzers, from
 * proto/messages.def and proto/page.def.
 *
 *   wire-doc tables            what stands between the two marks in docs/PROTOCOL.md
 *   wire-doc update FILE       FILE with that part made anew, to standard output
 *   wire-doc dictionary        tests/fuzz/messages.dict
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "proto/page.h"
#include "proto/wire.h"
#include "tools/doc.h"

static const char begin_mark[] =
    "<!-- tables: made by tools/wire-doc from proto/messages.def -->\n";
static const char end_mark[] = "<!-- end of tables -->\n";

static void
print_type(const struct wire_field *f)
{
    static const char *const names[WIRE_TYPES] = {
        [WIRE_TYPE_str] = "str",           [WIRE_TYPE_text] = "str or bin",
        [WIRE_TYPE_bin] = "bin",           [WIRE_TYPE_u64] = "uint",
        [WIRE_TYPE_i64] = "int",           [WIRE_TYPE_f64] = "float",
        [WIRE_TYPE_flag] = "bool",         [WIRE_TYPE_fd] = "true + fd",
        [WIRE_TYPE_strs] = "array of str", [WIRE_TYPE_list] = "array of maps"};

    printf("%s", names[f->type]);
    if (f->type == WIRE_TYPE_list)
        printf(" [%s](#%s)", f->item->name, f->item->name);
    if (f->limit == 0)
        return;
    if (f->type == WIRE_TYPE_str || f->type == WIRE_TYPE_text || f->type == WIRE_TYPE_bin)
        printf(", %" PRIu64 " bytes", f->limit);
    else if (f->type == WIRE_TYPE_strs)
        printf(", %" PRIu64 " of %d bytes", f->limit, WIRE_ITEM_BYTES);
    else
        printf(", %" PRIu64, f->limit);
}

static void
print_fields(const char *title, const struct wire_message *m)
{
    printf("\n%s: %s\n", title, m->doc);
    if (m->n_fields == 0)
        return;
    printf("\n| key | type, at most | | meaning |\n| --- | --- | --- | --- |\n");
    for (uint32_t i = 0; i < m->n_fields; i++) {
        const struct wire_field *f = &m->fields[i];

        printf("| `%s` | ", f->key);
        print_type(f);
        printf(" | %s | %s |\n", f->required ? "always" : "", f->doc);
    }
}

/* Maps that stand in arrays of other maps, and the error map: each has its own heading. */
static void
print_parts(void)
{
    bool is_part[WIRE_MESSAGES] = {[WIRE_MSG_error] = true};

    for (int i = 0; i < WIRE_MESSAGES; i++) {
        for (uint32_t k = 0; k < wire_messages[i].n_fields; k++) {
            const struct wire_message *item = wire_messages[i].fields[k].item;

            if (item != NULL)
                is_part[item - wire_messages] = true;
        }
    }
    for (int i = 0; i < WIRE_MESSAGES; i++) {
        if (!is_part[i])
            continue;
        printf("\n### %s\n", wire_messages[i].name);
        print_fields("Map", &wire_messages[i]);
    }
}

static void
print_words(const char *title, const struct page_word *w, int n, int first)
{
    printf("\n%s\n\n| word | name | meaning |\n| --- | --- | --- |\n", title);
    for (int i = 0; i < n; i++)
        printf("| %d | `%s` | %s |\n", first + i, w[i].name, w[i].doc);
}

static void
print_pages(void)
{
    printf("\n## Statistics pages\n");
    print_words("Every page begins with", page_head_words, PAGE_HEAD_END, 0);
    print_words("Of the daemon:", page_daemon_words, PAGE_DAEMON_END - PAGE_HEAD_END,
                PAGE_HEAD_END);
    print_words("Of a session:", page_session_words, PAGE_SESSION_END - PAGE_HEAD_END,
                PAGE_HEAD_END);
}

static void
print_tables(void)
{
    printf("\n## Errors\n\n| code | name | exit status | again? | meaning |\n"
           "| --- | --- | --- | --- | --- |\n");
    for (int i = 1; i < ERR_CODES; i++)
        printf("| %d | `%s` | %d | %s | %s |\n", i, err_name((enum err_code)i),
               err_exit_status((enum err_code)i),
               err_is_retryable((enum err_code)i) ? "yes" : "",
               err_meaning((enum err_code)i));
    printf("\n## Methods\n");
    for (int i = 0; i < WIRE_METHODS; i++) {
        const struct wire_method *m = &wire_methods[i];

        printf("\n### `%s`\n\n%s\n", m->name, m->doc);
        print_fields("Request", m->request);
        if (m->item != WIRE_MSG(nothing))
            print_fields("Stream item", m->item);
        if (i != WIRE_METHOD_bye)
            print_fields("Result", m->result);
    }
    printf("\n## Maps within maps\n");
    print_parts();
    print_pages();
    printf("\n");
}

static void
print_word(const char *s)
{
    printf("\"\\x%02x%s\"\n", (unsigned)(0xa0 | strlen(s)), s); /* a fixstr */
}

static void
print_dictionary(void)
{
    printf("# Made by tools/wire-doc from proto/messages.def.\n");
    for (int i = 0; i < WIRE_METHODS; i++)
        print_word(wire_methods[i].name);
    for (int i = 0; i < WIRE_MESSAGES; i++) {
        for (uint32_t k = 0; k < wire_messages[i].n_fields; k++)
            print_word(wire_messages[i].fields[k].key);
    }
}

int
main(int argc, char **argv)
{
    int status = 0;

    if (argc == 2 && strcmp(argv[1], "tables") == 0)
        print_tables();
    else if (argc == 2 && strcmp(argv[1], "dictionary") == 0)
        print_dictionary();
    else if (argc == 3 && strcmp(argv[1], "update") == 0)
        status = doc_update("wire-doc", argv[2], begin_mark, end_mark, print_tables);
    else
        status = 64;
    if (status == 64)
        fprintf(stderr, "usage: wire-doc tables | update FILE | dictionary\n");
    return fflush(stdout) == EOF ? 74 : status;
}
