/* rope.cu: rotary position embedding, rotate-half form. A thread turns eight pairs (j, j + D/2) of one head.
 *
 * Bytes an element of size s: 2s; the table's row of a token, 4 D bytes, is read from the cache for all its heads but the first. */
#include "cuda/vec.h"

namespace
{

template <class T> struct rope_body {
    T *y;
    const T *x;
    const float *table;
    const int32_t *positions;
    int64_t y_ld, x_ld, heads, half_dim, limit;
    float sign;
    lr_fault *fault;
    /* A row here is one head of one token. */
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        const int64_t token = row / heads, head = row - token * heads;
        const int position = positions[token];
        if (!in_range(fault, LR_FAULT_ROPE, token, position, 0, limit - 1))
            return;
        const int64_t from = token * x_ld + head * 2 * half_dim + column,
                      to = token * y_ld + head * 2 * half_dim + column;
        const float *const cosines = table + position * 2 * half_dim + column;
        float a[EIGHT], b[EIGHT], cosine[EIGHT], sine[EIGHT];
        load8<ALIGNED>(a, x + from, n);
        load8<ALIGNED>(b, x + from + half_dim, n);
        load8<ALIGNED>(cosine, cosines, n);
        load8<ALIGNED>(sine, cosines + half_dim, n);
        for (int i = 0; i < EIGHT; i++) {
            const float first = a[i], second = b[i], s = sign * sine[i];
            a[i] = first * cosine[i] - second * s;
            b[i] = second * cosine[i] + first * s;
        }
        store8<ALIGNED>(y + to, a, n);
        store8<ALIGNED>(y + to + half_dim, b, n);
    }
};

} // namespace

int lr_cuda_rope(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *cos_sin, const lr_tensor *positions,
                 double sign)
{
    const int64_t width = x->shape[1], dim = cos_sin->shape[1], half_dim = dim / 2;
    if (dim % 2 != 0 || width % dim != 0)
        return lr_fail(LR_ESHAPE, "rope: rows of %lld are not a whole number of heads of %lld, which must be even",
                       static_cast<long long>(width), static_cast<long long>(dim));
    return by_dtype(x->dtype, [&](auto t) {
        typedef decltype(t) T;
        const rope_body<T> body = {
            data_of<T>(y), data_of<T>(x), data_of<float>(cos_sin), data_of<int32_t>(positions), y->ld,      x->ld,
            width / dim,   half_dim,      cos_sin->shape[0],       static_cast<float>(sign),    exec->fault};
        return for_each_8(exec, "rope", body, x->shape[0] * (width / dim), half_dim,
                          half_dim % EIGHT == 0 && aligned(2, y, x) && aligned(1, cos_sin));
    });
}
