/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom-model show: a model's layers, sizes and costs, from config.json; with weights in the
 * folder, whether they are what the config says. One thread.
 */
#include "config.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

#include "base/err.h"
#include "model/kvsize.h"
#include "model/manifest.h"
#include "model/weights.h"
#include "tools/fathom-model.h"

static const int64_t session_tokens[] = {1024, 32768, 131072, 1048576};

enum { SESSIONS = sizeof session_tokens / sizeof *session_tokens };

enum weights_state { WEIGHTS_NONE, WEIGHTS_GOOD, WEIGHTS_BAD };

struct shown {
    const char *dir;
    struct model_config c;
    struct manifest_totals sum;
    enum weights_state weights;
    size_t n_faults;
    char fingerprint[65];
};

/* 1234567 as "1,234,567", in one of a few buffers that take turns. */
static const char *
grouped(uint64_t n)
{
    static char texts[8][32];
    static int turn;
    char *s = texts[turn++ % 8], digits[24];
    const int len = snprintf(digits, sizeof digits, "%" PRIu64, n);
    int at = 0;

    for (int i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0)
            s[at++] = ',';
        s[at++] = digits[i];
    }
    s[at] = '\0';
    return s;
}

static int
kind_count(const struct model_config *c, const char *kind)
{
    int n = 0;

    for (int l = 0; l < c->n_layers; l++)
        n += manifest_layer_kind(c, l)[0] == kind[0];
    return n;
}

static const char *
router(const struct model_config *c, int layer)
{
    return layer < c->n_hash_layers ? "table" : "learned";
}

static void
print_layers(const struct shown *s)
{
    const struct model_config *c = &s->c;

    printf("\n%-8s%-10s%6s  %-8s%18s%20s\n", "layer", "kind", "ratio", "router",
           "parameters", "bytes");
    for (int l = 0; l < c->n_layers + c->n_mtp; l++) {
        char name[16];

        snprintf(name, sizeof name, l < c->n_layers ? "%d" : "mtp.%d",
                 l < c->n_layers ? l : l - c->n_layers);
        printf("%-8s%-10s%6d  %-8s%18s%20s\n", name, manifest_layer_kind(c, l), c->ratio[l],
               router(c, l), grouped(s->sum.layer[l].n_params),
               grouped(s->sum.layer[l].n_bytes));
    }
}

static void
print_sum(const char *name, const struct manifest_sum *sum)
{
    printf("%-20s%12s%22s%20s\n", name, grouped(sum->n_tensors), grouped(sum->n_params),
           grouped(sum->n_bytes));
}

static void
print_sums(const struct shown *s)
{
    const struct manifest_totals *sum = &s->sum;

    printf("\n%-20s%12s%22s%20s\n", "part", "tensors", "parameters", "bytes");
    for (int p = 0; p < PART_COUNT; p++)
        if (sum->part[p].n_tensors > 0)
            print_sum(manifest_part_name((enum manifest_part)p), &sum->part[p]);
    printf("\n%-20s%12s%22s%20s\n", "format", "tensors", "parameters", "bytes");
    for (int t = 0; t < DTYPE_COUNT; t++)
        if (sum->dtype[t].n_tensors > 0)
            print_sum(t == DTYPE_I8 ? "FP4 (I8)" : dtype_name((enum tensor_dtype)t),
                      &sum->dtype[t]);
    printf("\n%-20s%12s%22s%20s\n", "total", "tensors", "parameters", "bytes");
    print_sum("backbone", &sum->backbone);
    print_sum("draft layers", &sum->draft);
    print_sum("checkpoint", &sum->all);
}

static void
print_costs(const struct shown *s)
{
    const struct model_config *c = &s->c;

    printf("\nKV row               %s bytes, %s for an index row\n",
           grouped((uint64_t)kv_row_bytes(c->head_dim, c->rope_dim)),
           grouped((uint64_t)kv_index_row_bytes(c->index_head_dim)));
    printf("KV page              %s bytes for %d tokens\n",
           grouped((uint64_t)kv_page_bytes(c)), KV_PAGE_TOKENS);
    printf("KV per token         %s bytes\n", grouped((uint64_t)kv_bytes_per_token(c)));
    for (int i = 0; i < SESSIONS; i++)
        printf("session of %9s %s bytes%s\n", grouped((uint64_t)session_tokens[i]),
               grouped((uint64_t)kv_session_bytes(c, session_tokens[i])),
               session_tokens[i] > c->max_positions ? " (more than this model's context)"
                                                    : "");
}

static void
print_text(const struct shown *s)
{
    const struct model_config *c = &s->c;

    printf("model                %s\n", s->dir);
    printf("layers               %d (%d window, %d CSA, %d HCA) and %d draft\n",
           c->n_layers, kind_count(c, "window"), kind_count(c, "CSA"), kind_count(c, "HCA"),
           c->n_mtp);
    printf("shape                hidden %d in %d streams, %d heads of %d, window %d, index "
           "top %d\n",
           c->hidden, c->hc_mult, c->n_heads, c->head_dim, c->window, c->index_topk);
    printf("experts              %d of %d and a shared one, width %d\n", c->n_experts_used,
           c->n_experts, c->moe_inter);
    printf("numbers              %s\n", !c->quantized    ? "BF16"
                                        : c->fp4_experts ? "FP8, routed experts FP4"
                                                         : "FP8");
    printf("vocabulary           %s\n", grouped((uint64_t)c->vocab_size));
    printf("context              %s tokens\n", grouped((uint64_t)c->max_positions));
    switch (s->weights) {
    case WEIGHTS_NONE:
        printf("weights              none in this folder: sizes are what the config asks "
               "for\n");
        break;
    case WEIGHTS_GOOD: printf("weights              complete\n"); break;
    case WEIGHTS_BAD: printf("weights              damaged or incomplete\n"); break;
    }
    if (s->weights == WEIGHTS_GOOD)
        printf("fingerprint          %s\n", s->fingerprint);
    print_layers(s);
    print_sums(s);
    print_costs(s);
}

static json_t *
json_sum(const struct manifest_sum *sum)
{
    return json_pack("{s:I,s:I,s:I}", "tensors", (json_int_t)sum->n_tensors, "parameters",
                     (json_int_t)sum->n_params, "bytes", (json_int_t)sum->n_bytes);
}

static json_t *
json_layers(const struct shown *s)
{
    const struct model_config *c = &s->c;
    json_t *a = json_array();

    for (int l = 0; l < c->n_layers + c->n_mtp; l++)
        json_array_append_new(a,
                              json_pack("{s:s,s:i,s:s,s:b,s:I,s:I}", "kind",
                                        manifest_layer_kind(c, l), "ratio", c->ratio[l],
                                        "router", router(c, l), "draft", l >= c->n_layers,
                                        "parameters", (json_int_t)s->sum.layer[l].n_params,
                                        "bytes", (json_int_t)s->sum.layer[l].n_bytes));
    return a;
}

static json_t *
json_costs(const struct model_config *c)
{
    json_t *kv = json_pack(
        "{s:I,s:I,s:I,s:I}", "row_bytes",
        (json_int_t)kv_row_bytes(c->head_dim, c->rope_dim), "index_row_bytes",
        (json_int_t)kv_index_row_bytes(c->index_head_dim), "page_bytes",
        (json_int_t)kv_page_bytes(c), "bytes_per_token", (json_int_t)kv_bytes_per_token(c));
    json_t *sessions = json_array();

    for (int i = 0; i < SESSIONS; i++)
        json_array_append_new(
            sessions,
            json_pack("{s:I,s:I}", "tokens", (json_int_t)session_tokens[i], "bytes",
                      (json_int_t)kv_session_bytes(c, session_tokens[i])));
    json_object_set_new(kv, "sessions", sessions);
    return kv;
}

static int
print_json(const struct shown *s, struct err *e)
{
    static const char *const states[] = {
        [WEIGHTS_NONE] = "none", [WEIGHTS_GOOD] = "complete", [WEIGHTS_BAD] = "damaged"};
    const struct model_config *c = &s->c;
    json_t *parts = json_object(), *formats = json_object(), *root;
    int r;

    for (int p = 0; p < PART_COUNT; p++)
        json_object_set_new(parts, manifest_part_name((enum manifest_part)p),
                            json_sum(&s->sum.part[p]));
    for (int t = 0; t < DTYPE_COUNT; t++)
        if (s->sum.dtype[t].n_tensors > 0)
            json_object_set_new(formats, dtype_name((enum tensor_dtype)t),
                                json_sum(&s->sum.dtype[t]));
    root = json_pack(
        "{s:s,s:i,s:i,s:I,s:b,s:b,s:s,s:I,s:s*,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "model",
        s->dir, "n_layers", c->n_layers, "vocab_size", c->vocab_size, "max_positions",
        (json_int_t)c->max_positions, "quantized", c->quantized, "fp4_experts",
        c->fp4_experts, "weights", states[s->weights], "weight_faults",
        (json_int_t)s->n_faults, "fingerprint",
        s->weights == WEIGHTS_GOOD ? s->fingerprint : NULL, "layers", json_layers(s),
        "parts", parts, "formats", formats, "backbone", json_sum(&s->sum.backbone), "draft",
        json_sum(&s->sum.draft), "checkpoint", json_sum(&s->sum.all), "kv", json_costs(c));
    if (root == NULL)
        return err_set(e, ERR_INTERNAL, 0, "no JSON from %.120s", s->dir);
    r = json_dumpf(root, stdout, JSON_INDENT(1));
    json_decref(root);
    putchar('\n');
    return r == -1 ? err_set(e, ERR_INTERNAL, 0, "standard output") : 0;
}

static void
print_fault(void *arg, const char *line)
{
    size_t *n = arg;

    ++*n;
    fprintf(stderr, "fathom-model: %s\n", line);
}

/* 0: none or good; -1: bad, and *e says so. */
static int
verify(struct shown *s, struct err *e)
{
    struct weights *w = weights_open(s->dir, &s->c, print_fault, &s->n_faults, e);
    uint8_t print[32];

    if (w == NULL && e->code == ERR_NOT_FOUND) {
        s->weights = WEIGHTS_NONE;
        return 0;
    }
    if (w == NULL) {
        s->weights = WEIGHTS_BAD;
        return -1;
    }
    s->weights = WEIGHTS_GOOD;
    s->c = *weights_config(w);
    weights_fingerprint(w, print);
    for (size_t i = 0; i < sizeof print; i++)
        snprintf(s->fingerprint + 2 * i, 3, "%02x", print[i]);
    weights_close(w);
    return 0;
}

int
model_show(const char *dir, bool as_json, struct err *e)
{
    struct shown s = {.dir = dir};
    struct err ignored;
    int r;

    if (model_config_load(&s.c, dir, e) == -1)
        return -1;
    r = verify(&s, e);
    manifest_total(&s.c, &s.sum);
    if (!as_json)
        print_text(&s);
    else if (print_json(&s, r == -1 ? &ignored : e) == -1)
        r = -1;
    return r;
}
