/* gemm.c: the only file that talks to oneDNN; what its versions 2 and 3 call differently is in dnnl_compat.h.
 *
 * A frozen weight is reordered once into the layout that oneDNN's matmul wants (format_tag::any). That layout depends on the
 * weight's shape and not on the number of rows it is multiplied with, so it is queried once, with QUERY_ROWS rows. Each number
 * of rows then gets a primitive of its own, which oneDNN caches: creating one takes about 0.5 ms and 46 KiB, finding it again 3
 * us.
 *
 * This file is compiled once: oneDNN chooses its instruction set by itself. Where that has no bf16 products, bf16 weights are
 * packed as f32, and the caller converts the activations. */
#include "cpu/gemm.h"
#include "core/limits.h"
#include "cpu/dnnl_compat.h"
#include <errno.h>

enum { PRIMITIVE_CACHE = 2048, QUERY_ROWS = 1024 };

typedef struct lr_packed_weight {
    dnnl_memory_desc_t desc;
    int64_t in, out; /* its product makes rows of `out` values from rows of `in` */
    int dtype;       /* of the values */
} lr_packed_weight;

static dnnl_engine_t engine;
static dnnl_stream_t stream;

static int failed(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success)
        return LR_OK;
    if (status == dnnl_out_of_memory)
        return lr_fail(LR_ENOMEM, "out of memory in oneDNN: %s%s", what, lr_limits_because(ENOMEM).text);
    return lr_fail(LR_EINTERNAL, "oneDNN failed with status %d: %s", (int)status, what);
}

/* The engine lives as long as the process. */
static int start(void)
{
    if (stream != NULL)
        return LR_OK;
    dnnl_set_primitive_cache_capacity(PRIMITIVE_CACHE);
#if DNNL_VERSION_MAJOR > 2 || DNNL_VERSION_MINOR >= 5
    (void)dnnl_set_default_fpmath_mode(
        dnnl_fpmath_mode_strict); /* f32 is f32, whatever ONEDNN_DEFAULT_FPMATH_MODE says */
#endif
    if (engine == NULL) {
        const int status = failed(dnnl_engine_create(&engine, dnnl_cpu, 0), "creating the engine");
        if (status != LR_OK)
            return status;
    }
    return failed(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "creating the stream");
}

/* What bf16 weights are packed as: bf16 where oneDNN may use the instructions for it, else f32. */
static int bf16_dtype(void)
{
    const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    return (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16 ? LR_BF16 : LR_F32;
}

static dnnl_data_type_t dnnl_dtype(int dtype)
{
    return dtype == LR_F32 ? dnnl_f32 : dnnl_bf16;
}

static dnnl_status_t matrix(dnnl_memory_desc_t *desc, int64_t rows, int64_t columns, int dtype, int64_t row_stride,
                            int64_t column_stride)
{
    const dnnl_dims_t dims = {rows, columns}, strides = {row_stride, column_stride};
    return lr_desc_strided(desc, dims, dnnl_dtype(dtype), strides);
}

/* A matmul's primitive descriptor: dst = src weights (+ bias) (+ beta dst). */
static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *out, lr_desc_ref src, lr_desc_ref weights, lr_desc_ref bias,
                                 lr_desc_ref dst, float beta)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_status_t status = dnnl_success;
    if (beta != 0.0f) {
        status = dnnl_primitive_attr_create(&attr);
        if (status == dnnl_success)
            status = dnnl_post_ops_create(&post);
        if (status == dnnl_success)
            status = lr_post_ops_sum(post, beta);
        if (status == dnnl_success)
            status = dnnl_primitive_attr_set_post_ops(attr, post);
    }
    if (status == dnnl_success)
        status = lr_matmul_desc(out, engine, src, weights, bias, dst, attr);
    if (post != NULL)
        dnnl_post_ops_destroy(post);
    if (attr != NULL)
        dnnl_primitive_attr_destroy(attr);
    return status;
}

typedef struct lr_gemm_argument {
    int index;
    lr_desc_ref desc;
    const void *data;
} lr_gemm_argument;

/* Run a primitive described by `pd`, which is consumed. */
static dnnl_status_t run(dnnl_primitive_desc_t pd, const lr_gemm_argument *arguments, int n)
{
    dnnl_exec_arg_t exec[4];
    dnnl_memory_t memory[4] = {NULL};
    dnnl_primitive_t primitive = NULL;
    dnnl_status_t status = lr_limits_spare() == LR_OK ? dnnl_primitive_create(&primitive, pd) : dnnl_out_of_memory;
    for (int i = 0; i < n && status == dnnl_success; i++) {
        status = dnnl_memory_create(&memory[i], arguments[i].desc, engine, (void *)(uintptr_t)arguments[i].data);
        exec[i] = (dnnl_exec_arg_t){arguments[i].index, memory[i]};
    }
    if (status == dnnl_success)
        status = dnnl_primitive_execute(primitive, stream, n, exec);
    if (status == dnnl_success)
        status = dnnl_stream_wait(stream);
    for (int i = 0; i < n; i++)
        if (memory[i] != NULL)
            dnnl_memory_destroy(memory[i]);
    if (primitive != NULL)
        dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(pd);
    return status;
}

/* ---- packed weights -------------------------------------------------------------------------------------------- */
/* The layout that matmul wants for a weight of this shape (packed->desc), and the layout that w has (plain). */
static int describe_weight(lr_packed_weight *packed, dnnl_memory_desc_t *plain, const lr_tensor *w, int direction)
{
    const int64_t n = w->shape[0], k = w->shape[1];
    packed->in = direction == 1 ? k : n;
    packed->out = direction == 1 ? n : k;
    const dnnl_dims_t dims = {packed->in, packed->out};
    const int source = w->dtype == LR_F16 ? LR_F32 : w->dtype;
    const int64_t ld = w->dtype == LR_F16 ? k : w->ld;
    dnnl_memory_desc_t src = {0}, dst = {0}, any = {0};
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t status =
        matrix(plain, packed->in, packed->out, source, direction == 1 ? 1 : ld, direction == 1 ? ld : 1);
    if (status == dnnl_success)
        status = matrix(&src, QUERY_ROWS, packed->in, packed->dtype, packed->in, 1);
    if (status == dnnl_success)
        status = matrix(&dst, QUERY_ROWS, packed->out, packed->dtype, packed->out, 1);
    if (status == dnnl_success)
        status = lr_desc_any(&any, dims, dnnl_dtype(packed->dtype));
    if (status == dnnl_success)
        status = matmul_desc(&pd, lr_desc_lend(&src), lr_desc_lend(&any), NULL, lr_desc_lend(&dst), 0.0f);
    if (status == dnnl_success) {
        status = lr_desc_copy(&packed->desc, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
        dnnl_primitive_desc_destroy(pd);
    }
    lr_desc_release(&any);
    lr_desc_release(&dst);
    lr_desc_release(&src);
    return failed(status, "asking for a weight's layout");
}

/* Reorder w, whose layout is `plain`, into the packed tensor. */
static int reorder_weight(lr_tensor *packed, const lr_tensor *w, lr_desc_ref plain)
{
    const lr_packed_weight *state = packed->packing->state;
    const lr_desc_ref layout = lr_desc_lend(&state->desc);
    const void *from = w->data;
    if (w->dtype == LR_F16) {
        const int64_t n = w->shape[0], k = w->shape[1];
        float *values = NULL;
        const int taken = lr_scratch_take((void **)&values, w->device, (size_t)(n * k) * sizeof *values);
        if (taken != LR_OK)
            return taken;
        for (int64_t i = 0; i < n; i++) {
            const int status = lr_convert(values + i * k, LR_F32, (const uint16_t *)w->data + i * w->ld, LR_F16, k);
            if (status != LR_OK)
                return status;
        }
        from = values;
    }
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t status = dnnl_reorder_primitive_desc_create(&pd, plain, engine, layout, engine, NULL);
    if (status == dnnl_success) {
        const lr_gemm_argument arguments[] = {{DNNL_ARG_FROM, plain, from}, {DNNL_ARG_TO, layout, packed->data}};
        status = run(pd, arguments, 2);
    }
    return failed(status, "packing a weight");
}

static void free_packed(void *state)
{
    lr_packed_weight *packed = state;
    lr_desc_release(&packed->desc);
    lr_free(packed);
}

/* The tensor of a packed weight, without values yet. It takes the descriptor out of `layout`. */
static int new_packed(lr_tensor **out, const lr_tensor *w, int direction, int dtype, lr_packed_weight *layout)
{
    lr_tensor *t = lr_calloc(1, sizeof *t);
    lr_packing *packing = lr_calloc(1, sizeof *packing);
    lr_packed_weight *state = lr_alloc(sizeof *state);
    lr_storage *storage = NULL;
    if (t == NULL || packing == NULL || state == NULL ||
        lr_storage_new(&storage, dnnl_memory_desc_get_size(lr_desc_lend(&layout->desc)), w->device, w->name) != LR_OK) {
        lr_free(state);
        lr_free(packing);
        lr_free(t);
        return LR_ENOMEM;
    }
    *state = *layout;
    layout->desc = (dnnl_memory_desc_t){0};
    *packing = (lr_packing){direction, state, free_packed};
    *t = *w;
    t->dtype = dtype;
    t->ld = w->shape[1];
    t->storage = storage;
    t->data = storage->data;
    t->packing = packing;
    *out = t;
    return LR_OK;
}

int lr_cpu_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype)
{
    lr_packed_weight layout = {0};
    dnnl_memory_desc_t plain = {0};
    if (dtype == LR_F16)
        return lr_fail(LR_EUNSUPPORTED, "pack: '%s': fp16 compute needs a GPU, on the CPU use bf16 or fp32", w->name);
    int status = start();
    layout.dtype = dtype == LR_BF16 ? bf16_dtype() : LR_F32;
    if (status == LR_OK)
        status = describe_weight(&layout, &plain, w, direction);
    lr_tensor *t = NULL;
    if (status == LR_OK)
        status = new_packed(&t, w, direction, dtype, &layout);
    if (status == LR_OK && t->data != NULL) /* not on the meta device, which has sizes and no values */
        status = reorder_weight(t, w, lr_desc_lend(&plain));
    lr_desc_release(&plain);
    lr_desc_release(&layout.desc); /* empty where t has it now */
    if (status != LR_OK) {
        lr_tensor_destroy(t);
        return status;
    }
    *out = t;
    return LR_OK;
}

int lr_gemm_packed_dtype(const lr_tensor *w)
{
    return ((const lr_packed_weight *)w->packing->state)->dtype;
}

int lr_gemm_packed(const lr_tensor *w, int64_t rows, const void *x, void *y, const float *bias, float beta)
{
    const lr_packed_weight *packed = w->packing->state;
    dnnl_memory_desc_t src = {0}, dst = {0}, bias_desc = {0};
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t status = matrix(&src, rows, packed->in, packed->dtype, packed->in, 1);
    if (status == dnnl_success)
        status = matrix(&dst, rows, packed->out, packed->dtype, packed->out, 1);
    if (status == dnnl_success && bias != NULL)
        status = matrix(&bias_desc, 1, packed->out, LR_F32, packed->out, 1);
    if (status == dnnl_success)
        status = matmul_desc(&pd, lr_desc_lend(&src), lr_desc_lend(&packed->desc),
                             bias != NULL ? lr_desc_lend(&bias_desc) : NULL, lr_desc_lend(&dst), beta);
    if (status == dnnl_success) {
        const lr_gemm_argument arguments[] = {{DNNL_ARG_SRC, lr_desc_lend(&src), x},
                                              {DNNL_ARG_WEIGHTS, lr_desc_lend(&packed->desc), w->data},
                                              {DNNL_ARG_DST, lr_desc_lend(&dst), y},
                                              {DNNL_ARG_BIAS, lr_desc_lend(&bias_desc), bias}};
        status = run(pd, arguments, bias != NULL ? 4 : 3);
    }
    lr_desc_release(&bias_desc);
    lr_desc_release(&dst);
    lr_desc_release(&src);
    return failed(status, "a product with a packed weight");
}
