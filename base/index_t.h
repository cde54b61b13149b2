/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_INDEX_T_H
#define BASE_INDEX_T_H

/*
 * What formulas of places are written in (gpu/index.h, gpu/index/, kvstore/offsets.h), for
 * C and for kernels: INDEX_T for positions and places in memory, which are never negative;
 * INDEX_INT for what a kernel counts in registers. The prover (verify/) defines these
 * otherwise before it includes them, so that the same text gives terms, and claims of each
 * result that its type holds it. Only + - * / %, comparisons, casts, and INDEX_IF where a
 * value depends on a condition.
 */
#ifndef INDEX_FN
#    include <stdint.h>

#    ifdef __CUDACC__
#        define INDEX_FN static __host__ __device__ inline
#    else
#        define INDEX_FN static inline
#    endif
#    define INDEX_T                      uint64_t
#    define INDEX_INT                    int
#    define INDEX_IF(condition, yes, no) ((condition) ? (yes) : (no))
#endif

#endif /* BASE_INDEX_T_H */
