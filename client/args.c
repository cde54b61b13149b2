/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arguments: getopt_long over the table of the command at hand. Options and arguments may be
 * mixed, `--` ends options, and what belongs to all commands may stand in front of the command too.
 */
#include "config.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/num.h"
#include "client/client.h"

enum { MAX_OPTIONS = 48, FIRST_LONG = 256 };

void
args_usage(FILE *to, const struct cmd_entry *cmd)
{
    const struct cmd_option *tables[] = {
        cmd != NULL ? cmd->options : NULL,
        cmd != NULL && cmd->samples ? sampling_options : NULL, global_options};
    static const char *const titles[] = {"Options:", "Sampling:", "All commands:"};

    if (cmd != NULL) {
        fprintf(to, "usage: fathom %s [options] %s\n%s.\n", cmd->name, cmd->args,
                cmd->help);
    } else {
        fprintf(to, "usage: fathom COMMAND [options] [arguments]\n\n");
        for (const struct cmd_entry *c = commands; c->name != NULL; c++)
            fprintf(to, "  %-12s%-18s%s\n", c->name, c->args, c->help);
    }
    for (int i = 0; i < 3; i++) {
        if (tables[i] == NULL)
            continue;
        fprintf(to, "\n%s\n", titles[i]);
        for (const struct cmd_option *o = tables[i]; o->name != NULL; o++) {
            char left[64];

            snprintf(left, sizeof left, "--%s%s%s", o->name, o->arg != NULL ? " " : "",
                     o->arg != NULL ? o->arg : "");
            if (o->letter != 0)
                fprintf(to, "  -%c, %-22s%s\n", o->letter, left, o->help);
            else
                fprintf(to, "      %-22s%s\n", left, o->help);
        }
    }
}

_Noreturn void
usage_error(const struct client *c, const char *fmt, ...)
{
    const char *name = c->cmd != NULL ? c->cmd->name : "";
    va_list ap;

    fprintf(stderr, "fathom%s%s: ", c->cmd != NULL ? " " : "", name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nTry 'fathom%s%s --help'.\n", c->cmd != NULL ? " " : "", name);
    exit(CMD_USAGE);
}

/* All options of the command, then those of every command. */
static int
gather(const struct cmd_entry *cmd, const struct cmd_option **list, struct option *longs,
       char *shorts)
{
    const struct cmd_option *tables[] = {
        cmd != NULL ? cmd->options : NULL,
        cmd != NULL && cmd->samples ? sampling_options : NULL, global_options};
    int n = 0;

    /* '+': in front of the command, its name ends the options. */
    if (cmd == NULL)
        *shorts++ = '+';
    *shorts++ = ':';
    for (int i = 0; i < 3; i++) {
        for (const struct cmd_option *o = tables[i]; o != NULL && o->name != NULL; o++) {
            if (n == MAX_OPTIONS)
                abort();
            list[n] = o;
            longs[n] = (struct option){o->name,
                                       o->arg != NULL ? required_argument : no_argument,
                                       NULL, FIRST_LONG + n};
            n++;
            if (o->letter == 0)
                continue;
            *shorts++ = o->letter;
            if (o->arg != NULL)
                *shorts++ = ':';
        }
    }
    longs[n] = (struct option){NULL, 0, NULL, 0};
    *shorts = '\0';
    return n;
}

static void
keep(struct client *c, const struct cmd_option *o, const char *value)
{
    struct cmd_values *v = &c->values;

    if (v->n == CMD_MAX_VALUES)
        usage_error(c, "more than %d options", CMD_MAX_VALUES);
    v->v[v->n].option = o;
    v->v[v->n].value = value != NULL ? value : "";
    v->n++;
}

static void
parse_options(struct client *c, int argc, char **argv)
{
    const struct cmd_option *list[MAX_OPTIONS];
    struct option longs[MAX_OPTIONS + 1];
    char shorts[2 * MAX_OPTIONS + 3];
    const int n = gather(c->cmd, list, longs, shorts);
    int ch;

    opterr = 0;
    optind = 0; /* glibc: begin anew, with the flags in front of `shorts` */
    while ((ch = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        const struct cmd_option *o = NULL;

        if (ch == ':')
            usage_error(c, "%s needs a value", argv[optind - 1]);
        for (int i = 0; i < n && o == NULL; i++) {
            if (ch == FIRST_LONG + i || (list[i]->letter != 0 && ch == list[i]->letter))
                o = list[i];
        }
        if (o == NULL)
            usage_error(c, "unknown option '%s'", argv[optind - 1]);
        keep(c, o, optarg);
    }
}

static const struct cmd_entry *
find_command(const char *name)
{
    for (const struct cmd_entry *cmd = commands; cmd->name != NULL; cmd++) {
        if (strcmp(cmd->name, name) == 0)
            return cmd;
    }
    return NULL;
}

static void
take_globals(struct client *c)
{
    const char *wait = arg_value(c, "wait");
    struct err e;

    if (arg_given(c, "help")) {
        args_usage(stdout, c->cmd);
        exit(fflush(stdout) == EOF ? EXIT_OUTPUT : 0);
    }
    if (arg_given(c, "version")) {
        printf("fathom %s\n", fathom_version());
        exit(fflush(stdout) == EOF ? EXIT_OUTPUT : 0);
    }
    c->json = arg_given(c, "json");
    c->quiet = arg_given(c, "quiet");
    c->socket = arg_value(c, "socket");
    if (wait != NULL && num_duration_ms(wait, 0, 86400000, &c->wait_ms, &e) == -1)
        usage_error(c, "--wait: %s", e.text);
}

void
args_parse(struct client *c, int argc, char **argv)
{
    char *program = argv[0];

    if (argc < 1)
        exit(CMD_USAGE);
    parse_options(c, argc, argv);
    argc -= optind;
    argv += optind;
    if (argc > 0 && strcmp(argv[0], "help") == 0) {
        c->cmd = argc > 1 ? find_command(argv[1]) : NULL;
        args_usage(stdout, c->cmd);
        exit(fflush(stdout) == EOF ? EXIT_OUTPUT : 0);
    }
    if (argc == 0) {
        take_globals(c);
        args_usage(stderr, NULL);
        exit(CMD_USAGE);
    }
    c->cmd = find_command(argv[0]);
    if (c->cmd == NULL)
        usage_error(c, "no command '%s'", argv[0]);
    argv[0] = program;
    parse_options(c, argc, argv);
    take_globals(c);
    c->values.n_args = argc - optind;
    c->values.args = argv + optind;
    if (c->values.n_args < c->cmd->min_args || c->values.n_args > c->cmd->max_args)
        usage_error(c, "usage: fathom %s [options] %s", c->cmd->name, c->cmd->args);
}

const char *
arg_nth(const struct client *c, const char *name, int n)
{
    for (int i = 0; i < c->values.n; i++) {
        if (strcmp(c->values.v[i].option->name, name) == 0 && n-- == 0)
            return c->values.v[i].value;
    }
    return NULL;
}

const char *
arg_value(const struct client *c, const char *name)
{
    const char *last = NULL;

    for (int i = 0; arg_nth(c, name, i) != NULL; i++)
        last = arg_nth(c, name, i);
    return last;
}

bool
arg_given(const struct client *c, const char *name)
{
    return arg_value(c, name) != NULL;
}

uint64_t
arg_u64(const struct client *c, const char *name, uint64_t max, uint64_t otherwise)
{
    const char *s = arg_value(c, name);
    struct err e;

    if (s != NULL && num_u64(s, 0, max, &otherwise, &e) == -1)
        usage_error(c, "--%s: %s", name, e.text);
    return otherwise;
}

double
arg_f64(const struct client *c, const char *name, double min, double max, double otherwise)
{
    const char *s = arg_value(c, name);
    struct err e;

    if (s != NULL && num_f64(s, min, max, &otherwise, &e) == -1)
        usage_error(c, "--%s: %s", name, e.text);
    return otherwise;
}
