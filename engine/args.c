/* SPDX-License-Identifier: Apache-2.0 */
/* What fathomd gives its engine on the way: arguments, two descriptors, signals. */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/num.h"
#include "engine/args.h"
#include "proto/link.h"

enum { DEFAULT_SEQS = 64, MOST_SEQS = 65536, MOST_THREADS = 4096, MOST_FD = 1 << 20 };

static int
check_link(const struct engine_args *a, struct err *e)
{
    int type = 0;
    socklen_t len = sizeof type;

    if (a->link_fd == -1 ||
        getsockopt(a->link_fd, SOL_SOCKET, SO_TYPE, &type, &len) == -1 ||
        type != SOCK_SEQPACKET)
        return err_set(
            e, ERR_INVALID, 0,
            "fathom-engine is started by fathomd, which talks to it over a socket "
            "given by --link-fd; it does nothing when started by hand. To run a "
            "model without the daemon use fathom-eval");
    if (a->model == NULL)
        return err_set(e, ERR_INVALID, 0, "--model is missing");
    if ((a->arena_fd == -1) != (a->opts.arena_bytes == 0))
        return err_set(e, ERR_INVALID, 0, "--arena-fd and --arena-bytes go together");
    return 0;
}

static int
set_fd(int *fd, const char *option, const char *value, struct err *e)
{
    uint64_t n;

    if (num_u64(value, 0, MOST_FD, &n, e) == -1)
        return err_prefix(e, "%s", option);
    *fd = (int)n;
    return 0;
}

static int
set_one(struct engine_args *a, int option, const char *value, struct err *e)
{
    uint64_t n = 0;

    switch (option) {
    case 'm': a->model = value; return 0;
    case 'b': a->backend = value; return 0;
    case 'i': a->opts.isa = value; return 0;
    case 't':
        if (num_u64(value, 0, MOST_THREADS, &n, e) == -1)
            return err_prefix(e, "--threads");
        a->opts.n_threads = (int)n;
        return 0;
    case 'k':
        return num_bytes(value, 0, UINT64_MAX, &a->opts.kv_bytes, e) == 0
                   ? 0
                   : err_prefix(e, "--kv-bytes");
    case 's':
        if (num_u64(value, 1, MOST_SEQS, &n, e) == -1)
            return err_prefix(e, "--max-seqs");
        a->opts.max_seqs = (uint32_t)n;
        return 0;
    case 'v':
        if (num_u64(value, 1, 1 << 24, &n, e) == -1)
            return err_prefix(e, "--vocab");
        a->vocab = (uint32_t)n;
        return 0;
    case 'y':
        a->synthetic = true;
        return num_u64(value, 0, UINT64_MAX, &a->seed, e) == 0
                   ? 0
                   : err_prefix(e, "--synthetic");
    case 'B':
        return num_bytes(value, 1, SIZE_MAX, &a->opts.arena_bytes, e) == 0
                   ? 0
                   : err_prefix(e, "--arena-bytes");
    case 'l': return set_fd(&a->link_fd, "--link-fd", value, e);
    case 'p': return set_fd(&a->status_fd, "--status-fd", value, e);
    case 'A': return set_fd(&a->arena_fd, "--arena-fd", value, e);
    default:
        return err_set(e, ERR_INVALID, 0, "an option that fathom-engine does not know");
    }
}

int
engine_args_parse(struct engine_args *a, int argc, char **argv, struct err *e)
{
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},
        {"backend", required_argument, NULL, 'b'},
        {"isa", required_argument, NULL, 'i'},
        {"threads", required_argument, NULL, 't'},
        {"kv-bytes", required_argument, NULL, 'k'},
        {"max-seqs", required_argument, NULL, 's'},
        {"link-fd", required_argument, NULL, 'l'},
        {"status-fd", required_argument, NULL, 'p'},
        {"arena-fd", required_argument, NULL, 'A'},
        {"arena-bytes", required_argument, NULL, 'B'},
        {"vocab", required_argument, NULL, 'v'},
        {"synthetic", required_argument, NULL, 'y'},
        {0},
    };
    int option;

    *a = (struct engine_args){.backend = "auto",
                              .opts = {.isa = "auto", .max_seqs = DEFAULT_SEQS},
                              .link_fd = -1,
                              .status_fd = -1,
                              .arena_fd = -1};
    opterr = 0;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (set_one(a, option, optarg, e) == -1)
            return -1;
    if (optind != argc)
        return err_set(e, ERR_INVALID, 0, "unexpected argument %s", argv[optind]);
    return check_link(a, e);
}

struct link_status *
engine_args_status(const struct engine_args *a, struct err *e)
{
    struct stat st;
    void *p;

    e->code = ERR_NONE;
    if (a->status_fd == -1)
        return NULL;
    if (fstat(a->status_fd, &st) == -1 || st.st_size < (off_t)sizeof(struct link_status)) {
        err_set(e, ERR_INVALID, 0, "--status-fd: not a file of %zu bytes",
                sizeof(struct link_status));
        return NULL;
    }
    p = mmap(NULL, sizeof(struct link_status), PROT_READ | PROT_WRITE, MAP_SHARED,
             a->status_fd, 0);
    if (p == MAP_FAILED) {
        err_set(e, ERR_INVALID, errno, "--status-fd: mmap: %s", strerror(errno));
        return NULL;
    }
    return p;
}

int
engine_args_arena(struct engine_args *a, struct err *e)
{
    struct stat st;
    void *p;

    if (a->arena_fd == -1)
        return 0;
    if (fstat(a->arena_fd, &st) == -1 || st.st_size < 0 ||
        (uint64_t)st.st_size < a->opts.arena_bytes)
        return err_set(e, ERR_INVALID, 0, "--arena-fd: not a file of %llu bytes",
                       (unsigned long long)a->opts.arena_bytes);
    p = mmap(NULL, (size_t)a->opts.arena_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
             a->arena_fd, 0);
    if (p == MAP_FAILED)
        return err_set(e, ERR_INVALID, errno, "--arena-fd: mmap: %s", strerror(errno));
    a->opts.arena = p;
    return 0;
}

void
engine_set_process(void)
{
    /* A Ctrl-C in a terminal goes to the whole group; the daemon says when to stop. */
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    /* The loop sees the daemon's end on the link, but not from within a step that hangs. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}
