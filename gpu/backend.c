/* SPDX-License-Identifier: Apache-2.0 */
/* The backends that are built in. */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "gpu/backend.h"

#ifdef HAVE_CUDA
#    define NAMES "cuda, cpu"
#else
#    define NAMES "cpu"
#endif

const struct backend_ops *
backend_find(const char *name, struct err *e)
{
    const bool any = name == NULL || strcmp(name, "auto") == 0;

#ifdef HAVE_CUDA
    if (any ? backend_cuda_present() : strcmp(name, backend_cuda.name) == 0)
        return &backend_cuda;
#endif
    if (any || strcmp(name, backend_cpu.name) == 0)
        return &backend_cpu;
    err_set(e, ERR_NOT_FOUND, 0, "no backend \"%s\"; there is: " NAMES, name);
    return NULL;
}
