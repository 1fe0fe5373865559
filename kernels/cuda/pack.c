/* pack.c: frozen weights on a GPU. GEMM takes either operand transposed, so a packed weight has the plain layout, and shares the
 * bytes of the weight it was made of where the dtype is the same, also those of a view of columns. Both directions then cost no
 * memory but the weight's own. Builds without CUDA have this file, too, for plans. */
#include "cuda/pack.h"
#include "core/op.h"

static void free_nothing(void *state)
{
    (void)state;
}

int lr_cuda_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype)
{
    lr_packing *packing = lr_alloc(sizeof *packing);
    if (packing == NULL)
        return LR_ENOMEM;
    *packing = (lr_packing){direction, NULL, free_nothing};
    lr_tensor *t = NULL;
    int status;
    if (w->dtype == dtype) {
        status = lr_tensor_view(&t, w, 0, 2, w->shape, lr_tensor_contiguous(w) ? 0 : w->ld);
    } else {
        status = lr_tensor_new(&t, dtype, 2, w->shape, w->device, w->name);
        if (status == LR_OK)
            status = lr_op_cast(t, w);
    }
    if (status != LR_OK) {
        lr_tensor_destroy(t);
        lr_free(packing);
        return status;
    }
    t->packing = packing;
    *out = t;
    return LR_OK;
}
