/* gemm.c: the matrix products as ops: which dtype they are computed in, and what has to be converted for that.
 *
 * Tensor cores multiply numbers of one 16-bit dtype and add in f32. So a product in which any matrix is 16-bit is made of operands
 * of that dtype: the f32 ones, which are adapters and their gradients, are rounded first (as autocast does), while a result in f32
 * stays f32. A product of f32 alone is f32 throughout. Frozen weights are row-major as they were loaded: GEMM reads either operand
 * transposed. */
#include "cuda/cuda.h"

static lr_cuda_matrix matrix_of(const lr_tensor *t)
{
    return (lr_cuda_matrix){t->data, t->dtype, t->shape[0], t->shape[1], t->ld};
}

/* m in `dtype`: itself, or a copy at *room, which moves on past it. */
static int converted(lr_exec *exec, lr_cuda_matrix *m, int dtype, char **room)
{
    if (m->dtype == dtype)
        return LR_OK;
    const lr_cuda_matrix copy = {*room, dtype, m->rows, m->columns, m->columns};
    *room += lr_cuda_copy_bytes(m->rows * m->columns, m->dtype, dtype);
    const int status = lr_cuda_convert(exec, &copy, m);
    *m = copy;
    return status;
}

/* Convert what must be, then multiply. bias: f32, c's columns, or NULL. */
static int multiply(lr_exec *exec, const char *op, lr_cuda_product *p, const lr_tensor *bias)
{
    int dtype = LR_F32;
    int status = lr_cuda_operand_dtype(op, p->a.dtype, p->b.dtype, p->c.dtype, &dtype);
    if (status != LR_OK)
        return status;
    char *room = (char *)exec->scratch + LR_CUDA_GEMM_WORKSPACE;
    lr_cuda_matrix b = {bias != NULL ? bias->data : NULL, LR_F32, 1, p->c.columns, p->c.columns};
    p->workspace = exec->scratch;
    status = converted(exec, &p->a, dtype, &room);
    if (status == LR_OK)
        status = converted(exec, &p->b, dtype, &room);
    if (status == LR_OK && bias != NULL)
        status = converted(exec, &b, p->c.dtype, &room);
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

/* c = alpha a' b' + beta c, where a' and b' are a and b or their transposes. */
static int matmul(lr_exec *exec, const char *op, lr_tensor *c, const lr_tensor *a, bool a_transposed,
                  const lr_tensor *b, bool b_transposed, double alpha, double beta)
{
    lr_cuda_product p = {.a = matrix_of(a),
                         .b = matrix_of(b),
                         .c = matrix_of(c),
                         .r = matrix_of(c),
                         .a_transposed = a_transposed,
                         .b_transposed = b_transposed,
                         .alpha = (float)alpha,
                         .beta = (float)beta};
    return multiply(exec, op, &p, NULL);
}

int lr_cuda_linear_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *w, double beta)
{
    return matmul(exec, "linear_backward", dx, dy, false, w, false, 1.0, beta);
}

int lr_cuda_matmul_nt(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    return matmul(exec, "matmul_nt", c, a, false, b, true, alpha, beta);
}

int lr_cuda_matmul_nn(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    return matmul(exec, "matmul_nn", c, a, false, b, false, alpha, beta);
}

int lr_cuda_matmul_tn(lr_exec *exec, lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    return matmul(exec, "matmul_tn", c, a, true, b, false, alpha, beta);
}
