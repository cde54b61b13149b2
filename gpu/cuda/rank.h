/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_RANK_H
#define GPU_CUDA_RANK_H

#include <stdbool.h>
#include <stddef.h>

#include <cuda_runtime_api.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * One GPU and the one stream on which everything of a backend runs in order. Functions named
 * X_cuda put work on the stream and return: what they say about failure is about the launch.
 * What happens later on the device comes out of rank_wait.
 */
struct cuda_rank {
    int device;
    cudaStream_t stream;
    int sms;
    size_t shared_bytes; /* most that a block may ask for */
    char name[64];
};

int rank_open(struct cuda_rank *rk, struct err *e);
void rank_close(struct cuda_rank *rk);
int rank_wait(struct cuda_rank *rk, struct err *e); /* until the stream is empty */

/* The context is gone and the process must end: the errors of which CUDA's driver_types.h says
 * so, and those of memory that can no longer be trusted. */
bool cu_is_fatal(cudaError_t err);
enum err_code cu_code(cudaError_t err);

/* Ends the function with -1 and *e set when a CUDA call fails. Host code only. */
#define CU_TRY(call, e)                                                                 \
    do {                                                                                \
        cudaError_t err_ = (call);                                                      \
        if (err_ != cudaSuccess)                                                        \
            return err_set((e), cu_code(err_), (int)err_, "%s:%d: %s: %s", __FILE__,    \
                           __LINE__, cudaGetErrorName(err_), cudaGetErrorString(err_)); \
    } while (0)

#ifdef __cplusplus
}
#endif

#endif /* GPU_CUDA_RANK_H */
