/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.json to struct model_config: a table of keys, then the checks between keys.
 *
 * A key that is not in the table is an error. In a file that describes how to compute, a key
 * that we do not know may change the numbers, and answers that are quietly wrong are the worst
 * thing that this program could produce. A second list has
 * the keys that are known to change nothing, the bookkeeping of other programs. Any thread.
 */
#include <config.h> /* not "": beside this file lies model/config.h */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/file.h"
#include "model/config.h"
#include "model/json.h"

enum kind {
    INT,    /* int */
    LONG,   /* int64_t */
    DOUBLE, /* double, written with or without a fraction */
    FLOAT,  /* float, the same */
    ONLY,   /* must be one integer; not stored */
    WORD,   /* must be one string; not stored */
    YES,
    NO,     /* must be true, must be false; not stored */
    NUMBER, /* any number; changes nothing when a model only runs */
    OTHER,  /* looked at by a function of its own, below; .word says what is wanted */
};

struct key {
    const char *name;
    size_t at; /* in struct model_config */
    double lo, hi;
    const char *word;
    enum kind kind;
    bool optional;
};

#define KEY(name_, kind_, ...)                        \
    {                                                 \
        .name = (name_), .kind = (kind_), __VA_ARGS__ \
    }
#define RANGE(name_, kind_, member, lo_, hi_)                                          \
    {                                                                                  \
        .name = (name_), .kind = (kind_), .at = offsetof(struct model_config, member), \
        .lo = (lo_), .hi = (hi_)                                                       \
    }

static const struct key root_keys[] = {
    KEY("architectures", OTHER, .word = "an array of strings", .optional = true),
    KEY("attention_bias", NO),
    KEY("attention_dropout", NUMBER, .optional = true),
    RANGE("bos_token_id", INT, bos_id, 0, 1 << 24),
    KEY("compress_ratios", OTHER, .word = "an array with one integer for each layer"),
    RANGE("compress_rope_theta", DOUBLE, compress_rope_theta, 1, 1e12),
    KEY("dtype", WORD, .word = "bfloat16", .optional = true),
    RANGE("eos_token_id", INT, eos_id, 0, 1 << 24),
    KEY("expert_dtype", OTHER, .word = "\"fp4\" or \"fp8\"", .optional = true),
    RANGE("hc_eps", FLOAT, hc_eps, 1e-30, 0.1),
    RANGE("hc_mult", INT, hc_mult, 1, MODEL_MAX_HC),
    RANGE("hc_sinkhorn_iters", INT, hc_sinkhorn_iters, 1, 1000),
    RANGE("head_dim", INT, head_dim, 2, 1024),
    KEY("hidden_act", WORD, .word = "silu"),
    RANGE("hidden_size", INT, hidden, 32, 65536),
    RANGE("index_head_dim", INT, index_head_dim, 32, 1024),
    RANGE("index_n_heads", INT, index_n_heads, 1, 1024),
    RANGE("index_topk", INT, index_topk, 1, 65536),
    KEY("initializer_range", NUMBER, .optional = true),
    RANGE("max_position_embeddings", LONG, max_positions, 1, 1 << 24),
    KEY("model_type", WORD, .word = "deepseek_v4"),
    RANGE("moe_intermediate_size", INT, moe_inter, 32, 65536),
    RANGE("n_routed_experts", INT, n_experts, 1, 1024),
    KEY("n_shared_experts", ONLY, .lo = 1),
    KEY("norm_topk_prob", YES),
    RANGE("num_attention_heads", INT, n_heads, 1, 1024),
    RANGE("num_experts_per_tok", INT, n_experts_used, 1, 64),
    RANGE("num_hash_layers", INT, n_hash_layers, 0, MODEL_MAX_LAYERS),
    RANGE("num_hidden_layers", INT, n_layers, 1, MODEL_MAX_LAYERS),
    KEY("num_key_value_heads", ONLY, .lo = 1),
    RANGE("num_nextn_predict_layers", INT, n_mtp, 0, 1),
    RANGE("o_groups", INT, o_groups, 1, 1024),
    RANGE("o_lora_rank", INT, o_lora_rank, 32, 65536),
    RANGE("q_lora_rank", INT, q_lora_rank, 32, 65536),
    RANGE("qk_rope_head_dim", INT, rope_dim, 2, 512),
    KEY("quantization_config", OTHER, .word = "an object", .optional = true),
    RANGE("rms_norm_eps", FLOAT, rms_eps, 1e-30, 0.1),
    KEY("rope_scaling", OTHER, .word = "an object"),
    RANGE("rope_theta", DOUBLE, rope_theta, 1, 1e12),
    RANGE("routed_scaling_factor", FLOAT, route_scale, 1e-6, 1e6),
    KEY("scoring_func", WORD, .word = "sqrtsoftplus"),
    RANGE("sliding_window", INT, window, 1, 1 << 20),
    RANGE("swiglu_limit", FLOAT, swiglu_limit, 1e-3, 1e6),
    KEY("tie_word_embeddings", NO),
    KEY("topk_method", WORD, .word = "noaux_tc"),
    KEY("torch_dtype", WORD, .word = "bfloat16", .optional = true),
    RANGE("vocab_size", INT, vocab_size, 2, 1 << 24),
};

/* Bookkeeping of other programs: nothing of it reaches a number that we compute. */
static const char *const ignored[] = {"_name_or_path",
                                      "aux_loss_alpha",
                                      "chunk_size_feed_forward",
                                      "id2label",
                                      "is_decoder",
                                      "is_encoder_decoder",
                                      "label2id",
                                      "output_attentions",
                                      "output_hidden_states",
                                      "output_router_logits",
                                      "pad_token_id",
                                      "pretraining_tp",
                                      "problem_type",
                                      "return_dict",
                                      "router_aux_loss_coef",
                                      "seq_aux",
                                      "transformers_version",
                                      "use_cache"};

static const struct key rope_keys[] = {
    RANGE("beta_fast", DOUBLE, yarn_beta_fast, 1e-6, 1e6),
    RANGE("beta_slow", DOUBLE, yarn_beta_slow, 1e-6, 1e6),
    RANGE("factor", DOUBLE, yarn_factor, 1, 1e6),
    RANGE("original_max_position_embeddings", LONG, yarn_original_positions, 1, 1 << 24),
    KEY("rope_type", WORD, .word = "yarn", .optional = true),
    KEY("type", WORD, .word = "yarn"),
};

static const struct key quant_keys[] = {
    KEY("activation_scheme", WORD, .word = "dynamic"),
    KEY("fmt", WORD, .word = "e4m3"),
    KEY("quant_method", WORD, .word = "fp8"),
    KEY("scale_fmt", WORD, .word = "ue8m0"),
    KEY("weight_block_size", OTHER, .word = "[128, 128]"),
};

#undef KEY
#undef RANGE
#define COUNT(table) (sizeof(table) / sizeof *(table))

/* What the key should have been, for messages. */
static const char *
wanted(const struct key *k, char *s, size_t len)
{
    switch (k->kind) {
    case INT:
    case LONG: snprintf(s, len, "an integer from %.0f to %.0f", k->lo, k->hi); break;
    case DOUBLE:
    case FLOAT: snprintf(s, len, "a number from %g to %g", k->lo, k->hi); break;
    case ONLY: snprintf(s, len, "%.0f", k->lo); break;
    case WORD: snprintf(s, len, "\"%s\"", k->word); break;
    case YES: snprintf(s, len, "true"); break;
    case NO: snprintf(s, len, "false"); break;
    case NUMBER: snprintf(s, len, "a number"); break;
    case OTHER: snprintf(s, len, "%s", k->word); break;
    }
    return s;
}

static int
bad_type(const char *in, const char *name, const json_t *v, const char *want, struct err *e)
{
    return err_set(e, ERR_DAMAGED, 0, "%s%s: %s where %s is wanted", in, name, json_kind(v),
                   want);
}

static int
store_number(const struct key *k, const char *in, const json_t *v, struct model_config *c,
             struct err *e)
{
    const bool whole = k->kind == INT || k->kind == LONG || k->kind == ONLY;
    const double hi = k->kind == ONLY ? k->lo : k->hi;
    const double x = json_number_value(v);
    char want[96];
    void *at = (char *)c + k->at;

    wanted(k, want, sizeof want);
    if (whole ? !json_is_integer(v) : !json_is_number(v))
        return bad_type(in, k->name, v, want, e);
    if (k->kind == NUMBER)
        return 0;
    if (!(x >= k->lo && x <= hi))
        return err_set(e, ERR_MODEL_MISMATCH, 0, "%s%s is %.17g; want %s", in, k->name, x,
                       want);
    switch (k->kind) {
    case INT: *(int *)at = (int)x; break;
    case LONG: *(int64_t *)at = (int64_t)x; break;
    case DOUBLE: *(double *)at = x; break;
    case FLOAT: *(float *)at = (float)x; break;
    default: break;
    }
    return 0;
}

static int
take_key(const struct key *k, const char *in, const json_t *v, struct model_config *c,
         struct err *e)
{
    char want[96];

    switch (k->kind) {
    case WORD:
        if (!json_is_string(v))
            return bad_type(in, k->name, v, wanted(k, want, sizeof want), e);
        if (strcmp(json_string_value(v), k->word) != 0)
            return err_set(e, ERR_MODEL_MISMATCH, 0, "%s%s is \"%.64s\"; want \"%s\"", in,
                           k->name, json_string_value(v), k->word);
        return 0;
    case YES:
    case NO:
        if (!json_is_boolean(v))
            return bad_type(in, k->name, v, wanted(k, want, sizeof want), e);
        if (json_is_true(v) != (k->kind == YES))
            return err_set(e, ERR_MODEL_MISMATCH, 0, "%s%s is %s; want %s", in, k->name,
                           json_kind(v), wanted(k, want, sizeof want));
        return 0;
    case OTHER: return 0;
    default: return store_number(k, in, v, c, e);
    }
}

static bool
is_ignored(const char *name)
{
    for (size_t i = 0; i < COUNT(ignored); i++)
        if (strcmp(ignored[i], name) == 0)
            return true;
    return false;
}

/* Every key of the table, and no others. `in` goes in front of a key's name in messages. */
static int
take_object(const json_t *obj, const char *in, const struct key *keys, size_t n,
            struct model_config *c, struct err *e)
{
    const char *name;
    json_t *v;
    char want[96];

    json_object_foreach((json_t *)obj, name, v)
    {
        size_t i = 0;

        while (i < n && strcmp(keys[i].name, name) != 0)
            i++;
        if (i == n && (keys != root_keys || !is_ignored(name)))
            return err_set(e, ERR_MODEL_MISMATCH, 0,
                           "%s%.80s: not a key of this architecture; want it gone, or a "
                           "fathom that knows it",
                           in, name);
    }
    for (size_t i = 0; i < n; i++) {
        v = json_object_get(obj, keys[i].name);
        if (v == NULL && !keys[i].optional)
            return err_set(e, ERR_DAMAGED, 0, "%s%s: missing; want %s", in, keys[i].name,
                           wanted(&keys[i], want, sizeof want));
        if (v != NULL && take_key(&keys[i], in, v, c, e) == -1)
            return -1;
    }
    return 0;
}

/* First of all: a file for something else should be called that, not "missing hc_mult". */
static int
check_architecture(const json_t *root, struct err *e)
{
    const json_t *type = json_object_get(root, "model_type");
    const json_t *classes = json_object_get(root, "architectures");
    const char *name;
    json_t *v;
    bool ours = false;
    size_t i;

    if (json_is_string(type) && strcmp(json_string_value(type), "deepseek_v4") != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "model_type is \"%.64s\": an architecture that fathom cannot run; "
                       "want \"deepseek_v4\"",
                       json_string_value(type));
    json_object_foreach((json_t *)root, name, v) if (
        strncmp(name, "dspark_", 7) ==
        0) return err_set(e, ERR_MODEL_MISMATCH, 0,
                          "%.64s: DSpark draft layers (releases 0731, 0813 and -DSpark) "
                          "are not supported; want a checkpoint with the one MTP layer",
                          name);
    if (classes == NULL)
        return 0;
    if (!json_is_array(classes))
        return bad_type("", "architectures", classes, "an array of strings", e);
    json_array_foreach(classes, i, v)
    {
        if (!json_is_string(v))
            return bad_type("", "architectures", v, "a string", e);
        ours = ours || strcmp(json_string_value(v), "DeepseekV4ForCausalLM") == 0;
    }
    if (!ours)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "architectures: want \"DeepseekV4ForCausalLM\" in it");
    return 0;
}

static bool
ratio_is_known(json_int_t r)
{
    return r == 0 || r == MODEL_CSA_RATIO ||
           (r > MODEL_CSA_RATIO && r <= MODEL_MAX_RATIO && (r & (r - 1)) == 0);
}

static int
take_ratios(const json_t *a, struct model_config *c, struct err *e)
{
    const size_t n = (size_t)c->n_layers + (size_t)c->n_mtp;
    json_t *v;
    size_t i;

    if (!json_is_array(a))
        return bad_type("", "compress_ratios", a, "an array of integers", e);
    if (json_array_size(a) == n + 2 && c->n_mtp == 1)
        return err_set(
            e, ERR_MODEL_MISMATCH, 0,
            "compress_ratios has %zu entries, as with DSpark draft layers, which "
            "are not supported; want %zu",
            n + 2, n);
    if (json_array_size(a) != n)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "compress_ratios has %zu entries; want %zu, one for each of %d "
                       "layers and %d draft layers",
                       json_array_size(a), n, c->n_layers, c->n_mtp);
    json_array_foreach(a, i, v)
    {
        if (!json_is_integer(v))
            return bad_type("", "compress_ratios", v, "an integer", e);
        if (!ratio_is_known(json_integer_value(v)))
            return err_set(
                e, ERR_MODEL_MISMATCH, 0,
                "compress_ratios[%zu] is %lld; want 0, 4, or a power of two from 8 "
                "to %d",
                i, (long long)json_integer_value(v), MODEL_MAX_RATIO);
        if (i >= (size_t)c->n_layers && json_integer_value(v) != 0)
            return err_set(e, ERR_MODEL_MISMATCH, 0,
                           "compress_ratios[%zu] is %lld; want 0 for a draft layer", i,
                           (long long)json_integer_value(v));
        c->ratio[i] = (int)json_integer_value(v);
    }
    return 0;
}

static int
take_quantization(const json_t *root, struct model_config *c, struct err *e)
{
    const json_t *q = json_object_get(root, "quantization_config");
    const json_t *x = json_object_get(root, "expert_dtype");
    const json_t *block;

    c->quantized = q != NULL;
    if (x != NULL && !json_is_string(x))
        return bad_type("", "expert_dtype", x, "\"fp4\" or \"fp8\"", e);
    if (x != NULL && strcmp(json_string_value(x), "fp4") != 0 &&
        strcmp(json_string_value(x), "fp8") != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "expert_dtype is \"%.64s\"; want \"fp4\" or \"fp8\"",
                       json_string_value(x));
    /* The first releases say nothing and have FP4 (spec 1.1). */
    c->fp4_experts = c->quantized &&
                     (x == NULL || strcmp(json_string_value(x), "fp4") == 0);
    if (q == NULL)
        return 0;
    if (!json_is_object(q))
        return bad_type("", "quantization_config", q, "an object", e);
    if (take_object(q, "quantization_config.", quant_keys, COUNT(quant_keys), c, e) == -1)
        return -1;
    block = json_object_get(q, "weight_block_size");
    if (json_array_size(block) != 2 ||
        json_integer_value(json_array_get(block, 0)) != 128 ||
        json_integer_value(json_array_get(block, 1)) != 128)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "quantization_config.weight_block_size: want [128, 128]");
    return 0;
}

/* What holds between keys. The multiples are those of the number formats (spec 2.2, 3.2). */
static int
check_shapes(const struct model_config *c, struct err *e)
{
    const int step = c->quantized ? 128 : 32;
    const int64_t group = (int64_t)c->n_heads * c->head_dim / c->o_groups;

    const struct {
        const char *name;
        int64_t is;
        int of;
    } multiples[] = {
        {"hidden_size", c->hidden, step},
        {"q_lora_rank", c->q_lora_rank, step},
        {"o_lora_rank", c->o_lora_rank, step},
        {"moe_intermediate_size", c->moe_inter, step},
        {"num_attention_heads x head_dim / o_groups", group, step},
        {"head_dim - qk_rope_head_dim", c->head_dim - c->rope_dim, 64},
        {"qk_rope_head_dim", c->rope_dim, 2},
    };

    const struct {
        const char *name;
        int64_t is, hi;
        const char *of;
    } most[] = {
        {"bos_token_id", c->bos_id, c->vocab_size - 1, "vocab_size - 1"},
        {"eos_token_id", c->eos_id, c->vocab_size - 1, "vocab_size - 1"},
        {"num_experts_per_tok", c->n_experts_used, c->n_experts, "n_routed_experts"},
        {"num_hash_layers", c->n_hash_layers, c->n_layers, "num_hidden_layers"},
        {"qk_rope_head_dim", c->rope_dim, c->index_head_dim, "index_head_dim"},
        {"qk_rope_head_dim", c->rope_dim, c->head_dim - 1, "head_dim - 1"},
    };

    for (size_t i = 0; i < COUNT(most); i++)
        if (most[i].is > most[i].hi)
            return err_set(e, ERR_MODEL_MISMATCH, 0, "%s is %lld; want at most %lld (%s)",
                           most[i].name, (long long)most[i].is, (long long)most[i].hi,
                           most[i].of);
    if (c->n_heads % c->o_groups != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "o_groups is %d; want a divisor of num_attention_heads (%d)",
                       c->o_groups, c->n_heads);
    for (size_t i = 0; i < COUNT(multiples); i++)
        if (multiples[i].is % multiples[i].of != 0)
            return err_set(e, ERR_MODEL_MISMATCH, 0, "%s is %lld; want a multiple of %d",
                           multiples[i].name, (long long)multiples[i].is, multiples[i].of);
    if ((c->index_head_dim & (c->index_head_dim - 1)) != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "index_head_dim is %d; want a power of two", c->index_head_dim);
    if (c->yarn_beta_fast <= c->yarn_beta_slow)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "rope_scaling.beta_fast is %g; want more than beta_slow (%g)",
                       c->yarn_beta_fast, c->yarn_beta_slow);
    return 0;
}

static int
take_root(const json_t *root, struct model_config *c, struct err *e)
{
    const json_t *rope;

    if (!json_is_object(root))
        return bad_type("", "the file", root, "an object", e);
    if (check_architecture(root, e) == -1 ||
        take_object(root, "", root_keys, COUNT(root_keys), c, e) == -1)
        return -1;
    if (c->n_layers + c->n_mtp > MODEL_MAX_LAYERS)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "num_hidden_layers is %d; want at most %d with draft layers",
                       c->n_layers, MODEL_MAX_LAYERS);
    rope = json_object_get(root, "rope_scaling");
    if (!json_is_object(rope))
        return bad_type("", "rope_scaling", rope, "an object", e);
    if (take_object(rope, "rope_scaling.", rope_keys, COUNT(rope_keys), c, e) == -1 ||
        take_ratios(json_object_get(root, "compress_ratios"), c, e) == -1 ||
        take_quantization(root, c, e) == -1)
        return -1;
    return check_shapes(c, e);
}

int
model_config_parse(struct model_config *c, const char *text, size_t len, struct err *e)
{
    static const struct json_limits max = {.bytes = 1 << 20, .depth = 4, .n_values = 4096};
    json_t *root = json_parse(text, len, &max, e);
    int r;

    *c = (struct model_config){0};
    if (root == NULL)
        return -1;
    r = take_root(root, c, e);
    json_decref(root);
    return r;
}

int
model_config_load(struct model_config *c, const char *dir, struct err *e)
{
    char path[4096];
    size_t len;
    char *text;
    int r;

    if ((size_t)snprintf(path, sizeof path, "%s/config.json", dir) >= sizeof path)
        return err_set(e, ERR_INVALID, 0, "path too long: %.64s...", dir);
    text = file_read(path, 1 << 20, &len, e);
    if (text == NULL)
        return -1;
    r = model_config_parse(c, text, len, e);
    free(text);
    return r == -1 ? err_prefix(e, "%.120s", path) : 0;
}

static int
text_of(const struct model_config *c, const struct key *keys, size_t n, struct buf *out,
        struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        const void *at = (const char *)c + keys[i].at;
        int r = 0;

        switch (keys[i].kind) {
        case INT: r = buf_addf(out, e, "%s=%d\n", keys[i].name, *(const int *)at); break;
        case LONG:
            r = buf_addf(out, e, "%s=%lld\n", keys[i].name,
                         (long long)*(const int64_t *)at);
            break;
        case DOUBLE:
            r = buf_addf(out, e, "%s=%.17g\n", keys[i].name, *(const double *)at);
            break;
        case FLOAT:
            r = buf_addf(out, e, "%s=%.9g\n", keys[i].name, (double)*(const float *)at);
            break;
        default: break;
        }
        if (r == -1)
            return -1;
    }
    return 0;
}

int
model_config_text(const struct model_config *c, struct buf *out, struct err *e)
{
    if (text_of(c, root_keys, COUNT(root_keys), out, e) == -1 ||
        text_of(c, rope_keys, COUNT(rope_keys), out, e) == -1 ||
        buf_addf(out, e, "quantized=%d\nfp4_experts=%d\ncompress_ratios=", c->quantized,
                 c->fp4_experts) == -1)
        return -1;
    for (int l = 0; l < c->n_layers + c->n_mtp; l++)
        if (buf_addf(out, e, l == 0 ? "%d" : ",%d", c->ratio[l]) == -1)
            return -1;
    return buf_adds(out, "\n", e);
}
