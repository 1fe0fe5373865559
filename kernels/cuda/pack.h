/* pack.h: what every driver of this folder has: driver.c for GPUs, host/device_host.c for their model on the CPU, absent.c in
 * builds without CUDA. */
#ifndef LR_CUDA_PACK_H
#define LR_CUDA_PACK_H

#include "core/device.h"
#include "core/op.h"

/* The driver's pack, see core/device.h. */
int lr_cuda_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype);

const lr_backend *lr_cuda_backend(void); /* table.c */
const lr_driver *lr_cuda_driver(void);   /* listed by the build, see core/device.c */

/* The fields that all of them have. */
#define LR_CUDA_KIND                                                                                                   \
    .device = LR_CUDA, .name = "cuda", .kernels = lr_cuda_backend, .pack = lr_cuda_pack,                               \
    .traits = {.noun = "GPU", .asynchronous = 1, .fp16 = 1, .residual_in_product = 1, .plain_weights = 1}

#endif
