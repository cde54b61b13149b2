/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.json. What is accepted must be a model whose sizes can be computed: the manifest and the
 * cache sizes overflow nothing (UBSan looks), and its text can be written.
 */
#include "config.h"

#include <stdlib.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/kvsize.h"
#include "model/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
must(int truth)
{
    if (!truth)
        abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    static struct manifest_totals totals;
    struct model_config c;
    struct err e = {0};
    struct buf text;

    if (model_config_parse(&c, (const char *)p, len, &e) == -1) {
        must(e.code != ERR_NONE && e.text[0] != '\0');
        return 0;
    }
    must(c.n_layers >= 1 && c.n_layers + c.n_mtp <= MODEL_MAX_LAYERS);
    must(c.n_heads % c.o_groups == 0 && c.head_dim > c.rope_dim);
    for (int l = 0; l < c.n_layers; l++)
        must(c.ratio[l] == 0 || KV_PAGE_TOKENS % c.ratio[l] == 0);
    must(kv_session_bytes(&c, c.max_positions) > 0);
    must(kv_bytes_per_token(&c) >= 0);
    buf_init(&text, 1 << 16);
    must(model_config_text(&c, &text, &e) == 0);
    buf_done(&text);
    if (c.n_layers * c.n_experts <=
        4096) { /* a walk over more takes too long for a fuzzer */
        manifest_total(&c, &totals);
        must(totals.all.n_bytes == totals.backbone.n_bytes + totals.draft.n_bytes);
    }
    return 0;
}
