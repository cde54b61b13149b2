/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KERNELS_CUDA_TEST_H
#define TESTS_KERNELS_CUDA_TEST_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/cuda/rank.h"

/* What tests of single kernels share. Device memory of a test is freed by tear_down. */
extern struct cuda_rank rk;

void cuda_ok(cudaError_t err);

/* An operation has been put on the stream with result r: waits, asserts that it worked. */
void done(int r, const struct err *e);

/* Device memory, poisoned, with 64 bytes behind it that nobody may touch; a copy of host's. */
void *dev_poison(size_t bytes);
void *dev(const void *host, size_t bytes);

/* Back to the host (caller frees), after a look at those 64 bytes. */
void *fetch(const void *p, size_t bytes);
int tear_down(void **state);

/* Numbers that are the same in every run; now and then a very small one. */
uint32_t rnd(void);
float rnd_float(float size);
uint16_t *rnd_bf16(size_t n, float size);
float *rnd_f32(size_t n, float size);
void *poison(size_t bytes);

/* Elements off by more than rel of the wanted value and abs; NaN equals NaN. */
int far_bf16(const uint16_t *got, const uint16_t *want, size_t n, float rel, float abs);

/* cuda_choose_test.c */
void test_choose(void **state);
void test_best(void **state);
void test_raw(void **state);

/* cuda_inputs_test.c */
void test_inputs(void **state);

/* cuda_attend_test.c */
void test_attend(void **state);

/* cuda_moe_test.c */
void test_moe_twice(void **state);

/* cuda_streams_test.c */
void test_streams(void **state);

#endif /* TESTS_KERNELS_CUDA_TEST_H */
