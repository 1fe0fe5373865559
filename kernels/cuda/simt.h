/* simt.h: one kernel source, two compilers. nvcc builds it for the GPU; g++ builds it for the host, where every CUDA thread is
 * a fiber and each mistake that a GPU would not report ends the launch with an error that names it.
 *
 * A kernel is written in CUDA with these differences:
 *
 *   SIMT_SHARED(float, part, 32);          a __shared__ float part[32]
 *   SIMT_DYNAMIC_SHARED(bf16, tile);       the launch's dynamic shared memory as bf16 elements, 16-byte aligned
 *   smem<float> p                          a pointer into shared memory: p[i], p + i, *p, smem_cast<U>(p)
 *   simt_launch("name", kernel<T>, grid, block, shared_bytes, stream, arguments...)   LR_OK or a status with lr_fail called
 *
 * threadIdx, blockIdx, blockDim, gridDim, __syncthreads (and _or, _and, _count), __syncwarp, __shfl_sync, __shfl_xor_sync,
 * __shfl_down_sync, __shfl_up_sync, __ballot_sync, __any_sync, __all_sync, __launch_bounds__, float2, float4, uint2, uint4,
 * dim3 and the math functions have CUDA's names and meaning. Tensor cores and asynchronous copies are in mma.h.
 *
 * Rules that make a kernel mean the same to both compilers
 *   - An element of shared memory is read into a variable of a named type and written whole: `float x = part[i];`, never
 *     `auto x = part[i];` nor `part[i].x`. On the host part[i] is a proxy that records which thread reads and writes.
 *   - No pointer to shared memory but smem<T>. No atomics: sums are taken in a fixed order (warp_sum, block_sum).
 *   - Lanes of a warp do not run in step: one that reads what another wrote needs __syncwarp or __syncthreads between them.
 *   - Every thread of a block calls the same __syncthreads, every lane of a mask the same shuffle.
 *
 * What the host finds (host/simt_host.h says how): reads of shared memory that another thread wrote, or writes where another
 * read or wrote, with no barrier between; reads of shared memory that no thread wrote; an index outside its array; barriers and
 * shuffles that only a part of the threads reach or that differ; deadlock; launches that a GPU would refuse; and, in a build with
 * sanitizers, every access outside a tensor, misaligned vectors and undefined arithmetic. LORARUN_SIMT_SEED=n (n > 0) runs
 * threads and blocks in a random order that n decides. */
#ifndef LR_SIMT_H
#define LR_SIMT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include "core/core.h"
}

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;
typedef cudaStream_t simt_stream;

template <class T> using smem = T *;
template <class U, class T> static __device__ __forceinline__ U *smem_cast(T *p)
{
    return reinterpret_cast<U *>(p);
}

#define SIMT_SHARED(T, name, count) __shared__ T name[count]
#define SIMT_DYNAMIC_SHARED(T, name)                                                                                   \
    extern __shared__ __align__(16) unsigned char simt_dynamic_shared[];                                               \
    T *const name = reinterpret_cast<T *>(simt_dynamic_shared)

template <class... P, class... A>
static int simt_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                       simt_stream stream, A... arguments)
{
    cudaError_t error = cudaSuccess;
    for (int tries = 0; tries < 2; tries++) {
        error = cudaSuccess;
        if (shared_bytes > 48 * 1024) /* more must be asked for */
            error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (error == cudaSuccess) {
            kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(arguments)...);
            error = cudaGetLastError();
        }
        /* A kernel is loaded when it is first launched, into memory that the allocator may be keeping. */
        if (error != cudaErrorMemoryAllocation)
            break;
        lr_memory_give_back(LR_CUDA);
    }
    if (error != cudaErrorInvalidConfiguration && error != cudaErrorInvalidValue &&
        error != cudaErrorLaunchOutOfResources)
        return lr_cuda_failed(error, name);
    cudaGetLastError();
    return lr_fail(LR_EINTERNAL,
                   "%s: the GPU refused a launch of %u,%u,%u blocks of %u,%u,%u threads and %zu bytes: %s", name,
                   grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, cudaGetErrorString(error));
}

/* ---- 16-bit floating point: the same names for every activation dtype ------------------------------------------------ */
static __device__ __forceinline__ float to_float(float x)
{
    return x;
}
static __device__ __forceinline__ float to_float(bf16 x)
{
    return __bfloat162float(x);
}
static __device__ __forceinline__ float to_float(f16 x)
{
    return __half2float(x);
}

/* Round to nearest even. */
template <class T> static __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ f16 from_float<f16>(float x)
{
    return __float2half_rn(x);
}

/* Two 16-bit numbers in a register, lo in the low half: the operands of mma. */
template <class T> static __device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <> __device__ __forceinline__ uint32_t pack2<bf16>(float lo, float hi)
{
    const __nv_bfloat162 two = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<const uint32_t *>(&two);
}
template <> __device__ __forceinline__ uint32_t pack2<f16>(float lo, float hi)
{
    const __half2 two = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<const uint32_t *>(&two);
}
template <class T> static __device__ __forceinline__ float2 unpack2(uint32_t two);
template <> __device__ __forceinline__ float2 unpack2<bf16>(uint32_t two)
{
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&two));
}
template <> __device__ __forceinline__ float2 unpack2<f16>(uint32_t two)
{
    return __half22float2(*reinterpret_cast<const __half2 *>(&two));
}

/* e^x and ln x by the hardware's 2^x and log2 x: an error of some units in the last place, more for large |x| in fast_exp. */
static __device__ __forceinline__ float fast_exp(float x)
{
    return __expf(x);
}
static __device__ __forceinline__ float fast_log(float x)
{
    return __logf(x);
}
/* 2^x to about two units in the last place, flushing denormals; -infinity gives 0. */
static __device__ __forceinline__ float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include "cuda/host/simt_host.h"
#endif

/* ---- reductions in a fixed order: every thread gets the result, and the same bits in every run ------------------------ */
static const unsigned ALL_LANES = 0xffffffffu;
enum { WARP = 32, MAX_WARPS = 32 };

template <class T> static __device__ __forceinline__ T warp_sum(T x)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

static __device__ __forceinline__ float warp_max(float x)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

/* Sum of floats or doubles over a one-dimensional block of whole warps. part: MAX_WARPS elements that nothing else uses; it may be
 * used again at once. */
template <class T> static __device__ __forceinline__ T block_sum(T x, smem<T> part)
{
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0)
        part[warp] = x;
    __syncthreads();
    T sum = 0;
    if (lane < warps)
        sum = part[lane];
    sum = warp_sum(sum);
    __syncthreads(); /* before part is written again */
    return sum;
}

static __device__ __forceinline__ float block_max(float x, smem<float> part)
{
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0)
        part[warp] = x;
    __syncthreads();
    float most = -INFINITY;
    if (lane < warps)
        most = part[lane];
    most = warp_max(most);
    __syncthreads();
    return most;
}

#endif
