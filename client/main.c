/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom: the table of commands, and the way from argv to one of them.
 *
 * Parsing, usage messages, completions and the check of the man page all read this table.
 */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/client.h"

const struct cmd_option global_options[] = {
    {0, "socket", "PATH", "talk to the daemon there (default: $FATHOM_SOCKET)"},
    {0, "json", NULL, "print JSON, one object a line"},
    {'q', "quiet", NULL, "no messages and no progress on stderr"},
    {0, "wait", "TIME", "while the daemon is busy or starting, try again for so long"},
    {'h', "help", NULL, "show how to use it"},
    {0, "version", NULL, "show the version"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option new_options[] = {
    {0, "if-absent", NULL, "an existing session of that name is no error"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option append_options[] = {
    {0, "control", NULL, "control tokens written out in the text become control tokens"},
    {0, "bos", NULL, "begin with the beginning-of-sentence token"},
    {0, "no-bos", NULL, "do not, not even at position 0"},
    {0, "tokens", NULL, "the input is token ids: little-endian 32-bit numbers"},
    {0, "messages", NULL, "the input is chat messages in JSON"},
    {0, "think", NULL, "messages: the answer begins with reasoning"},
    {0, "effort", "LEVEL", "messages: low, high or max"},
    {0, "keep-reasoning", NULL, "messages: keep the reasoning of earlier turns"},
    {0, "if-pos", "N", "only if the session is at position N"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option ask_options[] = {
    {0, "system", "TEXT", "the system message, if the chat has not begun yet"},
    {0, "think", NULL, "reason first; the reasoning goes to stderr, --quiet hides it"},
    {0, "effort", "LEVEL", "of reasoning: low, high or max"},
    {0, "keep-reasoning", NULL, "keep the reasoning of earlier turns"},
    {0, "tools", "FILE", "tools in JSON; the answer is printed as a JSON message"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option sample_options[] = {
    {0, "logprobs", NULL, "with --json: each token's log-probability"},
    {0, "top-logprobs", "N", "with --json: those of the N best, too"},
    {0, "control", NULL, "show control tokens"},
    {0, "if-pos", "N", "only if the session is at position N"},
    {0, "detach", NULL, "go on in the daemon if this process ends"},
    {0, "logits", "FILE", "write the logits that each token is drawn from there; needs -n"},
    {0, NULL, NULL, NULL},
};

const struct cmd_option sampling_options[] = {
    {'n', "max-tokens", "N", "at most N tokens (default: until the model ends)"},
    {0, "min-tokens", "N", "no end before N tokens"},
    {0, "temp", "T", "temperature; 0 takes the most likely token each time"},
    {0, "top-k", "K", "only the K best tokens"},
    {0, "top-p", "P", "only the best with probability P together"},
    {0, "min-p", "P", "only those at least P times as likely as the best"},
    {0, "repetition", "X", "repetition penalty"},
    {0, "presence", "X", "presence penalty"},
    {0, "frequency", "X", "frequency penalty"},
    {0, "penalty-window", "N", "penalties look at the N last tokens"},
    {0, "seed", "N", "same seed, same session: same text"},
    {0, "stop", "TEXT", "stop in front of TEXT; up to 16 times"},
    {0, "stop-token", "ID", "stop behind this token; up to 16 times"},
    {0, "ban", "ID", "never draw this token; may be repeated"},
    {0, "bias", "ID=X", "add X to this token's logit; may be repeated"},
    {0, "ignore-eos", NULL, "go on behind the end-of-sentence token"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option ls_options[] = {
    {'a', "all", NULL, "other users' sessions too"},
    {0, "names", NULL, "only the names"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option log_options[] = {
    {0, "at", "PLACE", "as it was at this checkpoint or position"},
    {0, "from", "POS", "begin at this position"},
    {'n', "max-tokens", "N", "at most N tokens"},
    {0, "tokens", NULL, "token ids, one a line"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option checkpoint_options[] = {
    {0, "remove", NULL, "take the name away instead"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option park_options[] = {
    {0, "to", "TIER", "memory or disk (the default)"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option export_options[] = {
    {0, "tokens-only", NULL, "without caches: small, and for any model of these tokens"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option top_options[] = {
    {'a', "all", NULL, "other users' sessions too"},
    {0, "once", NULL, "one look, after --delay, and no more"},
    {0, "delay", "TIME", "between two looks (default 1s)"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option fork_options[] = {
    {0, "at", "LABEL", "as it was at this checkpoint"},
    {0, "pos", "N", "as it was at this position"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option rollback_options[] = {
    {0, "to", "LABEL", "to this checkpoint"},
    {0, "pos", "N", "to this position"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option rm_options[] = {
    {'f', "force", NULL, "a session that is not there is no error"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option score_options[] = {
    {0, "after", "NAME", "as the continuation of this session, which stays as it is"},
    {0, "each", NULL, "each token's id and log-probability"},
    {0, "control", NULL, "control tokens written out in the text become control tokens"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option tokens_options[] = {
    {0, "control", NULL, "control tokens written out in the text become control tokens"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option verify_options[] = {
    {0, "give-up", NULL, "give up what is behind damage in the session's log, for good"},
    {0, NULL, NULL, NULL},
};

static const struct cmd_option chmod_options[] = {
    {0, "group", "GROUP", "the group that the middle digit is for"},
    {0, NULL, NULL, NULL},
};

/* clang-format off */
const struct cmd_entry commands[] = {
    {"new", "NAME", "-", 1, 1, "make a session", new_options, false, cmd_new},
    {"append", "NAME [FILE]", "sf", 1, 2, "append a text from a file or stdin", append_options, false, cmd_append},
    {"ask", "NAME [QUESTION]", "s-", 1, 2, "ask a question and print the answer", ask_options, true, cmd_ask},
    {"sample", "NAME", "s", 1, 1, "go on with what the model draws", sample_options, true, cmd_sample},
    {"ls", "", "", 0, 0, "list sessions", ls_options, false, cmd_ls},
    {"show", "NAME", "s", 1, 1, "show all about a session", NULL, false, cmd_show},
    {"log", "NAME", "s", 1, 1, "print a session's transcript", log_options, false, cmd_log},
    {"fork", "NAME NEW", "s-", 2, 2, "copy a session", fork_options, false, cmd_fork},
    {"checkpoint", "NAME LABEL", "s-", 2, 2, "name a session's position", checkpoint_options, false, cmd_checkpoint},
    {"rollback", "NAME", "s", 1, 1, "go back to an earlier position", rollback_options, false, cmd_rollback},
    {"park", "NAME", "s", 1, 1, "take a session's caches out of the engine", park_options, false, cmd_park},
    {"unpark", "NAME", "s", 1, 1, "bring a session's caches back", NULL, false, cmd_unpark},
    {"export", "NAME", "s", 1, 1, "write a session to stdout, as a tar", export_options, false, cmd_export},
    {"import", "[NAME]", "-", 0, 1, "make a session from such a tar on stdin", NULL, false, cmd_import},
    {"verify", "NAME", "s", 1, 1, "check every byte that the disk has of a session", verify_options, false, cmd_verify},
    {"mv", "NAME NEW", "s-", 2, 2, "rename a session", NULL, false, cmd_mv},
    {"rm", "NAME ...", "s", 1, 1000, "delete sessions", rm_options, false, cmd_rm},
    {"chmod", "MODE NAME", "-s", 2, 2, "say who may use a session", chmod_options, false, cmd_chmod},
    {"score", "[FILE]", "f", 0, 1, "how likely is a text?", score_options, false, cmd_score},
    {"tokens", "[FILE]", "f", 0, 1, "print a text's token ids", tokens_options, false, cmd_tokens},
    {"logits", "NAME", "s", 1, 1, "write the next token's logits, raw float32", NULL, false, cmd_logits},
    {"status", "", "", 0, 0, "show how the daemon is", NULL, false, cmd_status},
    {"top", "", "", 0, 0, "show what the daemon is doing, again and again", top_options, false, cmd_top},
    {"metrics", "[SOCKET]", "f", 0, 1, "print the daemon's figures for Prometheus", NULL, false, cmd_metrics},
    {"completion", "SHELL", "-", 1, 1, "print completions for bash, zsh or fish", NULL, false, cmd_completion},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, false, NULL},
};

/* clang-format on */

/* A closed 0, 1 or 2 would be the number of the next socket, which would then get our output.
 * What is put there cannot be read or written, so using it fails as it should. */
static void
hold_places(void)
{
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) == -1 &&
            open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            _exit(71);
    }
}

int
main(int argc, char **argv)
{
    static struct client c;
    int status;

    hold_places();
    args_parse(&c, argc, argv);
    status = c.cmd->run(&c);
    fathom_close(c.f);
    if (fflush(stdout) == EOF || ferror(stdout))
        die(EXIT_OUTPUT, "cannot write to standard output");
    return status;
}
