/* build.c: which CUDA this program was built with. */
#include "lr.h"

const char *lr_cuda_version(void)
{
    return LR_CUDA_VERSION;
}
