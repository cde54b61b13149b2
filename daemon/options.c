/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings: one table from options.def; the command line and the file are two ways to the same
 * setter, so that they check alike. A key that is not in the table is an error, never ignored.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <ini.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "base/num.h"
#include "daemon/options.h"

enum option_type {
    OPTION_PATH,
    OPTION_TEXT,
    OPTION_COUNT,
    OPTION_BYTES,
    OPTION_TIME,
    OPTION_MODE,
    OPTION_LEVEL,
    OPTION_DURABILITY
};

static const struct option_entry {
    const char *section, *name;
    enum option_type type;
    uint64_t min, max;
    const char *def;
    bool reload;
    const char *text;
    size_t offset;
} table[] = {

#define OPTION(id, section, name, type, min, max, def, reload, text) \
    {section, name, OPTION_##type,                                   \
     min,     max,  def,                                             \
     reload,  text, offsetof(struct options, id)},
#include "daemon/options.def"
#undef OPTION
};

enum { N_OPTIONS = sizeof table / sizeof table[0], FIRST_LONG = 1000, MAX_FILE = 1 << 20 };

static const char *const durabilities[] = {[DURABILITY_TURN] = "turn",
                                           [DURABILITY_ALWAYS] = "always",
                                           [DURABILITY_RELAXED] = "relaxed"};

static char **
text_of(const struct options *o, const struct option_entry *t)
{
    return (char **)((char *)(uintptr_t)o + t->offset);
}

static uint64_t *
number_of(const struct options *o, const struct option_entry *t)
{
    return (uint64_t *)((char *)(uintptr_t)o + t->offset);
}

static bool
is_text(const struct option_entry *t)
{
    return t->type == OPTION_PATH || t->type == OPTION_TEXT;
}

static int
parse_number(const struct option_entry *t, const char *value, uint64_t *out, struct err *e)
{
    char *end;
    int level;

    switch (t->type) {
    case OPTION_COUNT: return num_u64(value, t->min, t->max, out, e);
    case OPTION_BYTES: return num_bytes(value, t->min, t->max, out, e);
    case OPTION_TIME: return num_duration_ms(value, t->min, t->max, out, e);
    case OPTION_MODE:
        *out = strtoull(value, &end, 8);
        if (end == value || *end != '\0' || value[0] == '-' || *out > t->max)
            return err_set(e, ERR_INVALID, 0, "'%s' is not an octal mode", value);
        return 0;
    case OPTION_LEVEL:
        level = log_level_parse(value);
        if (level == -1)
            return err_set(e, ERR_INVALID, 0,
                           "'%s' is none of error, warning, notice, "
                           "info and debug",
                           value);
        *out = (uint64_t)level;
        return 0;
    case OPTION_DURABILITY:
        for (*out = t->min; *out <= t->max; ++*out) {
            if (strcmp(value, durabilities[*out]) == 0)
                return 0;
        }
        return err_set(e, ERR_INVALID, 0, "'%s' is none of turn, always and relaxed",
                       value);
    default: return err_set(e, ERR_INTERNAL, 0, "no such type");
    }
}

static int
set_option(struct options *o, size_t i, const char *value, enum option_source from,
           struct err *e)
{
    const struct option_entry *t = &table[i];
    uint64_t n = 0;

    if (is_text(t)) {
        const size_t len = strlen(value);
        char *copy;

        if (from != OPTION_DEFAULT && (len < t->min || len > t->max))
            return err_set(e, ERR_INVALID, 0,
                           "%s is %zu bytes long, not between %" PRIu64 " and %" PRIu64,
                           t->name, len, t->min, t->max);
        copy = strdup(value);
        if (copy == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for settings");
        free(*text_of(o, t));
        *text_of(o, t) = copy;
    } else {
        if (parse_number(t, value, &n, e) == -1)
            return err_prefix(e, "%s", t->name);
        *number_of(o, t) = n;
    }
    o->from[i] = (uint8_t)from;
    return 0;
}

/* Edits from a to b (insert, delete, replace), for suggestions; names are short. */
static size_t
edit_distance(const char *a, const char *b)
{
    size_t row[64], len = strlen(b);

    if (len >= 64)
        return SIZE_MAX;
    for (size_t j = 0; j <= len; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= len; j++) {
            const size_t up = row[j];
            size_t best = diagonal + (a[i - 1] != b[j - 1]);

            if (up + 1 < best)
                best = up + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = up;
            row[j] = best;
        }
    }
    return row[len];
}

static const char *
nearest(const char *name)
{
    const char *best = NULL;
    size_t least = 4;

    for (size_t i = 0; i < N_OPTIONS; i++) {
        const size_t d = edit_distance(name, table[i].name);

        if (d < least) {
            least = d;
            best = table[i].name;
        }
    }
    return best;
}

static int
check_value(const struct option_entry *t, const char *value, struct err *e)
{
    uint64_t n;

    if (!is_text(t) && parse_number(t, value, &n, e) == -1)
        return err_prefix(e, "%s", t->name);
    return 0;
}

struct file_reader {
    struct options *o;
    struct err *e;
    const char *text; /* what is left of the file */
    int line;
    bool failed;
    bool seen[N_OPTIONS];
};

static int
file_value(struct file_reader *r, const char *section, const char *name, const char *value)
{
    const char *guess;

    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (strcmp(name, table[i].name) != 0)
            continue;
        if (strcmp(section, table[i].section) != 0)
            return err_set(r->e, ERR_INVALID, 0, "%s belongs under [%s], not [%s]", name,
                           table[i].section, section);
        if (r->seen[i])
            return err_set(r->e, ERR_INVALID, 0, "%s is set twice", name);
        r->seen[i] = true;
        if (r->o->from[i] == OPTION_COMMAND) /* which wins; a wrong value is still wrong */
            return check_value(&table[i], value, r->e);
        return set_option(r->o, i, value, OPTION_FILE, r->e);
    }
    guess = nearest(name);
    return err_set(r->e, ERR_INVALID, 0, "unknown setting '%s'%s%s%s", name,
                   guess != NULL ? "; did you mean '" : "", guess != NULL ? guess : "",
                   guess != NULL ? "'?" : "");
}

/* inih's callback: 0 marks the line as wrong. Only the first mistake is kept. */
static int
on_file_value(void *arg, const char *section, const char *name, const char *value)
{
    struct file_reader *r = arg;

    if (r->failed)
        return 1;
    r->failed = file_value(r, section, name, value) == -1;
    return !r->failed;
}

/* inih's reader: one line, so that we know which it is. And inih's own
 * cuts a long line in two without a word. */
static char *
next_line(char *room, int size, void *arg)
{
    struct file_reader *r = arg;
    const size_t len = strcspn(r->text, "\n");

    if (*r->text == '\0' || r->failed)
        return NULL;
    r->line++;
    if (len + 2 > (size_t)size) {
        r->failed = true;
        err_set(r->e, ERR_INVALID, 0, "a line of %zu bytes; at most %d", len, size - 2);
        return NULL;
    }
    memcpy(room, r->text, len);
    room[len] = '\n';
    room[len + 1] = '\0';
    r->text += len + (r->text[len] == '\n');
    return room;
}

int
options_read_file(struct options *o, const char *path, struct err *e)
{
    struct file_reader r = {.o = o, .e = e};
    size_t len;
    char *text = file_read(path, MAX_FILE, &len, e);
    int line;

    if (text == NULL)
        return -1;
    r.text = text;
    line = ini_parse_stream(next_line, &r, on_file_value, &r);
    free(text);
    /* inih tells the first line that it did not like; ours may be a later one. */
    if (line > 0 && (!r.failed || line < r.line))
        return err_set(e, ERR_INVALID, 0, "%s:%d: neither '[section]' nor 'name = value'",
                       path, line);
    if (line < 0)
        return err_set(e, ERR_QUOTA, 0, "%s: no memory to read it", path);
    return r.failed ? err_prefix(e, "%s:%d", path, r.line) : 0;
}

/* A fathomd that runs where it was built takes the engine that was built with it, installed or
 * not: an older one that happens to be installed would not fit. */
static int
use_built_engine(struct options *o, struct err *e)
{
    static const char engine[] = "/engine/fathom-engine";
    char path[PATH_MAX + sizeof engine];
    const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
    char *end;

    if (n <= 0 || n == PATH_MAX)
        return 0;
    path[n] = '\0';
    for (int i = 0; i < 2; i++) { /* off with the program's name and its folder's */
        end = strrchr(path, '/');
        if (end == NULL)
            return 0;
        *end = '\0';
    }
    memcpy(end, engine, sizeof engine);
    if (access(path, X_OK) == -1)
        return 0;
    end = strdup(path);
    if (end == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for settings");
    free(o->engine);
    o->engine = end;
    return 0;
}

static int
set_defaults(struct options *o, struct err *e)
{
    *o = (struct options){.from = calloc(N_OPTIONS, 1)};
    if (o->from == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for settings");
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (set_option(o, i, table[i].def, OPTION_DEFAULT, e) == -1)
            return -1;
    }
    return use_built_engine(o, e);
}

static int
read_command(struct options *o, int argc, char **argv, struct err *e)
{
    enum { CONFIG = 1, DUMP };
    struct option longs[N_OPTIONS + 6] = {0};
    size_t n = 0;
    int c;

    for (size_t i = 0; i < N_OPTIONS; i++)
        longs[n++] =
            (struct option){table[i].name, required_argument, NULL, FIRST_LONG + (int)i};
    longs[n++] = (struct option){"config", required_argument, NULL, CONFIG};
    longs[n++] = (struct option){"check-config", no_argument, NULL, 't'};
    longs[n++] = (struct option){"dump-config", no_argument, NULL, DUMP};
    longs[n++] = (struct option){"help", no_argument, NULL, 'h'};
    longs[n++] = (struct option){"version", no_argument, NULL, 'V'};
    optind = 0; /* start over: SIGHUP reads the same words again */
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":thV", longs, NULL)) != -1) {
        switch (c) {
        case CONFIG:
            free(o->config);
            o->config = strdup(optarg);
            if (o->config == NULL)
                return err_set(e, ERR_QUOTA, errno, "no memory for settings");
            break;
        case 't': o->check = true; break;
        case DUMP: o->dump = true; break;
        case 'h': o->help = true; return 0;
        case 'V': o->version = true; return 0;
        case ':': return err_set(e, ERR_INVALID, 0, "%s needs a value", argv[optind - 1]);
        case '?': {
            const char *word = argv[optind - 1], *name = word + strspn(word, "-");
            const char *guess = nearest(name);

            return err_set(e, ERR_INVALID, 0, "unknown option '%s'%s%s%s", word,
                           guess != NULL ? "; did you mean '--" : "",
                           guess != NULL ? guess : "", guess != NULL ? "'?" : "");
        }
        default:
            if (set_option(o, (size_t)(c - FIRST_LONG), optarg, OPTION_COMMAND, e) == -1)
                return err_prefix(e, "command line");
        }
    }
    if (optind < argc)
        return err_set(e, ERR_INVALID, 0, "'%s' is no option; fathomd takes no other words",
                       argv[optind]);
    return 0;
}

int
options_load(struct options *o, int argc, char **argv, struct err *e)
{
    static const char usual[] = SYSCONFDIR "/fathom/fathomd.conf";

    if (set_defaults(o, e) == -1 || read_command(o, argc, argv, e) == -1)
        return -1;
    if (o->help || o->version)
        return 0;
    if (o->config != NULL)
        return options_read_file(o, o->config, e);
    if (access(usual, F_OK) == 0)
        return options_read_file(o, usual, e);
    return 0;
}

void
options_done(struct options *o)
{
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (is_text(&table[i]))
            free(*text_of(o, &table[i]));
    }
    free(o->config);
    free(o->from);
    *o = (struct options){0};
}

static bool
same(const struct options *a, const struct options *b, const struct option_entry *t)
{
    if (is_text(t))
        return strcmp(*text_of(a, t), *text_of(b, t)) == 0;
    return *number_of(a, t) == *number_of(b, t);
}

int
options_reload(struct options *o, int argc, char **argv, char *ignored, size_t room,
               struct err *e)
{
    struct options fresh;
    size_t at = 0;

    if (options_load(&fresh, argc, argv, e) == -1) {
        options_done(&fresh);
        return -1;
    }
    ignored[0] = '\0';
    for (size_t i = 0; i < N_OPTIONS; i++) {
        const struct option_entry *t = &table[i];

        if (same(o, &fresh, t))
            continue;
        if (t->reload && !is_text(t)) {
            *number_of(o, t) = *number_of(&fresh, t);
            o->from[i] = fresh.from[i];
        } else if (at < room) {
            at += (size_t)snprintf(ignored + at, room - at, "%s%s", at > 0 ? " " : "",
                                   t->name);
        }
    }
    options_done(&fresh);
    return 0;
}

static void
print_value(const struct options *o, const struct option_entry *t, FILE *f)
{
    static const char *const levels[] = {
        [LOG_ERROR] = "error", [LOG_WARNING] = "warning", [LOG_NOTICE] = "notice",
        [LOG_INFO] = "info",   [LOG_DEBUG] = "debug",
    };
    const uint64_t n = is_text(t) ? 0 : *number_of(o, t);

    switch (t->type) {
    case OPTION_TIME: fprintf(f, "%" PRIu64 "ms", n); break;
    case OPTION_MODE: fprintf(f, "%04" PRIo64, n); break;
    case OPTION_LEVEL: fputs(levels[n], f); break;
    case OPTION_DURABILITY: fputs(durabilities[n], f); break;
    case OPTION_COUNT:
    case OPTION_BYTES: fprintf(f, "%" PRIu64, n); break;
    default: fputs(*text_of(o, t), f);
    }
}

void
options_dump(const struct options *o, FILE *f)
{
    static const char *const from[] = {"default", "file", "command line"};
    const char *section = "";

    for (size_t i = 0; i < N_OPTIONS; i++) {
        const struct option_entry *t = &table[i];

        if (strcmp(section, t->section) != 0) {
            section = t->section;
            fprintf(f, "%s[%s]\n", i > 0 ? "\n" : "", section);
        }
        fprintf(f, "; %s (%s%s)\n%s%s = ", t->text, from[o->from[i]],
                t->reload ? ", may change while running" : "",
                is_text(t) && (*text_of(o, t))[0] == '\0' ? "; " : "", t->name);
        print_value(o, t, f);
        fputc('\n', f);
    }
}

void
options_usage(FILE *f)
{
    fprintf(
        f, "usage: fathomd --model DIR [--state DIR] [--socket PATH] [--OPTION VALUE ...]\n"
           "  -t, --check-config  read the settings, say what is wrong, and end\n"
           "      --dump-config   print every setting and where it came from\n"
           "      --config FILE   instead of " SYSCONFDIR "/fathom/fathomd.conf\n");
    for (size_t i = 0; i < N_OPTIONS; i++)
        fprintf(f, "      --%-28s %s%s%s%s\n", table[i].name, table[i].text,
                table[i].def[0] != '\0' ? " [" : "", table[i].def,
                table[i].def[0] != '\0' ? "]" : "");
}
