/* no_kernels.c: the functions of the kernels that the CPU's driver calls, for programs that only read. These are built in seconds,
 * without kernels, oneDNN and OpenMP. */
#include "cpu/gemm.h"
#include "cpu/select.h"

const lr_backend *lr_cpu_backend(void)
{
    return NULL;
}

const char *lr_cpu_isa(void)
{
    return "none";
}

int lr_cpu_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype)
{
    (void)out, (void)w, (void)direction, (void)dtype;
    return lr_fail(LR_EUNSUPPORTED, "there are no kernels here");
}
