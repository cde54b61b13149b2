/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model that ships, models/fathom-mini, against what the public reference said of the same
 * files (tests/golden/fathom-mini): perplexity of three texts, logits, and seven questions
 * about two documents, answered greedily in one growing chat for each document.
 *
 * Perplexities: another order of f32 sums somewhere moves that of one text of some hundred tokens
 * by 0.2 to 0.4 % (standard deviation over twelve such variants, each as right as the others),
 * so all texts together are held to 0.5 %, and a single one to 1.25 %; to 0.5 % on AVX-512, whose
 * order of sums is the one that was chosen by all recorded answers.
 *
 * No other device's answers are recorded for this model, only how far the reference's own
 * decode is from its prefill: medians of 1.4e-2 (relative) and 1.0e-3 (KL). For flash-tiny, of
 * the same schedule of layers, both are recorded, and devices are 1.80 and 3.45 times as far
 * apart as that (tests/golden). So the floor here is taken to be 2.5e-2 and 3.45e-3, and the
 * factors are those of acceptance.c.
 */
#include "config.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/chat.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "tests/kernels/golden.h"
#include "tests/test.h"

enum { CHUNK = 256, MAX_ANSWER = 48, MAX_ROWS = 64, TEXTS = 3 };

struct mini {
    struct model_config c;
    struct weights *w;
    struct tokenizer *t;
    struct safetensors *answers;
    struct backend *b;
    json_t *texts, *expected;
    float *rows; /* f32 [CHUNK][vocab] */
};

static struct mini mini;

static json_t *
load_json(const char *top, const char *name)
{
    char path[4200];
    json_error_t je;
    json_t *j;

    snprintf(path, sizeof path, "%s/tests/golden/fathom-mini/%s", top, name);
    j = json_load_file(path, 0, &je);
    if (j == NULL)
        print_error("%s: %s\n", path, je.text);
    return j;
}

static int
set_up(void **state)
{
    const char *top = getenv("srcdir") != NULL ? getenv("srcdir") : ".";
    const struct backend_opts o = {.isa = "auto", .max_seqs = 1};
    struct mini *m = &mini;
    char dir[4096], path[4200];
    struct err e = {0};

    snprintf(dir, sizeof dir, "%s/models/fathom-mini", top);
    snprintf(path, sizeof path, "%s/tests/golden/fathom-mini/reference.safetensors", top);
    if (model_config_load(&m->c, dir, &e) == 0)
        m->w = weights_open(dir, &m->c, NULL, NULL, &e);
    if (m->w != NULL)
        m->t = tokenizer_load(dir, &e);
    if (m->t != NULL)
        m->answers = safetensors_open(path, &e);
    if (m->answers != NULL)
        m->b = backend_cpu.open(&m->c, m->w, &o, &e);
    if (m->b == NULL) {
        print_error("%s\n", e.text);
        return -1;
    }
    m->texts = load_json(top, "texts.json");
    m->expected = load_json(top, "answers.json");
    m->rows = calloc((size_t)CHUNK * (size_t)m->c.vocab_size, sizeof *m->rows);
    *state = m;
    return m->texts != NULL && m->expected != NULL && m->rows != NULL ? 0 : -1;
}

static int
tear_down(void **state)
{
    (void)state;
    backend_cpu.close(mini.b);
    safetensors_close(mini.answers);
    tokenizer_free(mini.t);
    weights_close(mini.w);
    json_decref(mini.texts);
    json_decref(mini.expected);
    free(mini.rows);
    return 0;
}

static void
reopen(struct mini *m)
{
    struct err e = {0};

    backend_cpu.seq_close(m->b, 0);
    assert_int_equal(backend_cpu.seq_open(m->b, 0, &e), 0);
}

static const struct tensor *
recorded(const struct mini *m, const char *name, int i)
{
    char full[64];
    const struct tensor *t;

    snprintf(full, sizeof full, "%s_%d", name, i);
    t = safetensors_find(m->answers, full);
    assert_non_null(t);
    return t;
}

static void
compare(const struct mini *m, const char *what, const float *got, const float *want,
        int rows)
{
    struct gaps g;

    logit_gaps(got, want, rows, m->c.vocab_size, &g);
    print_message("# %s: relative %.2e, KL %.2e, same best token %.3f of %d rows\n", what,
                  g.rel_median, g.kl_median, g.top1, g.n);
    assert_true(g.rel_median <= 1.15 * 1.80 * 1.4e-2);
    assert_true(g.kl_median <= 1.3 * 3.45 * 1.0e-3);
}

/* Perplexity over each whole text, and the last rows of their logits, all together. */
static void
texts(void **state)
{
    struct mini *m = *state;
    const size_t vocab = (size_t)m->c.vocab_size;
    const json_t *ppl = json_object_get(m->expected, "ppl");
    float *ends = calloc(TEXTS * MAX_ROWS * vocab, sizeof *ends);
    float *wanted = calloc(TEXTS * MAX_ROWS * vocab, sizeof *wanted);
    double all_nll = 0, all_expected = 0, most;
    struct backend_info info;
    int rows = 0, all = 0;

    backend_cpu.info(m->b, &info);
    most = strncmp(info.detail, "avx512", 6) == 0 ? 0.005 : 0.0125;
    assert_non_null(ends);
    assert_non_null(wanted);
    for (int i = 0; i < TEXTS; i++) {
        const struct tensor *ids = recorded(m, "tokens", i);
        const struct tensor *want = recorded(m, "prefill_logits", i);
        const uint32_t *tokens = ids->data;
        const int n = (int)ids->dims[0], last = (int)want->dims[0];
        const json_t *entry = json_array_get(ppl, (size_t)i);
        float *end = ends + (size_t)rows * vocab;
        double nll = 0, expected, got;

        assert_in_range(last, 1, MAX_ROWS);
        assert_int_equal(json_integer_value(json_array_get(entry, 0)), n);
        expected = json_number_value(json_array_get(entry, 2));
        reopen(m);
        for (int at = 0; at < n; at += CHUNK) {
            const int k = n - at < CHUNK ? n - at : CHUNK;

            run_tokens(m->b, 0, tokens + at, k, k, m->rows, NULL);
            for (int r = 0; r < k; r++) {
                const float *row = m->rows + (size_t)r * vocab;

                if (at + r + 1 < n)
                    nll -=
                        (double)sampler_logprob(row, (uint32_t)vocab, tokens[at + r + 1]);
                if (at + r >= n - last)
                    memcpy(end + (size_t)(at + r - (n - last)) * vocab, row,
                           vocab * sizeof *row);
            }
        }
        got = exp(nll / (n - 1));
        print_message("# text %d: perplexity %.4f, reference %.4f (%+.3f%%)\n", i, got,
                      expected, (got / expected - 1) * 100);
        assert_true(fabs(got / expected - 1) <= most);
        all_nll += nll;
        all_expected += log(expected) * (n - 1);
        all += n - 1;
        memcpy(wanted + (size_t)rows * vocab, want->data, want->n_bytes);
        rows += last;
    }
    print_message("# all texts: perplexity %.4f, reference %.4f\n", exp(all_nll / all),
                  exp(all_expected / all));
    assert_true(fabs(exp((all_nll - all_expected) / all) - 1) <= 0.005);
    compare(m, "prefill of all texts", ends, wanted, rows);
    free(ends);
    free(wanted);
}

static void
token_by_token(void **state)
{
    struct mini *m = *state;
    const struct tensor *ids = recorded(m, "tokens", 0);
    const struct tensor *want = recorded(m, "decode_logits", 0);
    const int n = (int)ids->dims[0], rows = (int)want->dims[0];
    const uint32_t *tokens = ids->data;
    const int split = n - rows + 1;

    reopen(m);
    for (int at = 0; at < split; at += CHUNK)
        run_tokens(m->b, 0, tokens + at, split - at < CHUNK ? split - at : CHUNK, 1,
                   m->rows, NULL);
    for (int i = 1; i < rows; i++)
        run_tokens(m->b, 0, tokens + split + i - 1, 1, 1,
                   m->rows + (size_t)i * (size_t)m->c.vocab_size, NULL);
    compare(m, "text 0, token by token", m->rows, want->data, rows);
}

/* Runs the ids that follow what the sequence has; the last row of logits to m->rows. */
static void
feed(struct mini *m, const struct buf *ids)
{
    const uint32_t *p = (const uint32_t *)(const void *)ids->p;
    const int n = (int)(ids->len / sizeof *p);

    for (int at = 0; at < n; at += CHUNK)
        run_tokens(m->b, 0, p + at, n - at < CHUNK ? n - at : CHUNK, 1, m->rows, NULL);
}

static uint32_t
best(const struct mini *m)
{
    uint32_t id = 0;

    for (uint32_t i = 1; i < (uint32_t)m->c.vocab_size; i++)
        if (m->rows[i] > m->rows[id])
            id = i;
    return id;
}

/* Greedy until the end of the sentence, which goes into the sequence too; text to out. */
static void
answer(struct mini *m, struct buf *out)
{
    struct detokenizer d = {.t = m->t};
    struct err e = {0};

    for (int i = 0; i < MAX_ANSWER; i++) {
        const uint32_t id = best(m);

        run_tokens(m->b, 0, &id, 1, 1, m->rows, NULL);
        if (id == (uint32_t)m->c.eos_id)
            break;
        assert_int_equal(detokenize(&d, id, out, &e), 0);
    }
    assert_int_equal(detokenize_flush(&d, out, &e), 0);
    assert_int_equal(buf_add(out, "", 1, &e), 0);
}

static void
add_question(struct mini *m, const char *question, struct buf *ids)
{
    const struct chat_opts o = {.in_context = true};
    json_t *chat = json_pack("[{s:s, s:s}]", "role", "user", "content", question);
    char *text = json_dumps(chat, JSON_ENSURE_ASCII);
    struct chat_text t;
    struct err e = {0};

    assert_non_null(text);
    chat_text_init(&t, 1 << 20);
    if (chat_encode(text, strlen(text), &o, &t, &e) == -1 ||
        chat_tokenize(m->t, &t, ids, &e) == -1)
        fail_msg("%s", e.text);
    chat_text_done(&t);
    free(text);
    json_decref(chat);
}

static void
recall(void **state)
{
    struct mini *m = *state;
    const json_t *docs = json_object_get(m->texts, "recall");
    const json_t *all = json_object_get(m->expected, "recall");
    int asked = 0;

    for (size_t i = 0; i < json_array_size(docs); i++) {
        const char *doc = json_string_value(json_array_get(json_array_get(docs, i), 0));
        const json_t *turns = json_array_get(all, i);
        const uint32_t bos = (uint32_t)m->c.bos_id;
        struct buf ids;
        struct err e = {0};

        buf_init(&ids, 1 << 20);
        assert_non_null(doc);
        assert_int_equal(buf_add(&ids, &bos, sizeof bos, &e), 0);
        assert_int_equal(tokenizer_encode(m->t, doc, strlen(doc), 0, &ids, &e), 0);
        reopen(m);
        for (size_t q = 0; q < json_array_size(turns); q++, asked++) {
            const json_t *turn = json_array_get(turns, q);
            const char *question = json_string_value(json_array_get(turn, 0));
            const char *want = json_string_value(json_array_get(turn, 1));
            struct buf got;

            add_question(m, question, &ids);
            feed(m, &ids);
            buf_done(&ids);
            assert_int_equal(backend_cpu.seq_len(m->b, 0),
                             json_integer_value(json_array_get(turn, 2)));
            buf_init(&got, 1 << 16);
            answer(m, &got);
            print_message("# %s %s\n", question, (const char *)got.p);
            assert_string_equal((const char *)got.p, want);
            buf_done(&got);
        }
        buf_done(&ids);
    }
    assert_int_equal(asked, 7);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts),
        cmocka_unit_test(token_by_token),
        cmocka_unit_test(recall),
    };

    return cmocka_run_group_tests_name("fathom-mini", tests, set_up, tear_down);
}
