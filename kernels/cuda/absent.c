/* absent.c: the driver in builds without CUDA: there is no GPU, but the meta device knows the sizes that a GPU would have. */
#include "cuda/pack.h"

const lr_driver *lr_cuda_driver(void)
{
    static const lr_driver driver = {
        LR_CUDA_KIND,
        .absent = "this lorarun was built without CUDA",
    };
    return &driver;
}

int lr_gpu_blas_version(int *out)
{
    (void)out;
    return lr_fail(LR_EUNSUPPORTED, "this lorarun was built without cuBLASLt");
}
