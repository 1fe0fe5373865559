/* dnnl_compat.h: one set of names for what oneDNN 2 and oneDNN 3 call differently. Only gemm.c includes it.
 *
 * A dnnl_memory_desc_t is a plain struct in 2 and a handle that owns memory in 3. Both are used the same way here: start
 * it as {0}, fill it with one of the functions below, lend it out as lr_desc_ref, which is the type that both versions'
 * own functions take, and release it once, also after a failure. */
#ifndef LR_CPU_DNNL_COMPAT_H
#define LR_CPU_DNNL_COMPAT_H
#include <dnnl.h>

#if DNNL_VERSION_MAJOR == 2

typedef const dnnl_memory_desc_t *lr_desc_ref;

static inline lr_desc_ref lr_desc_lend(const dnnl_memory_desc_t *desc)
{
    return desc;
}

/* A matrix whose element (i, j) lies at i strides[0] + j strides[1]. */
static inline dnnl_status_t lr_desc_strided(dnnl_memory_desc_t *desc, const dnnl_dims_t dims, dnnl_data_type_t dtype,
                                            const dnnl_dims_t strides)
{
    return dnnl_memory_desc_init_by_strides(desc, 2, dims, dtype, strides);
}

/* A matrix whose layout oneDNN may choose. */
static inline dnnl_status_t lr_desc_any(dnnl_memory_desc_t *desc, const dnnl_dims_t dims, dnnl_data_type_t dtype)
{
    return dnnl_memory_desc_init_by_tag(desc, 2, dims, dtype, dnnl_format_tag_any);
}

static inline dnnl_status_t lr_desc_copy(dnnl_memory_desc_t *desc, lr_desc_ref from)
{
    *desc = *from;
    return dnnl_success;
}

static inline void lr_desc_release(dnnl_memory_desc_t *desc)
{
    (void)desc; /* owns nothing */
}

/* dst is multiplied by `scale` and added to the result. */
static inline dnnl_status_t lr_post_ops_sum(dnnl_post_ops_t post, float scale)
{
    return dnnl_post_ops_append_sum(post, scale);
}

/* bias and attr may be NULL. */
static inline dnnl_status_t lr_matmul_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, lr_desc_ref src,
                                           lr_desc_ref weights, lr_desc_ref bias, lr_desc_ref dst,
                                           const_dnnl_primitive_attr_t attr)
{
    dnnl_matmul_desc_t op;
    const dnnl_status_t status = dnnl_matmul_desc_init(&op, src, weights, bias, dst);
    return status == dnnl_success ? dnnl_primitive_desc_create(pd, &op, attr, engine, NULL) : status;
}

#elif DNNL_VERSION_MAJOR == 3 /* the same functions, described above */

typedef const_dnnl_memory_desc_t lr_desc_ref;

static inline lr_desc_ref lr_desc_lend(const dnnl_memory_desc_t *desc)
{
    return *desc;
}

static inline dnnl_status_t lr_desc_strided(dnnl_memory_desc_t *desc, const dnnl_dims_t dims, dnnl_data_type_t dtype,
                                            const dnnl_dims_t strides)
{
    return dnnl_memory_desc_create_with_strides(desc, 2, dims, dtype, strides);
}

static inline dnnl_status_t lr_desc_any(dnnl_memory_desc_t *desc, const dnnl_dims_t dims, dnnl_data_type_t dtype)
{
    return dnnl_memory_desc_create_with_tag(desc, 2, dims, dtype, dnnl_format_tag_any);
}

static inline dnnl_status_t lr_desc_copy(dnnl_memory_desc_t *desc, lr_desc_ref from)
{
    return dnnl_memory_desc_clone(desc, from);
}

static inline void lr_desc_release(dnnl_memory_desc_t *desc)
{
    if (*desc != NULL)
        dnnl_memory_desc_destroy(*desc);
    *desc = NULL;
}

static inline dnnl_status_t lr_post_ops_sum(dnnl_post_ops_t post, float scale)
{
    return dnnl_post_ops_append_sum(post, scale, 0, dnnl_data_type_undef); /* undef: read dst as what it is */
}

static inline dnnl_status_t lr_matmul_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, lr_desc_ref src,
                                           lr_desc_ref weights, lr_desc_ref bias, lr_desc_ref dst,
                                           const_dnnl_primitive_attr_t attr)
{
    return dnnl_matmul_primitive_desc_create(pd, engine, src, weights, bias, dst, attr);
}

#else
#error "kernels/cpu/gemm.c knows oneDNN 2 and 3; this is another major version"
#endif
#endif
