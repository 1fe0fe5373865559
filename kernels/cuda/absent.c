/* absent.c: the driver in builds without CUDA: there is no GPU, but the meta device knows the sizes that a GPU would have. */
#include "core/device.h"
#include "cuda/pack.h"

const lr_driver *lr_cuda_driver(void)
{
    static const lr_driver driver = {
        .device = LR_CUDA,
        .name = "cuda",
        .noun = "GPU",
        .absent = "this lorarun was built without CUDA",
        .traits = {.residual_in_product = 1, .plain_weights = 1},
        .kernels = lr_cuda_backend,
        .pack = lr_cuda_pack,
    };
    return &driver;
}

int lr_gpu_blas_version(int *out)
{
    (void)out;
    return lr_fail(LR_EUNSUPPORTED, "this lorarun was built without cuBLASLt");
}
