/* cublaslt.c: matrix products by cuBLASLt, the only file that talks to it.
 *
 * The library is loaded at the first product, so that a program without one needs neither it nor a GPU. It thinks in columns: our row-major
 * c = a' b' is its column-major c^T = b'^T a'^T, so the operands change places and a matrix keeps its bytes.
 *
 * Choosing an algorithm asks the library's heuristic, some 50 us, and the number of tokens is another in every step. It is therefore asked
 * for sizes rounded up to 128 and its answer kept for all sizes that round to the same. The answer depends on the rounded sizes alone,
 * not on what came before, so a resumed run multiplies as the first one did. */
#include "cuda/cuda.h"
#include <cublasLt.h>
#include <dlfcn.h>
#include <string.h>

#define LIBRARY_(major) "libcublasLt.so." #major
#define LIBRARY(major) LIBRARY_(major)
static const char *const NAME = LIBRARY(CUBLAS_VER_MAJOR);

#define FUNCTIONS(F)                                                                                                   \
    F(cublasLtCreate)                                                                                                  \
    F(cublasLtGetStatusString)                                                                                         \
    F(cublasLtMatmul)                                                                                                  \
    F(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    F(cublasLtMatmulDescCreate)                                                                                        \
    F(cublasLtMatmulDescDestroy)                                                                                       \
    F(cublasLtMatmulDescSetAttribute)                                                                                  \
    F(cublasLtMatmulPreferenceCreate)                                                                                  \
    F(cublasLtMatmulPreferenceDestroy)                                                                                 \
    F(cublasLtMatmulPreferenceSetAttribute)                                                                            \
    F(cublasLtMatrixLayoutCreate)                                                                                      \
    F(cublasLtMatrixLayoutDestroy)

static struct {
#define MEMBER(f) __typeof__(f) *f;
    FUNCTIONS(MEMBER)
#undef MEMBER
} lt;
static cublasLtHandle_t handle;

int lr_cublaslt_load(void)
{
    if (lt.cublasLtCreate != NULL)
        return LR_OK;
    void *library = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
#ifdef LR_CUDA_LIBRARY_FOLDER
    if (library == NULL)
        library = dlopen(LR_CUDA_LIBRARY_FOLDER "/" LIBRARY(CUBLAS_VER_MAJOR), RTLD_NOW | RTLD_LOCAL);
#endif
    if (library == NULL)
        return lr_fail(LR_EDEVICE,
                       "%s was not found: install the cuBLAS of CUDA %d, or name its folder in LD_LIBRARY_PATH (%s)",
                       NAME, CUBLAS_VER_MAJOR, dlerror());
#define LOAD(f)                                                                                                        \
    if ((*(void **)&lt.f = dlsym(library, #f)) == NULL) {                                                              \
        memset(&lt, 0, sizeof lt);                                                                                     \
        dlclose(library);                                                                                              \
        return lr_fail(LR_EDEVICE, "%s lacks " #f, NAME);                                                              \
    }
    FUNCTIONS(LOAD)
#undef LOAD
    return LR_OK;
}

static int failed(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return LR_OK;
    if (status == CUBLAS_STATUS_ALLOC_FAILED)
        return lr_fail(LR_ENOMEM, "out of memory in cuBLASLt: %s", what);
    return lr_fail(LR_EINTERNAL, "cuBLASLt: %s: %s", what, lt.cublasLtGetStatusString(status));
}

static int start(void)
{
    if (handle != NULL)
        return LR_OK;
    const int status = lr_cublaslt_load();
    return status == LR_OK ? failed(lt.cublasLtCreate(&handle), "starting") : status;
}

/* ---- a product in the library's words ---------------------------------------------------------------------------------- */
typedef struct lt_product {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c, d; /* as the library counts: its a is our b, its c our r, its d our c */
} lt_product;

static cudaDataType_t type_of(int dtype)
{
    return dtype == LR_F32 ? CUDA_R_32F : dtype == LR_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

/* Row-major m[rows, columns] is column-major [columns, rows]. */
static cublasStatus_t layout(cublasLtMatrixLayout_t *out, const lr_cuda_matrix *m)
{
    return lt.cublasLtMatrixLayoutCreate(out, type_of(m->dtype), (uint64_t)m->columns, (uint64_t)m->rows, m->ld);
}

static void destroy(lt_product *x)
{
    if (x->a != NULL)
        lt.cublasLtMatrixLayoutDestroy(x->a);
    if (x->b != NULL)
        lt.cublasLtMatrixLayoutDestroy(x->b);
    if (x->c != NULL)
        lt.cublasLtMatrixLayoutDestroy(x->c);
    if (x->d != NULL)
        lt.cublasLtMatrixLayoutDestroy(x->d);
    if (x->operation != NULL)
        lt.cublasLtMatmulDescDestroy(x->operation);
    *x = (lt_product){0};
}

static cublasStatus_t set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t what, const void *value,
                          size_t size)
{
    return lt.cublasLtMatmulDescSetAttribute(operation, what, value, size);
}

/* On failure nothing is left. f32 is f32: CUBLAS_COMPUTE_32F does not use TF32. */
static cublasStatus_t describe(lt_product *x, const lr_cuda_product *p)
{
    const cublasOperation_t plain = CUBLAS_OP_N, transposed = CUBLAS_OP_T;
    *x = (lt_product){0};
    cublasStatus_t status = lt.cublasLtMatmulDescCreate(&x->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = set(x->operation, CUBLASLT_MATMUL_DESC_TRANSA, p->b_transposed ? &transposed : &plain, sizeof plain);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = set(x->operation, CUBLASLT_MATMUL_DESC_TRANSB, p->a_transposed ? &transposed : &plain, sizeof plain);
    if (status == CUBLAS_STATUS_SUCCESS && p->bias != NULL) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        status = set(x->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
        if (status == CUBLAS_STATUS_SUCCESS)
            status = set(x->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    }
    if (status == CUBLAS_STATUS_SUCCESS)
        status = layout(&x->a, &p->b);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = layout(&x->b, &p->a);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = layout(&x->c, &p->r);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = layout(&x->d, &p->c);
    if (status != CUBLAS_STATUS_SUCCESS)
        destroy(x);
    return status;
}

/* ---- choosing an algorithm --------------------------------------------------------------------------------------------- */
enum { STEP = 128, KEPT = 1024 };

/* All that an algorithm is chosen by. Compared as bytes: made by memset and assignment. */
typedef struct choice_key {
    int64_t m, n, k, ld[4];
    uint32_t alignment[4]; /* bytes, of the matrices' addresses */
    int32_t dtype[4];
    uint8_t a_transposed, b_transposed, biased, accumulates;
} choice_key;

static struct {
    bool used;
    choice_key key;
    cublasLtMatmulAlgo_t algorithm;
} kept[KEPT];

static int64_t rounded(int64_t n)
{
    return n <= STEP ? n : (n + STEP - 1) / STEP * STEP;
}

static uint32_t alignment_of(const void *p)
{
    const uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return low == 0 || low > 256 ? 256 : (uint32_t)low;
}

/* The product with its number of tokens rounded up: the one the heuristic is asked about. Tokens are the rows of a, and so of c or,
 * where a is transposed, the sum's. Addresses stay: only their alignment counts. */
static lr_cuda_product rounded_product(const lr_cuda_product *p)
{
    lr_cuda_product r = *p;
    r.a.rows = rounded(r.a.rows);
    if (!r.a_transposed)
        r.c.rows = r.a.rows;
    else if (!r.b_transposed)
        r.b.rows = r.a.rows;
    else
        r.a.rows = p->a.rows;
    r.r.rows = r.c.rows;
    return r;
}

static choice_key key_of(const lr_cuda_product *r)
{
    choice_key key;
    memset(&key, 0, sizeof key);
    const lr_cuda_matrix *const all[4] = {&r->a, &r->b, &r->c, &r->r};
    key.m = r->c.rows;
    key.n = r->c.columns;
    key.k = r->a_transposed ? r->a.rows : r->a.columns;
    for (int i = 0; i < 4; i++) {
        key.ld[i] = all[i]->ld;
        key.alignment[i] = alignment_of(all[i]->data);
        key.dtype[i] = all[i]->dtype;
    }
    key.a_transposed = r->a_transposed;
    key.b_transposed = r->b_transposed;
    key.biased = r->bias != NULL;
    key.accumulates = r->beta != 0.0f;
    return key;
}

static uint32_t hash_of(const choice_key *key)
{
    const unsigned char *p = (const unsigned char *)key;
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ p[i]) * 16777619u;
    return h;
}

static cublasStatus_t prefer(cublasLtMatmulPreference_t preference, const lr_cuda_product *p)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const void *const addresses[4] = {p->b.data, p->a.data, p->r.data, p->c.data};
    const uint64_t workspace = LR_CUDA_GEMM_WORKSPACE;
    cublasStatus_t status = lt.cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    for (int i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++) {
        const uint32_t alignment = alignment_of(addresses[i]);
        status = lt.cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment, sizeof alignment);
    }
    return status;
}

/* The heuristic's first choice for exactly this product. */
static cublasStatus_t choose(cublasLtMatmulAlgo_t *out, const lr_cuda_product *p)
{
    lt_product x;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t best;
    int count = 0;
    cublasStatus_t status = describe(&x, p);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = lt.cublasLtMatmulPreferenceCreate(&preference);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = prefer(preference, p);
    if (status == CUBLAS_STATUS_SUCCESS)
        status =
            lt.cublasLtMatmulAlgoGetHeuristic(handle, x.operation, x.a, x.b, x.c, x.d, preference, 1, &best, &count);
    if (status == CUBLAS_STATUS_SUCCESS && count == 0)
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status == CUBLAS_STATUS_SUCCESS)
        *out = best.algo;
    if (preference != NULL)
        lt.cublasLtMatmulPreferenceDestroy(preference);
    destroy(&x);
    return status;
}

/* The choice for the rounded sizes, made now or before. */
static cublasStatus_t choose_rounded(cublasLtMatmulAlgo_t *out, const lr_cuda_product *p)
{
    const lr_cuda_product r = rounded_product(p);
    const choice_key key = key_of(&r);
    const uint32_t slot = hash_of(&key) % KEPT; /* one that is taken by another product is taken over */
    if (!kept[slot].used || memcmp(&kept[slot].key, &key, sizeof key) != 0) {
        const cublasStatus_t status = choose(&kept[slot].algorithm, &r);
        kept[slot].used = status == CUBLAS_STATUS_SUCCESS;
        if (status != CUBLAS_STATUS_SUCCESS)
            return status;
        kept[slot].key = key;
    }
    *out = kept[slot].algorithm;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- multiplying ------------------------------------------------------------------------------------------------------- */
int lr_cuda_gemm(lr_exec *exec, const lr_cuda_product *p)
{
    lt_product x;
    cublasLtMatmulAlgo_t algorithm;
    int status = start();
    if (status != LR_OK)
        return status;
    status = failed(describe(&x, p), "describing a product");
    if (status != LR_OK)
        return status;
    cublasStatus_t done = choose_rounded(&algorithm, p);
    for (int attempt = 0; attempt < 2; attempt++) {
        if (done == CUBLAS_STATUS_SUCCESS)
            done = lt.cublasLtMatmul(handle, x.operation, &p->alpha, p->b.data, x.a, p->a.data, x.b, &p->beta,
                                     p->r.data, x.c, p->c.data, x.d, &algorithm, p->workspace, LR_CUDA_GEMM_WORKSPACE,
                                     (cudaStream_t)exec->stream);
        if (attempt > 0 || (done != CUBLAS_STATUS_NOT_SUPPORTED && done != CUBLAS_STATUS_INVALID_VALUE))
            break;
        done = choose(&algorithm, p); /* what suits the rounded sizes does not suit these */
    }
    destroy(&x);
    return failed(done, "a product");
}
