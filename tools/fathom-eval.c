/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom-eval: runs a model over given tokens, writes logits, says perplexity and speed. What
 * checks from outside rely on: options and output of fathom-eval(1) stay as they are.
 *
 * Logits are computed for the last positions only, and rows are written as they come, so
 * memory does not grow with the text. One thread; the backend has its own.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/file.h"
#include "base/num.h"
#include "gpu/backend.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "model/weights.h"

enum {
    MAX_INPUT = 1 << 28,
    ROWS_BYTES = 64 << 20, /* most logits of one step */
};

struct eval {
    const char *model, *backend, *isa, *tokens_path, *text_path, *logits_path, *mtp_path;
    uint64_t threads, split, last, chunk;
    bool has_split, has_last;

    struct model_config c;
    struct weights *w;
    const struct backend_ops *ops;
    struct backend *b;
    struct backend_info info;
    uint32_t *ids;
    uint64_t n;
    FILE *logits, *mtp;
    float *rows, *mtp_rows; /* f32 [chunk][vocab] */
    double nll;
    uint64_t scored;
};

static int
usage(FILE *to, int status)
{
    fputs("usage: fathom-eval --model DIR (--tokens FILE | --text FILE) [--backend NAME]\n"
          "       [--isa NAME] [--threads N] [--split N] [--chunk N] [--last N]\n"
          "       [--logits FILE] [--mtp FILE]\n"
          "       fathom-eval --help | --version\n",
          to);
    return status;
}

/* Little-endian u32, whatever this machine is. */
static int
load_tokens(struct eval *v, struct err *e)
{
    size_t len;
    uint8_t *p = (uint8_t *)file_read(v->tokens_path, MAX_INPUT, &len, e);

    if (p == NULL)
        return -1;
    if (len == 0 || len % 4 != 0) {
        free(p);
        return err_set(e, ERR_INVALID, 0, "%s: %zu bytes are no list of 4-byte tokens",
                       v->tokens_path, len);
    }
    v->n = len / 4;
    v->ids = calloc(v->n, sizeof *v->ids);
    for (uint64_t i = 0; v->ids != NULL && i < v->n; i++)
        v->ids[i] = (uint32_t)p[4 * i] | (uint32_t)p[4 * i + 1] << 8 |
                    (uint32_t)p[4 * i + 2] << 16 | (uint32_t)p[4 * i + 3] << 24;
    free(p);
    return v->ids != NULL ? 0 : err_set(e, ERR_QUOTA, 0, "no memory for the tokens");
}

/* The beginning-of-sentence token and the text; control tokens in it are text. */
static int
load_text(struct eval *v, struct err *e)
{
    const uint32_t bos = (uint32_t)v->c.bos_id;
    struct tokenizer *t = NULL;
    struct buf ids;
    size_t len;
    char *text = file_read(v->text_path, MAX_INPUT, &len, e);
    int r = -1;

    buf_init(&ids, (size_t)MAX_INPUT * 4 + sizeof bos);
    if (text == NULL)
        goto out;
    t = tokenizer_load(v->model, e);
    if (t == NULL || buf_add(&ids, &bos, sizeof bos, e) == -1 ||
        tokenizer_encode(t, text, len, 0, &ids, e) == -1)
        goto out;
    v->n = ids.len / sizeof *v->ids;
    v->ids = (uint32_t *)(void *)buf_take(&ids, e);
    r = v->ids != NULL ? 0 : -1;
out:
    tokenizer_free(t);
    buf_done(&ids);
    free(text);
    return r;
}

static void
report(void *arg, const char *line)
{
    const struct eval *v = arg;

    fprintf(stderr, "fathom-eval: %s: %s\n", v->model, line);
}

static int
open_model(struct eval *v, struct err *e)
{
    const struct backend_opts o = {.isa = v->isa,
                                   .n_threads = (int)v->threads,
                                   .max_seqs = 1,
                                   .mtp = v->mtp_path != NULL};

    v->ops = backend_find(v->backend, e);
    if (v->ops == NULL || model_config_load(&v->c, v->model, e) == -1)
        return -1;
    v->w = weights_open(v->model, &v->c, report, v, e);
    if (v->w == NULL)
        return -1;
    v->b = v->ops->open(&v->c, v->w, &o, e);
    if (v->b == NULL)
        return -1;
    v->ops->info(v->b, &v->info);
    return v->ops->seq_open(v->b, 0, e);
}

static int
open_output(FILE **f, const char *path, struct err *e)
{
    if (path == NULL)
        return 0;
    *f = fopen(path, "wbe");
    if (*f == NULL)
        return err_set(e, errno == EACCES ? ERR_PERMISSION : ERR_NOT_FOUND, errno, "%s: %s",
                       path, strerror(errno));
    return 0;
}

/* Defaults and limits that need the model and the tokens. */
static int
prepare(struct eval *v, struct err *e)
{
    const size_t row = (size_t)v->info.vocab * sizeof(float);
    uint64_t rows = ROWS_BYTES / row > 0 ? ROWS_BYTES / row : 1;

    if (!v->has_split)
        v->split = v->n;
    if (!v->has_last)
        v->last = v->n;
    if (v->split < 1 || v->split > v->n || v->last > v->n)
        return err_set(e, ERR_INVALID, 0,
                       "%" PRIu64 " tokens: --split %" PRIu64 " --last %" PRIu64, v->n,
                       v->split, v->last);
    if (v->chunk == 0 || v->chunk > v->info.max_step_tokens)
        v->chunk = v->info.max_step_tokens;
    if (v->last > 1 && v->chunk > rows)
        v->chunk = rows;
    v->rows = calloc(v->chunk, row);
    if (v->mtp_path != NULL)
        v->mtp_rows = calloc(v->chunk, row);
    if (v->rows == NULL || (v->mtp_path != NULL && v->mtp_rows == NULL))
        return err_set(e, ERR_QUOTA, 0, "no memory for %" PRIu64 " rows of logits",
                       v->chunk);
    if (open_output(&v->logits, v->logits_path, e) == -1)
        return -1;
    return open_output(&v->mtp, v->mtp_path, e);
}

static int
put_rows(FILE *f, const char *path, const float *rows, uint64_t n, uint32_t vocab,
         struct err *e)
{
    if (f != NULL && n > 0 && fwrite(rows, sizeof *rows * vocab, n, f) != n)
        return err_set(e, ERR_READ_ONLY, errno, "%s: %s", path, strerror(errno));
    return 0;
}

/* Tokens at..at + n - 1 in one step; the rows among the last ones are scored and written. */
static int
run(struct eval *v, uint64_t at, uint64_t n, struct err *e)
{
    const uint64_t first = v->n - v->last > at ? v->n - v->last : at;
    const uint64_t wanted = at + n > first ? at + n - first : 0;
    const uint32_t vocab = v->info.vocab;
    struct step_seq share = {.n_tokens = (uint32_t)n,
                             .tokens = v->ids + at,
                             .n_logits = (uint32_t)wanted,
                             .logits = wanted > 0 ? v->rows : NULL,
                             .mtp_logits = wanted > 0 ? v->mtp_rows : NULL};
    const struct step s = {.n_seqs = 1, .seqs = &share};

    if (v->ops->step(v->b, &s, e) == -1)
        return -1;
    for (uint64_t i = 0; i < wanted && first + i + 1 < v->n; i++, v->scored++)
        v->nll -=
            (double)sampler_logprob(v->rows + i * vocab, vocab, v->ids[first + i + 1]);
    if (put_rows(v->logits, v->logits_path, v->rows, wanted, vocab, e) == -1)
        return -1;
    return put_rows(v->mtp, v->mtp_path,
                    v->mtp_rows != NULL ? v->mtp_rows + (n - wanted) * vocab : NULL, wanted,
                    vocab, e);
}

static void
print_speed(const char *what, uint64_t n, uint64_t ns)
{
    if (n > 0)
        printf("%s_tokens_per_second %.2f\n", what, (double)n * 1e9 / (double)ns);
}

static int
evaluate(struct eval *v, struct err *e)
{
    const uint64_t start = clock_ns();
    uint64_t middle, end;

    for (uint64_t at = 0; at < v->split;) {
        const uint64_t n = v->split - at < v->chunk ? v->split - at : v->chunk;

        if (run(v, at, n, e) == -1)
            return -1;
        at += n;
    }
    middle = clock_ns();
    for (uint64_t at = v->split; at < v->n; at++)
        if (run(v, at, 1, e) == -1)
            return -1;
    end = clock_ns();
    if ((v->logits != NULL && fflush(v->logits) != 0) ||
        (v->mtp != NULL && fflush(v->mtp) != 0))
        return err_set(e, ERR_READ_ONLY, errno, "logits: %s", strerror(errno));

    printf("backend %s: %s\n", v->info.name, v->info.detail);
    printf("tokens %" PRIu64 "\nprefill_tokens %" PRIu64 "\n", v->n, v->split);
    print_speed("prefill", v->split, middle - start);
    printf("decode_tokens %" PRIu64 "\n", v->n - v->split);
    print_speed("decode", v->n - v->split, end - middle);
    printf("sequence_bytes %" PRIu64 "\n", v->ops->seq_bytes(v->b, 0));
    printf("scored_tokens %" PRIu64 "\n", v->scored);
    if (v->scored > 0)
        printf("nll %.6f\nperplexity %.4f\n", v->nll / (double)v->scored,
               exp(v->nll / (double)v->scored));
    return 0;
}

static void
finish(struct eval *v)
{
    if (v->ops != NULL)
        v->ops->close(v->b);
    weights_close(v->w);
    if (v->logits != NULL)
        fclose(v->logits);
    if (v->mtp != NULL)
        fclose(v->mtp);
    free(v->ids);
    free(v->rows);
    free(v->mtp_rows);
}

/* 0, or -1 with *e set; a number is 1 to max. */
static int
set_option(struct eval *v, int opt, struct err *e)
{
    const uint64_t max = UINT32_MAX;

    switch (opt) {
    case 'm': v->model = optarg; return 0;
    case 'b': v->backend = optarg; return 0;
    case 'i': v->isa = optarg; return 0;
    case 'k': v->tokens_path = optarg; return 0;
    case 'x': v->text_path = optarg; return 0;
    case 'o': v->logits_path = optarg; return 0;
    case 'd': v->mtp_path = optarg; return 0;
    case 't': return num_u64(optarg, 1, 1024, &v->threads, e);
    case 'c': return num_u64(optarg, 1, max, &v->chunk, e);
    case 's': v->has_split = true; return num_u64(optarg, 1, max, &v->split, e);
    case 'l': v->has_last = true; return num_u64(optarg, 1, max, &v->last, e);
    default: return err_set(e, ERR_INTERNAL, 0, "option %d", opt);
    }
}

int
main(int argc, char **argv)
{
    static const struct option options[] = {
        {"backend", required_argument, NULL, 'b'}, {"chunk", required_argument, NULL, 'c'},
        {"help", no_argument, NULL, 'h'},          {"isa", required_argument, NULL, 'i'},
        {"last", required_argument, NULL, 'l'},    {"logits", required_argument, NULL, 'o'},
        {"model", required_argument, NULL, 'm'},   {"mtp", required_argument, NULL, 'd'},
        {"split", required_argument, NULL, 's'},   {"text", required_argument, NULL, 'x'},
        {"threads", required_argument, NULL, 't'}, {"tokens", required_argument, NULL, 'k'},
        {"version", no_argument, NULL, 'V'},       {NULL, 0, NULL, 0}};
    struct eval v = {.backend = "cpu", .isa = "auto"};
    struct err e = {0};
    int opt, which = 0, r;

    while ((opt = getopt_long(argc, argv, "hV", options, &which)) != -1) {
        if (opt == 'h')
            return usage(stdout, 0);
        if (opt == 'V')
            return puts("fathom-eval " PACKAGE_VERSION) == EOF ? EX_IOERR : 0;
        if (opt == '?')
            return usage(stderr, EX_USAGE);
        if (set_option(&v, opt, &e) == -1) {
            fprintf(stderr, "fathom-eval: --%s: %s\n", options[which].name, e.text);
            return EX_USAGE;
        }
    }
    if (optind != argc || v.model == NULL ||
        (v.tokens_path == NULL) == (v.text_path == NULL))
        return usage(stderr, EX_USAGE);

    r = open_model(&v, &e);
    if (r == 0)
        r = v.tokens_path != NULL ? load_tokens(&v, &e) : load_text(&v, &e);
    if (r == 0)
        r = prepare(&v, &e);
    if (r == 0)
        r = evaluate(&v, &e);
    finish(&v);
    if (r == -1) {
        fprintf(stderr, "fathom-eval: %s\n", e.text);
        return err_exit_status(e.code);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "fathom-eval: standard output: %s\n", strerror(errno));
        return EX_IOERR;
    }
    return 0;
}
