/* SPDX-License-Identifier: Apache-2.0 */
/* The device, its stream, and what a CUDA error means for the process. */
#include "config.h"

#include <stdio.h>

#include "gpu/backend.h"
#include "gpu/cuda/rank.h"

enum { NEED_MAJOR = 9, NEED_MINOR = 0 };

bool
cu_is_fatal(cudaError_t err)
{
    switch (err) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorUnknown: return true;
    default: return false;
    }
}

enum err_code
cu_code(cudaError_t err)
{
    switch (err) {
    case cudaErrorMemoryAllocation: return ERR_QUOTA;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorNoKernelImageForDevice: return ERR_NOT_FOUND;
    default: return ERR_INTERNAL;
    }
}

bool
backend_cuda_present(void)
{
    int n = 0, major = 0, minor = 0;

    if (cudaGetDeviceCount(&n) != cudaSuccess || n < 1) {
        cudaGetLastError(); /* it is told once; nobody else should find it */
        return false;
    }
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) ==
               cudaSuccess &&
           major == NEED_MAJOR && minor == NEED_MINOR;
}

int
rank_open(struct cuda_rank *rk, struct err *e)
{
    struct cudaDeviceProp p;
    int n = 0;
    cudaError_t err = cudaGetDeviceCount(&n);

    *rk = (struct cuda_rank){.device = 0};
    if (err != cudaSuccess || n < 1) {
        cudaGetLastError();
        return err_set(e, ERR_NOT_FOUND, (int)err, "no CUDA device: %s",
                       err != cudaSuccess ? cudaGetErrorString(err) : "none is visible");
    }
    CU_TRY(cudaSetDevice(rk->device), e);
    CU_TRY(cudaGetDeviceProperties(&p, rk->device), e);
    if (p.major != NEED_MAJOR || p.minor != NEED_MINOR)
        return err_set(e, ERR_NOT_FOUND, 0,
                       "%s has compute capability %d.%d; the kernels are for %d.%d", p.name,
                       p.major, p.minor, NEED_MAJOR, NEED_MINOR);
    rk->sms = p.multiProcessorCount;
    rk->shared_bytes = p.sharedMemPerBlockOptin;
    snprintf(rk->name, sizeof rk->name, "%.63s", p.name);
    CU_TRY(cudaStreamCreateWithFlags(&rk->stream, cudaStreamNonBlocking), e);
    return 0;
}

void
rank_close(struct cuda_rank *rk)
{
    if (rk->stream != NULL)
        cudaStreamDestroy(rk->stream);
    rk->stream = NULL;
}

int
rank_wait(struct cuda_rank *rk, struct err *e)
{
    CU_TRY(cudaStreamSynchronize(rk->stream), e);
    return 0;
}
