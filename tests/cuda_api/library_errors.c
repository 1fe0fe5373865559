/* library_errors.c: errors of CUDA's libraries: a lack of memory is distinguished from other errors, and the call is tried again
 * after cached memory was given back; a kernel's failure is not blamed on the call that noticed it. */
#include "core/device.h"
#include "cuda/cuda.h"
#include "lr_test.h"
#include <stdlib.h>

enum { MIB = 1 << 20 };

static int make(lr_tensor **out, int64_t rows, int64_t columns)
{
    return lr_tensor_new(out, LR_F32, 2, (int64_t[]){rows, columns}, LR_CUDA, "x");
}

/* Let one function fail so; check the status and the message. */
static int while_failing(const char *how, int (*act)(void))
{
    setenv("FAKE_CUDA_FAILS", how, 1);
    const int status = act();
    unsetenv("FAKE_CUDA_FAILS");
    return status;
}

static int take_memory(void)
{
    lr_tensor *t = NULL;
    const int status = make(&t, 5 * MIB, 1);
    lr_tensor_destroy(t);
    return status;
}

static lr_tensor *x, *y;
static int multiply(void)
{
    return lr_op_matmul_nt(y, x, x, 1.0, 0.0);
}

static void make_operands(int64_t rows)
{
    CHECK_INT(make(&x, rows, 64), LR_OK);
    CHECK_INT(make(&y, rows, rows), LR_OK);
    CHECK_INT(lr_tensor_uniform(x, 1, 1, -1.0, 1.0), LR_OK);
}

static void destroy_operands(void)
{
    lr_tensor_destroy(x);
    lr_tensor_destroy(y);
}

TEST(only_a_lack_of_memory_is_called_so)
{
    for (int i = 0; i < 2; i++) {
        CHECK_INT(lr_memory_release_cached(LR_CUDA), LR_OK);
        CHECK_INT(while_failing(i == 0 ? "cuMemCreate 2" : "cuMemSetAccess 2", take_memory), LR_ENOMEM);
        CHECK_HAS(lr_last_error(), "out of cuda memory: 20971520 bytes for x");
        CHECK_INT(while_failing(i == 0 ? "cuMemCreate 700" : "cuMemSetAccess 700", take_memory), LR_EINTERNAL);
        CHECK_HAS(lr_last_error(), "a kernel failed: an illegal access");
        CHECK_INT(while_failing("cuMemCreate 1", take_memory), LR_EINTERNAL);
        CHECK_HAS(lr_last_error(), "CUDA: asking for memory: an error");
        CHECK_INT(take_memory(), LR_OK);
    }
}

TEST(pinned_memory_is_told_apart_too)
{
    const lr_driver *driver = lr_driver_of(LR_CUDA);
    void *p = NULL;
    setenv("FAKE_CUDA_FAILS", "cudaHostAlloc 2", 1);
    CHECK_INT(driver->alloc_pinned(&p, 4096), LR_ENOMEM);
    setenv("FAKE_CUDA_FAILS", "cudaHostAlloc 719", 1);
    CHECK_INT(driver->alloc_pinned(&p, 4096), LR_EINTERNAL);
    CHECK_HAS(lr_last_error(), "a kernel failed");
    unsetenv("FAKE_CUDA_FAILS");
    CHECK_INT(driver->alloc_pinned(&p, 4096), LR_OK);
    driver->release_pinned(p);
}

TEST(a_product_gets_the_memory_that_the_allocator_keeps)
{
    char spare[16];
    int64_t available, total;
    make_operands(96);
    CHECK_INT(multiply(), LR_OK);
    CHECK_INT(lr_memory_release_cached(LR_CUDA), LR_OK);
    CHECK_INT(multiply(), LR_OK); /* takes its working memory again */
    CHECK_INT(lr_device_memory(LR_CUDA, &available, &total), LR_OK);
    snprintf(spare, sizeof spare, "%d", (int)(available / MIB - 10));
    CHECK_INT(take_memory(), LR_OK); /* 20 MiB of it stay cached */
    setenv("FAKE_CUDA_SPARE", spare, 1);
    CHECK_INT(multiply(), LR_OK);
    snprintf(spare, sizeof spare, "%d", (int)(available / MIB + 10));
    setenv("FAKE_CUDA_SPARE", spare, 1);
    CHECK_INT(multiply(), LR_EINTERNAL);
    CHECK_HAS(lr_last_error(), "cuBLASLt: a product");
    unsetenv("FAKE_CUDA_SPARE");
    CHECK_INT(while_failing("cublasLtMatmul 3", multiply), LR_ENOMEM);
    CHECK_INT(multiply(), LR_OK);
    destroy_operands();
}

/* cuBLASLt has no status of its own for a context that a kernel has broken. */
static int multiply_when_broken(void)
{
    setenv("FAKE_CUDA_SPARE", "1000000", 1);
    const int status = multiply();
    unsetenv("FAKE_CUDA_SPARE");
    return status;
}

TEST(a_kernels_failure_is_not_the_products)
{
    make_operands(48);
    CHECK_INT(while_failing("cudaDeviceSynchronize 700", multiply_when_broken), LR_EINTERNAL);
    CHECK_HAS(lr_last_error(), "a kernel failed: an illegal access");
    CHECK_HAS(lr_last_error(), "CUDA_LAUNCH_BLOCKING=1");
    CHECK_INT(multiply(), LR_OK); /* and no choice was kept meanwhile */
    destroy_operands();
}

TEST_MAIN()
