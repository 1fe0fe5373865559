/* cuda.h: what the host side of the CUDA backend shares. For C and C++.
 *
 * Every op of ops.def is lr_cuda_NAME(exec, ...): it puts kernels on exec->stream and returns without waiting. Kernels neither
 * allocate nor wait, index in 64 bits, add in a fixed order (no float atomics: equal inputs give equal bits on one kind of GPU),
 * have working memory at exec->scratch, of the size that scratch.c says, and compute in f32 whatever the tensors hold, rounding
 * once.
 *
 * The same sources are built twice. With the CUDA toolkit: nvcc, driver.c (the CUDA runtime) and cublaslt.c. For the host: g++
 * and host/, where threads are fibers (simt.h), host/device_host.c stands in for driver.c, and host/gemm_host.c for cublaslt.c. */
#ifndef LR_CUDA_H
#define LR_CUDA_H

#include <math.h>
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

#include "check.h"
#include "core/device.h"
#include "core/op.h"
#include "cuda/fault.h"
#include "cuda/pack.h"
#include "cuda/scratch.h"

/* What a call of the CUDA runtime returned, as a status: LR_OK; LR_ENOMEM where memory lacks and nothing else; or LR_EINTERNAL.
 * what: the call's purpose, "copying". driver.c */
int lr_cuda_failed(int error, const char *what);

/* The fault that a kernel recorded, as an error, once; LR_OK where there is none. */
int lr_cuda_take_fault(volatile lr_fault *fault);

/* Fill `rows` pieces of `width` elements, `pitch` elements apart, with an element of `size` bytes (2, 4 or 8). movement.cu */
int lr_cuda_fill(lr_stream *stream, void *to, int64_t pitch, int64_t width, int64_t rows, const void *element,
                 int size);

/* A matrix in device memory, rows `ld` elements apart. */
typedef struct lr_cuda_matrix {
    void *data;
    int dtype;
    int64_t rows, columns, ld;
} lr_cuda_matrix;

/* to = from, converted; the shapes are equal. movement.cu */
int lr_cuda_convert(lr_exec *exec, const lr_cuda_matrix *to, const lr_cuda_matrix *from);

/* c = alpha a' b' + beta r + bias: a' is a or its transpose; r is a matrix like c, with rows of its own distance, or c itself. a
 * and b have one dtype; c has the same, or f32. bias: c's columns, in c's dtype, or NULL. beta 0 never reads r. cublaslt.c or
 * host/gemm_host.c */
typedef struct lr_cuda_product {
    lr_cuda_matrix a, b, c, r;
    bool a_transposed, b_transposed;
    float alpha, beta;
    const void *bias;
    void *workspace; /* LR_CUDA_GEMM_WORKSPACE bytes */
} lr_cuda_product;
int lr_cuda_gemm(lr_exec *exec, const lr_cuda_product *product);

/* Load cuBLASLt now rather than at the first product; LR_EDEVICE where it is missing. cublaslt.c */
int lr_cublaslt_load(void);

#ifdef __cplusplus
}
#endif

#endif
