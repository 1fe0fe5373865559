/* gemm.c: the only file that talks to oneDNN.
 *
 * A frozen weight is reordered once into the layout that oneDNN's matmul asks for (format_tag::any). That layout
 * depends on the weight's shape, not on the number of rows it will meet, so it is asked for once, with a middling
 * number of rows, and each number of rows then gets its own primitive, which oneDNN caches: creating one costs some 0.5
 * ms and 46 KiB, finding it again 3 us.
 *
 * Compiled once: oneDNN chooses its instruction set by itself. Where that set lacks bf16 products, bf16 weights are
 * packed as f32 and their activations are converted by the caller. */
#include "cpu/gemm.h"
#include <dnnl.h>
#include <string.h>

enum { PRIMITIVE_CACHE = 2048, QUERY_ROWS = 1024 };

typedef struct lr_packed_weight {
    dnnl_memory_desc_t desc;
    int64_t in, out; /* its matmul takes rows of `in` to rows of `out` */
    int dtype;       /* of the values */
} lr_packed_weight;

static dnnl_engine_t engine;
static dnnl_stream_t stream;

static int failed(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success)
        return LR_OK;
    if (status == dnnl_out_of_memory)
        return lr_fail(LR_ENOMEM, "out of memory in oneDNN: %s", what);
    return lr_fail(LR_EINTERNAL, "oneDNN failed with status %d: %s", (int)status, what);
}

/* The engine lives as long as the process. */
static int start(void)
{
    if (stream != NULL)
        return LR_OK;
    dnnl_set_primitive_cache_capacity(PRIMITIVE_CACHE);
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
    return dnnl_memory_desc_init_by_strides(desc, 2, dims, dnnl_dtype(dtype), strides);
}

/* A matmul's primitive descriptor: dst = src weights (+ bias) (+ beta dst). */
static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *out, const dnnl_memory_desc_t *src,
                                 const dnnl_memory_desc_t *weights, const dnnl_memory_desc_t *bias,
                                 const dnnl_memory_desc_t *dst, float beta)
{
    dnnl_matmul_desc_t op;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_status_t status = dnnl_matmul_desc_init(&op, src, weights, bias, dst);
    if (status == dnnl_success && beta != 0.0f) {
        status = dnnl_primitive_attr_create(&attr);
        if (status == dnnl_success)
            status = dnnl_post_ops_create(&post);
        if (status == dnnl_success)
            status = dnnl_post_ops_append_sum(post, beta);
        if (status == dnnl_success)
            status = dnnl_primitive_attr_set_post_ops(attr, post);
    }
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(out, &op, attr, engine, NULL);
    if (post != NULL)
        dnnl_post_ops_destroy(post);
    if (attr != NULL)
        dnnl_primitive_attr_destroy(attr);
    return status;
}

typedef struct lr_gemm_argument {
    int index;
    const dnnl_memory_desc_t *desc;
    const void *data;
} lr_gemm_argument;

/* Run a primitive described by `pd`, which is consumed. */
static dnnl_status_t run(dnnl_primitive_desc_t pd, const lr_gemm_argument *arguments, int n)
{
    dnnl_exec_arg_t exec[4];
    dnnl_memory_t memory[4] = {NULL};
    dnnl_primitive_t primitive = NULL;
    dnnl_status_t status = dnnl_primitive_create(&primitive, pd);
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
/* The layout that matmul wants for a weight of this shape, and the layout that w has. */
static int describe_weight(lr_packed_weight *packed, dnnl_memory_desc_t *plain, const lr_tensor *w, int direction)
{
    const int64_t n = w->shape[0], k = w->shape[1];
    packed->in = direction == 1 ? k : n;
    packed->out = direction == 1 ? n : k;
    const dnnl_dims_t dims = {packed->in, packed->out};
    const int source = w->dtype == LR_F16 ? LR_F32 : w->dtype;
    const int64_t ld = w->dtype == LR_F16 ? k : w->ld;
    dnnl_memory_desc_t src, dst, any;
    dnnl_primitive_desc_t pd;
    dnnl_status_t status =
        matrix(plain, packed->in, packed->out, source, direction == 1 ? 1 : ld, direction == 1 ? ld : 1);
    if (status == dnnl_success)
        status = matrix(&src, QUERY_ROWS, packed->in, packed->dtype, packed->in, 1);
    if (status == dnnl_success)
        status = matrix(&dst, QUERY_ROWS, packed->out, packed->dtype, packed->out, 1);
    if (status == dnnl_success)
        status = dnnl_memory_desc_init_by_tag(&any, 2, dims, dnnl_dtype(packed->dtype), dnnl_format_tag_any);
    if (status == dnnl_success)
        status = matmul_desc(&pd, &src, &any, NULL, &dst, 0.0f);
    if (status == dnnl_success) {
        packed->desc = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        dnnl_primitive_desc_destroy(pd);
    }
    return failed(status, "asking for a weight's layout");
}

/* Reorder w into the packed layout at `to`. */
static int reorder_weight(const lr_packed_weight *packed, const dnnl_memory_desc_t *plain, const lr_tensor *w, void *to)
{
    const void *from = w->data;
    if (w->dtype == LR_F16) {
        const int64_t n = w->shape[0], k = w->shape[1];
        float *values = lr_scratch((size_t)(n * k) * sizeof *values);
        if (values == NULL)
            return LR_ENOMEM;
        for (int64_t i = 0; i < n; i++) {
            const int status = lr_convert(values + i * k, LR_F32, (const uint16_t *)w->data + i * w->ld, LR_F16, k);
            if (status != LR_OK)
                return status;
        }
        from = values;
    }
    dnnl_primitive_desc_t pd;
    dnnl_status_t status = dnnl_reorder_primitive_desc_create(&pd, plain, engine, &packed->desc, engine, NULL);
    if (status == dnnl_success) {
        const lr_gemm_argument arguments[] = {{DNNL_ARG_FROM, plain, from}, {DNNL_ARG_TO, &packed->desc, to}};
        status = run(pd, arguments, 2);
    }
    return failed(status, "packing a weight");
}

/* The tensor around a packed weight, as yet without values. */
static int new_packed(lr_tensor **out, const lr_tensor *w, int direction, int dtype, const lr_packed_weight *layout)
{
    lr_tensor *t = lr_calloc(1, sizeof *t);
    lr_packing *packing = lr_calloc(1, sizeof *packing);
    lr_packed_weight *state = lr_alloc(sizeof *state);
    lr_storage *storage = NULL;
    if (t == NULL || packing == NULL || state == NULL ||
        lr_storage_new(&storage, dnnl_memory_desc_get_size(&layout->desc), w->device, w->name) != LR_OK) {
        lr_free(state);
        lr_free(packing);
        lr_free(t);
        return LR_ENOMEM;
    }
    *state = *layout;
    *packing = (lr_packing){direction, state, lr_free};
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
    lr_packed_weight layout;
    dnnl_memory_desc_t plain;
    int status = start();
    memset(&layout, 0, sizeof layout);
    layout.dtype = dtype == LR_BF16 ? bf16_dtype() : LR_F32;
    if (status == LR_OK)
        status = describe_weight(&layout, &plain, w, direction);
    lr_tensor *t = NULL;
    if (status == LR_OK)
        status = new_packed(&t, w, direction, dtype, &layout);
    if (status == LR_OK && t->data != NULL) /* the meta device has shapes and sizes, no values */
        status = reorder_weight(&layout, &plain, w, t->data);
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
    dnnl_memory_desc_t src, dst, bias_desc;
    dnnl_primitive_desc_t pd;
    dnnl_status_t status = matrix(&src, rows, packed->in, packed->dtype, packed->in, 1);
    if (status == dnnl_success)
        status = matrix(&dst, rows, packed->out, packed->dtype, packed->out, 1);
    if (status == dnnl_success && bias != NULL)
        status = matrix(&bias_desc, 1, packed->out, LR_F32, packed->out, 1);
    if (status == dnnl_success)
        status = matmul_desc(&pd, &src, &packed->desc, bias != NULL ? &bias_desc : NULL, &dst, beta);
    if (status == dnnl_success) {
        const lr_gemm_argument arguments[] = {{DNNL_ARG_SRC, &src, x},
                                              {DNNL_ARG_WEIGHTS, &packed->desc, w->data},
                                              {DNNL_ARG_DST, &dst, y},
                                              {DNNL_ARG_BIAS, &bias_desc, bias}};
        status = run(pd, arguments, bias != NULL ? 4 : 3);
    }
    return failed(status, "a product with a packed weight");
}

/* ---- plain products -------------------------------------------------------------------------------------------- */
int lr_gemm_f32(int64_t m, int64_t n, int64_t k, float alpha, lr_gemm_operand a, lr_gemm_operand b, float beta,
                float *c, int64_t ldc)
{
    return failed(dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', m, n, k, alpha, a.data, a.ld, b.data,
                             b.ld, beta, c, ldc),
                  "an f32 product");
}
