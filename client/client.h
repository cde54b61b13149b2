/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "lib/fathom.h"

/*
 * What the commands share. stdout gets data, stderr everything else. A command's function
 * returns the exit status of the process; those that cannot go on end it themselves, through
 * die() and friends.
 */

/* ---- Commands and their options (main.c, args.c) ------------------------------------ */

enum { CMD_MAX_VALUES = 64, CMD_USAGE = 64, EXIT_OUTPUT = 74 };

struct cmd_option {
    char letter;      /* 0: none */
    const char *name; /* NULL ends a table */
    const char *arg;  /* NULL: it takes none */
    const char *help;
};

struct cmd_values {
    int n;

    struct {
        const struct cmd_option *option;
        const char *value; /* "" if it takes none */
    } v[CMD_MAX_VALUES];

    int n_args;
    char **args; /* what is no option */
};

struct client;

struct cmd_entry {
    const char *name;
    const char *args; /* as in the synopsis: "NAME [FILE]" */
    const char
        *words; /* a letter an argument, for completion: s session, f file, - other */
    int min_args, max_args;
    const char *help;
    const struct cmd_option *options; /* may be NULL */
    bool samples;                     /* takes the options in sampling_options, too */
    int (*run)(struct client *c);
};

extern const struct cmd_entry commands[];
extern const struct cmd_option global_options[], sampling_options[];

struct client {
    const struct cmd_entry *cmd;
    struct cmd_values values;
    bool json, quiet;
    const char *socket; /* NULL: as fathom_socket_path() says */
    uint64_t wait_ms;   /* how long to try again */
    uint64_t deadline_ns;
    struct fathom *f;
    struct fathom_error e;
    struct fathom_result r; /* of client_run() */
    bool interrupted;
};

void args_parse(struct client *c, int argc, char **argv);
void args_usage(FILE *to, const struct cmd_entry *cmd);
_Noreturn void usage_error(const struct client *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The last value given for an option, by its long name; NULL: not given. */
const char *arg_value(const struct client *c, const char *name);
const char *arg_nth(const struct client *c, const char *name, int n); /* the n-th one */
bool arg_given(const struct client *c, const char *name);
uint64_t arg_u64(const struct client *c, const char *name, uint64_t max,
                 uint64_t otherwise);
double arg_f64(const struct client *c, const char *name, double min, double max,
               double otherwise);

/* ---- Talking to the daemon (client.c) ----------------------------------------------- */

/* Connects, within --wait, or ends the process. Commands do it when their arguments and their
 * input are known to be good. */
void client_open(struct client *c);

/*
 * Waits until request `id` is over. NULL if it failed (c->e). On the first SIGINT or SIGTERM
 * it cancels the request and c->interrupted is set; the second ends the process.
 */
const struct fathom_result *client_run(struct client *c, uint32_t id);

/* The same beside another descriptor: pump() is called whenever that is ready for `events`, until it
 * returns false. */
const struct fathom_result *client_run_beside(struct client *c, uint32_t id, int fd,
                                              short events, bool (*pump)(void *arg, int fd),
                                              void *arg);

/* After a failure: true, some time later, if it is worth another try within --wait. */
bool client_again(struct client *c);

_Noreturn void client_fail(struct client *c); /* says c->e and exits with its status */
int client_end(struct client *c); /* 0; 130 if it was interrupted, and says where */
_Noreturn void die(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void note(const struct client *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void op_id(uint8_t id[16]);

/* ---- Input (input.c) ---------------------------------------------------------------- */

struct input {
    const char *p; /* "" if it is empty */
    size_t len;
    int fd; /* a sealed memfd with the same bytes */
};

/* path NULL or "-": stdin, which must not be a terminal. Ends the process if it fails. */
void input_read(const struct client *c, const char *path, struct input *in);
void input_done(struct input *in);

/* ---- Output (json.c, fmt.c) --------------------------------------------------------- */

/* One JSON object a line: json_begin(), keys, json_end(). */
void json_begin(const char *key); /* NULL: the line itself */
void json_end(void);
void json_list(const char *key);
void json_list_end(void);
void json_str(const char *key, const char *s);
void json_bytes(const char *key, const char *s, size_t len); /* adds KEY_hex if not UTF-8 */
void json_u64(const char *key, uint64_t v);
void json_f64(const char *key, double v); /* null if not finite */
void json_bool(const char *key, bool v);

const char *fmt_count(char *to, size_t size, uint64_t n);     /* 48,112 */
const char *fmt_bytes(char *to, size_t size, double n);       /* 1.5 MiB */
const char *fmt_age(char *to, size_t size, uint64_t then_ms); /* 3 min ago */
const char *fmt_mode(char *to, uint64_t mode);                /* rw-r----- ; 10 bytes */

/* A progress line on stderr, if that is a terminal. */
struct bar {
    bool on, drawn;
    uint64_t began_ns, drawn_ns, from;
};

void bar_begin(struct bar *b, const struct client *c);
void bar_show(struct bar *b, uint64_t pos, uint64_t total);
void bar_end(struct bar *b); /* wipes it */

/* ---- Shared by sample and ask (sampling.c) ------------------------------------------ */

struct sampling {
    struct fathom_sample a;
    struct fathom_bias bias[1024];
    uint32_t ban[1024], stop_tokens[16];
    const char *stop[16];
    uint8_t op_id[16];
};

void sampling_init(struct sampling *s, const struct client *c, const char *name);
void sampling_json(const struct fathom_result *r);

/* One function a command: cmd_*.c. */
int cmd_append(struct client *c);
int cmd_ask(struct client *c);
int cmd_checkpoint(struct client *c);
int cmd_chmod(struct client *c);
int cmd_completion(struct client *c);
int cmd_export(struct client *c);
int cmd_fork(struct client *c);
int cmd_import(struct client *c);
int cmd_log(struct client *c);
int cmd_logits(struct client *c);
int cmd_ls(struct client *c);
int cmd_metrics(struct client *c);
int cmd_mv(struct client *c);
int cmd_new(struct client *c);
int cmd_park(struct client *c);
int cmd_rm(struct client *c);
int cmd_rollback(struct client *c);
int cmd_sample(struct client *c);
int cmd_score(struct client *c);
int cmd_show(struct client *c);
int cmd_status(struct client *c);
int cmd_tokens(struct client *c);
int cmd_top(struct client *c);
int cmd_unpark(struct client *c);
int cmd_verify(struct client *c);

#endif /* CLIENT_CLIENT_H */
