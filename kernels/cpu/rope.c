/* rope.c: rotary position embedding, rotate-half form. */
#include "cpu/vec.h"

int LR_CPU(rope)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *cos_sin, const lr_tensor *positions,
                 double sign)
{
    LR_NEED_CPU_DTYPE("rope", x);
    const int64_t tokens = x->shape[0], width = x->shape[1], limit = cos_sin->shape[0], dim = cos_sin->shape[1];
    const int64_t half = dim / 2;
    if (dim % 2 != 0 || width % dim != 0 || half > LR_RUN)
        return lr_fail(LR_ESHAPE, "rope: rows of %lld are not a whole number of heads of %lld (even, at most %d)",
                       (long long)width, (long long)dim, 2 * LR_RUN);
    const int32_t *position = positions->data;
    for (int64_t t = 0; t < tokens; t++)
        if (position[t] < 0 || position[t] >= limit)
            return lr_fail(LR_EINVAL, "rope: %s[%lld] is %d, but the table has positions 0 to %lld", positions->name,
                           (long long)t, position[t], (long long)limit - 1);
    const float *table = cos_sin->data, sign_f = (float)sign;
#pragma omp parallel for num_threads(lr_threads_for(exec, x->elements)) schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        float first_run[LR_RUN], second_run[LR_RUN];
        const float *cosine = table + position[t] * dim, *sine = cosine + half;
        for (int64_t head = 0; head < width; head += dim) {
            const int64_t from = t * x->ld + head, to = t * y->ld + head;
            const float *first = lr_row_in(x, from, half, first_run),
                        *second = lr_row_in(x, from + half, half, second_run);
            float *out_first = lr_row_out(y, to, first_run), *out_second = lr_row_out(y, to + half, second_run);
#pragma omp simd
            for (int64_t j = 0; j < half; j++) {
                const float a = first[j], b = second[j], s = sign_f * sine[j];
                out_first[j] = a * cosine[j] - b * s;
                out_second[j] = b * cosine[j] + a * s;
            }
            lr_row_done(y, to, half, out_first);
            lr_row_done(y, to + half, half, out_second);
        }
    }
    return LR_OK;
}
