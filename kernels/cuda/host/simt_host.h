/* simt_host.h: the host half of simt.h. A block runs on fibers, one a thread, which give way only inside barriers and warp
 * functions (scheduler.cpp). Blocks run one after another.
 *
 * How mistakes are found
 *   - Shared memory is reached through smem<T>, whose elements are proxies. Each pair of bytes has a cell that says which threads
 *     wrote and read it last, at which barrier and at which __syncwarp (shadow.cpp). An access that no barrier orders after another
 *     thread's write, or a write that none orders after another's access, is a fault: in any thread order, not only in an unlucky one.
 *   - Shared memory is new in every block: what no thread wrote may not be read.
 *   - Barriers and warp functions carry the line they were called from; those that meet must come from the same one.
 *   - A fault ends the launch: simt_launch returns LR_EINTERNAL, lr_last_error() names kernel, block, thread and values. */
#ifndef LR_SIMT_HOST_H
#define LR_SIMT_HOST_H

#include "cuda/host/device_types.h"

typedef struct simt_stream_tag *simt_stream; /* work is done when its launch returns: all streams are alike */

/* Of the thread that runs now. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt
{

enum {
    MAX_THREADS = 1024,
    MAX_DEPOSIT = 48,       /* mma's operands in f32 */
    MAX_SHARED = 99 * 1024, /* of compute capability 8.6, 8.9 and 12; others have more */
    MAX_STATIC_SHARED = 48 * 1024
};

/* End the launch with a message; kernel, block and thread are put before it. */
[[noreturn]] void fault(const char *fmt, ...) LR_PRINTF(1, 2);

struct launch_spec {
    const char *name;
    dim3 grid, block;
    size_t shared_bytes;
};
/* Run body(context) in every thread of the grid. */
int run_grid(const launch_spec &spec, void (*body)(void *), void *context);

/* Random thread order; 0: by number. Overrides LORARUN_SIMT_SEED. */
void set_seed(uint64_t seed);

int current_thread(); /* number of the running thread within its block */

/* ---- barriers and warp functions (scheduler.cpp) ---------------------------------------------------------------------- */
/* Wait for the block; returns how many threads came with a true predicate. */
int barrier(bool predicate, const char *file, int line);

/* The values that the lanes of a mask gave each other: deposit i is lane i's. Valid until the lane's next warp function. */
struct deposits {
    unsigned lanes; /* those that take part */
    const unsigned char (*of)[MAX_DEPOSIT];
};
/* Deposit a value, then wait for every lane of the mask. orders: memory too, as __syncwarp does. */
deposits exchange(unsigned mask, const void *value, size_t bytes, bool orders, const char *file, int line);

/* ---- shared memory (shadow.cpp) --------------------------------------------------------------------------------------- */
struct shared_array {
    const void *site; /* the declaration: every thread that passes it gets the same array */
    const char *name;
    unsigned char *base;
    size_t bytes;
};
const shared_array *shared_find(const void *site, const char *name, size_t bytes);
const shared_array *shared_dynamic();
/* Check and record an access of the running thread. size: of an element, for messages. */
void note_read(const shared_array *array, const void *p, size_t bytes, size_t size);
void note_write(const shared_array *array, const void *p, size_t bytes, size_t size);

/* Asynchronous copies of the running thread: the bytes arrive at the wait. from NULL: zeros. */
void copy_begin(const shared_array *array, void *to, const void *from);
void copy_commit();
void copy_wait(int groups_left);

template <class T> class smem
{
  public:
    smem(T *p, const shared_array *array) : p_(p), array_(array)
    {
        static_assert(sizeof(T) % 2 == 0, "shared memory is watched in pairs of bytes");
    }

    class element
    {
      public:
        element(T *p, const shared_array *array) : p_(p), array_(array)
        {
        }
        element(const element &) = default;
        operator T() const
        {
            note_read(array_, p_, sizeof(T), sizeof(T));
            return *p_;
        }
        const element &operator=(T value) const
        {
            note_write(array_, p_, sizeof(T), sizeof(T));
            *p_ = value;
            return *this;
        }
        const element &operator=(const element &other) const
        {
            return *this = static_cast<T>(other);
        }
        const element &operator+=(T value) const
        {
            return *this = static_cast<T>(static_cast<T>(*this) + value);
        }
        const element &operator-=(T value) const
        {
            return *this = static_cast<T>(static_cast<T>(*this) - value);
        }
        const element &operator*=(T value) const
        {
            return *this = static_cast<T>(static_cast<T>(*this) * value);
        }

      private:
        T *p_;
        const shared_array *array_;
    };

    element operator[](int64_t i) const
    {
        return {at(i), array_};
    }
    element operator*() const
    {
        return {p_, array_};
    }
    smem operator+(int64_t i) const
    {
        return {at(i), array_};
    }
    smem operator-(int64_t i) const
    {
        return {at(-i), array_};
    }
    smem &operator+=(int64_t i)
    {
        p_ = at(i);
        return *this;
    }
    T *address() const /* for the shim itself; a kernel that used it would not build with nvcc */
    {
        return p_;
    }
    const shared_array *array() const
    {
        return array_;
    }

  private:
    /* As integers: an index may lie outside until it is used, and then is reported. */
    T *at(int64_t i) const
    {
        return reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(p_) +
                                     static_cast<uintptr_t>(i) * static_cast<uintptr_t>(sizeof(T)));
    }
    T *p_;
    const shared_array *array_;
};

template <class T> T shuffled(const deposits &d, int source)
{
    T value;
    if (!(d.lanes >> source & 1))
        fault("a shuffle reads lane %d, which takes no part in it", source);
    memcpy(&value, d.of[source], sizeof value);
    return value;
}

static inline int lane()
{
    return current_thread() % 32;
}

} // namespace simt

template <class T> using smem = simt::smem<T>;

template <class U, class T> static inline smem<U> smem_cast(smem<T> p)
{
    return {reinterpret_cast<U *>(p.address()), p.array()};
}

#define SIMT_SHARED(T, name, count)                                                                                    \
    static const char name##_site = 0;                                                                                 \
    const simt::shared_array *const name##_array = simt::shared_find(&name##_site, #name, sizeof(T) * (count));        \
    const smem<T> name(reinterpret_cast<T *>(name##_array->base), name##_array)

#define SIMT_DYNAMIC_SHARED(T, name)                                                                                   \
    const smem<T> name(reinterpret_cast<T *>(simt::shared_dynamic()->base), simt::shared_dynamic())

/* ---- launch ----------------------------------------------------------------------------------------------------------- */
namespace simt
{
template <class Body> void call_body(void *body)
{
    (*static_cast<Body *>(body))();
}
} // namespace simt

template <class... P, class... A>
static int simt_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, simt_stream,
                       A... arguments)
{
    auto body = [=] { kernel(static_cast<P>(arguments)...); };
    return simt::run_grid({name, grid, block, shared_bytes}, simt::call_body<decltype(body)>, &body);
}

/* ---- CUDA's names ------------------------------------------------------------------------------------------------------ */
#define SIMT_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(SIMT_PLACE)
{
    simt::barrier(false, file, line);
}
static inline int __syncthreads_or(int predicate, SIMT_PLACE)
{
    return simt::barrier(predicate != 0, file, line) > 0;
}
static inline int __syncthreads_and(int predicate, SIMT_PLACE)
{
    return simt::barrier(predicate == 0, file, line) == 0;
}
static inline int __syncthreads_count(int predicate, SIMT_PLACE)
{
    return simt::barrier(predicate != 0, file, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_PLACE)
{
    simt::exchange(mask, &mask, sizeof mask, true, file, line);
}

template <class T> static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_PLACE)
{
    const simt::deposits d = simt::exchange(mask, &value, sizeof value, false, file, line);
    return simt::shuffled<T>(d, (simt::lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_PLACE)
{
    const simt::deposits d = simt::exchange(mask, &value, sizeof value, false, file, line);
    const int source = simt::lane() ^ bits;
    return simt::shuffled<T>(d, source / width <= simt::lane() / width ? source : simt::lane());
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_PLACE)
{
    const simt::deposits d = simt::exchange(mask, &value, sizeof value, false, file, line);
    const int within = (simt::lane() & (width - 1)) + static_cast<int>(distance);
    return simt::shuffled<T>(d, within < width ? simt::lane() + static_cast<int>(distance) : simt::lane());
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_PLACE)
{
    const simt::deposits d = simt::exchange(mask, &value, sizeof value, false, file, line);
    const int within = (simt::lane() & (width - 1)) - static_cast<int>(distance);
    return simt::shuffled<T>(d, within >= 0 ? simt::lane() - static_cast<int>(distance) : simt::lane());
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_PLACE)
{
    const uint32_t mine = predicate != 0;
    const simt::deposits d = simt::exchange(mask, &mine, sizeof mine, false, file, line);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
        if (d.lanes >> i & 1)
            votes |= simt::shuffled<uint32_t>(d, i) << i;
    return votes;
}
static inline int __any_sync(unsigned mask, int predicate, SIMT_PLACE)
{
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, SIMT_PLACE)
{
    return __ballot_sync(mask, predicate == 0, file, line) == 0;
}

#endif
