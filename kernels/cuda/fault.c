/* fault.c: turns a kernel's record of a bad number into an error. */
#include "cuda/cuda.h"

int lr_cuda_take_fault(volatile lr_fault *fault)
{
    static const struct {
        const char *op, *array;
    } places[] = {{NULL, NULL},
#define FAULT(name, op, array) {op, array},
                  LR_CUDA_FAULTS(FAULT)
#undef FAULT
    };
    const int32_t place = fault->place;
    if (place == LR_FAULT_NONE)
        return LR_OK;
    fault->place = LR_FAULT_NONE;
    return lr_fail(LR_EINVAL, "%s: %s[%d] is %d, expected %d to %d", places[place].op, places[place].array,
                   fault->index, fault->value, fault->low, fault->high);
}
