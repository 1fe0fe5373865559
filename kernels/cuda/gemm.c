/* gemm.c: the matrix products as ops: which dtype they are computed in, and what has to be converted for that.
 *
 * Tensor cores multiply numbers of one 16-bit dtype and add in f32. So a product in which any matrix is 16-bit is made of operands of that
 * dtype: the f32 ones, which are adapters and their gradients, are rounded first (as autocast does), while a result in f32 stays f32. A
 * product of f32 alone is f32 throughout. Frozen weights are row-major as they were loaded: GEMM reads either operand transposed. */
#include "cuda/cuda.h"

static lr_cuda_matrix matrix_of(const lr_tensor *t)
{
    return (lr_cuda_matrix){t->data, t->dtype, t->shape[0], t->shape[1], t->ld};
}

/* Working memory, handed out piece by piece. */
typedef struct lr_arena {
    char *at;
} lr_arena;

static size_t rounded_up(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

static size_t copy_bytes(const lr_cuda_matrix *m, int dtype)
{
    return m->dtype == dtype ? 0 : rounded_up((size_t)(m->rows * m->columns) * lr_dtype_size(dtype));
}

/* m in `dtype`: itself, or a copy. */
static int converted(lr_exec *exec, lr_cuda_matrix *m, int dtype, lr_arena *arena)
{
    if (m->dtype == dtype)
        return LR_OK;
    const lr_cuda_matrix copy = {arena->at, dtype, m->rows, m->columns, m->columns};
    arena->at += copy_bytes(m, dtype);
    const int status = lr_cuda_convert(exec, &copy, m);
    *m = copy;
    return status;
}

/* The dtype that the operands of a product of these are given: 16-bit where one of them is. */
static int operand_dtype(const char *op, const lr_cuda_product *p, int *dtype)
{
    const int dtypes[3] = {p->a.dtype, p->b.dtype, p->c.dtype};
    *dtype = LR_F32;
    for (int i = 0; i < 3; i++)
        if (dtypes[i] != LR_F32) {
            if (*dtype != LR_F32 && *dtype != dtypes[i])
                return lr_fail(LR_EDTYPE, "%s: bf16 and f16 in one product", op);
            *dtype = dtypes[i];
        }
    return LR_OK;
}

/* Convert what must be, then multiply. bias: f32, c's columns, or NULL. */
static int multiply(lr_exec *exec, const char *op, lr_cuda_product *p, const lr_tensor *bias)
{
    int dtype;
    int status = operand_dtype(op, p, &dtype);
    if (status != LR_OK)
        return status;
    lr_cuda_matrix b = {NULL, LR_F32, 1, p->c.columns, p->c.columns};
    if (bias != NULL)
        b.data = bias->data;
    const size_t bytes = LR_CUDA_GEMM_WORKSPACE + copy_bytes(&p->a, dtype) + copy_bytes(&p->b, dtype) +
                         (bias != NULL ? copy_bytes(&b, p->c.dtype) : 0);
    lr_arena arena = {lr_scratch_on(LR_CUDA, bytes)};
    if (arena.at == NULL)
        return LR_ENOMEM;
    p->workspace = arena.at;
    arena.at += LR_CUDA_GEMM_WORKSPACE;
    status = converted(exec, &p->a, dtype, &arena);
    if (status == LR_OK)
        status = converted(exec, &p->b, dtype, &arena);
    if (status == LR_OK && bias != NULL)
        status = converted(exec, &b, p->c.dtype, &arena);
    p->bias = b.data;
    return status == LR_OK ? lr_cuda_gemm(exec, p) : status;
}

int lr_cuda_linear(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *w, const lr_tensor *b,
                   const lr_tensor *r)
{
    lr_cuda_product p = {.a = matrix_of(x),
                         .b = matrix_of(w),
                         .c = matrix_of(y),
                         .r = matrix_of(r != NULL ? r : y),
                         .b_transposed = true,
                         .alpha = 1.0f,
                         .beta = r != NULL ? 1.0f : 0.0f};
    return multiply(exec, "linear", &p, b);
}

int lr_cuda_linear_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *w, double beta)
{
    lr_cuda_product p = {.a = matrix_of(dy),
                         .b = matrix_of(w),
                         .c = matrix_of(dx),
                         .r = matrix_of(dx),
                         .alpha = 1.0f,
                         .beta = (float)beta};
    return multiply(exec, "linear_backward", &p, NULL);
}

int lr_cuda_matmul_nt(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    lr_cuda_product p = {.a = matrix_of(a),
                         .b = matrix_of(b),
                         .c = matrix_of(c),
                         .r = matrix_of(c),
                         .b_transposed = true,
                         .alpha = (float)alpha,
                         .beta = (float)beta};
    return multiply(exec, "matmul_nt", &p, NULL);
}

int lr_cuda_matmul_nn(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    lr_cuda_product p = {.a = matrix_of(a),
                         .b = matrix_of(b),
                         .c = matrix_of(c),
                         .r = matrix_of(c),
                         .alpha = (float)alpha,
                         .beta = (float)beta};
    return multiply(exec, "matmul_nn", &p, NULL);
}

int lr_cuda_matmul_tn(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    lr_cuda_product p = {.a = matrix_of(a),
                         .b = matrix_of(b),
                         .c = matrix_of(c),
                         .r = matrix_of(c),
                         .a_transposed = true,
                         .alpha = (float)alpha,
                         .beta = (float)beta};
    return multiply(exec, "matmul_tn", &p, NULL);
}
