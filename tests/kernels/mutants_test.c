/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Known bugs of other engines (spec 14), one at a time: each must fail the acceptance that the
 * backend passes. Linked with libgpu_mutants.a, where they can be switched on.
 */
#include "config.h"

#include "gpu/cpu/cpu.h"
#include "tests/kernels/acceptance.h"
#include "tests/test.h"

enum mutant cpu_mutant;

static void
fails(enum mutant m)
{
    struct accepted f = {.isa = "reference"};
    bool layers, prefill;

    assert_int_equal(golden_open(&f.g, "flash-tiny"), 0);
    f.b = f.cpu = golden_backend(&f.g, f.isa, 1);
    cpu_mutant = m;
    layers = layers_pass(&f);
    prefill = prefill_and_draft_pass(&f);
    cpu_mutant = MUTANT_NONE;
    backend_cpu.close(f.b);
    golden_close(&f.g);
    if (m == MUTANT_NONE) {
        assert_true(layers && prefill);
    } else {
        assert_false(layers);
        assert_false(prefill);
    }
}

static void
none_passes(void **state)
{
    (void)state;
    fails(MUTANT_NONE);
}

static void
no_inverse_rope(void **state)
{
    (void)state;
    fails(MUTANT_NO_INVERSE_ROPE);
}

static void
plain_rope_in_compressed_layers(void **state)
{
    (void)state;
    fails(MUTANT_PLAIN_ROPE);
}

static void
comb_not_transposed(void **state)
{
    (void)state;
    fails(MUTANT_COMB_NOT_TRANSPOSED);
}

static void
sink_in_the_numerator(void **state)
{
    (void)state;
    fails(MUTANT_SINK_IN_NUMERATOR);
}

static void
no_overlap_at_ratio_4(void **state)
{
    (void)state;
    fails(MUTANT_NO_OVERLAP);
}

static void
most_recent_instead_of_top_k(void **state)
{
    (void)state;
    fails(MUTANT_TOPK_RECENT);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_passes),
        cmocka_unit_test(no_inverse_rope),
        cmocka_unit_test(plain_rope_in_compressed_layers),
        cmocka_unit_test(comb_not_transposed),
        cmocka_unit_test(sink_in_the_numerator),
        cmocka_unit_test(no_overlap_at_ratio_4),
        cmocka_unit_test(most_recent_instead_of_top_k),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
