/* fault.h: how a kernel reports that a number it was given is out of range.
 *
 * The CPU's kernels check token ids, labels and cu_seqlens before they use them. On a GPU that would make the host wait for the
 * device before every op. So a kernel there checks each number where it uses it: it skips what is out of range and records the
 * number in pinned host memory, which the driver reads whenever it has waited for the stream (lr_tensor_read, lr_device_wait).
 * The error has the same words as on the CPU, and comes up to a step later. */
#ifndef LR_CUDA_FAULT_H
#define LR_CUDA_FAULT_H

#include <stdint.h>

/* name, op, the array with the bad number */
#define LR_CUDA_FAULTS(FAULT)                                                                                          \
    FAULT(EMBEDDING, "embedding", "ids")                                                                               \
    FAULT(GATHER_ROWS, "gather_rows", "rows")                                                                          \
    FAULT(SCATTER_ROWS, "scatter_rows", "rows")                                                                        \
    FAULT(ROPE, "rope", "positions")                                                                                   \
    FAULT(CROSS_ENTROPY, "cross_entropy", "labels")                                                                    \
    FAULT(CROSS_ENTROPY_BACKWARD, "cross_entropy_backward", "labels")                                                  \
    FAULT(POOL, "pool", "cu")                                                                                          \
    FAULT(POOL_BACKWARD, "pool_backward", "cu")                                                                        \
    FAULT(ATTENTION, "attention", "cu")                                                                                \
    FAULT(ATTENTION_BACKWARD, "attention_backward", "cu")

typedef enum lr_fault_place {
    LR_FAULT_NONE,
#define FAULT(name, op, array) LR_FAULT_##name,
    LR_CUDA_FAULTS(FAULT)
#undef FAULT
} lr_fault_place;

/* array[index] is value, expected low to high. Where several numbers are bad, several threads write, so index may be of one
 * number and value of another; place is right. */
typedef struct lr_fault {
    int32_t place, index, value, low, high;
} lr_fault;

#endif
