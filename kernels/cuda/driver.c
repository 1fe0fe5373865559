/* driver.c: an NVIDIA GPU as a device, through the CUDA runtime. That is linked statically and loads the driver (libcuda) at its
 * first call, so the program starts, and runs on the CPU, on machines that have neither.
 *
 * In CUDA each thread has a current GPU, the first one until the thread sets another. So every function that threads other than
 * the main one may call, such as those that staging uses, begins with here(). Otherwise every rank of a machine would also hold
 * memory of the first GPU, and its events would belong to that one.
 *
 * A stream is a cudaStream_t, an event a cudaEvent_t. The failure of a kernel is reported by some later call, of any kind, and
 * by all that follow: after an illegal access a CUDA context is of no more use. So only cudaErrorMemoryAllocation counts as a
 * lack of memory, and the error of a kernel does not blame the call that noticed it. */
#include "cuda/cuda.h"
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum {
    OLDEST = 80,       /* compute capability 8.0, Ampere: bf16 tensor cores */
    MAPPING = 2 << 20, /* bytes: GPUs map memory in multiples of it */
};

static cudaStream_t compute;
static int device_index; /* of the GPU this process uses */
static lr_fault *fault;  /* in pinned memory: kernels write to it */

static bool from_a_kernel(cudaError_t error)
{
    switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
        return true;
    default:
        return false;
    }
}

int lr_cuda_failed(int number, const char *what)
{
    const cudaError_t error = (cudaError_t)number;
    if (error == cudaSuccess)
        return LR_OK;
    cudaGetLastError(); /* clears it, so that a later call does not report it again */
    if (error == cudaErrorMemoryAllocation)
        return lr_fail(LR_ENOMEM, "out of cuda memory, in CUDA: %s", what);
    if (from_a_kernel(error))
        return lr_fail(LR_EINTERNAL,
                       "CUDA: a kernel failed: %s (%s). A later call noticed it (%s); with CUDA_LAUNCH_BLOCKING=1 in "
                       "the environment the op itself does",
                       cudaGetErrorString(error), cudaGetErrorName(error), what);
    return lr_fail(LR_EINTERNAL, "CUDA: %s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

/* The driver numbers its errors as the runtime does: lr_cuda_failed takes both. */
_Static_assert((int)CUDA_ERROR_OUT_OF_MEMORY == (int)cudaErrorMemoryAllocation, "one meaning for both");
_Static_assert((int)CUDA_ERROR_ILLEGAL_ADDRESS == (int)cudaErrorIllegalAddress, "one meaning for both");

/* Make this process's GPU the calling thread's. */
static void here(void)
{
    static _Thread_local bool said;
    if (!said)
        said = cudaSetDevice(device_index) == cudaSuccess; /* if it fails, so does the call after it */
}

/* ---- finding the GPU ------------------------------------------------------------------------------------------------- */
static int find_device(int index)
{
    int count = 0, driver = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        cudaGetLastError();
        if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
            return lr_fail(LR_EDEVICE, "there is no NVIDIA driver");
        return lr_fail(LR_EDEVICE, "%s (driver for CUDA %d.%d, built with %d.%d)", cudaGetErrorString(error),
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    }
    if (index >= count)
        return lr_fail(LR_EDEVICE, "there is no NVIDIA GPU%s", count > 0 ? " of that number" : "");
    struct cudaDeviceProp properties;
    const int status = lr_cuda_failed(cudaGetDeviceProperties(&properties, index), "asking for the GPU's properties");
    if (status == LR_OK && properties.major * 10 + properties.minor < OLDEST)
        return lr_fail(LR_EDEVICE,
                       "the GPU, %s, has compute capability %d.%d; 8.0 (Ampere) is the oldest that is supported",
                       properties.name, properties.major, properties.minor);
    return status;
}

/* The driver can reserve addresses and allocate memory separately: memory is allocated in granules and mapped to free addresses. */
#define DRIVER_FUNCTIONS(F)                                                                                            \
    F(cuDeviceGetAttribute)                                                                                            \
    F(cuMemAddressReserve)                                                                                             \
    F(cuMemCreate)                                                                                                     \
    F(cuMemMap)                                                                                                        \
    F(cuMemRelease)                                                                                                    \
    F(cuMemSetAccess)                                                                                                  \
    F(cuMemUnmap)

static struct {
#define MEMBER(f) __typeof__(f) *f;
    DRIVER_FUNCTIONS(MEMBER)
#undef MEMBER
} driver_api;

/* The driver's library, which the CUDA runtime has loaded before. */
static int open_driver(int index)
{
    int able = 0;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return lr_fail(LR_EDEVICE, "the NVIDIA driver's library was not found: %s", dlerror());
#define LOAD(f)                                                                                                        \
    if ((*(void **)&driver_api.f = dlsym(library, #f)) == NULL)                                                        \
        return lr_fail(LR_EDEVICE, "the NVIDIA driver lacks " #f ": it is older than CUDA 11");
    DRIVER_FUNCTIONS(LOAD)
#undef LOAD
    driver_api.cuDeviceGetAttribute(&able, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, index);
    if (!able)
        return lr_fail(LR_EDEVICE,
                       "the GPU's driver does not manage virtual memory, which a vGPU may have switched off");
    return LR_OK;
}

static int count_devices(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return count;
}

static int open_device(int index)
{
    int status = find_device(index);
    if (status == LR_OK)
        status = lr_cuda_failed(cudaSetDevice(index), "starting the GPU");
    if (status == LR_OK)
        status = open_driver(index);
    device_index = index;
    if (status == LR_OK)
        status = lr_cuda_failed(cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking), "making a stream");
    if (status == LR_OK)
        status = lr_cuda_failed(cudaHostAlloc((void **)&fault, sizeof *fault, cudaHostAllocPortable), "pinning memory");
    if (status == LR_OK)
        memset(fault, 0, sizeof *fault);
    return status;
}

static int describe(char *buf, size_t cap)
{
    struct cudaDeviceProp p;
    int driver = 0, index = 0;
    int status = lr_cuda_failed(cudaGetDevice(&index), "asking which GPU it is");
    if (status == LR_OK)
        status = lr_cuda_failed(cudaGetDeviceProperties(&p, index), "asking for the GPU's properties");
    if (status == LR_OK)
        status = lr_cuda_failed(cudaDriverGetVersion(&driver), "asking for the driver's version");
    if (status == LR_OK)
        snprintf(buf, cap, "%s (sm_%d%d, %d multiprocessors, %.1f GiB, driver for CUDA %d.%d)", p.name, p.major,
                 p.minor, p.multiProcessorCount, (double)p.totalGlobalMem / (1 << 30), driver / 1000,
                 driver % 1000 / 10);
    return status;
}

static int memory_info(int64_t *free_bytes, int64_t *total_bytes)
{
    size_t free_now, total;
    const int status = lr_cuda_failed(cudaMemGetInfo(&free_now, &total), "asking for the GPU's memory");
    if (status == LR_OK) {
        *free_bytes = (int64_t)free_now;
        *total_bytes = (int64_t)total;
    }
    return status;
}

static int uuid(int index, char *buf, size_t cap)
{
    struct cudaDeviceProp p;
    const int status = lr_cuda_failed(cudaGetDeviceProperties(&p, index), "asking for the GPU's properties");
    if (status != LR_OK)
        return status;
    const unsigned char *b = (const unsigned char *)p.uuid.bytes;
    snprintf(buf, cap, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2],
             b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    return LR_OK;
}

static void prepare(lr_exec *exec)
{
    exec->stream = (lr_stream *)compute;
    exec->fault = fault;
}

/* ---- memory ---------------------------------------------------------------------------------------------------------- */
static int reserve(void **out, size_t *bytes)
{
    size_t available, total;
    CUdeviceptr p = 0;
    int status = lr_cuda_failed(cudaMemGetInfo(&available, &total), "asking for the GPU's memory");
    if (status != LR_OK)
        return status;
    *bytes = (4 * total + MAPPING - 1) / MAPPING * MAPPING;
    status = lr_cuda_failed(driver_api.cuMemAddressReserve(&p, *bytes, MAPPING, 0, 0), "reserving addresses");
    *out = (void *)p;
    return status;
}

static int map(void *p, size_t bytes)
{
    const CUmemLocation gpu = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_index};
    const CUmemAllocationProp what = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = gpu};
    const CUmemAccessDesc access = {.location = gpu, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle memory;
    int status = lr_cuda_failed(driver_api.cuMemCreate(&memory, bytes, &what, 0), "asking for memory");
    if (status != LR_OK)
        return status;
    status = lr_cuda_failed(driver_api.cuMemMap((CUdeviceptr)p, bytes, 0, memory, 0), "mapping memory");
    if (status == LR_OK) {
        status = lr_cuda_failed(driver_api.cuMemSetAccess((CUdeviceptr)p, bytes, &access, 1), "opening memory");
        if (status != LR_OK)
            driver_api.cuMemUnmap((CUdeviceptr)p, bytes);
    }
    driver_api.cuMemRelease(memory); /* the memory lives on as long as it is mapped */
    return status;
}

static void unmap(void *p, size_t bytes)
{
    cudaDeviceSynchronize(); /* a kernel's failure is reported by the next call that waits */
    driver_api.cuMemUnmap((CUdeviceptr)p, bytes);
}

static int alloc_pinned(void **out, size_t bytes)
{
    here();
    return lr_cuda_failed(cudaHostAlloc(out, bytes, cudaHostAllocPortable), "pinning memory");
}

static void release_pinned(void *p)
{
    cudaFreeHost(p);
}

static int copy(lr_stream *stream, const lr_copy *c)
{
    static const enum cudaMemcpyKind kinds[] = {[LR_TO_DEVICE] = cudaMemcpyHostToDevice,
                                                [LR_TO_HOST] = cudaMemcpyDeviceToHost,
                                                [LR_WITHIN_DEVICE] = cudaMemcpyDeviceToDevice};
    const bool dense = c->rows == 1 || (c->to_pitch == c->width && c->from_pitch == c->width);
    const cudaStream_t s = (cudaStream_t)stream;
    here();
    return lr_cuda_failed(dense ? cudaMemcpyAsync(c->to, c->from, c->width * c->rows, kinds[c->direction], s)
                                : cudaMemcpy2DAsync(c->to, c->to_pitch, c->from, c->from_pitch, c->width, c->rows,
                                                    kinds[c->direction], s),
                          "copying");
}

static int fill(lr_stream *stream, const lr_copy *c, const void *element, size_t size)
{
    static const char zero[8];
    const int64_t n = (int64_t)size;
    if (memcmp(element, zero, size) != 0)
        return lr_cuda_fill(stream, c->to, (int64_t)c->to_pitch / n, (int64_t)c->width / n, (int64_t)c->rows, element,
                            (int)size);
    if (c->rows == 1)
        return lr_cuda_failed(cudaMemsetAsync(c->to, 0, c->width, (cudaStream_t)stream), "filling");
    return lr_cuda_failed(cudaMemset2DAsync(c->to, c->to_pitch, 0, c->width, c->rows, (cudaStream_t)stream), "filling");
}

/* ---- order ----------------------------------------------------------------------------------------------------------- */
static lr_stream *compute_stream(void)
{
    return (lr_stream *)compute;
}

static int stream_new(lr_stream **out)
{
    cudaStream_t s = NULL;
    const int status = lr_cuda_failed(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "making a stream");
    if (status == LR_OK)
        *out = (lr_stream *)s;
    return status;
}

static void stream_free(lr_stream *stream)
{
    if (stream != NULL)
        cudaStreamDestroy((cudaStream_t)stream);
}

static int stream_wait(lr_stream *stream)
{
    const int status = lr_cuda_failed(cudaStreamSynchronize((cudaStream_t)stream), "waiting for the GPU");
    return status == LR_OK ? lr_cuda_take_fault(fault) : status;
}

static int stream_wait_event(lr_stream *stream, lr_device_event *event)
{
    return lr_cuda_failed(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0), "ordering two streams");
}

static int event_new(lr_device_event **out)
{
    cudaEvent_t e = NULL;
    here();
    const int status = lr_cuda_failed(cudaEventCreate(&e), "making an event");
    if (status == LR_OK)
        *out = (lr_device_event *)e;
    return status;
}

static void event_free(lr_device_event *event)
{
    if (event != NULL)
        cudaEventDestroy((cudaEvent_t)event);
}

static int event_record(lr_device_event *event, lr_stream *stream)
{
    here();
    return lr_cuda_failed(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream), "recording an event");
}

static int event_wait(lr_device_event *event)
{
    here();
    return lr_cuda_failed(cudaEventSynchronize((cudaEvent_t)event), "waiting for the GPU");
}

static int event_seconds(lr_device_event *from, lr_device_event *to, double *seconds)
{
    float milliseconds = 0.0f;
    const int status =
        lr_cuda_failed(cudaEventElapsedTime(&milliseconds, (cudaEvent_t)from, (cudaEvent_t)to), "taking the time");
    if (status == LR_OK)
        *seconds = 1e-3 * (double)milliseconds;
    return status;
}

const lr_driver *lr_cuda_driver(void)
{
    static const lr_driver driver = {
        LR_CUDA_KIND,
        .addressable = false,
        .watched = false,
        .count = count_devices,
        .open = open_device,
        .describe = describe,
        .memory_info = memory_info,
        .uuid = uuid,
        .prepare = prepare,
        .reserve = reserve,
        .map = map,
        .unmap = unmap,
        .alloc_pinned = alloc_pinned,
        .release_pinned = release_pinned,
        .copy = copy,
        .fill = fill,
        .compute_stream = compute_stream,
        .stream_new = stream_new,
        .stream_free = stream_free,
        .stream_wait = stream_wait,
        .stream_wait_event = stream_wait_event,
        .event_new = event_new,
        .event_free = event_free,
        .event_record = event_record,
        .event_wait = event_wait,
        .event_seconds = event_seconds,
    };
    return &driver;
}
