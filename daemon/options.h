/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct err;

/* The settings of options.def, by their ids. Strings belong to the struct. Main thread. */
struct options {
#define OPTION_C_PATH                                                char *
#define OPTION_C_TEXT                                                char *
#define OPTION_C_COUNT                                               uint64_t
#define OPTION_C_BYTES                                               uint64_t
#define OPTION_C_TIME                                                uint64_t /* milliseconds */
#define OPTION_C_MODE                                                uint64_t
#define OPTION_C_LEVEL                                               uint64_t
#define OPTION_C_DURABILITY                                          uint64_t
#define OPTION(id, section, name, type, min, max, def, reload, text) OPTION_C_##type id;
#include "daemon/options.def"
#undef OPTION

    char *config;       /* --config FILE; NULL: the usual one, if it is there */
    bool check, dump;   /* --check-config, --dump-config */
    bool help, version; /* asked for: nothing else was looked at */
    uint8_t *from;      /* enum option_source of each, in options.def's order */
};

enum durability { DURABILITY_TURN, DURABILITY_ALWAYS, DURABILITY_RELAXED };

enum option_source { OPTION_DEFAULT, OPTION_FILE, OPTION_COMMAND };

/* Defaults, then the file, then the command line. On failure *o needs options_done() too.
 * Errors name the setting, the file and the line, and what was probably meant. */
int options_load(struct options *o, int argc, char **argv, struct err *e);
void options_done(struct options *o);

/* Loads again and takes over what may change while running; what may not, but did, is named in
 * `ignored` (a list for the log, "" if none). On failure *o is as it was. */
int options_reload(struct options *o, int argc, char **argv, char *ignored, size_t room,
                   struct err *e);

/* A file as fathomd.conf(5) describes, with each value's origin as a comment. */
void options_dump(const struct options *o, FILE *f);
void options_usage(FILE *f);

/* One file into *o, for tests: set values keep their place behind the command line's. */
int options_read_file(struct options *o, const char *path, struct err *e);

#endif /* DAEMON_OPTIONS_H */
