/* op.h: what stands between an op's row in ops.def and its kernel. See op.c; the dispatchers are generated. */
#ifndef LR_OP_H
#define LR_OP_H

#include "core/tensor.h"

/* What a kernel gets besides its tensors and numbers. */
typedef struct lr_exec {
    int threads;   /* how many threads of the processor it may use */
    void *scratch; /* as many bytes as NAME_scratch of the table asked for, 256-byte aligned, contents undefined */
    struct lr_stream *stream; /* where its work goes, of a driver with streams, */
    struct lr_fault *fault;   /* and where it says that a value is out of range, if it cannot return an error */
} lr_exec;

#include "lr_ops_backend.h"

typedef enum lr_op_class {
    LR_CLASS_A,
    LR_CLASS_X,
    LR_CLASS_Y,
    LR_CLASS_Z, /* floating point; all of one letter agree within a call */
    LR_CLASS_F32,
    LR_CLASS_I32,
    LR_CLASS_I64,
    LR_CLASS_PACKED_FORWARD,
    LR_CLASS_PACKED_BACKWARD
} lr_op_class;

/* size = mul * letter + add; mul 0: the constant add */
typedef struct lr_op_dim {
    int mul;
    char letter;
    int add;
} lr_op_dim;

typedef struct lr_op_arg {
    const char *name, *shape;
    lr_op_class dtype;
    int output, optional, strided;
    int ndim;
    lr_op_dim dims[LR_MAX_DIMS];
} lr_op_arg;

/* Check n tensors against their row: present, not freed, one device, dtype, packing, contiguity, shape. Whether an output shares
 * memory with an input is not checked: where it may, its row says so. *backend and *exec are those of the tensors' device; on the
 * meta device, those of the device that it is like. */
int lr_op_check(const char *op, const lr_op_arg *args, int n, const lr_tensor *const *tensors,
                const lr_backend **backend, lr_exec **exec);

/* Take the scratch of an op on t's device: exec->scratch. bytes: what NAME_scratch returned; a status below 0 is passed on. The
 * meta device counts the bytes and has none. */
int lr_op_scratch(lr_exec *exec, const lr_tensor *t, int64_t bytes);

/* LR_EUNSUPPORTED: the device of t has no kernel for the op. */
int lr_op_missing(const char *op, const lr_tensor *t);

#endif
