/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom-model: what is in a model's folder, without running it. One thread.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "base/err.h"
#include "tools/fathom-model.h"

static int
usage(FILE *to, int status)
{
    fputs("usage: fathom-model show [--json] DIR\n"
          "       fathom-model tokenize DIR < LINES\n"
          "       fathom-model --help | --version\n",
          to);
    return status;
}

int
main(int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"version", no_argument, NULL, 'V'},
                                            {NULL, 0, NULL, 0}};
    bool as_json = false;
    struct err e = {0};
    int opt, r;

    while ((opt = getopt_long(argc, argv, "hV", options, NULL)) != -1) {
        switch (opt) {
        case 'h': return usage(stdout, 0);
        case 'j': as_json = true; break;
        case 'V': return puts("fathom-model " PACKAGE_VERSION) == EOF ? EX_IOERR : 0;
        default: return usage(stderr, EX_USAGE);
        }
    }
    if (argc - optind != 2)
        return usage(stderr, EX_USAGE);
    if (strcmp(argv[optind], "show") == 0)
        r = model_show(argv[optind + 1], as_json, &e);
    else if (strcmp(argv[optind], "tokenize") == 0 && !as_json)
        r = model_tokenize(argv[optind + 1], &e);
    else
        return usage(stderr, EX_USAGE);

    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "fathom-model: standard output: %s\n", strerror(errno));
        return EX_IOERR;
    }
    if (r == -1) {
        fprintf(stderr, "fathom-model: %s\n", e.text);
        return err_exit_status(e.code);
    }
    return 0;
}
