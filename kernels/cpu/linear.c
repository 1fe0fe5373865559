/* linear.c: products with frozen packed weights as ops: dtypes, strides, beta. They are nearly all of a step's work;
 * the products themselves are in gemm.c. */
#include "cpu/gemm.h"
#include "cpu/vec.h"

/* Copy rows between tensors of f32 and bf16, any row stride on either side. */
static void convert_rows(const lr_exec *exec, lr_tensor *y, const lr_tensor *x)
{
    const int64_t rows = x->shape[0], width = x->shape[1];
#pragma omp parallel for num_threads(lr_threads_for(exec, rows *width)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const size_t to = (size_t)(i * y->ld), from = (size_t)(i * x->ld);
        if (y->dtype == x->dtype)
            memcpy(lr_at(y, (int64_t)to), lr_at(x, (int64_t)from), (size_t)width * lr_dtype_size(x->dtype));
        else if (y->dtype == LR_F32)
            lr_run_from_bf16((float *)y->data + to, (const uint16_t *)x->data + from, width);
        else
            lr_run_to_bf16((uint16_t *)y->data + to, (const float *)x->data + from, width);
    }
}

/* A matrix of x's shape in memory of our own. */
static lr_tensor matrix_like(const lr_tensor *x, int dtype, void *data)
{
    lr_tensor t = *x;
    t.dtype = dtype;
    t.ld = x->shape[1];
    t.data = data;
    return t;
}

/* Bytes for a matrix of x's shape, rounded so that what follows stays aligned. */
static size_t matrix_bytes(const lr_tensor *x, int dtype)
{
    return ((size_t)x->elements * lr_dtype_size(dtype) + 63) & ~(size_t)63;
}

/* oneDNN's packed products want the dtype they were packed for and rows without gaps (with gaps it takes a reference path, a
 * hundred times slower): where x or y is otherwise, the product is made on copies. That is so for column views, and for bf16
 * on a machine that lacks its products. */
static bool needs_copy(const lr_tensor *t, int dtype)
{
    return t->dtype != dtype || !lr_tensor_contiguous(t);
}

/* Bytes of t's copy in scratch; 0 where it needs none. */
static int64_t copy_bytes(const lr_tensor *t, int dtype)
{
    return needs_copy(t, dtype) ? (int64_t)matrix_bytes(t, dtype) : 0;
}

static int64_t product_scratch(const lr_tensor *y, const lr_tensor *x, const lr_tensor *w)
{
    const int dtype = lr_gemm_packed_dtype(w);
    return copy_bytes(x, dtype) + copy_bytes(y, dtype);
}

/* y = x w' + bias + beta y, where w' is either direction of a packed weight. */
static int packed_product(const lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *w, const float *bias,
                          float beta)
{
    const int dtype = lr_gemm_packed_dtype(w);
    const bool copy_y = needs_copy(y, dtype);
    char *scratch = exec->scratch;
    lr_tensor src = *x, dst = *y;
    if (needs_copy(x, dtype)) {
        src = matrix_like(x, dtype, scratch);
        convert_rows(exec, &src, x);
    }
    if (copy_y) {
        dst = matrix_like(y, dtype, scratch + copy_bytes(x, dtype));
        if (beta != 0.0f)
            convert_rows(exec, &dst, y);
    }
    const int status = lr_gemm_packed(w, x->shape[0], src.data, dst.data, bias, beta);
    if (status == LR_OK && copy_y)
        convert_rows(exec, y, &dst);
    return status;
}

int64_t LR_CPU(linear_scratch)(const lr_exec *exec, const lr_linear_call *call)
{
    (void)exec;
    return product_scratch(call->y, call->x, call->w);
}

/* r is copied and the product added to it: as fast as a post-op of oneDNN that reads r. A norm that adds it is faster. */
int LR_CPU(linear)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *w, const lr_tensor *b,
                   const lr_tensor *r)
{
    LR_NEED_CPU_DTYPE("linear", x);
    if (r != NULL)
        convert_rows(exec, y, r);
    return packed_product(exec, y, x, w, b != NULL ? b->data : NULL, r != NULL ? 1.0f : 0.0f);
}

int64_t LR_CPU(linear_backward_scratch)(const lr_exec *exec, const lr_linear_backward_call *call)
{
    (void)exec;
    return product_scratch(call->dx, call->dy, call->w);
}

int LR_CPU(linear_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *w, double beta)
{
    LR_NEED_CPU_DTYPE("linear_backward", dy);
    return packed_product(exec, dx, dy, w, NULL, (float)beta);
}
