/* check.h: the ranges of ops' numbers, and what kernels derive from them, the same on every device. Inline, because the CPU's
 * kernels are compiled several times and CUDA's as C++. */
#ifndef LR_KERNELS_CHECK_H
#define LR_KERNELS_CHECK_H

#include "core/op.h"
#include <math.h>

/* ---- dropout ----------------------------------------------------------------------------------------------------------- */
/* Eight columns share one Philox block; their group's number has 16 bits in its counter. */
enum { LR_DROPOUT_GROUP = 8, LR_DROPOUT_GROUPS = 0x10000 };

/* An element is kept where its 16 bits are at least threshold, and is then multiplied by scale. */
typedef struct lr_dropout_numbers {
    uint32_t threshold;
    float scale;
} lr_dropout_numbers;

static inline int lr_check_dropout(lr_dropout_numbers *out, int64_t width, double p, int64_t purpose, int64_t step)
{
    if (!(p >= 0.0 && p <= 1.0))
        return lr_fail(LR_EINVAL, "dropout: p is %g, expected 0 to 1", p);
    if (purpose < 0 || purpose > 0xffff || step < 0 || step > (int64_t)UINT32_MAX)
        return lr_fail(LR_EINVAL, "dropout: purpose %lld and step %lld must fit 16 and 32 bits", (long long)purpose,
                       (long long)step);
    if (width > (int64_t)LR_DROPOUT_GROUPS * LR_DROPOUT_GROUP)
        return lr_fail(LR_EUNSUPPORTED, "dropout: rows of %lld are wider than the mask's counter allows (%d)",
                       (long long)width, LR_DROPOUT_GROUPS * LR_DROPOUT_GROUP);
    out->threshold = (uint32_t)lround(p * 65536.0);
    out->scale = out->threshold < 65536 ? 65536.0f / (float)(65536 - out->threshold) : 0.0f;
    return LR_OK;
}

/* ---- pooling ----------------------------------------------------------------------------------------------------------- */
enum { LR_POOL_CLS = 0, LR_POOL_MEAN = 1, LR_POOL_LAST = 2, LR_POOL_MEAN_SQRT = 3, LR_POOL_WEIGHTED = 4 };

static inline int lr_check_pool_mode(const char *op, int64_t mode)
{
    if (mode >= LR_POOL_CLS && mode <= LR_POOL_WEIGHTED)
        return LR_OK;
    return lr_fail(LR_EINVAL, "%s: there is no mode %lld; 0 cls, 1 mean, 2 last, 3 mean_sqrt_len, 4 weighted mean", op,
                   (long long)mode);
}

/* ---- attention --------------------------------------------------------------------------------------------------------- */
static inline int lr_check_attention(const char *op, const lr_tensor *q, const lr_tensor *k, const lr_tensor *lse,
                                     const lr_tensor *cu, int64_t head_dim, int64_t max_head_dim, double scale)
{
    if (!isfinite(scale) || scale == 0.0) /* a hidden score is -infinity, which times 0 is NaN */
        return lr_fail(LR_EINVAL, "%s: scale is %g, expected a finite number other than 0", op, scale);
    if (head_dim < 1 || head_dim > max_head_dim)
        return lr_fail(LR_ESHAPE, "%s: head_dim is %lld, expected 1 to %lld", op, (long long)head_dim,
                       (long long)max_head_dim);
    if (q->shape[1] % head_dim != 0 || k->shape[1] % head_dim != 0 || q->shape[1] % k->shape[1] != 0 ||
        lse->shape[1] != q->shape[1] / head_dim)
        return lr_fail(LR_ESHAPE,
                       "%s: q has %lld columns, k %lld, lse %lld: these are no heads of %lld in equal groups", op,
                       (long long)q->shape[1], (long long)k->shape[1], (long long)lse->shape[1], (long long)head_dim);
    if (cu->shape[0] < 2)
        return lr_fail(LR_ESHAPE, "%s: cu has %lld elements, expected one more than there are sequences", op,
                       (long long)cu->shape[0]);
    return LR_OK;
}

/* ---- AdamW ------------------------------------------------------------------------------------------------------------- */
/* m = b1 m + rest1 x, v = b2 v + rest2 x^2, p = keep p - rate m / (sqrt(v) correction + small) */
typedef struct lr_adamw_numbers {
    float b1, rest1, b2, rest2, keep, rate, correction, small;
} lr_adamw_numbers;

static inline int lr_check_adamw(lr_adamw_numbers *out, double lr, double beta1, double beta2, double eps,
                                 double weight_decay, int64_t step)
{
    if (step < 1)
        return lr_fail(LR_EINVAL, "adamw: step is %lld, steps count from 1", (long long)step);
    out->b1 = (float)beta1;
    out->rest1 = (float)(1.0 - beta1);
    out->b2 = (float)beta2;
    out->rest2 = (float)(1.0 - beta2);
    out->keep = (float)(1.0 - lr * weight_decay);
    out->rate = (float)(lr / (1.0 - pow(beta1, (double)step)));
    out->correction = (float)(1.0 / sqrt(1.0 - pow(beta2, (double)step)));
    out->small = (float)eps;
    return LR_OK;
}

/* ---- the scale of the loss --------------------------------------------------------------------------------------------- */
static inline int lr_check_loss_scale(double growth, double backoff, int64_t interval)
{
    if (growth >= 1.0 && backoff > 0.0 && backoff <= 1.0 && interval >= 1 && interval < 1 << 24) /* counted in f32 */
        return LR_OK;
    return lr_fail(
        LR_EINVAL,
        "loss_scale: growth %g, backoff %g, interval %lld; expected growth of at least 1, backoff above 0 and "
        "at most 1, interval from 1 to 2^24 - 1",
        growth, backoff, (long long)interval);
}

#endif
