/* fake_cuda.h: what the fakes of this folder share.
 *
 * kernels/cuda/driver.c and cublaslt.c use a GPU through three libraries: the CUDA runtime, which is linked (fake_cudart.c), the
 * driver (fake_driver.c is its libcuda.so.1) and cuBLASLt (fake_cublaslt.c). With these, and kernels that run on the CPU
 * (kernels/cuda/host), the two files run in tests where there is no GPU. The fakes are written against NVIDIA's documentation,
 * not against those files, and are stricter than a GPU: what the documentation forbids ends the process with status 99. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { FORBIDDEN = 99 };
#define ALLOWED(x)                                                                                                     \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            (void)fprintf(stderr, "fake CUDA: %s: not allowed: %s\n", __func__, #x);                                   \
            _exit(FORBIDDEN);                                                                                          \
        }                                                                                                              \
    } while (0)

/* The error that this function is to return: FAKE_CUDA_FAILS="cuMemCreate 700" sets it for one function; 0 for all others. */
static inline int fake_cuda_told(const char *function)
{
    const char *text = getenv("FAKE_CUDA_FAILS");
    const size_t n = strlen(function);
    return text != NULL && strncmp(text, function, n) == 0 && text[n] == ' ' ? atoi(text + n) : 0;
}
#define MAY_FAIL(type)                                                                                                 \
    do {                                                                                                               \
        const int told = fake_cuda_told(__func__);                                                                     \
        if (told != 0)                                                                                                 \
            return (type)told;                                                                                         \
    } while (0)

/* Do all that was put on streams until now: for the libraries that put work on a stream themselves. fake_cudart.c */
EXPORT void fake_cuda_flush(void);

/* Free bytes of the GPU's memory. fake_cudart.c */
EXPORT size_t fake_cuda_available(void);

/* Bytes of the GPU's memory. fake_driver.c */
EXPORT void fake_cuda_memory(size_t *free_bytes, size_t *total);

#endif
