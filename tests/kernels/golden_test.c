/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend against the public reference's answers on three tiny models. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/kernels/acceptance.h"
#include "tests/test.h"

struct setting {
    const char *model, *isa;
};

static int
set_up(void **state)
{
    const struct setting *s = *state;
    struct accepted *f = calloc(1, sizeof *f);
    int r;

    assert_non_null(f);
    r = golden_open(&f->g, s->model);
    if (r == -1)
        return -1;
    f->isa = s->isa;
    if (r == 0)
        f->b = f->cpu = golden_backend(&f->g, s->isa, 1);
    *state = f;
    return 0;
}

static int
tear_down(void **state)
{
    struct accepted *f = *state;

    backend_cpu.close(f->b);
    golden_close(&f->g);
    free(f);
    return 0;
}

static void
each_layer_alone(void **state)
{
    struct accepted *f = *state;

    if (f->b == NULL)
        skip();
    assert_true(layers_pass(f));
}

static void
whole_prefill_and_draft(void **state)
{
    struct accepted *f = *state;

    if (f->b == NULL)
        skip();
    assert_true(prefill_and_draft_pass(f));
}

static void
token_by_token(void **state)
{
    struct accepted *f = *state;

    if (f->b == NULL)
        skip();
    assert_true(token_by_token_pass(f));
}

int
main(void)
{
    static const struct setting settings[] = {
        {"flash-tiny", "reference"}, {"flash-tiny", "auto"},     {"pro-tiny", "reference"},
        {"pro-tiny", "auto"},        {"bf16-tiny", "reference"}, {"bf16-tiny", "auto"},
    };

    static const struct {
        const char *name;
        CMUnitTestFunction fn;
    } kinds[] = {
        {"each layer alone", each_layer_alone},
        {"whole prefill and draft", whole_prefill_and_draft},
        {"token by token", token_by_token},
    };

    enum { SETTINGS = 6, KINDS = 3 };
    struct CMUnitTest tests[SETTINGS * KINDS];
    static char names[SETTINGS * KINDS][64];

    for (int i = 0; i < SETTINGS * KINDS; i++) {
        const struct setting *s = &settings[i / KINDS];

        snprintf(names[i], sizeof names[i], "%s, %s operations: %s", s->model, s->isa,
                 kinds[i % KINDS].name);
        tests[i] = (struct CMUnitTest){
            names[i],  kinds[i % KINDS].fn,  set_up,
            tear_down, (void *)(uintptr_t)s, /* cmocka's state is not const; nobody writes to it */
        };
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
