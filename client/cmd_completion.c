/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom completion bash|zsh|fish, from the table of commands. Session names are asked for
 * when they are needed, with `fathom ls --names`. `list` prints the options, one a line, for
 * the check of the man page.
 */
#include "config.h"

#include <string.h>

#include "client/client.h"

static const struct cmd_option none[] = {{0, NULL, NULL, NULL}};

static const struct cmd_option *
own(const struct cmd_entry *c)
{
    return c->options != NULL ? c->options : none;
}

static void
list(void)
{
    for (const struct cmd_option *o = global_options; o->name != NULL; o++)
        printf("global --%s\n", o->name);
    for (const struct cmd_option *o = sampling_options; o->name != NULL; o++)
        printf("sampling --%s\n", o->name);
    for (const struct cmd_entry *c = commands; c->name != NULL; c++) {
        printf("%s\n", c->name);
        for (const struct cmd_option *o = own(c); o->name != NULL; o++)
            printf("%s --%s\n", c->name, o->name);
    }
}

static void
bash_words(const struct cmd_option *o)
{
    for (; o->name != NULL; o++)
        printf(" --%s", o->name);
}

static void
bash(void)
{
    printf("# bash completion for fathom\n"
           "_fathom() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} cmd=${COMP_WORDS[1]} opts= words=\n"
           "    if ((COMP_CWORD == 1)); then\n"
           "        mapfile -t COMPREPLY < <(compgen -W \"");
    for (const struct cmd_entry *c = commands; c->name != NULL; c++)
        printf("%s ", c->name);
    printf("help\" -- \"$cur\")\n"
           "        return\n"
           "    fi\n"
           "    case $cmd in\n");
    for (const struct cmd_entry *c = commands; c->name != NULL; c++) {
        printf("    %s) words=%s opts=\"", c->name, c->words[0] != '\0' ? c->words : "-");
        bash_words(own(c));
        if (c->samples)
            bash_words(sampling_options);
        printf("\" ;;\n");
    }
    printf("    esac\n"
           "    if [[ $cur == -* ]]; then\n"
           "        mapfile -t COMPREPLY < <(compgen -W \"$opts");
    bash_words(global_options);
    printf(
        "\" -- \"$cur\")\n"
        "    elif [[ $cmd == completion ]]; then\n"
        "        mapfile -t COMPREPLY < <(compgen -W \"bash zsh fish\" -- \"$cur\")\n"
        "    elif [[ ${words:COMP_CWORD-2:1} == s || $cmd == rm ]]; then\n"
        "        mapfile -t COMPREPLY < <(compgen -W \"$(fathom ls --names 2>/dev/null)\" "
        "-- \"$cur\")\n"
        "    elif [[ ${words:COMP_CWORD-2:1} == f ]]; then\n"
        "        mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
        "    fi\n"
        "}\n"
        "complete -F _fathom fathom\n");
}

/* Single quotes keep all but a single quote, in zsh and in fish. */
static void
quoted(const char *s)
{
    for (; *s != '\0'; s++) {
        if (*s == '\'')
            fputs("'\\''", stdout);
        else if (*s == '[' || *s == ']' || *s == ':')
            printf("\\%c", *s);
        else
            putchar(*s);
    }
}

static void
zsh_options(const struct cmd_option *o)
{
    for (; o->name != NULL; o++) {
        printf(" \\\n            '*--%s%s[", o->name, o->arg != NULL ? "=" : "");
        quoted(o->help);
        printf("]%s%s%s'", o->arg != NULL ? ":" : "", o->arg != NULL ? o->arg : "",
               o->arg != NULL ? ":" : "");
    }
}

static void
zsh(void)
{
    printf("#compdef fathom\n"
           "_fathom_sessions() {\n"
           "    local -a names\n"
           "    names=(${(f)\"$(fathom ls --names 2>/dev/null)\"})\n"
           "    compadd -a names\n"
           "}\n"
           "_fathom() {\n"
           "    local -a cmds\n"
           "    if ((CURRENT == 2)); then\n"
           "        cmds=(");
    for (const struct cmd_entry *c = commands; c->name != NULL; c++) {
        printf("\n            '%s:", c->name);
        quoted(c->help);
        printf("'");
    }
    printf(")\n"
           "        _describe command cmds\n"
           "        return\n"
           "    fi\n"
           "    local cmd=$words[2]\n"
           "    shift words; ((CURRENT--))\n"
           "    case $cmd in\n");
    for (const struct cmd_entry *c = commands; c->name != NULL; c++) {
        printf("    %s)\n        _arguments -S", c->name);
        zsh_options(own(c));
        if (c->samples)
            zsh_options(sampling_options);
        zsh_options(global_options);
        for (const char *w = c->words; *w != '\0'; w++)
            printf(" \\\n            '%s'", *w == 's'   ? ":session:_fathom_sessions"
                                            : *w == 'f' ? ":file:_files"
                                                        : ": :");
        printf(" ;;\n");
    }
    printf("    esac\n"
           "}\n"
           "_fathom \"$@\"\n");
}

static void
fish_options(const char *condition, const struct cmd_option *o)
{
    for (; o->name != NULL; o++) {
        printf("complete -c fathom %s -l %s", condition, o->name);
        if (o->letter != 0)
            printf(" -s %c", o->letter);
        printf("%s -d '", o->arg != NULL ? " -r" : "");
        for (const char *s = o->help; *s != '\0'; s++)
            printf(*s == '\'' ? "\\'" : "%c", *s);
        printf("'\n");
    }
}

static void
fish(void)
{
    printf("# fish completion for fathom\n"
           "complete -c fathom -f\n");
    fish_options("", global_options);
    for (const struct cmd_entry *c = commands; c->name != NULL; c++) {
        char condition[96];

        printf("complete -c fathom -n __fish_use_subcommand -a %s -d '", c->name);
        for (const char *s = c->help; *s != '\0'; s++)
            printf(*s == '\'' ? "\\'" : "%c", *s);
        printf("'\n");
        snprintf(condition, sizeof condition, "-n '__fish_seen_subcommand_from %s'",
                 c->name);
        if (strchr(c->words, 's') != NULL)
            printf("complete -c fathom %s -a '(fathom ls --names 2>/dev/null)'\n",
                   condition);
        if (strchr(c->words, 'f') != NULL)
            printf("complete -c fathom %s -F\n", condition);
        fish_options(condition, own(c));
        if (c->samples)
            fish_options(condition, sampling_options);
    }
}

int
cmd_completion(struct client *c)
{
    static const struct {
        const char *name;
        void (*print)(void);
    } shells[] = {{"bash", bash}, {"zsh", zsh}, {"fish", fish}, {"list", list}};

    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++) {
        if (strcmp(c->values.args[0], shells[i].name) == 0) {
            shells[i].print();
            return 0;
        }
    }
    usage_error(c, "no completions for '%s': bash, zsh or fish", c->values.args[0]);
}
