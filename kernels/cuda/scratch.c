/* scratch.c: how much working memory each CUDA kernel needs, from the arguments of its op alone. It is compiled into every
 * build, with CUDA or without: a plan for a GPU counts these bytes on the meta device. */
#include "cuda/scratch.h"
#include "check.h"

/* ---- matrix products: gemm.c ------------------------------------------------------------------------------------------- */
int lr_cuda_operand_dtype(const char *op, int a, int b, int c, int *dtype)
{
    const int dtypes[3] = {a, b, c};
    *dtype = LR_F32;
    for (int i = 0; i < 3; i++)
        if (dtypes[i] != LR_F32) {
            if (*dtype != LR_F32 && *dtype != dtypes[i])
                return lr_fail(LR_EDTYPE, "%s: bf16 and f16 in one product", op);
            *dtype = dtypes[i];
        }
    return LR_OK;
}

static int64_t product(const char *op, const lr_tensor *c, const lr_tensor *a, const lr_tensor *b,
                       const lr_tensor *bias)
{
    int dtype = LR_F32;
    const int status = lr_cuda_operand_dtype(op, a->dtype, b->dtype, c->dtype, &dtype);
    if (status != LR_OK)
        return status;
    return LR_CUDA_GEMM_WORKSPACE + lr_cuda_copy_bytes(a->elements, a->dtype, dtype) +
           lr_cuda_copy_bytes(b->elements, b->dtype, dtype) +
           (bias != NULL ? lr_cuda_copy_bytes(bias->elements, bias->dtype, c->dtype) : 0);
}

int64_t lr_cuda_linear_scratch(const lr_exec *exec, const lr_linear_call *call)
{
    (void)exec;
    return product("linear", call->y, call->x, call->w, call->b);
}

int64_t lr_cuda_linear_backward_scratch(const lr_exec *exec, const lr_linear_backward_call *call)
{
    (void)exec;
    return product("linear_backward", call->dx, call->dy, call->w, NULL);
}

int64_t lr_cuda_matmul_nt_scratch(const lr_exec *exec, const lr_matmul_nt_call *call)
{
    (void)exec;
    return product("matmul_nt", call->c, call->a, call->b, NULL);
}

int64_t lr_cuda_matmul_nn_scratch(const lr_exec *exec, const lr_matmul_nn_call *call)
{
    (void)exec;
    return product("matmul_nn", call->c, call->a, call->b, NULL);
}

int64_t lr_cuda_matmul_tn_scratch(const lr_exec *exec, const lr_matmul_tn_call *call)
{
    (void)exec;
    return product("matmul_tn", call->c, call->a, call->b, NULL);
}

/* ---- norms: one block has a row, in registers and shared memory -------------------------------------------------------- */
int64_t lr_cuda_rms_norm_scratch(const lr_exec *exec, const lr_rms_norm_call *call)
{
    (void)exec, (void)call;
    return 0;
}

int64_t lr_cuda_rms_norm_backward_scratch(const lr_exec *exec, const lr_rms_norm_backward_call *call)
{
    (void)exec, (void)call;
    return 0;
}

int64_t lr_cuda_layer_norm_scratch(const lr_exec *exec, const lr_layer_norm_call *call)
{
    (void)exec, (void)call;
    return 0;
}

int64_t lr_cuda_layer_norm_backward_scratch(const lr_exec *exec, const lr_layer_norm_backward_call *call)
{
    (void)exec, (void)call;
    return 0;
}

/* ---- attention --------------------------------------------------------------------------------------------------------- */
int64_t lr_cuda_attention_scratch(const lr_exec *exec, const lr_attention_call *call)
{
    (void)exec, (void)call;
    return 0;
}

int64_t lr_cuda_attention_backward_scratch(const lr_exec *exec, const lr_attention_backward_call *call)
{
    (void)exec;
    const int status = lr_check_attention("attention_backward", call->q, call->k, call->lse, call->cu, call->head_dim,
                                          LR_CUDA_MAX_HEAD_DIM, call->scale);
    if (status != LR_OK)
        return status;
    const int64_t sequences = call->cu->shape[0] - 1, heads = call->lse->shape[1];
    return lr_cuda_slots(LR_CUDA_STATISTICS_TILE, call->q->shape[0], sequences) * LR_CUDA_STATISTICS_TILE * heads *
           LR_CUDA_STATISTICS_BYTES;
}

/* ---- the gradient's norm: optim.cu ------------------------------------------------------------------------------------- */
int64_t lr_cuda_clip_factor_scratch(const lr_exec *exec, const lr_clip_factor_call *call)
{
    (void)exec;
    return (call->g->shape[0] + LR_CUDA_NORM_CHUNK - 1) / LR_CUDA_NORM_CHUNK * (int64_t)sizeof(double);
}
