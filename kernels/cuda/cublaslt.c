/* cublaslt.c: matrix products by cuBLASLt; no other file calls it.
 *
 * The library is loaded at the first product, so a program that makes none needs neither it nor a GPU. Its matrices are
 * column-major: our row-major c = a' b' is its c^T = b'^T a'^T, so the operands change places and the bytes stay as they are.
 *
 * choices.c chooses the algorithm of a product: of those that the library's heuristic prefers, the one that was fastest when
 * such a product was first made on this kind of GPU. Every step has another number of tokens, so the number is rounded up for
 * this, and all that round to the same share a choice.
 *
 * Determinism: the same algorithm gives the same bits on the same kind of GPU, except for split-K reductions in place, which add
 * parts to the output in the order in which they are done. Those, and reductions that round the parts to the output's dtype, are
 * excluded unless lr_deterministic(0) allows them. */
#include "cuda/choices.h"
#include "cuda/cuda.h"
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY_(major) "libcublasLt.so." #major
#define LIBRARY(major) LIBRARY_(major)
static const char *const NAME = LIBRARY(CUBLAS_VER_MAJOR);

#define FUNCTIONS(F)                                                                                                   \
    F(cublasLtCreate)                                                                                                  \
    F(cublasLtGetStatusString)                                                                                         \
    F(cublasLtGetVersion)                                                                                              \
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

int lr_gpu_blas_version(int *out)
{
    const int status = lr_cublaslt_load();
    if (status == LR_OK)
        *out = (int)lt.cublasLtGetVersion();
    return status;
}

static int failed(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return LR_OK;
    if (status == CUBLAS_STATUS_ALLOC_FAILED)
        return lr_fail(LR_ENOMEM, "out of cuda memory, in cuBLASLt: %s", what);
    const int earlier =
        lr_cuda_failed(cudaDeviceSynchronize(), what); /* a kernel that failed before is the real cause */
    if (earlier != LR_OK)
        return earlier;
    return lr_fail(LR_EINTERNAL, "cuBLASLt: %s: %s", what, lt.cublasLtGetStatusString(status));
}

static lr_choices choices;

/* Equal bits need the same kind of GPU with the same number of multiprocessors. */
static void open_choices(void)
{
    struct cudaDeviceProp p;
    char gpu[sizeof p.name + 64];
    int index = 0;
    if (cudaGetDevice(&index) != cudaSuccess || cudaGetDeviceProperties(&p, index) != cudaSuccess) {
        cudaGetLastError();
        return; /* nothing is kept */
    }
    snprintf(gpu, sizeof gpu, "%s %d", p.name, p.multiProcessorCount);
    lr_choices_open(&choices, NULL, gpu, (int64_t)lt.cublasLtGetVersion());
}

static int start(void)
{
    if (handle != NULL)
        return LR_OK;
    int status = lr_cublaslt_load();
    if (status == LR_OK)
        status = failed(lt.cublasLtCreate(&handle), "starting");
    if (status == LR_OK)
        open_choices();
    return status;
}

/* ---- a product as the library describes it --------------------------------------------------------------------------- */
typedef struct lt_product {
    cublasLtMatmulDesc_t operation;
    /* In the library's terms: its a is our b, its c our r, its d our c. In place, c is d. */
    cublasLtMatrixLayout_t a, b, c, d;
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
    if (x->c != NULL && x->c != x->d)
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

static bool may_be_tf32(const lr_cuda_product *p)
{
    return lr_tf32(-1) != 0 && p->a.dtype == LR_F32 && p->b.dtype == LR_F32;
}

/* On failure everything is destroyed again. Without lr_tf32(1) f32 stays f32: CUBLAS_COMPUTE_32F does not use TF32. */
static cublasStatus_t describe(lt_product *x, const lr_cuda_product *p)
{
    const cublasOperation_t plain = CUBLAS_OP_N, transposed = CUBLAS_OP_T;
    *x = (lt_product){0};
    cublasStatus_t status = lt.cublasLtMatmulDescCreate(
        &x->operation, may_be_tf32(p) ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F);
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
        status = layout(&x->d, &p->c);
    if (status == CUBLAS_STATUS_SUCCESS && p->r.data == p->c.data)
        x->c = x->d;
    else if (status == CUBLAS_STATUS_SUCCESS)
        status = layout(&x->c, &p->r);
    if (status != CUBLAS_STATUS_SUCCESS)
        destroy(x);
    return status;
}

/* ---- choosing an algorithm ------------------------------------------------------------------------------------------- */
_Static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(lr_algorithm), "choices.c keeps an algorithm whole");

static uint32_t alignment_of(const void *p)
{
    const uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return low == 0 || low > 256 ? 256 : (uint32_t)low;
}

/* The product with its number of tokens rounded up, for the heuristic. Tokens are the rows of a, and so of c or, where a is
 * transposed, what the sum runs over. The addresses stay: only their alignment counts. */
static lr_cuda_product rounded_product(const lr_cuda_product *p)
{
    lr_cuda_product r = *p;
    r.a.rows = lr_choice_tokens(r.a.rows);
    if (!r.a_transposed)
        r.c.rows = r.a.rows;
    else if (!r.b_transposed)
        r.b.rows = r.a.rows;
    else
        r.a.rows = p->a.rows;
    r.r.rows = r.c.rows;
    return r;
}

static lr_choice_key key_of(const lr_cuda_product *r)
{
    lr_choice_key key;
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
    key.deterministic = lr_is_deterministic();
    key.tf32 = may_be_tf32(r);
    return key;
}

static cublasStatus_t prefer(cublasLtMatmulPreference_t preference, const lr_cuda_product *p)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const void *const addresses[4] = {p->b.data, p->a.data, p->r.data, p->c.data};
    const uint64_t workspace = LR_CUDA_GEMM_WORKSPACE;
    const uint32_t ordered = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasStatus_t status = lt.cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (status == CUBLAS_STATUS_SUCCESS && lr_is_deterministic())
        status = lt.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                         &ordered, sizeof ordered);
    for (int i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++) {
        const uint32_t alignment = alignment_of(addresses[i]);
        status = lt.cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment, sizeof alignment);
    }
    return status;
}

/* What the heuristic thinks best for exactly this product, at most LR_CHOICE_CANDIDATES; as many as were asked for, or fewer. */
static cublasStatus_t ask(const lr_cuda_product *p, int most, lr_algorithm *out, int *count)
{
    lt_product x;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found[LR_CHOICE_CANDIDATES];
    int returned = 0;
    cublasStatus_t status = describe(&x, p);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = lt.cublasLtMatmulPreferenceCreate(&preference);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = prefer(preference, p);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = lt.cublasLtMatmulAlgoGetHeuristic(handle, x.operation, x.a, x.b, x.c, x.d, preference, most, found,
                                                   &returned);
    *count = 0;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < returned; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS)
            memcpy(&out[(*count)++], &found[i].algo, sizeof out[0]);
    if (preference != NULL)
        lt.cublasLtMatmulPreferenceDestroy(preference);
    destroy(&x);
    return status == CUBLAS_STATUS_SUCCESS && *count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : status;
}

static cublasStatus_t multiply(const lr_exec *exec, const lt_product *x, const lr_cuda_product *p, void *to,
                               const lr_algorithm *algorithm)
{
    cublasLtMatmulAlgo_t a;
    memcpy(&a, algorithm, sizeof a);
    return lt.cublasLtMatmul(handle, x->operation, &p->alpha, p->b.data, x->a, p->a.data, x->b, &p->beta, p->r.data,
                             x->c, to, x->d, &a, p->workspace, LR_CUDA_GEMM_WORKSPACE, (cudaStream_t)exec->stream);
}

/* A product for choices.c, which uses it through the two functions below. */
typedef struct lt_trial {
    const lr_exec *exec;
    const lr_cuda_product *product;
    const lt_product *described;
    void *to; /* the output of timed products: c, or separate memory where c is also r and must not change */
    lr_device_event *from, *until;
} lt_trial;

static int candidates(void *context, lr_algorithm *out, int *count)
{
    const lt_trial *t = context;
    const lr_cuda_product r = rounded_product(t->product);
    cublasStatus_t status = ask(&r, LR_CHOICE_CANDIDATES, out, count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE)
        status = ask(t->product, LR_CHOICE_CANDIDATES, out, count);
    return failed(status, "choosing an algorithm");
}

static int seconds(void *context, const lr_algorithm *algorithm, int runs, double *taken)
{
    const lt_trial *t = context;
    const lr_driver *driver = lr_cuda_driver();
    int status = driver->event_record(t->from, t->exec->stream);
    for (int i = 0; i < runs && status == LR_OK; i++)
        status = failed(multiply(t->exec, t->described, t->product, t->to, algorithm), "timing a product");
    if (status == LR_OK)
        status = driver->event_record(t->until, t->exec->stream);
    if (status == LR_OK)
        status = driver->event_wait(t->until);
    return status == LR_OK ? driver->event_seconds(t->from, t->until, taken) : status;
}

/* Without events, or without memory for the output, the choice is made without timing. */
static int choose(const lr_exec *exec, const lr_cuda_product *p, const lt_product *described, lr_algorithm *out)
{
    const lr_driver *driver = lr_cuda_driver();
    const lr_cuda_product r = rounded_product(p);
    const lr_choice_key key = key_of(&r);
    if (lr_chosen(&choices, &key, out))
        return LR_OK;
    lt_trial trial = {.exec = exec, .product = p, .described = described, .to = p->c.data};
    lr_storage *copy = NULL;
    bool ready = true;
    if (p->beta != 0.0f && p->r.data == p->c.data) {
        const size_t bytes = (size_t)(p->c.rows * p->c.ld) * lr_dtype_size(p->c.dtype);
        ready = lr_storage_new(&copy, bytes, LR_CUDA, "a product that is timed") == LR_OK;
        trial.to = ready ? copy->data : NULL;
    }
    ready = ready && driver->event_new(&trial.from) == LR_OK && driver->event_new(&trial.until) == LR_OK;
    const lr_choice_library library = {&trial, candidates, ready ? seconds : NULL};
    const int status = lr_choose(&choices, &key, &library, out);
    driver->event_free(trial.from);
    driver->event_free(trial.until);
    lr_storage_release(copy);
    return status;
}

/* ---- multiplying ----------------------------------------------------------------------------------------------------- */
/* A kernel is loaded at its first use; the library has several statuses for a lack of memory for that. */
static bool may_lack_memory(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_ALLOC_FAILED || status == CUBLAS_STATUS_NOT_INITIALIZED ||
           status == CUBLAS_STATUS_INTERNAL_ERROR || status == CUBLAS_STATUS_EXECUTION_FAILED;
}

int lr_cuda_gemm(lr_exec *exec, const lr_cuda_product *p)
{
    lt_product x;
    lr_algorithm algorithm;
    int count;
    int status = start();
    if (status != LR_OK)
        return status;
    status = failed(describe(&x, p), "describing a product");
    if (status != LR_OK)
        return status;
    status = choose(exec, p, &x, &algorithm);
    if (status == LR_OK) {
        cublasStatus_t done = multiply(exec, &x, p, p->c.data, &algorithm);
        if (may_lack_memory(done)) {
            lr_memory_give_back(LR_CUDA);
            done = multiply(exec, &x, p, p->c.data, &algorithm);
        }
        if (done == CUBLAS_STATUS_NOT_SUPPORTED || done == CUBLAS_STATUS_INVALID_VALUE) {
            done = ask(p, 1, &algorithm, &count); /* the algorithm for the rounded sizes cannot make this product */
            if (done == CUBLAS_STATUS_SUCCESS)
                done = multiply(exec, &x, p, p->c.data, &algorithm);
        }
        status = failed(done, "a product");
    }
    destroy(&x);
    return status;
}
