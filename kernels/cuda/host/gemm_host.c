/* gemm_host.c: cuBLAS's part in a build for the host: the product in f32 by plain loops, rounded once where c is 16-bit, as a GPU
 * does. Operands must have one dtype and c that dtype or f32, for cuBLAS knows no other products. */
#include "cuda/cuda.h"
#include "cuda/host/device_host.h"
#include <string.h>

/* m as dense f32 in memory of the host. */
static float *wide(const lr_cuda_matrix *m, float *to)
{
    for (int64_t i = 0; i < m->rows; i++)
        lr_convert(to + i * m->columns, LR_F32, (const char *)m->data + (size_t)(i * m->ld) * lr_dtype_size(m->dtype),
                   m->dtype, m->columns);
    return to;
}

/* TF32: a tensor core multiplies sign, exponent and 10 bits of each f32 number, rounded to nearest. */
static float *as_multiplied(float *x, int64_t n, int dtype)
{
    for (int64_t i = 0; dtype == LR_F32 && lr_tf32(-1) != 0 && i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits = (bits + 0x1000) & ~0x1fffu;
        memcpy(&x[i], &bits, sizeof bits);
    }
    return x;
}

static int check(const lr_cuda_product *p)
{
    const int64_t k = p->a_transposed ? p->a.rows : p->a.columns;
    if (p->a.dtype != p->b.dtype || (p->c.dtype != p->a.dtype && p->c.dtype != LR_F32))
        return lr_fail(LR_EINTERNAL, "gemm: %s times %s into %s is no product of cuBLAS", lr_dtype_name(p->a.dtype),
                       lr_dtype_name(p->b.dtype), lr_dtype_name(p->c.dtype));
    if ((p->a_transposed ? p->a.columns : p->a.rows) != p->c.rows ||
        (p->b_transposed ? p->b.columns : p->b.rows) != k ||
        (p->b_transposed ? p->b.rows : p->b.columns) != p->c.columns)
        return lr_fail(LR_EINTERNAL, "gemm: the matrices do not fit");
    if (p->r.dtype != p->c.dtype || p->r.rows != p->c.rows || p->r.columns != p->c.columns)
        return lr_fail(LR_EINTERNAL, "gemm: the matrix that is added is not of the result's shape and dtype");
    return LR_OK;
}

/* c = alpha a' b' + beta c, where c has the values of r, dense f32; sums in the order of k. */
static void multiply_wide(const lr_cuda_product *p, const float *a, const float *b, float *c)
{
    const int64_t m = p->c.rows, n = p->c.columns, k = p->a_transposed ? p->a.rows : p->a.columns;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m; i++) {
        float *row = c + i * n;
        for (int64_t j = 0; j < n; j++) {
            float sum = 0.0f;
            for (int64_t l = 0; l < k; l++)
                sum += a[p->a_transposed ? l * m + i : i * k + l] * b[p->b_transposed ? j * k + l : l * n + j];
            row[j] = p->beta != 0.0f ? p->alpha * sum + p->beta * row[j] : p->alpha * sum;
        }
    }
}

static void multiply(const lr_cuda_product *p, float *a, float *b, float *c)
{
    const int64_t m = p->c.rows, n = p->c.columns;
    if (p->beta != 0.0f)
        wide(&p->r, c);
    multiply_wide(p, as_multiplied(wide(&p->a, a), p->a.rows * p->a.columns, p->a.dtype),
                  as_multiplied(wide(&p->b, b), p->b.rows * p->b.columns, p->b.dtype), c);
    if (p->bias != NULL) {
        const lr_cuda_matrix row = {(void *)(uintptr_t)p->bias, p->c.dtype, 1, n, n};
        const float *bias = wide(&row, a);
        for (int64_t i = 0; i < m * n; i++)
            c[i] += bias[i % n];
    }
    for (int64_t i = 0; i < m; i++)
        lr_convert((char *)p->c.data + (size_t)(i * p->c.ld) * lr_dtype_size(p->c.dtype), p->c.dtype, c + i * n, LR_F32,
                   n);
}

int lr_gpu_blas_version(int *out)
{
    (void)out;
    return lr_fail(LR_EUNSUPPORTED, "this lorarun was built without cuBLASLt");
}

int lr_cuda_gemm(lr_exec *exec, const lr_cuda_product *p)
{
    (void)exec;
    const int status = check(p);
    if (status != LR_OK)
        return status;
    const int64_t a_count = lr_max64(p->a.rows * p->a.columns, p->c.columns), b_count = p->b.rows * p->b.columns;
    float *buffer = lr_alloc((size_t)(a_count + b_count + p->c.rows * p->c.columns) * sizeof *buffer);
    if (buffer == NULL)
        return LR_ENOMEM;
    lr_device_memory_open();
    memset(p->workspace, 0xff,
           4096); /* cuBLASLt would write here: this shows a test where something else lives there */
    multiply(p, buffer, buffer + a_count, buffer + a_count + b_count);
    lr_device_memory_close();
    lr_free(buffer);
    return LR_OK;
}
