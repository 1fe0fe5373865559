/* movement.cu: rows in and out, conversion, sums and products of elements.
 *
 * All of it is bound by memory. Bytes an element, of size s: embedding, gather_rows 2s (3s with beta), scatter_rows 2s for each row
 * given and s for each row cleared, cast both sizes, add and mul 3s. Each is read or written once. */
#include "cuda/vec.h"

namespace
{

template <class T> struct fill_body {
    T *to;
    int64_t pitch;
    T element;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        for (int i = 0; i < n; i++)
            to[row * pitch + column + i] = element;
    }
};

template <class To, class From> struct cast_body {
    To *to;
    const From *from;
    int64_t to_ld, from_ld;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        float x[EIGHT];
        load8<ALIGNED>(x, from + row * from_ld + column, n);
        store8<ALIGNED>(to + row * to_ld + column, x, n);
    }
};

/* y[row] = table[ids[row]] + beta y[row] */
template <class T> struct take_body {
    T *y;
    const T *table;
    const int32_t *ids;
    int64_t y_ld, table_ld, limit;
    float beta;
    lr_fault *fault;
    lr_fault_place place;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        const int id = ids[row];
        if (!in_range(fault, place, row, id, 0, limit - 1))
            return;
        float x[EIGHT], old[EIGHT];
        load8<ALIGNED>(x, table + id * table_ld + column, n);
        if (beta != 0.0f) {
            load8<ALIGNED>(old, y + row * y_ld + column, n);
            for (int i = 0; i < EIGHT; i++)
                x[i] += beta * old[i];
        }
        store8<ALIGNED>(y + row * y_ld + column, x, n);
    }
};

/* x[rows[row]] = y[row] */
template <class T> struct put_body {
    T *x;
    const T *y;
    const int32_t *rows;
    int64_t width, limit;
    lr_fault *fault;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        const int to = rows[row];
        if (!in_range(fault, LR_FAULT_SCATTER_ROWS, row, to, 0, limit - 1))
            return;
        float v[EIGHT];
        load8<ALIGNED>(v, y + row * width + column, n);
        store8<ALIGNED>(x + to * width + column, v, n);
    }
};

template <class T> struct add_body {
    T *y;
    const T *a, *b;
    int64_t y_ld, a_ld, b_ld;
    float alpha, beta;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        float p[EIGHT], q[EIGHT];
        load8<ALIGNED>(p, a + row * a_ld + column, n);
        load8<ALIGNED>(q, b + row * b_ld + column, n);
        for (int i = 0; i < EIGHT; i++)
            p[i] = alpha * p[i] + beta * q[i];
        store8<ALIGNED>(y + row * y_ld + column, p, n);
    }
};

template <class T> struct mul_body {
    T *y;
    const T *a, *b;
    template <bool ALIGNED> __device__ void run(int64_t, int64_t column, int n) const
    {
        float p[EIGHT], q[EIGHT];
        load8<ALIGNED>(p, a + column, n);
        load8<ALIGNED>(q, b + column, n);
        for (int i = 0; i < EIGHT; i++)
            p[i] *= q[i];
        store8<ALIGNED>(y + column, p, n);
    }
};

template <class T> int fill_elements(lr_exec *exec, void *to, int64_t pitch, extent e, const void *element)
{
    fill_body<T> body = {static_cast<T *>(to), pitch, T()};
    memcpy(&body.element, element, sizeof body.element);
    return for_each_8(exec, "fill", body, e.rows, e.width, false);
}

int take_rows(lr_exec *exec, const char *name, lr_fault_place place, lr_tensor *y, const lr_tensor *table,
              const lr_tensor *ids, double beta)
{
    return by_dtype(y->dtype, [&](auto t) {
        typedef decltype(t) T;
        const take_body<T> body = {data_of<T>(y),   data_of<T>(table),        data_of<int32_t>(ids), y->ld, table->ld,
                                   table->shape[0], static_cast<float>(beta), exec->fault,           place};
        return for_each_8(exec, name, body, y->shape[0], y->shape[1], aligned(2, y, table));
    });
}

} // namespace

int lr_cuda_fill(lr_stream *stream, void *to, int64_t pitch, int64_t width, int64_t rows, const void *element, int size)
{
    lr_exec exec = {};
    exec.stream = stream;
    const extent e = {rows, width};
    if (size == 2)
        return fill_elements<uint16_t>(&exec, to, pitch, e, element);
    if (size == 4)
        return fill_elements<uint32_t>(&exec, to, pitch, e, element);
    return fill_elements<uint64_t>(&exec, to, pitch, e, element);
}

int lr_cuda_convert(lr_exec *exec, const lr_cuda_matrix *to, const lr_cuda_matrix *from)
{
    const bool flat = (to->ld == to->columns && from->ld == from->columns) || to->rows == 1;
    const extent e = {flat ? 1 : to->rows, flat ? to->rows * to->columns : to->columns};
    const bool even = reinterpret_cast<uintptr_t>(to->data) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(from->data) % 16 == 0 &&
                      (flat || (to->ld % EIGHT == 0 && from->ld % EIGHT == 0));
    return by_dtype(to->dtype, [&](auto t) {
        return by_dtype(from->dtype, [&](auto f) {
            typedef decltype(t) To;
            typedef decltype(f) From;
            const cast_body<To, From> body = {static_cast<To *>(to->data), static_cast<const From *>(from->data),
                                              to->ld, from->ld};
            return for_each_8(exec, "cast", body, e.rows, e.width, even);
        });
    });
}

int lr_cuda_cast(lr_exec *exec, lr_tensor *y, const lr_tensor *x)
{
    const lr_cuda_matrix to = {y->data, y->dtype, y->shape[0], y->shape[1], y->ld};
    const lr_cuda_matrix from = {x->data, x->dtype, x->shape[0], x->shape[1], x->ld};
    return lr_cuda_convert(exec, &to, &from);
}

int lr_cuda_embedding(lr_exec *exec, lr_tensor *y, const lr_tensor *table, const lr_tensor *ids, double beta)
{
    return take_rows(exec, "embedding", LR_FAULT_EMBEDDING, y, table, ids, beta);
}

int lr_cuda_gather_rows(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *rows)
{
    return take_rows(exec, "gather_rows", LR_FAULT_GATHER_ROWS, y, x, rows, 0.0);
}

int lr_cuda_scatter_rows(lr_exec *exec, lr_tensor *x, const lr_tensor *y, const lr_tensor *rows)
{
    const int status = lr_tensor_fill(x, 0.0);
    if (status != LR_OK)
        return status;
    return by_dtype(x->dtype, [&](auto t) {
        typedef decltype(t) T;
        const put_body<T> body = {data_of<T>(x), data_of<T>(y), data_of<int32_t>(rows),
                                  x->shape[1],   x->shape[0],   exec->fault};
        return for_each_8(exec, "scatter_rows", body, y->shape[0], y->shape[1], aligned(2, x, y));
    });
}

int lr_cuda_add(lr_exec *exec, lr_tensor *y, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    const extent e = extent_of(y, a, b);
    return by_dtype(y->dtype, [&](auto t) {
        typedef decltype(t) T;
        const add_body<T> body = {
            data_of<T>(y),           data_of<T>(a), data_of<T>(b), y->ld, a->ld, b->ld, static_cast<float>(alpha),
            static_cast<float>(beta)};
        return for_each_8(exec, "add", body, e.rows, e.width, aligned(e.rows, y, a, b));
    });
}

int lr_cuda_mul(lr_exec *exec, lr_tensor *y, const lr_tensor *a, const lr_tensor *b)
{
    return by_dtype(y->dtype, [&](auto t) {
        typedef decltype(t) T;
        const mul_body<T> body = {data_of<T>(y), data_of<T>(a), data_of<T>(b)};
        return for_each_8(exec, "mul", body, 1, y->elements, aligned(1, y, a, b));
    });
}
