/* test_simt.cu: the host's model of a GPU (kernels/cuda/host): what right kernels compute, in any order of threads, and that wrong
 * ones are caught and named. */
#include "cuda/mma.h"
extern "C" {
#include "lr_test.h"
}
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint64_t SEEDS[] = {0, 1, 2, 3, 77};
#define FOR_SEEDS                                                                                                      \
    for (const uint64_t seed : SEEDS)                                                                                  \
        if (simt::set_seed(seed), true)

/* Deterministic values in [-1, 1) that bf16 and f16 hold exactly. */
static float value(int i)
{
    return static_cast<float>((i * 37 + 11) % 64 - 32) / 32.0f;
}

/* ---- places ------------------------------------------------------------------------------------------------------------ */
static __global__ void places(int *out)
{
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    out[block * threads + thread] += static_cast<int>(block * 1000 + thread);
}

TEST(every_thread_of_a_grid_runs_once)
{
    FOR_SEEDS
    {
        int out[3 * 2 * 4 * 5 * 3 * 2] = {0};
        CHECK_INT(simt_launch("places", places, dim3(3, 2, 4), dim3(5, 3, 2), 0, nullptr, out), LR_OK);
        for (int i = 0; i < 24 * 30; i++)
            CHECK_INT(out[i], i / 30 * 1000 + i % 30);
    }
}

/* ---- sums and warp functions ------------------------------------------------------------------------------------------- */
static __global__ void sums(const float *x, float *sum, float *most)
{
    SIMT_SHARED(float, part, MAX_WARPS);
    const float mine = x[blockIdx.x * blockDim.x + threadIdx.x];
    const float total = block_sum(mine, part), largest = block_max(mine, part);
    sum[blockIdx.x * blockDim.x + threadIdx.x] = total;
    most[blockIdx.x * blockDim.x + threadIdx.x] = largest;
}

TEST(block_sum_and_max_reach_every_thread)
{
    FOR_SEEDS
    for (int threads = 32; threads <= 1024; threads += 32 * 31 / 4 / 32 * 32) {
        static float x[2048], sum[2048], most[2048];
        for (int i = 0; i < 2 * threads; i++)
            x[i] = value(i * i);
        CHECK_INT(simt_launch("sums", sums, dim3(2), dim3(static_cast<unsigned>(threads)), 0, nullptr, x, sum, most),
                  LR_OK);
        for (int b = 0; b < 2; b++) {
            double total = 0.0, largest = -1e9;
            for (int i = b * threads; i < (b + 1) * threads; i++) {
                total += x[i];
                largest = fmax(largest, x[i]);
            }
            for (int i = b * threads; i < (b + 1) * threads; i++) {
                CHECK_NEAR(sum[i], total, 0.0); /* sums of 32nds are exact */
                CHECK_NEAR(most[i], largest, 0.0);
            }
        }
    }
}

enum { SHUFFLES = 9 };
static __global__ void shuffles(int *out)
{
    const int lane = static_cast<int>(threadIdx.x % 32);
    int *mine = out + threadIdx.x * SHUFFLES;
    mine[0] = __shfl_sync(ALL_LANES, lane, 5);
    mine[1] = __shfl_sync(ALL_LANES, lane, 3, 8);
    mine[2] = __shfl_xor_sync(ALL_LANES, lane, 17);
    mine[3] = __shfl_down_sync(ALL_LANES, lane, 3);
    mine[4] = __shfl_up_sync(ALL_LANES, lane, 3, 16);
    mine[5] = static_cast<int>(__ballot_sync(ALL_LANES, lane % 3 == 0) & 0x7fffffff);
    mine[6] =
        __any_sync(ALL_LANES, lane == 40) + 2 * __all_sync(ALL_LANES, lane < 32) + 4 * __any_sync(ALL_LANES, lane == 7);
    if (lane < 16) /* two halves on their own */
        mine[7] = __shfl_xor_sync(0x0000ffffu, lane, 1);
    else
        mine[7] = __shfl_xor_sync(0xffff0000u, lane, 8);
    mine[8] = __syncthreads_count(threadIdx.x % 5 == 0) * 4 + __syncthreads_or(threadIdx.x == 63) * 2 +
              __syncthreads_and(threadIdx.x < 63);
}

TEST(shuffles_and_votes)
{
    FOR_SEEDS
    {
        int out[64 * SHUFFLES] = {0};
        CHECK_INT(simt_launch("shuffles", shuffles, dim3(1), dim3(64), 0, nullptr, out), LR_OK);
        for (int t = 0; t < 64; t++) {
            const int lane = t % 32, *mine = out + t * SHUFFLES;
            CHECK_INT(mine[0], 5);
            CHECK_INT(mine[1], lane / 8 * 8 + 3);
            CHECK_INT(mine[2], lane ^ 17);
            CHECK_INT(mine[3], lane + 3 < 32 ? lane + 3 : lane);
            CHECK_INT(mine[4], lane % 16 >= 3 ? lane - 3 : lane);
            CHECK_INT(mine[5], 0x49249249 & 0x7fffffff);
            CHECK_INT(mine[6], 6);
            CHECK_INT(mine[7], lane < 16 ? lane ^ 1 : lane ^ 8);
            CHECK_INT(mine[8], 13 * 4 + 2);
        }
    }
}

/* Lanes hand values on through shared memory, ordered by __syncwarp alone; a thread that is done is not waited for. */
static __global__ void hand_on(int *out)
{
    SIMT_SHARED(int, slot, 64);
    const unsigned t = threadIdx.x, warp = t / 32, lane = t % 32;
    slot[t] = static_cast<int>(t);
    for (int round = 0; round < 3; round++) {
        __syncwarp();
        const int next = slot[warp * 32 + (lane + 1) % 32];
        __syncwarp();
        slot[t] = next;
    }
    if (warp == 0) {
        out[t] = slot[t];
        return;
    }
    __syncthreads();
    out[t] = slot[t];
}

TEST(syncwarp_orders_memory_and_the_finished_are_not_waited_for)
{
    FOR_SEEDS
    {
        int out[64];
        CHECK_INT(simt_launch("hand_on", hand_on, dim3(1), dim3(64), 0, nullptr, out), LR_OK);
        for (int t = 0; t < 64; t++)
            CHECK_INT(out[t], t / 32 * 32 + (t + 3) % 32);
    }
}

/* ---- tensor cores ------------------------------------------------------------------------------------------------------ */
enum { M = 16, N = 16, K = 48, LD = 16 + 8, STAGES = 2 };

/* c[16,16] = a[16,K] b, b stored [n][k] or [k][n], by one warp, in slices of 16 fetched two ahead; rows of `a` from `rows` on are
 * 0. */
template <class T, bool BY_K> static __global__ void product(const T *a, const T *b, float *c, int rows)
{
    SIMT_DYNAMIC_SHARED(T, tiles);
    const int lane = static_cast<int>(threadIdx.x), g = lane / 4, q = lane % 4;
    float d[2][4] = {};
    for (int k = -STAGES; k < K / 16; k++) {
        if (k >= 0) {
            cp_async_wait<STAGES - 1>();
            __syncthreads();
            const smem<T> tile = tiles + k % (STAGES + 1) * 2 * 16 * LD, b_tile = tile + 16 * LD;
            uint32_t fa[4], fb[4];
            ldmatrix_x4(fa, tile + lane % 16 * LD + lane / 16 * 8);
            if (BY_K) {
                ldmatrix_x4_trans(fb, b_tile + lane % 16 * LD + lane / 16 * 8);
            } else {
                ldmatrix_x2(fb, b_tile + lane % 8 * LD + lane / 8 % 2 * 8);
                ldmatrix_x2(fb + 2, b_tile + (8 + lane % 8) * LD + lane / 8 % 2 * 8);
            }
            mma_16816<T>(d[0], fa, fb);
            mma_16816<T>(d[1], fa, fb + 2);
        }
        const int next = k + STAGES;
        if (next < K / 16) {
            const smem<T> tile = tiles + next % (STAGES + 1) * 2 * 16 * LD, b_tile = tile + 16 * LD;
            const int row = lane / 2, column = lane % 2 * 8;
            cp_async16_or_zero(tile + row * LD + column, a + (row < rows ? row : 0) * K + next * 16 + column,
                               row < rows);
            cp_async16(b_tile + row * LD + column,
                       BY_K ? b + (next * 16 + row) * N + column : b + row * K + next * 16 + column);
        }
        cp_async_commit();
    }
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            c[(g + i / 2 * 8) * N + n * 8 + 2 * q + i % 2] = d[n][i];
}

template <class T, bool BY_K> static void check_product(int rows)
{
    alignas(16) T a[M * K], b[K * N];
    float c[M * N];
    for (int i = 0; i < M * K; i++)
        a[i] = from_float<T>(value(i));
    for (int i = 0; i < K * N; i++)
        b[i] = from_float<T>(value(3 * i + 5));
    const size_t bytes = (STAGES + 1) * 2 * 16 * LD * sizeof(T);
    CHECK_INT(simt_launch("product", product<T, BY_K>, dim3(1), dim3(32), bytes, nullptr, a, b, c, rows), LR_OK);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0.0;
            for (int k = 0; k < K && i < rows; k++)
                sum += static_cast<double>(to_float(a[i * K + k])) * to_float(BY_K ? b[k * N + j] : b[j * K + k]);
            CHECK_NEAR(c[i * N + j], sum, 0.0); /* exact for these values */
        }
}

TEST(tensor_core_products_with_every_layout_and_a_pipeline)
{
    FOR_SEEDS
    {
        check_product<bf16, false>(16);
        check_product<bf16, true>(9);
        check_product<f16, false>(1);
        check_product<f16, true>(16);
    }
}

static __global__ void fragments(uint32_t *out, float2 *back)
{
    SIMT_SHARED(bf16, tile, 4 * 8 * 8);
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < 256; i += 32)
        tile[i] = from_float<bf16>(static_cast<float>(i));
    __syncwarp();
    uint32_t r[4], two[2];
    ldmatrix_x4(r, tile + lane * 8);
    ldmatrix_x2_trans(two, tile + lane * 8);
    for (int m = 0; m < 4; m++)
        out[lane * 6 + m] = r[m];
    out[lane * 6 + 4] = two[0];
    out[lane * 6 + 5] = two[1];
    back[lane] = unpack2<bf16>(pack2<bf16>(1.0f, -2.5f));
}

TEST(fragments_are_where_the_manual_says)
{
    uint32_t out[32 * 6];
    float2 back[32];
    CHECK_INT(simt_launch("fragments", fragments, dim3(1), dim3(32), 0, nullptr, out, back), LR_OK);
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, q = lane % 4;
        for (int m = 0; m < 4; m++) {
            CHECK_NEAR(unpack2<bf16>(out[lane * 6 + m]).x, m * 64 + g * 8 + 2 * q, 0.0);
            CHECK_NEAR(unpack2<bf16>(out[lane * 6 + m]).y, m * 64 + g * 8 + 2 * q + 1, 0.0);
        }
        CHECK_NEAR(unpack2<bf16>(out[lane * 6 + 5]).x, 64 + 2 * q * 8 + g, 0.0);
        CHECK_NEAR(unpack2<bf16>(out[lane * 6 + 5]).y, 64 + (2 * q + 1) * 8 + g, 0.0);
        CHECK_NEAR(back[lane].x, 1.0, 0.0);
        CHECK_NEAR(back[lane].y, -2.5, 0.0);
    }
}

/* ---- faults: one kernel, one mistake at a time ------------------------------------------------------------------------- */
enum mistake {
    NONE,
    NO_BARRIER_BEFORE_READING,
    NO_BARRIER_BEFORE_WRITING_AGAIN,
    NO_SYNCWARP,
    TWO_WRITERS,
    TWO_WRITERS_OF_A_WARP,
    NOT_WRITTEN,
    OFF_BY_ONE,
    BELOW,
    DIVERGENT_BARRIER,
    BARRIER_FOR_SOME,
    SHUFFLE_FOR_SOME,
    SHUFFLE_WITHOUT_ME,
    SHUFFLES_DIFFER,
    MASKS_OVERLAP,
    READS_AN_ABSENT_LANE,
    COPY_NOT_WAITED_FOR,
    COPY_NOT_COMMITTED,
    COPY_WITHOUT_BARRIER,
    COPY_INTO_WHAT_IS_READ,
    MISALIGNED,
    DEEP_STACK
};

static int use_much_stack(int depth)
{
    volatile char room[1024];
    room[depth] = static_cast<char>(depth);
    if (depth == 160) {
        __syncthreads();
        return room[depth];
    }
    return use_much_stack(depth + 1) + room[depth];
}

static __global__ void wrong(mistake m, const float *x, float *out)
{
    SIMT_SHARED(float, buffer, 128);
    const int t = static_cast<int>(threadIdx.x), lane = t % 32;
    if (m == NOT_WRITTEN ? t != 100 : true)
        buffer[m == TWO_WRITERS && t == 127 ? 0 : m == TWO_WRITERS_OF_A_WARP && t == 1 ? 0 : t] = x[t];
    if (m == NO_SYNCWARP && t < 32)
        out[0] = buffer[lane ^ 1];
    if (m == COPY_INTO_WHAT_IS_READ) {
        __syncthreads();
        out[t] = buffer[t];
        if (t == 0)
            cp_async16(buffer + 64, x);
    }
    if (m == COPY_NOT_WAITED_FOR || m == COPY_NOT_COMMITTED || m == COPY_WITHOUT_BARRIER) {
        __syncthreads();
        if (t % 4 == 0)
            cp_async16(buffer + t, x + t);
        if (m != COPY_NOT_COMMITTED)
            cp_async_commit();
        if (m != COPY_NOT_WAITED_FOR)
            cp_async_wait<0>();
        if (m != COPY_WITHOUT_BARRIER)
            __syncthreads();
        else if (t == 5)
            out[0] = buffer[5];
    }
    if (m == BARRIER_FOR_SOME && t >= 96)
        __shfl_sync(ALL_LANES, 0, 0);
    if (m == BARRIER_FOR_SOME && t == 3)
        __syncwarp(8 + 16);
    if (m == DIVERGENT_BARRIER && t % 2 == 0)
        __syncthreads();
    else if (m != NO_BARRIER_BEFORE_READING)
        __syncthreads();
    float y = buffer[m == OFF_BY_ONE ? t + 1 : m == BELOW ? t - 1 : 127 - t];
    if (m == MISALIGNED) {
        const float2 pair = smem_cast<float2>(buffer + 1)[t / 4];
        y = pair.x;
    }
    if (m == SHUFFLE_FOR_SOME && lane != 7)
        y = warp_sum(y);
    if (m == SHUFFLE_WITHOUT_ME)
        y = __shfl_sync(0xfffffffeu, y, 3);
    if (m == SHUFFLES_DIFFER) {
        if (lane == 0)
            y = __shfl_sync(ALL_LANES, y, 3);
        else
            y = __shfl_sync(ALL_LANES, y, 4);
    }
    if (m == MASKS_OVERLAP)
        y = __shfl_sync(lane < 16 ? ALL_LANES : 0xffff0000u, y, 16);
    if (m == READS_AN_ABSENT_LANE && lane < 16)
        y = __shfl_sync(0x0000ffffu, y, 20);
    if (m == DEEP_STACK)
        y = static_cast<float>(use_much_stack(0));
    if (m != NO_BARRIER_BEFORE_WRITING_AGAIN)
        __syncthreads();
    buffer[t] = y;
    out[t] = buffer[t];
}

/* The order of threads decides which of two things goes wrong first. */
static void check_wrong(mistake m, const char *message, const char *or_message = nullptr)
{
    FOR_SEEDS
    {
        alignas(16) float x[128], out[128];
        for (int i = 0; i < 128; i++)
            x[i] = value(i);
        CHECK_INT(simt_launch("wrong", wrong, dim3(2), dim3(128), 0, nullptr, m, x, out), LR_EINTERNAL);
        CHECK_HAS(lr_last_error(), "wrong: block ");
        if (or_message == nullptr || strstr(lr_last_error(), or_message) == nullptr)
            CHECK_HAS(lr_last_error(), message);
    }
}

TEST(a_right_kernel_passes)
{
    FOR_SEEDS
    {
        alignas(16) float x[128], out[128];
        for (int i = 0; i < 128; i++)
            x[i] = value(i);
        CHECK_INT(simt_launch("wrong", wrong, dim3(2), dim3(128), 0, nullptr, NONE, x, out), LR_OK);
        for (int i = 0; i < 128; i++)
            CHECK_NEAR(out[i], x[127 - i], 0.0);
    }
}

TEST(missing_barriers_are_caught_in_every_order)
{
    check_wrong(NO_BARRIER_BEFORE_READING, "with no barrier since", "which nobody wrote");
    check_wrong(NO_BARRIER_BEFORE_WRITING_AGAIN, "with no barrier since");
    check_wrong(NO_SYNCWARP, "with no barrier since", "which nobody wrote");
    check_wrong(TWO_WRITERS, "with no barrier since");
    check_wrong(TWO_WRITERS_OF_A_WARP, "with no barrier since");
}

TEST(accesses_out_of_place_are_caught)
{
    check_wrong(NOT_WRITTEN, "reads buffer[100], which nobody wrote");
    check_wrong(OFF_BY_ONE, "buffer[128] is outside: it has 128 elements of 4 bytes");
    check_wrong(BELOW, "buffer[-1] is outside");
    check_wrong(MISALIGNED, "an access of 8 bytes at offset");
}

TEST(threads_that_part_are_caught)
{
    check_wrong(DIVERGENT_BARRIER, "divergent barriers: this thread is at test_simt.cu:");
    check_wrong(BARRIER_FOR_SOME, "deadlock");
    check_wrong(SHUFFLE_FOR_SOME, "deadlock");
    check_wrong(SHUFFLE_WITHOUT_ME, "calls with mask fffffffe, which lacks it");
    check_wrong(SHUFFLES_DIFFER, "divergent warp: this lane is at test_simt.cu:");
    check_wrong(MASKS_OVERLAP, "with mask ");
    check_wrong(READS_AN_ABSENT_LANE, "a shuffle reads lane 20, which takes no part in it");
}

TEST(copies_out_of_order_are_caught)
{
    check_wrong(COPY_NOT_WAITED_FOR, "the target of a cp.async");
    check_wrong(COPY_NOT_COMMITTED, "the target of a cp.async");
    check_wrong(COPY_WITHOUT_BARRIER, "with no barrier since", "the target of a cp.async");
    check_wrong(COPY_INTO_WHAT_IS_READ, "with no barrier since", "the target of a cp.async");
}

TEST(a_thread_that_needs_too_much_stack_is_caught)
{
    check_wrong(DEEP_STACK, "of stack");
}

static __global__ void nothing()
{
}

TEST(launches_that_a_gpu_would_refuse)
{
    CHECK_INT(simt_launch("nothing", nothing, dim3(1), dim3(1025), 0, nullptr), LR_EINTERNAL);
    CHECK_HAS(lr_last_error(), "a block has 1 to 1024 threads");
    CHECK_INT(simt_launch("nothing", nothing, dim3(0), dim3(32), 0, nullptr), LR_EINTERNAL);
    CHECK_INT(simt_launch("nothing", nothing, dim3(1, 65536), dim3(32), 0, nullptr), LR_EINTERNAL);
    CHECK_INT(simt_launch("nothing", nothing, dim3(1), dim3(32), 164 * 1024, nullptr), LR_EINTERNAL);
    CHECK_INT(simt_launch("nothing", nothing, dim3(1), dim3(32), 0, nullptr), LR_OK);
}

/* ---- device memory ------------------------------------------------------------------------------------------------------ */
/* Host code that follows a device pointer ends the process, as it would with a GPU. */
TEST(the_host_cannot_touch_device_memory)
{
    lr_tensor *t = nullptr;
    const int64_t n = 4;
    CHECK_INT(lr_tensor_new(&t, LR_F32, 1, &n, LR_CUDA, "x"), LR_OK);
    CHECK_INT(lr_tensor_fill(t, 1.0), LR_OK);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        close(STDERR_FILENO); /* a sanitizer would say much */
        volatile const float *data = static_cast<const float *>(t->data);
        _exit(data[0] > 100.0f);
    }
    int how = 0;
    CHECK(child > 0 && waitpid(child, &how, 0) == child);
    CHECK(!WIFEXITED(how) || WEXITSTATUS(how) != 0);
    lr_tensor_destroy(t);
}

TEST_MAIN()
