/* fake_cublaslt.c: cublasLtMatmul as its documentation defines it: D = alpha op(A) op(B) + beta C + bias, all matrices in column
 * order.
 *
 * There are three algorithms, which add in different orders. The first is slow, so that another is chosen. The second cannot
 * make a D of 16 k + 1 columns, though the heuristic offers it for the size that such a product is rounded up to. With
 * FAKE_CUDA_SPARE=n products fail unless n MiB of the GPU's memory are free. */
#include "fake_cuda.h"
#include <cublasLt.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { FORWARD, BACKWARD, IN_TWO_PARTS, ALGORITHMS, SLOW_NANOSECONDS = 100000 };

struct matmul {
    cublasComputeType_t compute;
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
};
struct layout {
    cudaDataType_t type;
    int64_t rows, columns, ld;
};
struct preference {
    uint64_t workspace;
    uint32_t reductions, alignment[4];
};

EXPORT size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

EXPORT const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported" : "some status";
}

EXPORT cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    static int handle;
    *out = (cublasLtHandle_t)&handle;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- descriptions ------------------------------------------------------------------------------------------------------ */
EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                               cudaDataType_t scale)
{
    ALLOWED(scale == CUDA_R_32F && (compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_FAST_TF32));
    struct matmul *m = calloc(1, sizeof *m);
    ALLOWED(m != NULL);
    *m = (struct matmul){compute, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, NULL};
    *out = (cublasLtMatmulDesc_t)m;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t m)
{
    free(m);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what,
                                                     const void *value, size_t size)
{
    struct matmul *m = (struct matmul *)desc;
    void *to = NULL;
    size_t expected = sizeof(int32_t);
    switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        to = &m->a;
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        to = &m->b;
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        to = &m->epilogue;
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        to = &m->bias;
        expected = sizeof m->bias;
        break;
    default:
        ALLOWED(!"this attribute");
    }
    if (size != expected)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
                                                 uint64_t columns, int64_t ld)
{
    if (rows == 0 || columns == 0 || ld < (int64_t)rows)
        return CUBLAS_STATUS_INVALID_VALUE;
    struct layout *l = calloc(1, sizeof *l);
    ALLOWED(l != NULL);
    *l = (struct layout){type, (int64_t)rows, (int64_t)columns, ld};
    *out = (cublasLtMatrixLayout_t)l;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    free(l);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    struct preference *p = calloc(1, sizeof *p);
    ALLOWED(p != NULL);
    *p = (struct preference){0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
    *out = (cublasLtMatmulPreference_t)p;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                           cublasLtMatmulPreferenceAttributes_t what, const void *value,
                                                           size_t size)
{
    struct preference *p = (struct preference *)pref;
    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        ALLOWED(size == sizeof p->workspace);
        memcpy(&p->workspace, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }
    ALLOWED(size == sizeof(uint32_t));
    switch (what) {
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        memcpy(&p->reductions, value, size);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        memcpy(&p->alignment[0], value, size);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        memcpy(&p->alignment[1], value, size);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        memcpy(&p->alignment[2], value, size);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        memcpy(&p->alignment[3], value, size);
        break;
    default:
        ALLOWED(!"this attribute");
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the products that exist --------------------------------------------------------------------------------------------- */
typedef struct product {
    int64_t m, n, k;
} product;

static bool fits(const struct matmul *x, const struct layout *a, const struct layout *b, const struct layout *c,
                 const struct layout *d, product *out)
{
    const bool ta = x->a == CUBLAS_OP_T, tb = x->b == CUBLAS_OP_T;
    *out = (product){d->rows, d->columns, ta ? a->rows : a->columns};
    return (ta ? a->columns : a->rows) == out->m && (tb ? b->columns : b->rows) == out->k &&
           (tb ? b->rows : b->columns) == out->n && c->rows == d->rows && c->columns == d->columns &&
           a->type == b->type && c->type == d->type && (d->type == a->type || d->type == CUDA_R_32F);
}

EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int most,
                                                     cublasLtMatmulHeuristicResult_t *out, int *returned)
{
    const struct preference *p = (const struct preference *)preference;
    product x;
    (void)handle;
    *returned = 0;
    if (!fits((struct matmul *)desc, (struct layout *)a, (struct layout *)b, (struct layout *)c, (struct layout *)d,
              &x))
        return CUBLAS_STATUS_INVALID_VALUE;
    for (int i = 0; i < ALGORITHMS && *returned < most; i++) {
        if (i == BACKWARD && x.n % 16 == 1)
            continue;
        cublasLtMatmulHeuristicResult_t *r = &out[(*returned)++];
        memset(r, 0, sizeof *r);
        r->algo.data[0] = (uint64_t)i;
        for (int j = 0; j < 4; j++)
            r->algo.data[1 + j] = p->alignment[j];
        r->workspaceSize = p->workspace;
        r->state = CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- numbers --------------------------------------------------------------------------------------------------------------- */
static float wide(const void *base, int64_t i, cudaDataType_t type)
{
    if (type == CUDA_R_32F)
        return ((const float *)base)[i];
    const uint16_t x = ((const uint16_t *)base)[i];
    if (type == CUDA_R_16BF) {
        const uint32_t bits = (uint32_t)x << 16;
        float f;
        memcpy(&f, &bits, sizeof f);
        return f;
    }
    _Float16 h;
    memcpy(&h, &x, sizeof h);
    return (float)h;
}

static void narrow(void *base, int64_t i, cudaDataType_t type, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (type == CUDA_R_32F) {
        ((float *)base)[i] = x;
    } else if (type == CUDA_R_16BF) {
        ((uint16_t *)base)[i] = isnan(x) ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    } else {
        const _Float16 h = (_Float16)x;
        memcpy((uint16_t *)base + i, &h, sizeof h);
    }
}

static float as_tf32(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x1000) & ~0x1fffu;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* op(m) as dense rows that the sums run along: [outer][k]. */
static float *operand(const void *m, const struct layout *l, bool k_is_row, int64_t outer, int64_t k, bool tf32)
{
    float *out = malloc((size_t)(outer * k) * sizeof *out);
    ALLOWED(out != NULL);
    for (int64_t i = 0; i < outer; i++)
        for (int64_t j = 0; j < k; j++) {
            const float x = wide(m, k_is_row ? j + i * l->ld : i + j * l->ld, l->type);
            out[i * k + j] = tf32 ? as_tf32(x) : x;
        }
    return out;
}

static float dot(const float *x, const float *y, int64_t k, int algorithm)
{
    float sum = 0.0f, other = 0.0f;
    for (int64_t i = 0; i < k; i++) {
        if (algorithm == BACKWARD)
            sum += x[k - 1 - i] * y[k - 1 - i];
        else if (algorithm == IN_TWO_PARTS && i >= k / 2)
            other += x[i] * y[i];
        else
            sum += x[i] * y[i];
    }
    return sum + other;
}

EXPORT cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                                     const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                                     cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                                     cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                                     const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_size,
                                     cudaStream_t stream)
{
    const struct matmul *x = (const struct matmul *)desc;
    const struct layout *al = (struct layout *)a_layout, *bl = (struct layout *)b_layout,
                        *cl = (struct layout *)c_layout, *dl = (struct layout *)d_layout;
    const void *const addresses[4] = {a, b, c, d};
    const int algorithm = (int)algo->data[0];
    product p;
    ALLOWED(handle != NULL && stream != NULL && (uintptr_t)workspace % 256 == 0);
    MAY_FAIL(cublasStatus_t);
    const char *spare = getenv("FAKE_CUDA_SPARE");
    if (spare != NULL && fake_cuda_available() >> 20 < (size_t)atoll(spare))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!fits(x, al, bl, cl, dl, &p))
        return CUBLAS_STATUS_INVALID_VALUE;
    ALLOWED(c != d || c_layout == d_layout); /* in place, both are the same description */
    for (int i = 0; i < 4; i++)
        ALLOWED((uintptr_t)addresses[i] % algo->data[1 + i] == 0);
    if (algorithm == BACKWARD && p.n % 16 == 1)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    fake_cuda_flush();
    if (algorithm == FORWARD)
        nanosleep(&(struct timespec){.tv_nsec = SLOW_NANOSECONDS}, NULL);
    memset(workspace, 0xff, workspace_size < 4096 ? workspace_size : 4096);
    const float scale = *(const float *)alpha, kept = *(const float *)beta;
    const bool tf32 = x->compute == CUBLAS_COMPUTE_32F_FAST_TF32 && al->type == CUDA_R_32F;
    float *rows = operand(a, al, x->a == CUBLAS_OP_T, p.m, p.k, tf32);
    float *columns = operand(b, bl, x->b == CUBLAS_OP_N, p.n, p.k, tf32);
    for (int64_t j = 0; j < p.n; j++)
        for (int64_t i = 0; i < p.m; i++) {
            float sum = scale * dot(rows + i * p.k, columns + j * p.k, p.k, algorithm);
            if (kept != 0.0f)
                sum += kept * wide(c, i + j * cl->ld, cl->type);
            if (x->epilogue == CUBLASLT_EPILOGUE_BIAS)
                sum += wide(x->bias, i, dl->type);
            narrow(d, i + j * dl->ld, dl->type, sum);
        }
    free(rows);
    free(columns);
    return CUBLAS_STATUS_SUCCESS;
}
